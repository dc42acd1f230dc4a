"""Reading the folder of a Hugging Face model: which tensors it has and where. All problems are reported in one message.

A safetensors file is 8 bytes with the length of its header; the header, JSON of {name: dtype, shape, data_offsets}; then
the data without gaps. Format: https://github.com/huggingface/safetensors

The headers are parsed here, not by the safetensors library. The library needs a file on a disk, stops at the first mistake
and does not name the tensor ("incomplete metadata, file not fully covered"), and accepts a name that comes twice. Its
`get_slice` would not save code either: our cuts are along axes that share a dimension of the tensor (heads and head size).

A file on a disk is mapped into memory. Of a file in a bucket only the bytes in use are requested; no copy of it is made.
"""

import json
import mmap
import warnings
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, in_bucket, read_ranges, size_of

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
FLOATS = {"F32": np.dtype("<f4"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F64": np.dtype("<f8")}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_LFS_START = b"version https://git-lfs"
_HEADER_BYTES = 100_000_000  # the limit of the format
GAP_BYTES = 1 << 20  # a shorter gap is read with its neighbours: another request takes as long as some megabytes
_COMPARED_BYTES = 16 << 20  # of a tensor at a time
_MAX_SHOWN = 12  # problems of one kind

Shape = tuple[int, ...]
_Wanted = dict[str, tuple[Shape, ...]]  # {tensor: the shapes that it may have}
_Problem = tuple[str, str]  # (kind, what)
_KINDS = ("file", "cut short", "header", "twice", "index", "shape", "dtype", "missing", "unexpected")  # as they are reported


class Stored(NamedTuple):
    """A tensor in a file, from its byte `start` to its byte `stop`."""

    name: str
    file: AnyPath
    dtype: str  # as the header spells it
    shape: Shape
    start: int
    stop: int


class _Index(NamedTuple):
    """Which file has which tensor."""

    file_of: dict[str, str] | None  # {tensor: name of its file}; None without an index, where one file has all tensors
    total: object  # bytes of all tensors, as the index says
    problems: list[_Problem]


def open_checkpoint(folder: str | Path, wanted: _Wanted, copies: Mapping[str, str] | None = None) -> dict[str, Stored]:
    """Finds each wanted tensor and checks everything that the headers say. Reads no weights, but for `copies`.

    copies: {tensor: another one}. A tensor that is not wanted is passed over if it holds the same bytes as the other.
    Raises FileNotFoundError without a checkpoint, and one UserError that lists every problem with the name of its tensor.
    """
    folder = as_path(folder)
    file_of, total, problems = _open_index(folder)
    place = dict.fromkeys(wanted, _SINGLE) if file_of is None else file_of
    stored: dict[str, Stored] = {}
    unread = set()
    for file in sorted(set(place.values())):
        try:
            tensors, wrong = _read_header(folder / file)
        except (OSError, ValueError) as error:
            problems.append(("file", f"{file} {error}"))
            unread.add(file)
            continue
        problems += wrong
        for tensor in tensors:
            if tensor.name in stored:
                problems.append(("twice", f"{tensor.name} (in {stored[tensor.name].file.name} and {file})"))
            stored[tensor.name] = tensor
    lost = {name for name, file in place.items() if file in unread}
    known = wanted | {
        name: (stored[name].shape,) for name, other in (copies or {}).items() if name not in wanted and _same(name, other, stored)
    }
    problems += _against_index(file_of or {}, stored, known, lost) + _against_config(file_of or {}, stored, known, lost)
    if problems:
        raise UserError(_message(folder, problems, stored, wanted))
    found = sum(tensor.stop - tensor.start for tensor in stored.values())
    if total is not None and total != found:
        what = f"{folder / _INDEX}: total_size is {total}, the tensors have {found} bytes; they are used all the same"
        warnings.warn(what, stacklevel=2)
    return {name: stored[name] for name in wanted}


def _same(name: str, other: str, stored: dict[str, Stored]) -> bool:
    """Whether two tensors are there and have the same bytes; some rows are compared at a time."""
    if name not in stored or other not in stored:
        return False
    one, two = stored[name], stored[other]
    if (one.dtype, one.shape) != (two.dtype, two.shape) or one.dtype not in FLOATS or not one.shape:
        return False
    (_, a), (_, b) = (*read_tensors([one]), *read_tensors([two]))
    rows, bits = one.shape[0], f"u{FLOATS[one.dtype].itemsize}"
    step = max(1, _COMPARED_BYTES * rows // (one.stop - one.start))
    for at in range(0, rows, step):
        index = (slice(at, min(rows, at + step)), *(slice(0, size) for size in one.shape[1:]))
        parts = [x.view(bits).read(index) if isinstance(x, Ranged) else x.view(bits)[index] for x in (a, b)]
        if not np.array_equal(*parts):
            return False
    return True


def _message(folder: AnyPath, problems: list[_Problem], stored: dict[str, Stored], wanted: _Wanted) -> str:
    """Every kind of problem with its first few cases, and hints at the usual causes."""
    kinds: dict[str, list[str]] = {}
    for kind, what in sorted(problems, key=lambda problem: _KINDS.index(problem[0])):
        kinds.setdefault(kind, []).append(what)
    lines = [f"{folder}: the weights do not fit config.json ({len(problems)} problem{'s' * (len(problems) > 1)})"]
    for kind, cases in kinds.items():
        lines += [f"{kind}: {what}" for what in cases[:_MAX_SHOWN]]
        lines += [f"{kind}: and {len(cases) - _MAX_SHOWN} more"] if len(cases) > _MAX_SHOWN else []
    return "\n".join([*lines, *_hints(stored, set(stored) - set(wanted), set(kinds))])


def _hints(stored: dict[str, Stored], extra: set[str], kinds: set[str]) -> Iterator[str]:
    if kinds & {"header", "cut short"}:
        yield "hint: a damaged file must be downloaded again"
    if "lm_head.weight" in extra:
        yield "hint: tie_word_embeddings is true, yet there is an lm_head.weight; set it to false in config.json"
    if any(name.startswith(("visual.", "model.layers.", "model.embed_tokens.")) for name in extra):
        yield "hint: names without model.visual / model.language_model are an old layout; save it with transformers"
    if any("lora_" in name for name in extra):
        yield "hint: an adapter is not a model; merge it into its base first"
    if any(tensor.dtype not in FLOATS for tensor in stored.values()):
        yield f"hint: only {', '.join(FLOATS)} are read; take the checkpoint that is not quantised"


def _against_config(file_of: dict[str, str], stored: dict[str, Stored], wanted: _Wanted, lost: set[str]) -> list[_Problem]:
    """Problems of shapes, dtypes and names, compared with the config. Tensors `lost` with their file are not reported again."""
    problems = []
    for name in sorted(wanted.keys() & stored.keys()):
        shape, dtype = stored[name].shape, stored[name].dtype
        if shape not in wanted[name]:
            problems.append(("shape", f"{name} is {shape}, the config needs {' or '.join(map(str, wanted[name]))}"))
        if dtype not in FLOATS:
            problems.append(("dtype", f"{name} is {dtype}"))
    for name in sorted(wanted.keys() - stored.keys() - lost):
        problems.append(("missing", name + (f" (in {file_of[name]}, says the index)" if name in file_of else "")))
    return problems + [("unexpected", name) for name in sorted(stored.keys() - wanted.keys())]


def _against_index(file_of: dict[str, str], stored: dict[str, Stored], wanted: _Wanted, lost: set[str]) -> list[_Problem]:
    """Problems of the index, compared with its files. An index that differs may belong to another checkpoint."""
    problems = []
    for name, file in sorted(file_of.items()):
        if name not in stored and name not in lost and name not in wanted:
            problems.append(("index", f"says that {name} is in {file}, which does not hold it"))
        elif name in stored and stored[name].file.name != file:
            problems.append(("index", f"says that {name} is in {file}, it is in {stored[name].file.name}"))
    for name in sorted(stored.keys() & wanted.keys() - file_of.keys()) if file_of else []:
        problems.append(("index", f"does not know {name}, which is in {stored[name].file.name}"))
    return problems


def _open_index(folder: AnyPath) -> _Index:
    """Raises FileNotFoundError without a checkpoint, UserError for pickles alone and for a file that is not an index."""
    path, single = folder / _INDEX, (folder / _SINGLE).is_file()
    if path.is_file():
        index = _read_index(path)
        if single and _SINGLE not in index.file_of.values():
            beside = f"{_SINGLE} is beside an index that does not name it: remove the one that does not belong"
            index.problems.append(("file", beside))
        return index
    if single:
        return _Index(None, None, [])
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder}: only pickled weights ({', '.join(pickles[:3])}); they can run code and are refused; "
            f"save them as {_SINGLE} with transformers"
        )
    raise FileNotFoundError(f"{folder}: neither {_SINGLE} nor {_INDEX}; give the folder of a Hugging Face model")


def _read_index(path: AnyPath) -> _Index:
    """The index of a folder, without entries for files outside the folder or of another kind."""
    try:
        _refuse_other_kinds(path)
        index = json.loads(path.read_text(encoding="utf-8"))
        found, total = dict(index["weight_map"].items()), (index.get("metadata") or {}).get("total_size")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not an index of safetensors files ({error}); download it again") from error
    strange = {
        name: file
        for name, file in found.items()
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors")
    }
    kept = {name: file for name, file in found.items() if name not in strange}
    names = sorted({repr(file) for file in strange.values()})
    return _Index(kept, total, [("index", f"names {file}; only safetensors files beside the index are read") for file in names])


def _refuse_other_kinds(path: AnyPath) -> None:
    """Raises UserError for the three lines of text that a clone without git-lfs leaves, and for pickles, which can run code."""
    (start,) = read_ranges(path, [(0, min(size_of(path), len(_LFS_START)))])
    if start == _LFS_START:
        raise UserError("is a Git LFS pointer, not the file: run `git lfs pull` in the model's folder")
    if start.startswith(_PICKLE_STARTS) and start[8:9] != b"{":  # the length of a header can look like the start of a pickle
        raise UserError(f"is a pickle, which can run code and is refused: save it as {_SINGLE} with transformers")


def _read_header(path: AnyPath) -> tuple[list[Stored], list[_Problem]]:
    """The tensors of a file, and the problems of single ones. Raises UserError where the header cannot be read."""
    if not path.is_file():
        raise UserError("is missing: download it again")
    _refuse_other_kinds(path)
    size = size_of(path)
    (start,) = read_ranges(path, [(0, min(size, 8))])
    length = int.from_bytes(start, "little")
    if size < 8 or length > _HEADER_BYTES:
        raise UserError(f"is not a safetensors file: {size} bytes, with a header of {length}")
    (text,) = read_ranges(path, [(8, min(size, 8 + length))])
    if len(text) < length:
        raise UserError(f"is cut short at {size} bytes, inside its header of {length}")
    pairs: list[tuple[str, Any]] = []
    try:
        header = json.loads(text, object_pairs_hook=lambda items: pairs.clear() or pairs.extend(items) or dict(items))
    except ValueError as error:
        raise UserError(f"has a damaged header ({error})") from error
    if not isinstance(header, dict):
        raise UserError(f"has a {type(header).__name__} as its header")
    # The outermost object is parsed last, so `pairs` holds its entries, also those whose name comes twice.
    entries = [(name, entry) for name, entry in pairs if name != "__metadata__"]
    return _check_entries(path, entries, first=8 + length, size=size)


def _check_entries(path: AnyPath, entries: list, *, first: int, size: int) -> tuple[list[Stored], list[_Problem]]:
    """first: where the data begin; size: of the file; both in bytes."""
    tensors, problems = [], []
    for name, entry in entries:
        try:
            start, stop = (first + int(offset) for offset in entry["data_offsets"])
            tensor = Stored(name, path, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), start, stop)
        except (KeyError, TypeError, ValueError, OverflowError):
            problems.append(("header", f"{name} in {path.name} has no usable dtype, shape and data_offsets"))
            continue
        tensors.append(tensor)
        bits = FLOATS.get(tensor.dtype)
        if bits is not None and stop - start != (need := prod(tensor.shape) * bits.itemsize):
            problems.append(
                ("header", f"{name} in {path.name} is {tensor.dtype} of {tensor.shape}, {need} bytes, and has {stop - start}")
            )
    end = first
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop)):
        if tensor.start != end:
            what = f"{tensor.name} in {path.name} begins at byte {tensor.start}, the one before it ends at {end}"
            problems.append(("header", what))
        end = max(end, tensor.stop)
        if tensor.stop > size:
            problems.append(("cut short", f"{tensor.name} ends at byte {tensor.stop}, {path.name} has {size}"))
    if end < size:
        problems.append(("header", f"{path.name} has {size - end} bytes after its last tensor"))
    return tensors, problems


class Ranged(NamedTuple):
    """A tensor in a bucket, in place of the view of a mapped file. `read` requests a part of it."""

    file: AnyPath
    start: int  # byte of the file
    dtype: np.dtype
    shape: Shape
    recent: dict[tuple, list[bytes]]  # the last bytes read: devices that share rows take their parts from them

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def reshape(self, shape: Shape) -> "Ranged":
        return self._replace(shape=tuple(shape))

    def view(self, dtype: Any) -> "Ranged":
        return self._replace(dtype=np.dtype(dtype))

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part that `index`, one slice per axis, selects."""
        spans, inner = _spans(self.shape, index, self.itemsize)
        places = tuple((self.start + first, self.start + last) for first, last in spans)
        if places not in self.recent:
            texts = read_ranges(self.file, places)
            self.recent.clear()
            self.recent[places] = texts
        rows = [np.frombuffer(text, self.dtype) for text in self.recent[places]]
        return np.concatenate([inner(row) for row in rows]).reshape([part.stop - part.start for part in index])


def _spans(shape: Shape, index: tuple[slice, ...], itemsize: int) -> tuple[list[tuple[int, int]], Callable]:
    """(spans of bytes to read, a function that takes the wanted numbers out of one span).

    For shape (6, 4, 2) and the part [1:3, 0:2, :], two rows of 8 numbers are cut to 4 each. A short gap is read with them, as
    the numbers 8 to 24; this serves the other parts of these rows too. Around a long gap they are read apart, as 8 to 12 and
    16 to 20.
    """
    row = prod(shape[1:])
    at, stop = index[0].start, index[0].stop
    if all(part == slice(0, size) for part, size in zip(index[1:], shape[1:], strict=True)):
        return [(at * row * itemsize, stop * row * itemsize)], lambda numbers: numbers
    within = prod(part.stop - part.start for part in index[1:])
    if (row - within) * itemsize < GAP_BYTES:
        rows = (slice(None), *index[1:])
        span = (at * row * itemsize, stop * row * itemsize)
        return [span], lambda numbers: numbers.reshape(stop - at, *shape[1:])[rows].reshape(-1)
    inner, take = _spans(shape[1:], index[1:], itemsize)
    return [(i * row * itemsize + a, i * row * itemsize + b) for i in range(at, stop) for a, b in inner], take


def read_tensors(tensors: list[Stored]) -> Iterator[tuple[Stored, Any]]:
    """The tensors file by file, in the order of their bytes. A file is mapped only while its tensors are in use.

    Nothing is read before a copy is made: arrays are views of the mapped file, or `Ranged` for a bucket.
    """
    for file in sorted({tensor.file for tensor in tensors}):
        of_file = sorted((one for one in tensors if one.file == file), key=lambda one: one.start)
        if in_bucket(file):
            for tensor in of_file:
                yield tensor, Ranged(file, tensor.start, FLOATS[tensor.dtype], tensor.shape, {})
            continue
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last array that views it
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        data = np.frombuffer(mapped, np.uint8)
        for tensor in of_file:
            yield tensor, data[tensor.start : tensor.stop].view(FLOATS[tensor.dtype]).reshape(tensor.shape)
