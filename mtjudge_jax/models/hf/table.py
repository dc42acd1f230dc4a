"""The name table between a Hugging Face folder and the parameter tree.

`TABLE` is the one place that says what the model's weights are. It gives, for each path of the tree, the tensor that it
comes from and that tensor's axes. The axes of our leaf are the letters after the last underscore of its path. Shapes,
transposes, the slices to read and the names to write all follow from these two. Layers are stacked on the first axis,
because the forward pass scans over them.

Axes of the text model: l layers, d model, f mlp (of one expert in a mixture), n query heads, k key-value heads, h head
size, v vocabulary, e experts, 2 gate and up. Axes of the vision tower: l blocks, c width, f mlp, n heads, h head size,
p numbers in a patch (channel, frame, row, column), s learned positions, t DeepStack taps, m merged width (4 c), o width
of the language model, 3 query/key/value.

In a tensor's axes, letters side by side share one dimension (torch keeps heads and head size in one). A capital is the
second axis of that letter: `fc1_mm` maps m to M, and torch stores it as (out, in), hence "M m".
"""

from math import prod
from typing import NamedTuple

import numpy as np

from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig

_TEXT = "model.language_model."
_LAYER = _TEXT + "layers.{i}."
_BLOCK = "model.visual.blocks.{i}."
_MERGER = "model.visual.merger."
_TAP = "model.visual.deepstack_merger_list.{i}."

TABLE: dict[str, tuple[str, str]] = {
    "text/embed_vd": (_TEXT + "embed_tokens.weight", "v d"),
    "text/layers/input_norm_ld": (_LAYER + "input_layernorm.weight", "d"),
    "text/layers/post_norm_ld": (_LAYER + "post_attention_layernorm.weight", "d"),
    "text/layers/q_ldnh": (_LAYER + "self_attn.q_proj.weight", "nh d"),
    "text/layers/k_ldkh": (_LAYER + "self_attn.k_proj.weight", "kh d"),
    "text/layers/v_ldkh": (_LAYER + "self_attn.v_proj.weight", "kh d"),
    "text/layers/o_lnhd": (_LAYER + "self_attn.o_proj.weight", "d nh"),
    "text/layers/q_norm_lh": (_LAYER + "self_attn.q_norm.weight", "h"),
    "text/layers/k_norm_lh": (_LAYER + "self_attn.k_norm.weight", "h"),
    "text/layers/gate_ldf": (_LAYER + "mlp.gate_proj.weight", "f d"),
    "text/layers/up_ldf": (_LAYER + "mlp.up_proj.weight", "f d"),
    "text/layers/down_lfd": (_LAYER + "mlp.down_proj.weight", "d f"),
    "text/layers/router_lde": (_LAYER + "mlp.gate.weight", "e d"),
    "text/layers/experts_gate_up_led2f": (_LAYER + "mlp.experts.gate_up_proj", "e d 2f"),
    "text/layers/experts_down_lefd": (_LAYER + "mlp.experts.down_proj", "e f d"),
    "text/norm_d": (_TEXT + "norm.weight", "d"),
    "text/head_vd": ("lm_head.weight", "v d"),
    "vision/patch_pc": ("model.visual.patch_embed.proj.weight", "c p"),
    "vision/patch_bias_c": ("model.visual.patch_embed.proj.bias", "c"),
    "vision/pos_sc": ("model.visual.pos_embed.weight", "s c"),
    "vision/blocks/norm1_lc": (_BLOCK + "norm1.weight", "c"),
    "vision/blocks/norm1_bias_lc": (_BLOCK + "norm1.bias", "c"),
    "vision/blocks/norm2_lc": (_BLOCK + "norm2.weight", "c"),
    "vision/blocks/norm2_bias_lc": (_BLOCK + "norm2.bias", "c"),
    "vision/blocks/qkv_lc3nh": (_BLOCK + "attn.qkv.weight", "3nh c"),
    "vision/blocks/qkv_bias_l3nh": (_BLOCK + "attn.qkv.bias", "3nh"),
    "vision/blocks/proj_lnhc": (_BLOCK + "attn.proj.weight", "c nh"),
    "vision/blocks/proj_bias_lc": (_BLOCK + "attn.proj.bias", "c"),
    "vision/blocks/fc1_lcf": (_BLOCK + "mlp.linear_fc1.weight", "f c"),
    "vision/blocks/fc1_bias_lf": (_BLOCK + "mlp.linear_fc1.bias", "f"),
    "vision/blocks/fc2_lfc": (_BLOCK + "mlp.linear_fc2.weight", "c f"),
    "vision/blocks/fc2_bias_lc": (_BLOCK + "mlp.linear_fc2.bias", "c"),
    "vision/merger/norm_c": (_MERGER + "norm.weight", "c"),
    "vision/merger/norm_bias_c": (_MERGER + "norm.bias", "c"),
    "vision/merger/fc1_mm": (_MERGER + "linear_fc1.weight", "M m"),
    "vision/merger/fc1_bias_m": (_MERGER + "linear_fc1.bias", "m"),
    "vision/merger/fc2_mo": (_MERGER + "linear_fc2.weight", "o m"),
    "vision/merger/fc2_bias_o": (_MERGER + "linear_fc2.bias", "o"),
    "vision/deepstack/norm_tm": (_TAP + "norm.weight", "m"),
    "vision/deepstack/norm_bias_tm": (_TAP + "norm.bias", "m"),
    "vision/deepstack/fc1_tmm": (_TAP + "linear_fc1.weight", "M m"),
    "vision/deepstack/fc1_bias_tm": (_TAP + "linear_fc1.bias", "m"),
    "vision/deepstack/fc2_tmo": (_TAP + "linear_fc2.weight", "o m"),
    "vision/deepstack/fc2_bias_to": (_TAP + "linear_fc2.bias", "o"),
}
# transformers 5 saves the experts with the last two axes swapped, compared with the hub's files above.
_TURNED = {"text/layers/experts_gate_up_led2f": "e 2f d", "text/layers/experts_down_lefd": "e d f"}
_DENSE = ("text/layers/gate_ldf", "text/layers/up_ldf", "text/layers/down_lfd")  # a mixture has experts in their place
_EXPERTS = ("text/layers/router_lde", *_TURNED)


class Weight(NamedTuple):
    """One leaf of the tree for one config. All fields but `stack` describe a single layer."""

    path: str  # "text/layers/q_ldnh"
    name: str  # of the tensor, with {i} for the layer where layers are stacked
    stack: int | None  # layers on the first axis; None where the leaf is a single tensor
    axes: tuple[str, ...]  # our axes, such as ("d", "n", "h")
    groups: tuple[str, ...]  # the tensor's dimensions as runs of axes, such as ("nh", "d")
    sizes: dict[str, int]  # of each axis
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
        """Shape of the tensor with one dimension for each axis."""
        return tuple(self.sizes[axis] for group in self.groups for axis in group)

    @property
    def order(self) -> tuple[int, ...]:
        """The position in `split_shape` of each of our axes."""
        return tuple("".join(self.groups).index(axis) for axis in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors that make up the leaf, in order of layers."""
        return (self.name,) if self.stack is None else tuple(self.name.format(i=i) for i in range(self.stack))


def model_weights(cfg: Qwen3VLConfig) -> list[Weight]:
    """Every weight of a model of this config, in the order of `TABLE` and the hub's layout. A tied model has no head."""
    text, vision, moe = cfg.text, cfg.vision, cfg.text.moe
    absent = (_EXPERTS if moe is None else _DENSE) + (("text/head_vd",) if text.tie_word_embeddings else ())
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
    """The layouts in which a leaf may be stored: the hub's, and that of transformers 5 where it differs."""
    if weight.path not in _TURNED:
        return (weight,)
    *first, row, column = weight.tensor_shape
    return weight, weight._replace(groups=tuple(_TURNED[weight.path].split()), tensor_shape=(*first, column, row))


def to_hf(weight: Weight, layer: np.ndarray) -> np.ndarray:
    """One layer in our axes -> the contiguous tensor that torch expects."""
    order = [weight.axes.index(axis) for group in weight.groups for axis in group]
    return np.ascontiguousarray(layer.transpose(order).reshape(weight.tensor_shape))


def to_ours(weight: Weight, tensor: np.ndarray) -> np.ndarray:
    """A tensor -> one layer in our axes. The inverse of `to_hf`, and a view where the tensor is contiguous."""
    return tensor.reshape(weight.split_shape).transpose(weight.order)
