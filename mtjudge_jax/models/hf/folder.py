"""Writing a folder of safetensors shards and other files, so that it appears whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mtjudge_jax.hosts.exchange import first_text, together
from mtjudge_jax.models.hf.shards import Shape
from mtjudge_jax.paths import (
    AnyPath,
    as_path,
    clean_failure,
    copy_file,
    explain,
    files_below,
    in_bucket,
    remove_tree,
    write_whole,
)

MODEL_CONFIG = "config.json"
SHARD_BYTES = 5_000_000_000
_SLACK_BYTES = 1 << 20  # for headers and the index
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}  # as safetensors spells them


class Tensor(NamedTuple):
    """A tensor to write. `read` brings it to the host when its turn comes."""

    name: str
    shape: Shape
    read: Callable[[], np.ndarray]


def write_folder(
    folder: str | os.PathLike,
    tensors: Iterable[Tensor],
    files: Mapping[str, bytes],
    *,
    dtype: np.dtype,
    overwrite: bool,
    writes: bool,
    shard_bytes: int = SHARD_BYTES,
    stem: str = "model",
    marker: str = MODEL_CONFIG,
) -> None:
    """Writes `tensors` in shards of at most `shard_bytes` (or one tensor) and `files` by name. The host holds one tensor.

    stem: `model` makes model.safetensors, or model-00001-of-00002.safetensors .. and model.safetensors.index.json. marker: the
    file that shows that an existing folder may be replaced with `overwrite`. writes: True on one process; the others read the
    tensors too, because reading one may need every process.

    Everything is written beside the folder, which is renamed when complete. After an error nothing is left of it, and an older
    folder is unchanged. Raises FileExistsError for a folder that must not be replaced, and OSError, on every process, where the
    disk has no room for all of it or cannot be written to.

    A bucket cannot rename. There too everything is first written beside the folder, which takes long and leaves the older
    folder alone. Then the older marker is removed, the bucket copies the files into place, and the marker comes last. So a
    folder with a marker is complete. It has none for those seconds, and after a kill in between the next call completes it.
    """
    folder = as_path(folder)
    with together():
        check_target(folder, marker=marker, overwrite=overwrite)
    shards = _plan(tensors, dtype.itemsize, shard_bytes)
    total = dtype.itemsize * sum(prod(tensor.shape) for shard in shards for tensor in shard)
    many = len(shards) > 1
    name = f"{stem}-{{:05d}}-of-{len(shards):05d}.safetensors" if many else f"{stem}.safetensors"
    names = [name.format(at) for at in range(1, len(shards) + 1)]
    if many:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        files = dict(files) | {f"{stem}.safetensors.index.json": json.dumps(index, indent=2).encode() + b"\n"}
    temporary, problem = _part(folder), ""
    try:
        if writes:
            _, problem = _attempt(folder, lambda: _begin(temporary, folder, files, total, marker))
        for name, shard in zip(names, shards, strict=True):
            file = None
            if writes and not problem:
                file, problem = _attempt(folder, lambda name=name: (temporary / name).open("wb"))
            problem = _write_shard(file, shard, dtype, folder) or problem
        if writes and not problem:
            problem = _target_problem(folder, marker, overwrite)  # another command may have filled it meanwhile
        if writes and not problem:
            _, problem = _attempt(folder, lambda: _swap(temporary, folder, marker, files[marker]))
    except BaseException:
        if writes:
            _discard(temporary, marker)
        raise
    if problem := first_text(problem):
        if writes:
            _discard(temporary, marker)
        raise OSError(f"{folder}: {problem}")


def _begin(temporary: AnyPath, folder: AnyPath, files: Mapping[str, bytes], total: int, marker: str) -> None:
    _recover(folder, marker)
    remove_tree(temporary)
    temporary.mkdir(parents=True)
    if not in_bucket(folder):
        # Checked before anything is written, not an hour later.
        need, free = total + sum(map(len, files.values())) + _SLACK_BYTES, shutil.disk_usage(folder.parent).free
        if free < need:
            raise OSError(f"needs {need:,} bytes and {free:,} are free; free some space, or give a folder on another disk")
    for name, content in files.items():
        if name != marker or not in_bucket(folder):
            write_whole(temporary / name, content)


def _discard(temporary: AnyPath, marker: str) -> None:
    """Removes the unfinished folder. In a bucket a complete one stays: part of the older folder may already be gone, and the
    next call puts this one in its place.
    """
    if not in_bucket(temporary) or _attempt(temporary, (temporary / marker).exists) == (False, ""):
        _attempt(temporary, lambda: remove_tree(temporary))


def _attempt(folder: AnyPath, call: Callable[[], Any]) -> tuple[Any, str]:
    """(what the call returns, "") or (None, the error of the disk or bucket). It does not raise, because the other processes
    would wait forever for one that stopped.
    """
    try:
        with clean_failure():
            return call(), ""
    except Exception as error:
        if in_bucket(folder):
            return None, explain(error)
        if not isinstance(error, OSError):
            raise
        return None, error.strerror or str(error)


def _write_shard(file: BinaryIO | None, shard: list[Tensor], dtype: np.dtype, folder: AnyPath) -> str:
    """Writes one safetensors file: the length of the header, the header, then the numbers, tensor after tensor.

    Returns the first error. All tensors are read even after one, because other processes take part in the reading.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in shard:
        start, end = end, end + prod(tensor.shape) * dtype.itemsize
        header[tensor.name] = {"dtype": _CODES[dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers start at a multiple of eight bytes
    problem = _attempt(folder, lambda: file.write(len(text).to_bytes(8, "little") + text))[1] if file else ""
    for tensor in shard:
        array = np.ascontiguousarray(tensor.read(), dtype)
        if array.shape != tensor.shape:
            raise ValueError(f"{tensor.name}: read() gave the shape {array.shape}, declared is {tensor.shape}")
        if file and not problem:
            numbers = array.reshape(-1).view(np.uint8).data
            _, problem = _attempt(folder, lambda numbers=numbers: file.write(numbers))
            del numbers
        del array  # before the next one is read
    closing = _attempt(folder, file.close)[1] if file else ""
    if closing and in_bucket(folder):
        file.closed = True  # otherwise gcsfs sends it again when the object is collected
    return problem or closing


def _plan(tensors: Iterable[Tensor], itemsize: int, shard_bytes: int) -> list[list[Tensor]]:
    """Fills shards in order and starts a new one when the next tensor does not fit.

    huggingface_hub's split_state_dict_into_shards_factory would not be shorter here: it wants every tensor in memory, and it
    puts a tensor larger than a shard elsewhere, so the bytes of an export would change.
    """
    shards, room = [], -1
    for tensor in tensors:
        size = prod(tensor.shape) * itemsize
        if size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    return shards


def check_target(folder: AnyPath, *, marker: str, overwrite: bool) -> None:
    """Raises FileExistsError for a folder that must not be replaced: an export only ever deletes an older export."""
    if problem := _target_problem(folder, marker, overwrite):
        raise FileExistsError(f"{folder}: {problem}")


def _target_problem(folder: AnyPath, marker: str, overwrite: bool) -> str:
    """Why the folder must not be replaced, or ""."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return ""
    if not overwrite:
        return "exists already; give a new folder, or --overwrite (overwrite=True in Python)"
    if in_bucket(folder) and (_part(folder) / marker).exists():
        return ""  # half replaced
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if marker in names and any(name.endswith(".safetensors") for name in names):
        return ""
    missing = "weights" if marker in names else marker  # the folder of a run has a config.json too
    return f"exists and is not a model folder (it has no {missing}); give a new folder"


def _part(folder: AnyPath) -> AnyPath:
    return folder.parent / f".{folder.name}.part"


def _old(folder: AnyPath) -> AnyPath:
    return folder.parent / f".{folder.name}.old"


def _swap(temporary: AnyPath, folder: AnyPath, marker: str, content: bytes) -> None:
    """Puts the finished folder in the place of an older one."""
    if in_bucket(folder):
        write_whole(temporary / marker, content)  # from here on the folder beside is complete
        _copy_over(temporary, folder, marker)
        return
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def _copy_over(temporary: AnyPath, folder: AnyPath, marker: str) -> None:
    """In a bucket: the marker is removed first and copied last."""
    (folder / marker).unlink(missing_ok=True)
    names = [*(name for name in files_below(temporary) if name != marker), marker]
    for name in files_below(folder):
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    for name in names:
        copy_file(temporary / name, folder / name)
    remove_tree(temporary)


def _recover(folder: AnyPath, marker: str) -> None:
    """After a kill during `_swap`: puts an older folder back, or, in a bucket, completes the replacement."""
    if in_bucket(folder):
        temporary = _part(folder)
        if (temporary / marker).exists() and not (folder / marker).exists():
            _copy_over(temporary, folder, marker)
    elif not folder.exists() and _old(folder).exists():
        os.rename(_old(folder), folder)
