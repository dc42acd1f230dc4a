"""Which weights are trained: all, all but the frozen parts, or adapters alone. Weights that are not trained have no gradient,
no moments and no place in the checkpoint.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mtjudge_jax.config import Config
from mtjudge_jax.sharding import path_name
from mtjudge_jax.types import Params

ADAPTER = r"_lora_[ab]_"
PARTS = {
    "vision": r"^vision/(patch|pos|blocks)",
    "mergers": r"^vision/(merger|deepstack)/",
    "embeddings": r"^text/(embed|head)_vd$",
}
KEPT_AS_THEY_ARE = r"router_lde$"  # experts are chosen in float32 if the weights are float32


class Split(NamedTuple):
    """Two trees with disjoint leaves that together are the whole model."""

    trained: Params
    frozen: Params


def is_trained(path: str, cfg: Config) -> bool:
    """Whether the weight at `path`, such as `text/layers/q_ldnh`, is trained."""
    if cfg.lora.rank:
        return re.search(ADAPTER, path) is not None
    return not any(re.search(PARTS[part], path) for part in cfg.model.freeze)


def split(params: Params, cfg: Config) -> Split:
    """Splits a model into its trained and frozen weights; no array is copied."""
    parts = {}, {}
    for path, leaf in flatten_dict(params, sep="/").items():
        parts[not is_trained(path, cfg)][path] = leaf
    return Split(*(unflatten_dict(part, sep="/") for part in parts))


def join(a: Params, b: Params) -> Params:
    """The union of two trees with disjoint leaves; no array is copied."""
    out = dict(a)
    for key, value in b.items():
        out[key] = join(out[key], value) if isinstance(value, dict) and key in out else value
    return out


def without_adapters(params: Params) -> Params:
    """The base model of a model with adapters."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: leaf for path, leaf in flat.items() if not re.search(ADAPTER, path)}, sep="/")


def cast(params: Params, dtype: str) -> Params:
    """The weights in the dtype of computation, except the routers'."""

    def one(path, leaf):
        keep = leaf.dtype == dtype or re.search(KEPT_AS_THEY_ARE, path_name(path))
        return leaf if keep else leaf.astype(jnp.dtype(dtype))

    return jax.tree_util.tree_map_with_path(one, params)
