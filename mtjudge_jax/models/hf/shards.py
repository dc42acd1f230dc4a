"""Reading the folder of a Hugging Face model: which tensors it holds, and where. All that is wrong is said at once.

A safetensors file is 8 bytes, the length of its header; the header, JSON of {name: dtype, shape, data_offsets}; then
the data, gapless. Headers are parsed here, since the library stops at the first mistake and does not say whose it is.
Format: https://github.com/huggingface/safetensors

A file of a disk is mapped into memory; of a bucket the bytes that are asked for are, and no copy of a file is made.
"""

import json
import mmap
import warnings
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, in_bucket, read_ranges, size_of

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = {"F32": np.dtype("<f4"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2"), "F64": np.dtype("<f8")}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
LFS_START = b"version https://git-lfs"
HEADER_BYTES = 100_000_000  # the format's own limit
GAP_BYTES = 1 << 20  # that are read rather than asked around: a request takes as long as some megabytes
SHOWN = 12  # problems of one kind that are spelled out

Shape = tuple[int, ...]
Wanted = dict[str, tuple[Shape, ...]]  # the shapes that a tensor may have
Problem = tuple[str, str]  # (kind, what)
KINDS = ("file", "cut short", "header", "twice", "index", "shape", "dtype", "missing", "unexpected")  # in order of the message


class Stored(NamedTuple):
    """A tensor in a file, from byte `start` to byte `stop` of it."""

    name: str
    file: AnyPath
    dtype: str  # as the header spells it
    shape: Shape
    start: int
    stop: int


class Index(NamedTuple):
    """What tells the tensors' files. file_of: {tensor: name of its file}, None without an index, where one file has all."""

    file_of: dict[str, str] | None
    total: object  # bytes of all tensors, as the index has it
    problems: list[Problem]


def open_checkpoint(folder: str | Path, wanted: Wanted) -> dict[str, Stored]:
    """Finds each wanted tensor and checks everything that headers tell.

    Reads no weights. Raises FileNotFoundError without a checkpoint, ValueError listing all that is wrong, by name.
    """
    folder = as_path(folder)
    file_of, total, problems = _open_index(folder)
    place = dict.fromkeys(wanted, SINGLE) if file_of is None else file_of
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
    problems += _against_index(file_of or {}, stored, wanted, lost) + _against_config(file_of or {}, stored, wanted, lost)
    if problems:
        raise UserError(_message(folder, problems, stored, wanted))
    found = sum(tensor.stop - tensor.start for tensor in stored.values())
    if total is not None and total != found:
        warnings.warn(f"{folder / INDEX}: total_size is {total}, the tensors have {found} bytes and are used", stacklevel=2)
    return {name: stored[name] for name in wanted}


def _message(folder: AnyPath, problems: list[Problem], stored: dict[str, Stored], wanted: Wanted) -> str:
    """Every kind of problem with its first few cases, and what usually lies behind them."""
    kinds: dict[str, list[str]] = {}
    for kind, what in sorted(problems, key=lambda problem: KINDS.index(problem[0])):
        kinds.setdefault(kind, []).append(what)
    lines = [f"{folder}: the weights do not fit config.json ({len(problems)} problem{'s' * (len(problems) > 1)})"]
    for kind, cases in kinds.items():
        lines += [f"{kind}: {what}" for what in cases[:SHOWN]]
        lines += [f"{kind}: and {len(cases) - SHOWN} more"] if len(cases) > SHOWN else []
    return "\n".join([*lines, *_hints(stored, set(stored) - set(wanted), set(kinds))])


def _hints(stored: dict[str, Stored], extra: set[str], kinds: set[str]) -> Iterator[str]:
    if kinds & {"header", "cut short"}:
        yield "hint: a damaged file is mended by downloading it again"
    if "lm_head.weight" in extra:
        yield "hint: tie_word_embeddings is true, yet there is an lm_head.weight; set it to false in config.json"
    if any(name.startswith(("visual.", "model.layers.", "model.embed_tokens.")) for name in extra):
        yield "hint: names without model.visual / model.language_model are an old layout; save it with transformers"
    if any("lora_" in name for name in extra):
        yield "hint: an adapter is not a model; merge it into its base first"
    if any(tensor.dtype not in FLOATS for tensor in stored.values()):
        yield f"hint: only {', '.join(FLOATS)} are read; take the checkpoint that is not quantised"


def _against_config(file_of: dict[str, str], stored: dict[str, Stored], wanted: Wanted, lost: set[str]) -> list[Problem]:
    """Shapes, dtypes and names against what the config needs; nothing is said about what is `lost` with its file."""
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


def _against_index(file_of: dict[str, str], stored: dict[str, Stored], wanted: Wanted, lost: set[str]) -> list[Problem]:
    """An index that says anything else than its files may be the index of another checkpoint."""
    problems = []
    for name, file in sorted(file_of.items()):
        if name not in stored and name not in lost and name not in wanted:
            problems.append(("index", f"says that {name} is in {file}, which does not hold it"))
        elif name in stored and stored[name].file.name != file:
            problems.append(("index", f"says that {name} is in {file}, it is in {stored[name].file.name}"))
    for name in sorted(stored.keys() & wanted.keys() - file_of.keys()) if file_of else []:
        problems.append(("index", f"does not know {name}, which is in {stored[name].file.name}"))
    return problems


def _open_index(folder: AnyPath) -> Index:
    """Raises FileNotFoundError without a checkpoint, ValueError where there are only pickles or the index is none."""
    path, single = folder / INDEX, (folder / SINGLE).is_file()
    if path.is_file():
        index = _read_index(path)
        if single and SINGLE not in index.file_of.values():
            beside = f"{SINGLE} lies beside an index that does not name it: remove the one that is not meant"
            index.problems.append(("file", beside))
        return index
    if single:
        return Index(None, None, [])
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder}: only pickled weights ({', '.join(pickles[:3])}); they can run code and are refused; "
            f"save them as {SINGLE} with transformers"
        )
    raise FileNotFoundError(f"{folder}: neither {SINGLE} nor {INDEX}; give the folder of a Hugging Face model")


def _read_index(path: AnyPath) -> Index:
    """The index of a folder, without entries that lead out of it or to another kind of file."""
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
    return Index(kept, total, [("index", f"names {file}; only safetensors files beside the index are read") for file in names])


def _refuse_other_kinds(path: AnyPath) -> None:
    """A clone without git-lfs leaves three lines of text where the weights should be; pickles can run code."""
    (start,) = read_ranges(path, [(0, min(size_of(path), len(LFS_START)))])
    if start == LFS_START:
        raise UserError("is a Git LFS pointer, not the file: run `git lfs pull` in the model's folder")
    if start.startswith(PICKLE_STARTS) and start[8:9] != b"{":  # a header of 640 bytes begins like a pickle
        raise UserError(f"is a pickle, which can run code and is refused: save it as {SINGLE} with transformers")


def _read_header(path: AnyPath) -> tuple[list[Stored], list[Problem]]:
    """The tensors of a file and what is wrong with single ones. Raises ValueError where there is no telling."""
    if not path.is_file():
        raise UserError("is not there: download it again")
    _refuse_other_kinds(path)
    size = size_of(path)
    (start,) = read_ranges(path, [(0, min(size, 8))])
    length = int.from_bytes(start, "little")
    if size < 8 or length > HEADER_BYTES:
        raise UserError(f"is no safetensors file: {size} bytes that begin with a header of {length}")
    (text,) = read_ranges(path, [(8, min(size, 8 + length))])
    if len(text) < length:
        raise UserError(f"is cut short at {size} bytes, inside its header of {length}")
    pairs: list[tuple[str, Any]] = []
    try:
        header = json.loads(text, object_pairs_hook=lambda items: pairs.clear() or pairs.extend(items) or dict(items))
    except ValueError as error:
        raise UserError(f"has a damaged header ({error})") from error
    if not isinstance(header, dict):
        raise UserError(f"has a {type(header).__name__} for a header")
    # The outermost object closes last, so `pairs` is what it holds, a name that comes twice included.
    entries = [(name, entry) for name, entry in pairs if name != "__metadata__"]
    return _check_entries(path, entries, first=8 + length, size=size)


def _check_entries(path: AnyPath, entries: list[tuple[str, Any]], *, first: int, size: int) -> tuple[list[Stored], list[Problem]]:
    """first: where the data begin; size: of the file, both in bytes."""
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
        problems.append(("header", f"{path.name} has {size - end} bytes behind its last tensor"))
    return tensors, problems


class Ranged(NamedTuple):
    """A tensor in a bucket: what an array's view of a mapped file is on a disk. Indexing reads, and only what is asked for."""

    file: AnyPath
    start: int  # byte of the file
    dtype: np.dtype
    shape: Shape
    recent: dict[tuple, list[bytes]]  # what was read last: devices that share rows take their parts of it

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def reshape(self, shape: Shape) -> "Ranged":
        return self._replace(shape=tuple(shape))

    def view(self, dtype: Any) -> "Ranged":
        return self._replace(dtype=np.dtype(dtype))

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part, a slice an axis. Where what lies between its pieces is short, it is read with them, see `_spans`."""
        spans, inner = _spans(self.shape, index, self.itemsize)
        places = tuple((self.start + first, self.start + last) for first, last in spans)
        if places not in self.recent:
            texts = read_ranges(self.file, places)
            self.recent.clear()
            self.recent[places] = texts
        rows = [np.frombuffer(text, self.dtype) for text in self.recent[places]]
        return np.concatenate([inner(row) for row in rows]).reshape([part.stop - part.start for part in index])


def _spans(shape: Shape, index: tuple[slice, ...], itemsize: int) -> tuple[list[tuple[int, int]], Callable]:
    """(bytes from and to of what must be read, what takes the wanted numbers out of one such span).

    With shape (6, 4, 2) and the part [1:3, 0:2, :], two rows of 8 numbers are cut to 4 each: read with what is between them, as
    numbers 8 to 24, which serves the other parts of these rows too, or apart, as 8 to 12 and 16 to 20.
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
    """The tensors as they lie in their files, file by file, in order; each file is open once, and only meanwhile.

    What is not copied from them is not read: arrays are views of the mapped file, of a bucket they are `Ranged`.
    """
    for file in sorted({tensor.file for tensor in tensors}):
        of_file = sorted((one for one in tensors if one.file == file), key=lambda one: one.start)
        if in_bucket(file):
            for tensor in of_file:
                yield tensor, Ranged(file, tensor.start, FLOATS[tensor.dtype], tensor.shape, {})
            continue
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)  # gone with the last array that looks at it
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        data = np.frombuffer(mapped, np.uint8)
        for tensor in of_file:
            yield tensor, data[tensor.start : tensor.stop].view(FLOATS[tensor.dtype]).reshape(tensor.shape)
