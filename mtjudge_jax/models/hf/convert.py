"""Between a Hugging Face folder and the parameter tree.

`TABLE` is the one place that says what the model's weights are: for each path of the tree, the tensor it comes from
and that tensor's axes. Our axes are the letters after the last underscore of the path; shapes, transposes, slices to
read and names to write all follow from these two. Layers are stacked on the first axis, because the layers are
scanned.

Axes, text: l layers, d model, f mlp (of one expert where there are several), n query heads, k key-value heads, h head
size, v vocabulary, e experts, 2 gate and up. Vision: l blocks, c width, f mlp, n heads, h head size, p numbers in a patch
(channel, frame, row, column), s learned positions, t DeepStack taps, m merged width (4 c), o width of the language model,
3 query/key/value.

In the tensor's axes, letters side by side share one dimension (torch keeps heads and head size in one) and a capital
is the second axis of that letter: `fc1_mm` maps m to M and torch stores it (out, in), so "M m".
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from mtjudge_jax.errors import UserError
from mtjudge_jax.hosts.exchange import together
from mtjudge_jax.models.hf.folder import SHARD_BYTES, Tensor, companions, write_folder
from mtjudge_jax.models.hf.place import (
    PIECE_BYTES,
    SMALL_BYTES,
    device_buffer,
    from_host,
    host_buffers,
    plan,
    write_on_devices,
    write_on_host,
)
from mtjudge_jax.models.hf.shards import Stored, open_checkpoint, read_tensors
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config

TEXT = "model.language_model."
LAYER = TEXT + "layers.{i}."
BLOCK = "model.visual.blocks.{i}."
MERGER = "model.visual.merger."
TAP = "model.visual.deepstack_merger_list.{i}."

TABLE: dict[str, tuple[str, str]] = {
    "text/embed_vd": (TEXT + "embed_tokens.weight", "v d"),
    "text/layers/input_norm_ld": (LAYER + "input_layernorm.weight", "d"),
    "text/layers/post_norm_ld": (LAYER + "post_attention_layernorm.weight", "d"),
    "text/layers/q_ldnh": (LAYER + "self_attn.q_proj.weight", "nh d"),
    "text/layers/k_ldkh": (LAYER + "self_attn.k_proj.weight", "kh d"),
    "text/layers/v_ldkh": (LAYER + "self_attn.v_proj.weight", "kh d"),
    "text/layers/o_lnhd": (LAYER + "self_attn.o_proj.weight", "d nh"),
    "text/layers/q_norm_lh": (LAYER + "self_attn.q_norm.weight", "h"),
    "text/layers/k_norm_lh": (LAYER + "self_attn.k_norm.weight", "h"),
    "text/layers/gate_ldf": (LAYER + "mlp.gate_proj.weight", "f d"),
    "text/layers/up_ldf": (LAYER + "mlp.up_proj.weight", "f d"),
    "text/layers/down_lfd": (LAYER + "mlp.down_proj.weight", "d f"),
    "text/layers/router_lde": (LAYER + "mlp.gate.weight", "e d"),
    "text/layers/experts_gate_up_led2f": (LAYER + "mlp.experts.gate_up_proj", "e d 2f"),
    "text/layers/experts_down_lefd": (LAYER + "mlp.experts.down_proj", "e f d"),
    "text/norm_d": (TEXT + "norm.weight", "d"),
    "text/head_vd": ("lm_head.weight", "v d"),
    "vision/patch_pc": ("model.visual.patch_embed.proj.weight", "c p"),
    "vision/patch_bias_c": ("model.visual.patch_embed.proj.bias", "c"),
    "vision/pos_sc": ("model.visual.pos_embed.weight", "s c"),
    "vision/blocks/norm1_lc": (BLOCK + "norm1.weight", "c"),
    "vision/blocks/norm1_bias_lc": (BLOCK + "norm1.bias", "c"),
    "vision/blocks/norm2_lc": (BLOCK + "norm2.weight", "c"),
    "vision/blocks/norm2_bias_lc": (BLOCK + "norm2.bias", "c"),
    "vision/blocks/qkv_lc3nh": (BLOCK + "attn.qkv.weight", "3nh c"),
    "vision/blocks/qkv_bias_l3nh": (BLOCK + "attn.qkv.bias", "3nh"),
    "vision/blocks/proj_lnhc": (BLOCK + "attn.proj.weight", "c nh"),
    "vision/blocks/proj_bias_lc": (BLOCK + "attn.proj.bias", "c"),
    "vision/blocks/fc1_lcf": (BLOCK + "mlp.linear_fc1.weight", "f c"),
    "vision/blocks/fc1_bias_lf": (BLOCK + "mlp.linear_fc1.bias", "f"),
    "vision/blocks/fc2_lfc": (BLOCK + "mlp.linear_fc2.weight", "c f"),
    "vision/blocks/fc2_bias_lc": (BLOCK + "mlp.linear_fc2.bias", "c"),
    "vision/merger/norm_c": (MERGER + "norm.weight", "c"),
    "vision/merger/norm_bias_c": (MERGER + "norm.bias", "c"),
    "vision/merger/fc1_mm": (MERGER + "linear_fc1.weight", "M m"),
    "vision/merger/fc1_bias_m": (MERGER + "linear_fc1.bias", "m"),
    "vision/merger/fc2_mo": (MERGER + "linear_fc2.weight", "o m"),
    "vision/merger/fc2_bias_o": (MERGER + "linear_fc2.bias", "o"),
    "vision/deepstack/norm_tm": (TAP + "norm.weight", "m"),
    "vision/deepstack/norm_bias_tm": (TAP + "norm.bias", "m"),
    "vision/deepstack/fc1_tmm": (TAP + "linear_fc1.weight", "M m"),
    "vision/deepstack/fc1_bias_tm": (TAP + "linear_fc1.bias", "m"),
    "vision/deepstack/fc2_tmo": (TAP + "linear_fc2.weight", "o m"),
    "vision/deepstack/fc2_bias_to": (TAP + "linear_fc2.bias", "o"),
}
# The axes that transformers 5 gives the experts when it saves: the hub's, which are above, with the last two turned.
TURNED = {"text/layers/experts_gate_up_led2f": "e 2f d", "text/layers/experts_down_lefd": "e d f"}
DENSE = ("text/layers/gate_ldf", "text/layers/up_ldf", "text/layers/down_lfd")  # what experts stand in place of
EXPERTS = ("text/layers/router_lde", *TURNED)

Params = dict[str, Any]
ShardingOf = Callable[[str, tuple[int, ...]], NamedSharding | None]


class Weight(NamedTuple):
    """One leaf of the tree for one config. All but `stack` describe a single layer.

    path: "text/layers/q_ldnh"; name: the tensor's name, with {i} for the layer where stacked; stack: layers stacked
    on the first axis, None where the leaf is a single tensor; axes: our axes, such as ("d", "n", "h"); groups: the
    tensor's dimensions as runs of axes, such as ("nh", "d"); sizes: the size of each axis; tensor_shape: the tensor's
    own shape.
    """

    path: str
    name: str
    stack: int | None
    axes: tuple[str, ...]
    groups: tuple[str, ...]
    sizes: dict[str, int]
    tensor_shape: tuple[int, ...]

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of one layer in our order of axes."""
        return tuple(self.sizes[axis] for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the leaf, layers first."""
        return self.layer_shape if self.stack is None else (self.stack, *self.layer_shape)

    @property
    def split_shape(self) -> tuple[int, ...]:
        """Shape of the tensor with every axis apart."""
        return tuple(self.sizes[axis] for group in self.groups for axis in group)

    @property
    def order(self) -> tuple[int, ...]:
        """Where our axes are among those of `split_shape`."""
        return tuple("".join(self.groups).index(axis) for axis in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors the leaf is made of, in order of layers."""
        return (self.name,) if self.stack is None else tuple(self.name.format(i=i) for i in range(self.stack))


def weights(cfg: Qwen3VLConfig) -> list[Weight]:
    """Every weight of a model of this config, in the order of `TABLE`, as the hub stores it; a tied model has no head."""
    text, vision, moe = cfg.text, cfg.vision, cfg.text.moe
    absent = (EXPERTS if moe is None else DENSE) + (("text/head_vd",) if text.tie_word_embeddings else ())
    mlp = {"f": text.intermediate_size} if moe is None else {"f": moe.intermediate_size, "e": moe.num_experts, "2": 2}
    sizes = {
        "text": {
            "l": text.num_layers, "d": text.hidden_size, "n": text.num_heads, "k": text.num_kv_heads, "h": text.head_dim,
            "v": text.vocab_size, **mlp,
        },
        "vision": {
            "l": vision.depth, "c": vision.hidden_size, "f": vision.intermediate_size, "n": vision.num_heads,
            "h": vision.head_dim, "p": vision.patch_dim, "s": vision.num_position_embeddings, "3": 3,
            "t": len(vision.deepstack_layers), "m": vision.merged_size, "M": vision.merged_size,
            "o": vision.out_hidden_size,
        },
    }  # fmt: skip
    patch = (3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    made = []
    for path, (name, tensor_axes) in TABLE.items():
        if path in absent:
            continue
        size = sizes[path.split("/")[0]]
        letters = path.rsplit("_", 1)[1]
        stacked = "{i}" in name
        axes = tuple(letters[1:] if stacked else letters)
        axes = tuple(axis.upper() if axis in axes[:at] else axis for at, axis in enumerate(axes))
        groups = tuple(tensor_axes.split())
        shape = [dim for group in groups for dim in (patch if group == "p" else (prod(size[axis] for axis in group),))]
        made.append(Weight(path, name, size[letters[0]] if stacked else None, axes, groups, size, tuple(shape)))
    return made


def layouts(weight: Weight) -> tuple[Weight, ...]:
    """The ways a leaf is stored: the hub's, and where it differs that of transformers 5."""
    if weight.path not in TURNED:
        return (weight,)
    *first, row, column = weight.tensor_shape
    return weight, weight._replace(groups=tuple(TURNED[weight.path].split()), tensor_shape=(*first, column, row))


def abstract_params(cfg: Qwen3VLConfig, *, dtype: Any = jnp.float32) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct` leaves: shapes and dtypes without memory."""
    return nest({weight.path: jax.ShapeDtypeStruct(weight.shape, dtype) for weight in weights(cfg)})


def nest(flat: dict[str, Any]) -> Params:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flatten(tree: Params, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}, the inverse of `nest`."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: value}
    return flat


def to_hf(weight: Weight, layer: np.ndarray) -> np.ndarray:
    """One layer in our axes -> the tensor torch expects, contiguous."""
    order = [weight.axes.index(axis) for group in weight.groups for axis in group]
    return np.ascontiguousarray(layer.transpose(order).reshape(weight.tensor_shape))


def to_ours(weight: Weight, tensor: np.ndarray) -> np.ndarray:
    """A tensor -> one layer in our axes, the inverse of `to_hf`; a view of a contiguous tensor."""
    return tensor.reshape(weight.split_shape).transpose(weight.order)


def load_params(
    folder: str | os.PathLike,
    cfg: Qwen3VLConfig,
    *,
    dtype: Any,
    sharding_of: ShardingOf,
    piece_bytes: int = PIECE_BYTES,
    host_bytes: int | None = None,
) -> Params:
    """Reads the weights of a Hugging Face folder into a parameter tree.

    dtype: of every leaf. sharding_of(path, shape): where a leaf lives; None leaves it on the default device,
    uncommitted. Files are read one after another, each device's part straight into its place, about piece_bytes at a
    time, so that the host never holds a leaf, and a process reads only what its devices hold. host_bytes: up to that
    many the smallest leaves are put together on the host; None is SMALL_BYTES, and on CPUs no limit (see place.py).
    Every process must call. Raises ValueError, naming every tensor and file that cannot be used, before any array is
    made; where that is so on one host only, AnotherProcess on the others.
    """
    leaves = weights(cfg)
    wanted = {name: tuple(one.tensor_shape for one in layouts(weight)) for weight in leaves for name in weight.names}
    with together():
        stored = open_checkpoint(folder, wanted)
    sources = _sources(leaves, stored)
    plans = {}
    for weight in leaves:
        sharding = sharding_of(weight.path, weight.shape)
        plans[weight.path] = plan(weight.path, weight.shape, dtype=dtype, sharding=sharding, stacked=weight.stack is not None)
    if host_bytes is None:
        host_bytes = sys.maxsize if jax.default_backend() == "cpu" else SMALL_BYTES
    by_size = sorted(plans, key=lambda path: plans[path].host_bytes)
    sums = accumulate(plans[path].host_bytes for path in by_size)
    small = {path: host_buffers(plans[path]) for path, total in zip(by_size, sums, strict=True) if total <= host_bytes}
    large = {path: device_buffer(leaf) for path, leaf in plans.items() if path not in small}
    for tensor, array in read_tensors(list(stored.values())):
        weight, layer = sources[tensor.name]
        path, leaf, array = weight.path, plans[weight.path], array.reshape(weight.split_shape)
        if path in small:
            write_on_host(leaf, small[path], array, weight.order, layer, piece_bytes)
        else:
            large[path] = write_on_devices(leaf, large[path], array, weight.order, layer, piece_bytes)
    return nest({path: from_host(leaf, small[path]) if path in small else large[path] for path, leaf in plans.items()})


def _sources(leaves: list[Weight], stored: dict[str, Stored]) -> dict[str, tuple[Weight, int]]:
    """{tensor: (the layout it has, its layer)}.

    An expert tensor fits both layouts where the model is as wide as gate and up together (or as one expert, for
    down_proj). Then the layer's other expert tensor tells, which cannot fit both as well: 2 f = d and f = d exclude each
    other, and a writer that turns one turns both.
    """
    sources, turned = {}, {}
    for hub, other in [layouts(weight) for weight in leaves if weight.path in TURNED]:
        if hub.tensor_shape != other.tensor_shape:
            turned |= {layer: stored[name].shape == other.tensor_shape for layer, name in enumerate(hub.names)}
    for weight in leaves:
        for layer, name in enumerate(weight.names):
            fitting = [one for one in layouts(weight) if one.tensor_shape == stored[name].shape]
            sources[name] = fitting[turned[layer]] if len(fitting) > 1 else fitting[0], layer
    return sources


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
    """Writes a Hugging Face folder in the hub's layout, which transformers and vLLM load.

    The weights are `params` cast to dtype; config, tokenizer, chat template, preprocessor and generation config are
    `source_folder`'s (see `folder.companions`), `files` are others by name. Shards hold at most shard_bytes each, or one
    tensor. The folder appears whole or not at all (in a bucket: see `write_folder`). Every process must call; process 0
    writes. Raises ValueError when the tree is not the one of the source's config, FileExistsError when the folder exists,
    unless `overwrite` and it holds a model, OSError where it cannot be written.
    """
    dtype = np.dtype(dtype)
    with together():  # what one process cannot read ends the call on all, before the tensors travel
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
    flat = flatten(params)
    wanted = {weight.path: weight.shape for weight in weights(cfg)}
    found = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    wrong = sorted({path for path, _ in wanted.items() ^ found.items()})
    if wrong:
        lines = [f"{path}: has {found.get(path)}, needs {wanted.get(path)}" for path in wrong]
        raise UserError("\n".join(["the parameters are not those of the source folder's config:", *lines]))
    yield from leaf_tensors(flat, weights(cfg), dtype)


def leaf_tensors(flat: dict[str, Any], declared: Iterable[Weight], dtype: np.dtype) -> Iterator[Tensor]:
    """The tensors of the declared leaves of a flattened tree; a tensor's read() brings that one to the host."""
    for weight in declared:
        for i, name in enumerate(weight.names):
            leaf = flat[weight.path]
            at = None if weight.stack is None else i
            yield Tensor(name, weight.tensor_shape, partial(_to_host, weight, leaf, at, dtype))


def _to_host(weight: Weight, leaf: Any, i: int | None, dtype: Any) -> np.ndarray:
    """One tensor of a leaf on this host, gathered from all processes where it is spread over them."""
    layer = leaf if i is None else leaf[i]
    if isinstance(layer, jax.Array) and not layer.is_fully_addressable:
        layer = multihost_utils.process_allgather(layer, tiled=True)
    return to_hf(weight, np.asarray(layer).astype(dtype))
