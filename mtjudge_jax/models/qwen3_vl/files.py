"""The files of a Hugging Face model folder: which tensors it holds, and writing a new one."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = ("F32", "BF16", "F16", "F64")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LFS_START = b"version https://git-lfs"
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "LICENSE",
)  # fmt: skip

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """A tensor to be written: `read` brings it to the host when its turn comes."""

    name: str
    shape: Shape
    read: Callable[[], np.ndarray]


def open_checkpoint(folder: str | Path, wanted: dict[str, Shape]) -> dict[str, Path]:
    """Finds each wanted tensor's file and checks names, shapes and dtypes from the headers; reads no weights.

    Returns {tensor name: file}. Raises FileNotFoundError without a checkpoint, ValueError listing everything that is
    wrong.
    """
    files, problems = {}, []
    for path in _checkpoint_files(Path(folder)):
        for name, (shape, dtype) in _header(path).items():
            if name in files:
                problems.append(f"twice: {name} (in {files[name].name} and {path.name})")
            files[name] = path
            if name in wanted and shape != wanted[name]:
                problems.append(f"shape: {name} is {shape}, the config needs {wanted[name]}")
            if dtype not in FLOATS:
                problems.append(f"dtype: {name} is {dtype}, only {', '.join(FLOATS)} are read; take an unquantised one")
    missing, extra = sorted(wanted.keys() - files.keys()), sorted(files.keys() - wanted.keys())
    problems += [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in extra]
    if problems:
        title = f"{folder}: the weights do not fit config.json ({len(problems)} problems)"
        raise ValueError("\n".join([title, *problems, *_hints(extra)]))
    return files


def _hints(extra: list[str]) -> list[str]:
    """What usually lies behind unexpected names."""
    hints = []
    if "lm_head.weight" in extra:
        hints.append("hint: tie_word_embeddings is true, yet there is an lm_head.weight; set it to false in config.json")
    if any(name.startswith(("visual.", "model.layers.", "model.embed_tokens.")) for name in extra):
        hints.append("hint: names without model.visual / model.language_model are an old layout; save it with transformers")
    if any("lora_" in name for name in extra):
        hints.append("hint: an adapter is not a model; merge it into its base first")
    return hints


def _checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those the index names, or the single one."""
    index = folder / INDEX
    if index.is_file():
        names = _index_files(index)
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise ValueError(
                f"{folder}: only pickled weights ({', '.join(pickles[:3])}); they can run code and are refused; "
                f"save them as {SINGLE} with transformers"
            )
        raise FileNotFoundError(f"{folder}: neither {SINGLE} nor {INDEX}; give the folder of a Hugging Face model")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{folder}: {INDEX} names absent files: {', '.join(absent)}; download them again")
    return [folder / name for name in names]


def _index_files(index: Path) -> list[str]:
    """The files an index names, each once; plain names only, an index must not lead out of its folder."""
    _refuse_pointer(index)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index}: not an index of safetensors files ({error!r}); download it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: names {name!r}; only safetensors files beside the index are read")
    return names


def _refuse_pointer(path: Path) -> None:
    """A clone without git-lfs leaves three lines of text where the weights should be."""
    with path.open("rb") as file:
        if file.read(len(LFS_START)) == LFS_START:
            raise ValueError(f"{path}: a Git LFS pointer, not the file; run `git lfs pull` in the model's folder")


def _header(path: Path) -> dict[str, tuple[Shape, str]]:
    """{name: (shape, dtype)} of one file."""
    _refuse_pointer(path)
    try:
        with safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (the handle is no mapping)
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(f"{path}: damaged or cut short at {size} bytes ({error}); download it again") from error


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
