"""Adapters of the decoder (Hu et al., arXiv 2106.09685): added to what they adapt, and their files as PEFT has them.

An adapter of the weight W [L, in.., out..] is A [L, in.., R] and B [L, R, out..]: W + alpha / rank * A B. PEFT keeps one
folder: `adapter_config.json` and `adapter_model.safetensors`, in it A as (R, in) and B as (out, R) of every layer. Written
and read here without PEFT; what of its options changes the numbers and is not computed here is refused.
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
from jax.sharding import Sharding
from safetensors import SafetensorError, safe_open

from mtjudge_jax.errors import UserError
from mtjudge_jax.models.hf.convert import TABLE, Weight, flatten, leaf_tensors, nest
from mtjudge_jax.models.hf.folder import write_folder
from mtjudge_jax.models.hf.shards import FLOATS
from mtjudge_jax.models.qwen3_vl.config import DENSE_TYPE, MOE_TYPE, LoraConfig, Qwen3VLConfig
from mtjudge_jax.models.qwen3_vl.text import LORA_AXES, lora_shapes
from mtjudge_jax.paths import AnyPath, as_path, nearby, size_of

Params = dict[str, Any]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYERS = "text/layers/"
ROOT = "base_model.model."  # PEFT's wrapper and its tuner
MODULES = {f"{target}_proj": target for target in LORA_AXES}
# Options of PEFT that say nothing about the numbers of a finished adapter on a plain base.
HARMLESS = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "target_modules", "lora_alpha", "lora_dropout", "init_lora_weights", "megatron_core", "qalora_group_size", "layers_pattern",
    "exclude_modules", "runtime_config", "loftq_config", "eva_config",
)  # fmt: skip
# Other initialisations change the base's weights when the adapter is made or loaded.
INITIAL = (True, False, "gaussian", "eva", "orthogonal")
MOST = 12  # problems named in one message


def merge_lora(params: Params, cfg: Qwen3VLConfig) -> Params:
    """The tree of an ordinary model: every adapted weight is W + alpha / rank * A B, computed in float32, in W's dtype and
    sharding; the others are the same arrays. One layer at a time is in float32. Raises ValueError without `cfg.lora`'s leaves.
    """
    lora = _lora_of(cfg)
    flat = flatten(params)
    if missing := [name for name in lora_shapes(cfg.text, lora) if LAYERS + name not in flat]:
        raise UserError(f"no adapters to merge: {', '.join(missing)} missing from the parameters; give those of cfg.lora")
    for target in lora.targets:
        before, after = LORA_AXES[target]
        a, b = flat.pop(f"{LAYERS}{target}_lora_a_l{before}r"), flat.pop(f"{LAYERS}{target}_lora_b_lr{after}")
        w = flat[base_path(target)]
        sharding = w.sharding if isinstance(w, jax.Array) else None
        flat[base_path(target)] = _merge(before, after, lora.alpha / lora.rank, sharding)(w, a, b)
    return nest(flat)


@cache
def _merge(before: str, after: str, scale: float, sharding: Sharding | None) -> Callable:
    """The jitted sum of one target; kept, since a run merges at every better validation."""

    def layer(wab):
        w, a, b = (x.astype(jnp.float32) for x in wab)
        low = jnp.einsum(f"{before}r,r{after}->{before}{after}", a, b, precision="highest")
        return (w + scale * low).astype(wab[0].dtype)

    return jax.jit(lambda *wab: jax.lax.map(layer, wab), out_shardings=sharding)


def base_path(target: str) -> str:
    """`text/layers/q_ldnh` of q."""
    before, after = LORA_AXES[target]
    return f"{LAYERS}{target}_l{before}{after}"


def adapter_weights(cfg: Qwen3VLConfig) -> list[Weight]:
    """The adapters' leaves and the tensors PEFT keeps them in, two a target."""
    text, lora = cfg.text, _lora_of(cfg)
    sizes = {"d": text.hidden_size, "f": text.intermediate_size, "n": text.num_heads, "k": text.num_kv_heads, "h": text.head_dim}
    sizes |= {"r": lora.rank}
    made = []
    for target in lora.targets:
        before, after = LORA_AXES[target]
        module = ROOT + TABLE[base_path(target)][0].removesuffix("weight")
        for leaf, name, axes, groups in (
            (f"{target}_lora_a_l{before}r", "lora_A.weight", before + "r", ("r", before)),
            (f"{target}_lora_b_lr{after}", "lora_B.weight", "r" + after, (after, "r")),
        ):
            shape = tuple(prod(sizes[axis] for axis in group) for group in groups)
            made.append(Weight(LAYERS + leaf, module + name, text.num_layers, tuple(axes), groups, sizes, shape))
    return made


def _lora_of(cfg: Qwen3VLConfig) -> LoraConfig:
    if cfg.lora is None:
        raise UserError("this config has no adapters: set its `lora` to the rank, alpha and targets they have")
    if cfg.text.moe and (single := {"gate", "up", "down"} & set(cfg.lora.targets)):
        raise UserError(f"targets {', '.join(sorted(single))}: a mixture of experts has no single one; take q, k, v, o")
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
    """Writes the adapters among `params` as a folder that `peft` loads onto transformers' model.

    base_model: where PEFT's loaders find the base, a folder or a name on a hub. dtype: of the tensors. files: others by name.
    The folder appears whole or not at all. Every process must call; process 0 writes. Raises ValueError where leaves are
    missing or of another shape, FileExistsError when the folder exists, unless `overwrite` and it holds an adapter.
    """
    flat, dtype = flatten(params), np.dtype(dtype)
    declared = adapter_weights(cfg)
    found = {weight.path: tuple(flat[weight.path].shape) if weight.path in flat else None for weight in declared}
    if wrong := [f"{w.path}: has {found[w.path]}, needs {w.shape}" for w in declared if found[w.path] != w.shape]:
        raise UserError("\n".join(["the adapters are not those of cfg.lora:", *wrong]))
    config = json.dumps(peft_config(cfg, base_model), indent=2) + "\n"
    write_folder(
        folder,
        leaf_tensors(flat, declared, dtype),
        {CONFIG: config.encode()} | dict(files or {}),
        dtype=dtype,
        overwrite=overwrite,
        writes=jax.process_index() == 0,
        shard_bytes=sys.maxsize,  # PEFT reads one file
        stem=WEIGHTS.removesuffix(".safetensors"),
        marker=CONFIG,
    )


def peft_config(cfg: Qwen3VLConfig, base_model: str) -> dict[str, Any]:
    """What `adapter_config.json` says; with `auto_mapping` PEFT's own loader finds the base's class."""
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


def read_peft_config(folder: str | os.PathLike) -> LoraConfig:
    """Rank, alpha and targets of a PEFT folder.

    Raises FileNotFoundError without `adapter_config.json`, ValueError, in one message, for all that it asks for and that is
    not computed here.
    """
    path = as_path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; give a folder that PEFT's save_pretrained or `mtjudge export` wrote")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy it again") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds a {type(raw).__name__}, not an object; copy it again")
    problems = _refused(raw)
    rank, alpha, modules = raw.get("r"), raw.get("lora_alpha"), raw.get("target_modules")
    if not (isinstance(rank, int) and rank >= 1):
        problems.append(f"r is {rank!r}, it must be a whole number of at least 1")
    if not (isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and 0 < alpha < inf):
        problems.append(f"lora_alpha is {alpha!r}, it must be a number above 0")
    names = [str(name).rsplit(".", 1)[-1] for name in modules] if isinstance(modules, list) else []
    if not names or not set(names) <= MODULES.keys():
        problems.append(f"target_modules is {modules!r}, a list of {', '.join(MODULES)} is read")
    if problems:
        raise UserError("\n".join([f"{path}: cannot be used ({len(problems)} problems)", *problems]))
    return LoraConfig(rank, float(alpha), tuple(target for module, target in MODULES.items() if module in names))


def _refused(raw: Mapping[str, Any]) -> list[str]:
    """Options that are set and that would change the numbers."""
    problems = []
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type is {raw.get('peft_type')!r}, only 'LORA' is read")
    if raw.get("init_lora_weights", True) not in INITIAL:
        problems.append(f"init_lora_weights is {raw['init_lora_weights']!r}, which changes the base; convert it with PEFT first")
    for name, value in raw.items():
        if name not in HARMLESS and value not in (None, False, {}, [], "none"):
            problems.append(f"{name} is {value!r}, this is not supported; train or convert the adapter without it")
    return problems


def load_peft(folder: str | os.PathLike, cfg: Qwen3VLConfig, *, dtype: Any = jnp.float32) -> Params:
    """The adapters' leaves of a PEFT folder, on the default device. `cfg.lora` must be what `read_peft_config` says.

    Raises FileNotFoundError without its files, ValueError, in one message, for other options, and for tensors that are
    missing, unexpected, of another shape or dtype; before any array is made.
    """
    path = as_path(folder) / WEIGHTS
    have, want = read_peft_config(folder), _lora_of(cfg)
    if (have.rank, have.alpha, set(have.targets)) != (want.rank, want.alpha, set(want.targets)):
        raise UserError(f"{as_path(folder) / CONFIG}: is {have}, the config asks for {want}; set lora to what the adapter has")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; only safetensors are read, save the adapter as such with PEFT")
    declared = adapter_weights(cfg)
    wanted = {name: weight.tensor_shape for weight in declared for name in weight.names}
    try:
        with nearby(path.parent, (WEIGHTS,)) as near, safe_open(near / WEIGHTS, "numpy") as file:
            _check_tensors(path, {name: file.get_slice(name) for name in file.keys()}, wanted)  # noqa: SIM118 (no mapping)
            return nest({w.path: jnp.asarray(np.stack([_ours(w, file.get_tensor(n)) for n in w.names]), dtype) for w in declared})
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short at {size_of(path)} bytes ({error}); copy it again") from error


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
        rest = [f"and {len(problems) - MOST} more"] if len(problems) > MOST else []
        title = f"{path}: the adapters do not fit the config ({len(problems)} problems)"
        raise UserError("\n".join([title, *sorted(problems)[:MOST], *rest]))


def _ours(weight: Weight, tensor: np.ndarray) -> np.ndarray:
    """One layer in our order of axes."""
    axes = "".join(weight.groups)
    return tensor.reshape([weight.sizes[axis] for axis in axes]).transpose([axes.index(axis) for axis in weight.axes])
