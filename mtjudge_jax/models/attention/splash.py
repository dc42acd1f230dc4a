"""Attention on a TPU by JAX's splash kernel, which skips the blocks that a static mask leaves empty, forward and backward.

Source of the kernel: jax.experimental.pallas.ops.tpu.splash_attention. It combines a static mask, computed in the kernel from
the indices, with segments that come with the data. Here the layout is the mask; padding and images are the segments. Off a
TPU the kernel is interpreted, slowly, for tests.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jax.sharding import Mesh

from mtjudge_jax.errors import UserError
from mtjudge_jax.models.attention.reference import prompt_of
from mtjudge_jax.models.attention.sharded import call_sharded, platform_of
from mtjudge_jax.types import Array

_LANES = 128  # of a TPU's vector unit: blocks and heads are padded to a multiple of it
BLOCKS = (512, 384, 256, 128)
_LOW_BITS = 16  # for a query's index; the start of its answer is packed above them
LONGEST = 2**_LOW_BITS  # tokens


class GroupedMask(masks._ComputableMask):
    """The grouped stream where each bin holds one answer: the prompt is causal; an answer sees the prompt and its own past.

    The kernel calls `mask_function` with a number for each query and the index of each key. Here a query's number packs its own
    index and the start of its answer, so that no score costs a division. It comes with the data (`_numbers`), because answers
    are packed as they are. This mask says which blocks may hold anything. The padding at the end counts as further bins, so that
    no row of the mask is empty.
    """

    def __init__(self, length: int, prompt: int, width: int):
        self.layout = (length, prompt, width)
        super().__init__((length, length), functools.partial(_grouped, prompt=prompt))
        index = np.arange(length)
        start = np.where(index < prompt, 0, prompt + (index - prompt) // width * width)
        self.q_sequence = ((start << _LOW_BITS) + index).astype(np.uint32).view(np.int32)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupedMask) and self.layout == other.layout

    def __hash__(self) -> int:
        return hash(self.layout)


def _grouped(query, key, *, prompt: int):
    """query: packed index and start; key: index. True where the query sees the key."""
    low = LONGEST - 1
    index, start = query & low, (query >> _LOW_BITS) & low
    return (key <= index) & ((key < prompt) | (key >= start))


def _numbers(segments: Array, prompt: int, width: int) -> Array:
    """The number of each query, int32 [Q, T]; segments int32 [Q, T], which behind the prompt are the numbers of the answers.

    Empty places in a row count as one answer.
    """
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0))) | ((index - prompt) % width == 0)
    start = jax.lax.cummax(jnp.where(begins & (index >= prompt), index, 0), axis=1)
    return (start << _LOW_BITS) + index


def _with_numbers(kernel: kernels.SplashAttentionKernel, numbers: Array) -> kernels.SplashAttentionKernel:
    """The kernel for queries of these numbers, int32 [T].

    In a block marked 2 the kernel asks the mask nothing. Only the empty blocks, marked 0, are the same for all numbers.
    """

    def info(of: MaskInfo) -> MaskInfo:
        return of._replace(q_sequence=numbers, block_mask=np.minimum(of.block_mask, 1))

    infos = map(info, (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info))
    return kernels.SplashAttentionKernel(*infos, **kernel.kwargs)


def _meeting(kernel: kernels.SplashAttentionKernel, prompts: Array, block: int) -> kernels.SplashAttentionKernel:
    """The kernel without the blocks whose queries and keys have no prompt in common; prompts int32 [T], of each token."""
    each = jnp.left_shift(jnp.int32(1), prompts.reshape(-1, block) % 32)  # numbers that share a bit only keep a block
    bits = jax.lax.reduce(each, jnp.int32(0), jax.lax.bitwise_or, (1,))

    def info(of: MaskInfo, queries_first: bool) -> MaskInfo:
        _, rows, columns = of.block_mask.shape
        other = bits[of.data_next.astype(np.int32)]
        own = bits[:rows, None] if queries_first else bits[None, :columns]
        return of._replace(block_mask=jnp.where(own & other != 0, of.block_mask, 0).astype(of.block_mask.dtype))

    # `data_next` holds the block of keys that is read there; for the gradient of the keys, the block of queries.
    infos = (info(kernel.fwd_mask_info, True), info(kernel.dq_mask_info, True), info(kernel.dkv_mask_info, False))
    return kernels.SplashAttentionKernel(*infos, **kernel.kwargs)


@functools.cache
def make_kernel(layout: tuple, length: int, heads: int, interpret: bool) -> Callable:
    """The kernel for `heads` query heads and rows of `length` tokens, which the caller pads to `padded_length(length)`.

    layout: ("full",), ("causal",) or ("grouped", places of the prompts, width of a bin).
    """
    # The block is that of the tokens before padding: `block_size` of the padded length may be one that does not divide it.
    block, length = block_size(length), padded_length(length)
    match layout:
        case ("full",):
            mask = masks.FullMask((length, length))
        case ("causal",):
            mask = masks.CausalMask((length, length))
        case ("grouped", prompt, width):
            mask = GroupedMask(length, prompt, width)
    sizes = kernels.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    with jax.ensure_compile_time_eval():
        kernel = kernels.make_splash_mha(
            masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
        )
    return jax.tree.map(np.asarray, kernel)  # the cache outlives a trace, so no array of one may stay in it


def block_size(length: int) -> int:
    """The longest block whose padding is at most an eighth of the length; the shortest where none is."""
    return next((block for block in BLOCKS if -length % block <= length // 8), BLOCKS[-1])


def padded_length(length: int) -> int:
    """The length of a row in the kernel: a multiple of its block."""
    return length + -length % block_size(length)


def attend(q: Array, k: Array, v: Array, *, segments: Array, layout: tuple, scale: float, mesh: Mesh | None) -> Array:
    """q [Q, T, N, H]; k, v [Q, T, K, H]; segments int32 [Q, T], 0 = padding. Returns [Q, T, N, H].

    In a grouped layout the segments are the numbers of the prompts, and behind them those of the answers; the layout says at its
    end how many answers a prompt has, None for one prompt.
    """
    length, size = q.shape[1], q.shape[-1]
    if length > LONGEST:
        raise UserError(f"{length} tokens a row exceed the {LONGEST} that splash can count: set model.attention to chunked")
    interpret = platform_of(mesh) != "tpu"

    def on_device(q: Array, k: Array, v: Array, segments: Array) -> Array:
        behind = padded_length(length) - length
        kernel = make_kernel(layout[:3], length, q.shape[2], interpret)
        q = (q.astype(jnp.float32) * scale).astype(q.dtype)  # the kernel does not scale
        fill = ((0, 0), (0, behind), (0, 0), (0, -size % _LANES))
        q, k, v = (jnp.pad(x, fill).swapaxes(1, 2) for x in (q, k, v))
        segments = jnp.pad(segments, fill[:2])
        # `mtjudge plan` recognises the kernel by this name
        with jax.named_scope("_".join(map(str, ("attend", *layout[:3], "by", block_size(length))))):
            if layout[0] == "grouped":
                _, prompt, width, group = layout
                answers = prompt_of(segments, group)  # all answers see their prompt; the numbers keep them apart
                seen = jnp.where(jnp.arange(segments.shape[1]) < prompt, segments, answers)
                rows = (_numbers(segments, prompt, width), q, k, v, kernels.SegmentIds(seen, seen))
                if group and len(q) == 1:  # which blocks are empty must not vary among the rows of a call
                    numbers, *row = jax.tree.map(lambda x: x[0], rows)
                    some = _meeting(_with_numbers(kernel, numbers), seen[0], block_size(length))
                    out = some(*row)[None]
                else:
                    out = jax.vmap(lambda numbers, *row: _with_numbers(kernel, numbers)(*row))(*rows)
            else:
                out = jax.vmap(kernel)(q, k, v, kernels.SegmentIds(segments, segments))
        return out.swapaxes(1, 2)[:, :length, :, :size]

    return call_sharded(on_device, q, k, v, segments, mesh)
