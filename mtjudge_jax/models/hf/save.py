"""Writing the parameter tree as a Hugging Face folder, with the files of the model that it came from."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from mtjudge_jax.errors import UserError
from mtjudge_jax.hosts.exchange import together
from mtjudge_jax.models.hf.folder import MODEL_CONFIG, SHARD_BYTES, Tensor, write_folder
from mtjudge_jax.models.hf.table import Weight, model_weights, to_hf
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config
from mtjudge_jax.paths import as_path
from mtjudge_jax.types import Params

_COMPANIONS = (
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "LICENSE",
)  # fmt: skip


def save_hf(
    params: Params,
    folder: str | os.PathLike,
    *,
    source_folder: str | os.PathLike,
    dtype: Any,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a Hugging Face folder in the hub's layout, which transformers and vLLM load. Every process must call; process
    0 writes.

    The weights are `params` cast to dtype. Config, tokenizer, chat template, preprocessor and generation config come from
    `source_folder` (see `companions`); `files` adds others by name. A shard holds at most shard_bytes, or one tensor. The
    folder appears whole or not at all (in a bucket: see `write_folder`).

    Raises UserError where the tree does not fit the source's config, FileExistsError where the folder exists (unless
    `overwrite` is set and the folder holds a model), OSError where it cannot be written.
    """
    dtype = np.dtype(dtype)
    with together():  # a process that cannot read these files ends the call on all, before any tensor is sent
        cfg, beside = load_config(source_folder), companions(source_folder, dtype)
    write_folder(
        folder,
        _tensors(params, cfg, dtype),
        beside | dict(files or {}),
        dtype=dtype,
        shard_bytes=shard_bytes,
        overwrite=overwrite,
        writes=jax.process_index() == 0,
    )


def _tensors(params: Params, cfg: Qwen3VLConfig, dtype: np.dtype) -> Iterator[Tensor]:
    """Every tensor of the tree."""
    flat = flatten_dict(params, sep="/")
    wanted = {weight.path: weight.shape for weight in model_weights(cfg)}
    found = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    if wrong := sorted({path for path, _ in wanted.items() ^ found.items()}):
        lines = [f"{path}: has {found.get(path)}, needs {wanted.get(path)}" for path in wrong]
        raise UserError("\n".join(["the parameters do not fit the source folder's config.json:", *lines]))
    yield from leaf_tensors(flat, model_weights(cfg), dtype)


def leaf_tensors(flat: Params, declared: Iterable[Weight], dtype: np.dtype) -> Iterator[Tensor]:
    """The tensors of the declared leaves of a flattened tree. A tensor comes to the host when its read() is called."""
    for weight in declared:
        for i, name in enumerate(weight.names):
            at = None if weight.stack is None else i
            yield Tensor(name, weight.tensor_shape, partial(_to_host, weight, flat[weight.path], at, dtype))


def _to_host(weight: Weight, leaf: Any, i: int | None, dtype: np.dtype) -> np.ndarray:
    """One tensor of a leaf on this host, gathered from all processes where they share it."""
    layer = leaf if i is None else leaf[i]
    if isinstance(layer, jax.Array) and not layer.is_fully_addressable:
        layer = multihost_utils.process_allgather(layer, tiled=True)
    return to_hf(weight, np.asarray(layer).astype(dtype))


def companions(source: str | os.PathLike, dtype: np.dtype) -> dict[str, bytes]:
    """The files of the source that are not weights, by name. Its config gets the dtype of the weights that are written, both
    spellings of the rotary angles, and in both places whether the head is tied, as its top level says.

    Loaders believe the config's dtype. transformers ties by the top level, vLLM by text_config. transformers 5 and libraries
    built on it read `rope_parameters`; everything older reads `rope_theta` and `rope_scaling`. Each silently takes a default
    where it finds only the other's spelling.
    """
    source = as_path(source)
    files = {name: (source / name).read_bytes() for name in _COMPANIONS if (source / name).is_file()}
    text = (source / MODEL_CONFIG).read_bytes()
    raw = json.loads(text)
    for part in (raw, raw["text_config"], raw["vision_config"]):
        for key in part.keys() & {"dtype", "torch_dtype"}:
            part[key] = dtype.name
    if not raw.keys() & {"dtype", "torch_dtype"}:
        raw["dtype"] = dtype.name
    _spell_rope(raw["text_config"])
    raw["text_config"]["tie_word_embeddings"] = raw.setdefault("tie_word_embeddings", False)
    return {MODEL_CONFIG: text if raw == json.loads(text) else json.dumps(raw, indent=2).encode() + b"\n"} | files


def _spell_rope(text: dict) -> None:
    """Adds the missing spelling; `rope_parameters` wins where both are present, as in transformers 5."""
    both = dict(text.get("rope_scaling") or {}) | dict(text.get("rope_parameters") or {})
    both.setdefault("rope_theta", text.get("rope_theta"))
    both.setdefault("rope_type", both.pop("type", "default"))
    text["rope_parameters"], text["rope_theta"] = both, both["rope_theta"]
    text["rope_scaling"] = {key: value for key, value in both.items() if key != "rope_theta"}
