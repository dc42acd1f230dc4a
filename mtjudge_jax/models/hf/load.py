"""Reading the weights of a Hugging Face folder into the parameter tree."""

import os
import sys
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import jax
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding

from mtjudge_jax.errors import UserError
from mtjudge_jax.hosts.exchange import together
from mtjudge_jax.models.hf import place
from mtjudge_jax.models.hf.folder import MODEL_CONFIG
from mtjudge_jax.models.hf.shards import Stored, open_checkpoint, read_tensors
from mtjudge_jax.models.hf.table import Weight, layouts, model_weights
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.paths import as_path, in_bucket, read_generation
from mtjudge_jax.types import Params

# A tied model may be saved with its head, which transformers then ties if it equals the embedding. With another head it is
# refused: transformers would untie it, vLLM would leave it out.
_COPIES = {"lm_head.weight": "model.language_model.embed_tokens.weight"}


def load_params(
    folder: str | os.PathLike,
    cfg: Qwen3VLConfig,
    *,
    dtype: Any,
    sharding_of: Callable[[str, tuple[int, ...]], NamedSharding | None],
    piece_bytes: int = place.PIECE_BYTES,
    host_bytes: int | None = None,
) -> Params:
    """The parameter tree with the weights of a Hugging Face folder. Every process must call.

    dtype: of every leaf. sharding_of(path, shape): where a leaf lives; None leaves it on the default device, uncommitted.
    host_bytes: the smallest leaves, up to this many bytes in all, are assembled on the host (see place.py). None means
    SMALL_BYTES on accelerators and no limit on CPUs.

    Files are read one after another, about piece_bytes at a time, and each piece goes straight to its devices. So the host
    never holds a large leaf, and a process reads only what its own devices hold.

    Raises UserError before any array is made. It names every tensor and file that cannot be used. A failure on one host
    raises AnotherProcess on the others. So does a folder that a training run replaces meanwhile.
    """
    leaves = model_weights(cfg)
    wanted = {name: tuple(one.tensor_shape for one in layouts(weight)) for weight in leaves for name in weight.names}
    with together():
        which = _which(folder)
        stored = open_checkpoint(folder, wanted, _COPIES)
    sources = _sources(leaves, stored)
    plans = {}
    for weight in leaves:
        sharding, stacked = sharding_of(weight.path, weight.shape), weight.stack is not None
        plans[weight.path] = place.plan_leaf(weight.path, weight.shape, dtype=dtype, sharding=sharding, stacked=stacked)
    if host_bytes is None:
        host_bytes = sys.maxsize if jax.default_backend() == "cpu" else place.SMALL_BYTES
    by_size = sorted(plans, key=lambda path: plans[path].host_bytes)
    sums = accumulate(plans[path].host_bytes for path in by_size)
    small = {path: place.host_buffers(plans[path]) for path, total in zip(by_size, sums, strict=True) if total <= host_bytes}
    large = {path: place.device_buffer(leaf) for path, leaf in plans.items() if path not in small}
    for tensor, array in read_tensors(list(stored.values())):
        weight, layer = sources[tensor.name]
        path, leaf, array = weight.path, plans[weight.path], array.reshape(weight.split_shape)
        if path in small:
            place.write_on_host(leaf, small[path], array, weight.order, layer, piece_bytes)
        else:
            large[path] = place.write_on_devices(leaf, large[path], array, weight.order, layer, piece_bytes)
    with together():
        if _which(folder) != which:  # a training run has found a better model: what was read may be of both
            raise UserError(f"{folder} was replaced by another model while it was read: run the command again")
    flat = {path: place.from_host(leaf, small[path]) if path in small else large[path] for path, leaf in plans.items()}
    return unflatten_dict(flat, sep="/")


def _which(folder: str | os.PathLike) -> int:
    """A number that changes when the folder is replaced; 0 without a folder."""
    folder = as_path(folder)
    if in_bucket(folder):
        return read_generation(folder / MODEL_CONFIG)[1]
    return folder.stat().st_ino if folder.is_dir() else 0


def _sources(leaves: list[Weight], stored: dict[str, Stored]) -> dict[str, tuple[Weight, int]]:
    """{tensor: (the leaf in the layout that this tensor has, the tensor's layer)}.

    An expert tensor fits both layouts where the model is as wide as gate and up together (or as one expert, for
    down_proj). The layer's other expert tensor then decides. It cannot fit both layouts too, because 2 f = d and f = d
    exclude each other, and a writer that swaps the axes of one swaps those of both.
    """
    sources, swapped = {}, {}
    for hub, other in [layouts(weight) for weight in leaves if len(layouts(weight)) > 1]:
        if hub.tensor_shape != other.tensor_shape:
            swapped |= {layer: stored[name].shape == other.tensor_shape for layer, name in enumerate(hub.names)}
    for weight in leaves:
        for layer, name in enumerate(weight.names):
            fitting = [one for one in layouts(weight) if one.tensor_shape == stored[name].shape]
            sources[name] = fitting[swapped[layer]] if len(fitting) > 1 else fitting[0], layer
    return sources
