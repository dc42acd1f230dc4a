"""Reading the folder of a Hugging Face model: which tensors it holds, and where."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATS = ("F32", "BF16", "F16", "F64")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LFS_START = b"version https://git-lfs"

Shape = tuple[int, ...]


def open_checkpoint(folder: str | Path, wanted: dict[str, tuple[Shape, ...]]) -> dict[str, Path]:
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
            if name in wanted and shape not in wanted[name]:
                problems.append(f"shape: {name} is {shape}, the config needs {' or '.join(map(str, wanted[name]))}")
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
