"""Writing the folder of a Hugging Face model: weights in shards, beside them the files of its source, whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config
from mtjudge_jax.models.qwen3_vl.files import INDEX, SINGLE, Shape

COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "LICENSE",
)  # fmt: skip


class Tensor(NamedTuple):
    """A tensor to be written: `read` brings it to the host when its turn comes."""

    name: str
    shape: Shape
    read: Callable[[], np.ndarray]


def write_folder(
    folder: str | Path,
    *,
    source_folder: str | Path,
    dtype: np.dtype,
    shard_bytes: int,
    overwrite: bool,
    writes: bool,
    tensors: Callable[[Qwen3VLConfig], Iterator[Tensor]],
) -> None:
    """Writes a model folder: tensors(config of the source) in shards, and the source's companion files.

    Where `writes` is False (all processes but one) the tensors are still read, since reading them may need every
    process. See `convert.save_hf` for the rest.
    """
    folder, source = Path(folder), Path(source_folder)
    _check_target(folder, overwrite=overwrite)
    shards = _plan(tensors(load_config(source)), dtype.itemsize, shard_bytes)
    temporary = folder.parent / f".{folder.name}.part"
    if writes:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _copy_companions(source, temporary, dtype)
    weight_map, total = {}, 0
    for at, shard in enumerate(shards):
        name = SINGLE if len(shards) == 1 else f"model-{at + 1:05d}-of-{len(shards):05d}.safetensors"
        arrays = {tensor.name: tensor.read() for tensor in shard}
        weight_map |= dict.fromkeys(arrays, name)
        total += sum(array.nbytes for array in arrays.values())
        if writes:
            save_file(arrays, temporary / name, metadata={"format": "pt"})
            shutil.copymode(temporary / "config.json", temporary / name)  # safetensors leaves files to their owner alone
    if not writes:
        return
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _swap(temporary, folder)


def _plan(tensors: Iterator[Tensor], itemsize: int, shard_bytes: int) -> list[list[Tensor]]:
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


def _check_target(folder: Path, *, overwrite: bool) -> None:
    """An export must not delete what is not an export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{folder}: exists already; give a new folder, or ask for overwrite")
    if not (folder / "config.json").is_file():
        raise FileExistsError(f"{folder}: exists and is no model folder (no config.json); give a new folder")


def _copy_companions(source: Path, target: Path, dtype: np.dtype) -> None:
    """Copies what is not weights; config.json says which dtype the weights have, since loaders believe it."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    changed = False
    for part in (config, config["text_config"], config["vision_config"]):
        for key in part.keys() & {"dtype", "torch_dtype"}:
            changed |= part[key] != dtype.name
            part[key] = dtype.name
    if changed:
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _swap(temporary: Path, folder: Path) -> None:
    """Puts the finished folder in place of an older one."""
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
