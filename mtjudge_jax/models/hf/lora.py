"""Adapters of the decoder (Hu et al., arXiv 2106.09685): merging them into their base, and their files in PEFT's format.

The adapter of a weight W [L, in.., out..] is A [L, in.., R] and B [L, R, out..]: W + alpha / rank * A B. PEFT keeps an
adapter in one folder with `adapter_config.json` and `adapter_model.safetensors`; the latter holds A as (R, in) and B as
(out, R), once for every layer. Both files are written and read here without PEFT. A PEFT option that changes the numbers
and is not implemented here is refused.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from math import inf, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open

from mtjudge_jax.errors import UserError
from mtjudge_jax.models.hf.folder import write_folder
from mtjudge_jax.models.hf.save import leaf_tensors
from mtjudge_jax.models.hf.shards import FLOATS
from mtjudge_jax.models.hf.table import TABLE, Weight, to_ours
from mtjudge_jax.models.qwen3_vl.config import DENSE_TYPE, MOE_TYPE, AdapterConfig, Qwen3VLConfig
from mtjudge_jax.models.qwen3_vl.text import LORA_AXES, lora_shapes
from mtjudge_jax.paths import AnyPath, as_path, nearby, read_object, size_of
from mtjudge_jax.types import Params

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_LAYERS = "text/layers/"
_ROOT = "base_model.model."  # of the names: PEFT's wrapper and its tuner
_MODULES = {f"{target}_proj": target for target in LORA_AXES}
# PEFT options that do not change the numbers of a trained adapter on a plain base.
_HARMLESS = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "target_modules", "lora_alpha", "lora_dropout", "init_lora_weights", "megatron_core", "qalora_group_size", "layers_pattern",
    "exclude_modules", "runtime_config", "loftq_config", "eva_config",
)  # fmt: skip
# Every other initialisation changes the weights of the base when the adapter is made or loaded.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
_MAX_SHOWN = 12  # problems in one message


def merge_lora(params: Params, cfg: Qwen3VLConfig) -> Params:
    """The tree of an ordinary model. Every adapted weight becomes W + alpha / rank * A B, computed in float32, one layer at a
    time, and kept in W's dtype and sharding. The other leaves are the same arrays.
    """
    lora = _lora_of(cfg)
    flat = flatten_dict(params, sep="/")
    if missing := [name for name in lora_shapes(cfg.text, lora) if _LAYERS + name not in flat]:
        raise ValueError(f"no adapters to merge: {', '.join(missing)} are not in the parameters, but in cfg.lora")
    for target in lora.targets:
        before, after = LORA_AXES[target]
        a, b = flat.pop(f"{_LAYERS}{target}_lora_a_l{before}r"), flat.pop(f"{_LAYERS}{target}_lora_b_lr{after}")
        w = flat[_base_path(target)]
        sharding = w.sharding if isinstance(w, jax.Array) else None
        flat[_base_path(target)] = _merge(before, after, lora.alpha / lora.rank, sharding)(w, a, b)
    return unflatten_dict(flat, sep="/")


@cache
def _merge(before: str, after: str, scale: float, sharding: Sharding | None) -> Callable:
    """The jitted sum of one target. It is cached because a run merges whenever validation improves."""

    def layer(wab):
        w, a, b = (x.astype(jnp.float32) for x in wab)
        low = jnp.einsum(f"{before}r,r{after}->{before}{after}", a, b, precision="highest")
        return (w + scale * low).astype(wab[0].dtype)

    return jax.jit(lambda *wab: jax.lax.map(layer, wab), out_shardings=sharding)


def _base_path(target: str) -> str:
    """`text/layers/q_ldnh` of q."""
    before, after = LORA_AXES[target]
    return f"{_LAYERS}{target}_l{before}{after}"


def _adapter_weights(cfg: Qwen3VLConfig) -> list[Weight]:
    """The leaves of the adapters and the tensors in which PEFT keeps them, two per target."""
    text, lora = cfg.text, _lora_of(cfg)
    sizes = {"d": text.hidden_size, "f": text.intermediate_size, "n": text.num_heads, "k": text.num_kv_heads, "h": text.head_dim}
    sizes |= {"r": lora.rank}
    made = []
    for target in lora.targets:
        before, after = LORA_AXES[target]
        module = _ROOT + TABLE[_base_path(target)][0].removesuffix("weight")
        for leaf, name, axes, groups in (
            (f"{target}_lora_a_l{before}r", "lora_A.weight", before + "r", ("r", before)),
            (f"{target}_lora_b_lr{after}", "lora_B.weight", "r" + after, (after, "r")),
        ):
            shape = tuple(prod(sizes[axis] for axis in group) for group in groups)
            made.append(Weight(_LAYERS + leaf, module + name, text.num_layers, tuple(axes), groups, sizes, shape))
    return made


def _lora_of(cfg: Qwen3VLConfig) -> AdapterConfig:
    if cfg.lora is None:
        raise ValueError("this config has no adapters: its `lora` must be their rank, alpha and targets")
    if cfg.text.moe and (single := {"gate", "up", "down"} & set(cfg.lora.targets)):
        raise UserError(f"targets {', '.join(sorted(single))}: a mixture of experts has several of each; take q, k, v, o")
    return cfg.lora


def save_peft(
    params: Params,
    folder: str | os.PathLike,
    cfg: Qwen3VLConfig,
    *,
    base_model: str,
    dtype: Any,
    overwrite: bool = False,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes the adapters in `params` as a folder that `peft` loads onto transformers' model. Every process must call; process
    0 writes.

    base_model: where PEFT's loaders find the base, a folder or a name on a hub. dtype: of the tensors. files: more files, by
    name. The folder appears whole or not at all. Raises FileExistsError when the folder exists, unless `overwrite` is set and
    it holds an adapter.
    """
    flat, dtype = flatten_dict(params, sep="/"), np.dtype(dtype)
    declared = _adapter_weights(cfg)
    found = {weight.path: tuple(flat[weight.path].shape) if weight.path in flat else None for weight in declared}
    if wrong := [f"{w.path}: has {found[w.path]}, needs {w.shape}" for w in declared if found[w.path] != w.shape]:
        raise ValueError("\n".join(["the adapters do not fit cfg.lora:", *wrong]))
    config = json.dumps(_peft_config(cfg, base_model), indent=2) + "\n"
    write_folder(
        folder,
        leaf_tensors(flat, declared, dtype),
        {ADAPTER_CONFIG: config.encode()} | dict(files or {}),
        dtype=dtype,
        overwrite=overwrite,
        writes=jax.process_index() == 0,
        shard_bytes=sys.maxsize,  # PEFT reads a single file
        stem=ADAPTER_WEIGHTS.removesuffix(".safetensors"),
        marker=ADAPTER_CONFIG,
    )


def _peft_config(cfg: Qwen3VLConfig, base_model: str) -> dict[str, Any]:
    """The contents of `adapter_config.json`. By `auto_mapping` PEFT's own loader finds the class of the base."""
    lora = _lora_of(cfg)
    kind = "Qwen3VLMoe" if cfg.text.moe else "Qwen3VL"
    family = MOE_TYPE if cfg.text.moe else DENSE_TYPE
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {
            "base_model_class": f"{kind}ForConditionalGeneration",
            "parent_library": f"transformers.models.{family}.modeling_{family}",
        },
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "target_modules": [f"{target}_proj" for target in lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }


def read_peft_config(folder: str | os.PathLike) -> AdapterConfig:
    """Rank, alpha and targets of a PEFT folder.

    Raises FileNotFoundError without `adapter_config.json`, and one UserError that lists every option that is not supported.
    """
    path = as_path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; give a folder that PEFT's save_pretrained or `mtjudge export` wrote")
    raw = read_object(path)
    problems = _refused(raw)
    rank, alpha, modules = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if not (isinstance(rank, int) and rank >= 1):
        problems.append(f"r is {rank!r}; it must be a whole number of at least 1")
    if not (isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and 0 < alpha < inf):
        problems.append(f"lora_alpha is {alpha!r}; it must be a number above 0")
    names = [str(name).rsplit(".", 1)[-1] for name in modules] if isinstance(modules, list) else []
    if not names or not set(names) <= _MODULES.keys():
        problems.append(f"target_modules is {modules!r}; it must be a list of {', '.join(_MODULES)}")
    if problems:
        raise UserError("\n".join([f"{path}: cannot be used ({len(problems)} problem{'s' * (len(problems) > 1)})", *problems]))
    return AdapterConfig(rank, float(alpha), tuple(target for module, target in _MODULES.items() if module in names))


def _refused(raw: Mapping[str, Any]) -> list[str]:
    """A line for each option that is set and would change the numbers."""
    problems = []
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type is {raw.get('peft_type')!r}; only 'LORA' is supported")
    if raw.get("init_lora_weights", True) not in _INITIALISATIONS:
        problems.append(f"init_lora_weights is {raw['init_lora_weights']!r}, which changes the base; convert it with PEFT first")
    for name, value in raw.items():
        if name not in _HARMLESS and value not in (None, False, {}, [], "none"):
            problems.append(f"{name} is {value!r}, which is not supported; train or convert the adapter without it")
    return problems


def load_peft(folder: str | os.PathLike, cfg: Qwen3VLConfig, *, dtype: Any = jnp.float32) -> Params:
    """The leaves of the adapters in a PEFT folder, on the default device.

    Raises FileNotFoundError where a file is missing. Raises one UserError, before any array is made, where rank, alpha and
    targets are not those of `cfg.lora`, for options that are not supported, and for tensors that are missing, unexpected or
    of another shape or dtype.
    """
    path = as_path(folder) / ADAPTER_WEIGHTS
    have, want = read_peft_config(folder), _lora_of(cfg)
    if (have.rank, have.alpha, set(have.targets)) != (want.rank, want.alpha, set(want.targets)):
        raise UserError(
            f"{path.parent}: the adapter has {have}; the config has {want}: "
            f"set lora.rank={have.rank}, lora.alpha={have.alpha:g} and lora.targets={','.join(have.targets)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; only safetensors are read, so save the adapter in that format with PEFT")
    declared = _adapter_weights(cfg)
    wanted = {name: weight.tensor_shape for weight in declared for name in weight.names}
    try:
        with nearby(path.parent, (ADAPTER_WEIGHTS,)) as near, safe_open(near / ADAPTER_WEIGHTS, "numpy") as file:
            _check_tensors(path, {name: file.get_slice(name) for name in file.keys()}, wanted)  # noqa: SIM118 (no mapping)
            leaves = {w.path: np.stack([to_ours(w, file.get_tensor(name)) for name in w.names]) for w in declared}
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short at {size_of(path)} bytes ({error}); copy it again") from error
    return unflatten_dict({leaf: jnp.asarray(array, dtype) for leaf, array in leaves.items()}, sep="/")


def _check_tensors(path: AnyPath, slices: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {name}" for name in wanted if name not in slices]
    problems += [f"unexpected: {name}" for name in slices if name not in wanted]
    for name in wanted.keys() & slices.keys():
        shape, dtype = tuple(slices[name].get_shape()), slices[name].get_dtype()
        if shape != wanted[name]:
            problems.append(f"shape: {name} is {shape}, the config needs {wanted[name]}")
        if dtype not in FLOATS:
            problems.append(f"dtype: {name} is {dtype}, only {', '.join(FLOATS)} are read")
    if problems:
        rest = [f"and {len(problems) - _MAX_SHOWN} more"] if len(problems) > _MAX_SHOWN else []
        title = f"{path}: the adapters do not fit the config ({len(problems)} problem{'s' * (len(problems) > 1)})"
        raise UserError("\n".join([title, *sorted(problems)[:_MAX_SHOWN], *rest]))
