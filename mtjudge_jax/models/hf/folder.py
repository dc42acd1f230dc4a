"""Writing the folder of a Hugging Face model: weights in shards, beside them the files of its source, whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mtjudge_jax.errors import UserError
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

CONFIG = "config.json"
COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "LICENSE",
)  # fmt: skip
SHARD_BYTES = 5_000_000_000
SLACK_BYTES = 1 << 20  # headers and index
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}  # of the safetensors format


class Tensor(NamedTuple):
    """A tensor to be written: `read` brings it to the host when its turn comes."""

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
    marker: str = CONFIG,
) -> None:
    """Writes `tensors` in shards of at most `shard_bytes` (or one tensor) and `files` by name; the host holds one tensor.

    stem: `model` makes model.safetensors, or model-00001-of-00002.safetensors .. and model.safetensors.index.json. marker: the
    file that a folder must have to be replaced with `overwrite`. Where `writes` is False (all processes but one) the tensors
    are still read, since reading them may need every process. Everything is written beside the folder and renamed when
    complete; on an error nothing is left and an older folder is as it was. Raises FileExistsError for a folder that must not
    be replaced, OSError without room for all of it or where it cannot be written, on every process.

    In a bucket nothing is renamed. There too everything is written beside the folder first, which takes long and leaves an
    older one alone; then the older marker is removed, the bucket copies the files into place and `marker` comes last. Who finds
    the marker finds all; for those seconds there is none, and the next writing ends what a kill left in between.
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
            _, problem = _trying(folder, lambda: _begin(temporary, folder, files, total, marker))
        for name, shard in zip(names, shards, strict=True):
            file = None
            if writes and not problem:
                file, problem = _trying(folder, lambda name=name: (temporary / name).open("wb"))
            problem = _write_shard(file, shard, dtype, folder) or problem
        if writes and not problem:
            _, problem = _trying(folder, lambda: _swap(temporary, folder, marker, files[marker]))
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
        _check_room(folder, total + sum(map(len, files.values())) + SLACK_BYTES)
    for name, content in files.items():
        if name != marker or not in_bucket(folder):
            write_whole(temporary / name, content)


def _discard(temporary: AnyPath, marker: str) -> None:
    """In a bucket not what is complete: of the older folder a part may be gone already, the next writing puts this in place."""
    if not in_bucket(temporary) or _trying(temporary, (temporary / marker).exists) == (False, ""):
        _trying(temporary, lambda: remove_tree(temporary))


def _trying(folder: AnyPath, call: Callable[[], Any]) -> tuple[Any, str]:
    """(what it returns, "") or (None, what disk or bucket refused): nobody must wait for the process that could not write."""
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
    """One safetensors file, tensor after tensor: the length of the header, the header, the numbers.

    All tensors are read whatever happens to the file, since other processes take part; returns what did.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in shard:
        start, end = end, end + prod(tensor.shape) * dtype.itemsize
        header[tensor.name] = {"dtype": CODES[dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers start on a multiple of eight
    problem = _trying(folder, lambda: file.write(len(text).to_bytes(8, "little") + text))[1] if file else ""
    for tensor in shard:
        array = np.ascontiguousarray(tensor.read(), dtype)
        if array.shape != tensor.shape:
            raise UserError(f"{tensor.name} is {array.shape} where {tensor.shape} was planned; mend what reads it")
        if file and not problem:
            numbers = array.reshape(-1).view(np.uint8).data
            _, problem = _trying(folder, lambda numbers=numbers: file.write(numbers))
            del numbers
        del array  # before the next one is read
    closing = _trying(folder, file.close)[1] if file else ""
    if closing and in_bucket(folder):
        file.closed = True  # else it is sent again when nobody holds it any more
    return problem or closing


def _plan(tensors: Iterable[Tensor], itemsize: int, shard_bytes: int) -> list[list[Tensor]]:
    """Fills shards in order, a new one whenever the next tensor would not fit."""
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
    """Raises FileExistsError for a folder that must not be replaced: an export must not delete what is not an export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{folder}: exists already; give a new folder, or ask for overwrite")
    half_replaced = in_bucket(folder) and (_part(folder) / marker).exists()
    if not half_replaced and not (folder / marker).is_file():
        raise FileExistsError(f"{folder}: exists and is no model folder (no {marker}); give a new folder")


def _check_room(folder: AnyPath, need: int) -> None:
    """Better now than an hour later."""
    free = shutil.disk_usage(folder.parent).free
    if free < need:
        raise OSError(f"needs {need:,} bytes and {free:,} are free; free some space, or give a folder elsewhere")


def companions(source: str | os.PathLike, dtype: np.dtype) -> dict[str, bytes]:
    """What is not weights, by name: the source's files, in its config the dtype that the weights have and both spellings of
    the rotary angles.

    Loaders believe the config's dtype. transformers 5 and what builds on it read `rope_parameters`, everything older
    `rope_theta` and `rope_scaling`, and each takes a silent default for the other's.
    """
    source = as_path(source)
    files = {name: (source / name).read_bytes() for name in COMPANIONS if (source / name).is_file()}
    text = (source / CONFIG).read_bytes()
    raw = json.loads(text)
    for part in (raw, raw["text_config"], raw["vision_config"]):
        for key in part.keys() & {"dtype", "torch_dtype"}:
            part[key] = dtype.name
    if not raw.keys() & {"dtype", "torch_dtype"}:
        raw["dtype"] = dtype.name
    _spell_rope(raw["text_config"])
    return {CONFIG: text if raw == json.loads(text) else json.dumps(raw, indent=2).encode() + b"\n"} | files


def _spell_rope(text: dict) -> None:
    """Adds what is missing; `rope_parameters` wins where both are present, as in transformers 5."""
    both = dict(text.get("rope_scaling") or {}) | dict(text.get("rope_parameters") or {})
    both.setdefault("rope_theta", text.get("rope_theta"))
    both.setdefault("rope_type", both.pop("type", "default"))
    text["rope_parameters"], text["rope_theta"] = both, both["rope_theta"]
    text["rope_scaling"] = {key: value for key, value in both.items() if key != "rope_theta"}


def _part(folder: AnyPath) -> AnyPath:
    return folder.parent / f".{folder.name}.part"


def _old(folder: AnyPath) -> AnyPath:
    return folder.parent / f".{folder.name}.old"


def _swap(temporary: AnyPath, folder: AnyPath, marker: str, content: bytes) -> None:
    """Puts the finished folder in place of an older one."""
    if in_bucket(folder):
        write_whole(temporary / marker, content)  # from here on what is beside is complete
        _copy_over(temporary, folder, marker)
        return
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def _copy_over(temporary: AnyPath, folder: AnyPath, marker: str) -> None:
    """In a bucket: the marker is the first to go and the last to come."""
    (folder / marker).unlink(missing_ok=True)
    names = [*(name for name in files_below(temporary) if name != marker), marker]
    for name in files_below(folder):
        if name not in names:
            (folder / name).unlink(missing_ok=True)
    for name in names:
        copy_file(temporary / name, folder / name)
    remove_tree(temporary)


def _recover(folder: AnyPath, marker: str) -> None:
    """Puts an older folder back, or ends the replacing, where a kill came in between."""
    if in_bucket(folder):
        temporary = _part(folder)
        if (temporary / marker).exists() and not (folder / marker).exists():
            _copy_over(temporary, folder, marker)
    elif not folder.exists() and _old(folder).exists():
        os.rename(_old(folder), folder)
