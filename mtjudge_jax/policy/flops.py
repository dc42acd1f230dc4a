"""The operations of a step, from the model's sizes and the lengths of what it works on.

A weight costs two operations per token that uses it. Attention costs two per pair of a query and a key and per number of a head,
and a token of the decoder sees those before it. What a backward pass computes again is not counted, nor is padding: these are the
model's own operations, whose share of the chips' peak is the MFU of PaLM (arXiv 2204.02311, appendix B).
"""

from typing import NamedTuple

import numpy as np

from mtjudge_jax.config import Config
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from mtjudge_jax.types import Lengths


def layer_weights(text: TextConfig) -> int:
    """Weights that one token uses, in the matrices of all layers."""
    d, h = text.hidden_size, text.head_dim
    attention = 2 * d * h * (text.num_heads + text.num_kv_heads)
    if text.moe is None:
        return text.num_layers * (attention + 3 * d * text.intermediate_size)
    moe = text.moe
    return text.num_layers * (attention + d * moe.num_experts + 3 * d * moe.experts_per_token * moe.intermediate_size)


class Forward(NamedTuple):
    """Operations of a training forward pass, in the parts that `update_flops` weighs."""

    patches: float  # patch embedding
    blocks: float  # of the vision tower; their attention covers the whole row of patches, as the programs compute it
    mergers: float
    layers: float  # of the decoder, without attention
    pairs: float  # the decoder's attention
    head: float


def vision_flops(vision: VisionConfig, patches: np.ndarray) -> tuple[float, float, float]:
    """The fields `patches`, `blocks` and `mergers` of Forward, for rows of patches [Q]."""
    c, f, m = vision.hidden_size, vision.intermediate_size, vision.merged_size
    count, squares = float(patches.sum(dtype=np.float64)), float((patches.astype(np.float64) ** 2).sum())
    blocks = 2 * vision.depth * (4 * c * c + 2 * c * f) * count + 4 * vision.depth * c * squares
    merged = count // vision.spatial_merge_size**2
    mergers = 2 * (1 + len(vision.deepstack_layers)) * (m * m + m * vision.out_hidden_size) * merged
    return 2 * vision.patch_dim // vision.temporal_patch_size * c * count, blocks, mergers


def forward_flops(model: Qwen3VLConfig, lengths: Lengths) -> Forward:
    """Of one pass over the prompts with their answers; sampling them computes as much, token by token."""
    text, prompt, answers = model.text, lengths.prompt.astype(np.float64), lengths.answers.astype(np.float64)
    own = np.maximum(answers - 1, 0)  # the last token of an answer predicts nothing
    pairs = (prompt**2).sum() / 2 + (own * prompt[:, None] + own**2 / 2).sum()
    return Forward(
        *vision_flops(model.vision, lengths.patches),
        layers=2 * layer_weights(text) * float(prompt.sum() + own.sum()),
        pairs=pair_flops(text) * float(pairs),
        head=head_flops(text) * float(answers.sum()),
    )


def pair_flops(text: TextConfig) -> int:
    """Operations of attention for a query and a key, in all layers."""
    return 4 * text.num_layers * text.num_heads * text.head_dim


def head_flops(text: TextConfig) -> int:
    """Operations of the output head for one token."""
    return 2 * text.hidden_size * text.vocab_size


def update_flops(forward: Forward, cfg: Config) -> float:
    """Operations of a forward and a backward pass over what `forward` is of.

    The backward pass repeats a product once for the gradient of its input, if anything below it is trained, and once for the
    gradient of its weights, if they are trained. Attention has two inputs. The adapters' own products are not counted.
    """
    tower, mergers, head = (not cfg.lora.rank and part not in cfg.model.freeze for part in ("vision", "mergers", "embeddings"))
    text = not cfg.lora.rank
    times = Forward(
        patches=1 + tower,
        blocks=1 + 2 * tower,
        mergers=1 + (tower or mergers) + mergers,  # their own norm is below their matrices
        layers=2 + text,
        pairs=3,
        head=2 + head,
    )
    return sum(work * n for work, n in zip(forward, times, strict=True))


def step_flops(model: Qwen3VLConfig, cfg: Config, *, sampled: Lengths | None, learned: Lengths, passes: int) -> float:
    """Of a step: its rollouts of `sampled`, None without any; then `passes` passes over `learned` for log-probabilities, and its
    updates.
    """
    forward = forward_flops(model, learned)
    rollout = 0.0 if sampled is None else sum(forward_flops(model, sampled))
    return rollout + passes * sum(forward) + update_flops(forward, cfg)
