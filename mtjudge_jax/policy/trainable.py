"""Which weights are trained: all, all but the frozen parts, or adapters alone. What is not trained has no gradient, no
moments and no place in the checkpoint.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtjudge_jax.config import Config
from mtjudge_jax.sharding import path_name
from mtjudge_jax.types import Params

ADAPTER = r"_lora_[ab]_"
PARTS = {
    "vision": r"^vision/(patch|pos|blocks)",
    "mergers": r"^vision/(merger|deepstack)/",
    "embeddings": r"^text/(embed|head)_vd$",
}
KEPT_AS_THEY_ARE = r"router_lde$"  # the choice of experts is made in float32 where the weights are


class Split(NamedTuple):
    """Two trees with disjoint leaves; together the whole model."""

    trained: Params
    frozen: Params


def is_trained(path: str, cfg: Config) -> bool:
    """Whether the weight at `path`, such as `text/layers/q_ldnh`, is trained."""
    if cfg.lora.rank:
        return re.search(ADAPTER, path) is not None
    return not any(re.search(PARTS[part], path) for part in cfg.model.freeze)


def split(params: Params, cfg: Config) -> Split:
    """Takes a model apart; no array is copied."""
    trained, frozen = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        put(trained if is_trained(path_name(path), cfg) else frozen, path_name(path), leaf)
    return Split(trained, frozen)


def join(a: Params, b: Params) -> Params:
    """The union of two trees with disjoint leaves; no array is copied."""
    out = dict(a)
    for key, value in b.items():
        out[key] = join(out[key], value) if isinstance(value, dict) and key in out else value
    return out


def put(tree: Params, path: str, leaf) -> None:
    *parents, last = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf


def without_adapters(params: Params) -> Params:
    """The base model of a model with adapters."""
    base: Params = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not re.search(ADAPTER, path_name(path)):
            put(base, path_name(path), leaf)
    return base


def cast(params: Params, dtype: str) -> Params:
    """The weights in the dtype they are computed in; the routers stay."""

    def one(path, leaf):
        keep = leaf.dtype == dtype or re.search(KEPT_AS_THEY_ARE, path_name(path))
        return leaf if keep else leaf.astype(jnp.dtype(dtype))

    return jax.tree_util.tree_map_with_path(one, params)
