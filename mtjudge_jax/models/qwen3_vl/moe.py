"""The mixture of experts of a decoder layer: a router that chooses k of E mlps a token, and those mlps, dropless.

Source of the order of operations: transformers `models/qwen3_vl_moe/modeling_qwen3_vl_moe.py` (5.23), but the router's
logits are float32 here, so that rollout and training choose alike. Axes: T tokens, D model, E experts, F width of an
expert, k choices a token; R = T k rows, one a choice.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mtjudge_jax.errors import UserError
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.grouped_matmul import grouped_matmul
from mtjudge_jax.models.qwen3_vl.config import MoeConfig
from mtjudge_jax.sharding import BATCH_AXES, param_spec
from mtjudge_jax.types import Array

CHUNK_ROWS = 4096  # experts held apart: their rows are worked off in chunks of at least so many
CHUNKS_A_SHARE = 4  # and of this part of the rows that a device would have if all experts were chosen alike


class RouterStats(NamedTuple):
    """What the router of a layer did with the real tokens of the whole batch; no gradient flows through it."""

    load: Array  # float32 [E], share of all choices, sums to 1
    entropy: Array  # float32 [], mean entropy of the softmax over all experts, in nats


class Weights(NamedTuple):
    """Of one layer; inside `jax.shard_map` this device's part of them. Also holds their partition specs."""

    router_de: Array
    gate_up_ed2f: Array
    down_efd: Array


class Split(NamedTuple):
    """Which mesh axes hold what apart inside `jax.shard_map`; nothing on one device."""

    rows: tuple[str, ...] = ()  # the tokens
    fsdp: tuple[str | None, str | None] = (None, None)  # D of gate_up and of down
    expert: str | None = None  # E
    tensor: str | None = None  # F

    @property
    def axes(self) -> tuple[str, ...]:
        """All that the products vary over."""
        return self.rows + ((self.tensor,) if self.tensor else ())


def expert_mlp(
    x: Array, real: Array, *, router_de: Array, gate_up_ed2f: Array, down_efd: Array, moe: MoeConfig, backend: Backend
) -> tuple[Array, RouterStats]:
    """x [Q, .., D] -> (y like x, statistics over the tokens where real, bool [Q, ..]); all tokens are computed.

    On a mesh, Q is sharded as every batch is. Devices along `expert` exchange tokens: each sees those of all, works on the
    choices that are its own experts', and the sums go back. Raises ValueError when the mesh does not divide Q.
    """
    weights = Weights(router_de, gate_up_ed2f, down_efd)
    layer = functools.partial(_layer, k=moe.experts_per_token, impl=backend.experts)
    if backend.mesh is None or backend.mesh.size == 1:
        return layer(x, real, weights, split=Split())
    shards = math.prod(backend.mesh.shape[axis] for axis in BATCH_AXES)
    if x.shape[0] % shards:
        raise UserError(
            f"{x.shape[0]} rows of tokens do not divide over {shards} devices ({' x '.join(BATCH_AXES)}): "
            f"pad the batch to a multiple of {shards}"
        )
    specs = weight_specs(weights, backend.mesh)
    rows = P(BATCH_AXES)
    return jax.shard_map(
        functools.partial(layer, split=_split(specs)),
        mesh=backend.mesh,
        in_specs=(rows, rows, specs),
        out_specs=(rows, RouterStats(P(), P())),
        check_vma=backend.experts != "tokamax",  # its kernels do not say what they vary over
    )(x, real, weights)


def weight_specs(weights: Weights, mesh: Mesh) -> Weights:
    """The parameter table's specs of one layer's weights, the layer axis gone.

    What does not divide is whole, and an axis of one device is not named: no collective is written for it.
    """

    def one(path: str, weight: Array) -> P:
        spec = param_spec(f"text/layers/{path}", (1, *weight.shape), mesh)[1:]
        return P(*[axis if axis and mesh.shape[axis] > 1 else None for axis in spec])

    paths = Weights("router_lde", "experts_gate_up_led2f", "experts_down_lefd")
    return Weights(*map(one, paths, weights))


def _split(specs: Weights) -> Split:
    expert, gate_up_d, _, tensor = specs.gate_up_ed2f
    return Split(BATCH_AXES, (gate_up_d, specs.down_efd[2]), expert, tensor)


def _layer(x: Array, real: Array, weights: Weights, *, k: int, impl: str, split: Split) -> tuple[Array, RouterStats]:
    """`expert_mlp` on one device, or on one device's part of it."""
    tokens = x.reshape(-1, x.shape[-1])
    choice, weight, probability = route(tokens, weights.router_de, k=k)
    stats = _stats(choice, probability, real.reshape(-1), split.rows)
    gate_up, down = _gather_weights(weights, split)
    if split.tensor:
        tokens, weight = jax.lax.pcast((tokens, weight), split.tensor, to="varying")
    first = 0
    if split.expert:
        gather = functools.partial(jax.lax.all_gather, axis_name=split.expert, tiled=True)
        tokens, choice, weight = gather(tokens), gather(choice), gather(weight)
        first = jax.lax.axis_index(split.expert) * down.shape[0]
    choice = choice - first
    if impl == "dense":
        y = all_experts(tokens, choice, weight, gate_up, down)
    elif not split.expert:
        y = sorted_experts(tokens, choice, weight, gate_up, down, impl=impl)
    else:
        share = choice.size // jax.lax.axis_size(split.expert)
        y = some_experts(tokens, choice, weight, gate_up, down, impl=impl, share=share, axes=split.axes)
    if split.expert:
        y = jax.lax.psum_scatter(y, split.expert, tiled=True)
    if split.tensor:
        y = jax.lax.psum(y, split.tensor)
    return y.reshape(x.shape), stats


def _gather_weights(weights: Weights, split: Split) -> tuple[Array, Array]:
    """gate_up [E', D, 2 F'] and down [E', F', D] of this device's experts and columns, whole over D."""
    gate_up, down = weights.gate_up_ed2f, weights.down_efd
    gate_up = gate_up.reshape(*gate_up.shape[:2], -1)
    whole = []
    for w, axis, fsdp in zip((gate_up, down), (1, 2), split.fsdp, strict=True):
        if fsdp:
            w = jax.lax.all_gather(w, fsdp, axis=axis, tiled=True)
        same = tuple(a for a in split.axes if a not in (fsdp, split.expert, split.tensor))
        whole.append(jax.lax.pcast(w, same, to="varying") if same else w)
    return whole[0], whole[1]


def route(x: Array, router_de: Array, *, k: int) -> tuple[Array, Array, Array]:
    """x [T, D] -> (choice int32 [T, k], weight float32 [T, k] that sums to 1, probability float32 [T, E]), all in float32.

    Softmax over all experts first, then the k largest, then renormalised. (Softmax over the logits of the k largest alone
    is the same number: the common denominator cancels.)
    """
    logits = jnp.einsum("td,de->te", x.astype(jnp.float32), router_de.astype(jnp.float32), precision="highest")
    probability = jax.nn.softmax(logits)
    choice = jax.lax.top_k(jax.lax.stop_gradient(probability), k)[1]
    # Picked by comparison: the backward pass is a sum then, where that of `top_k` scatters one number at a time.
    weight = jnp.where(_is_expert(choice, logits.shape[-1]), probability[:, None], 0).sum(-1)
    return choice, weight / weight.sum(-1, keepdims=True), probability


def _is_expert(choice: Array, experts: int) -> Array:
    """int32 [...] -> bool [..., E]; a choice outside 0..E-1 is none of them."""
    return choice[..., None] == jnp.arange(experts)


def _stats(choice: Array, probability: Array, real: Array, axes: tuple[str, ...]) -> RouterStats:
    choice, probability = jax.lax.stop_gradient((choice, probability))
    real = real.astype(jnp.float32)
    count = (_is_expert(choice, probability.shape[-1]) * real[:, None, None]).sum((0, 1))
    entropy = -(jax.scipy.special.xlogy(probability, probability).sum(-1) * real).sum()
    count, entropy, total = jax.lax.psum((count, entropy, real.sum()), axes) if axes else (count, entropy, real.sum())
    total = jnp.maximum(total, 1)
    return RouterStats(count / (total * choice.shape[-1]), entropy / total)


def all_experts(x: Array, choice: Array, weight: Array, gate_up_edf: Array, down_efd: Array) -> Array:
    """Every expert on every token, weighed by zero where it was not chosen: two plain products, [T, E, 2 F] in between."""
    experts = down_efd.shape[0]
    share = (_is_expert(choice, experts) * weight[..., None]).sum(1)
    h = _swiglu(jnp.einsum("td,edf->tef", x, gate_up_edf), share)
    return jnp.einsum("tef,efd->td", h, down_efd)


def _swiglu(gate_up: Array, weight: Array) -> Array:
    """gate_up [..., 2 F] = [gate | up], weight [...] -> [..., F]. Weighed before the product with `down`, which is narrower."""
    gate, up = jnp.split(gate_up, 2, -1)
    return jax.nn.silu(gate) * up * weight[..., None].astype(up.dtype)


def _mlp(rows: Array, weight: Array, group_sizes: Array, gate_up_edf: Array, down_efd: Array, *, impl: str, tail: bool) -> Array:
    """rows [R, D] sorted by expert and their weights [R] -> [R, D]; zero in the tail, if there is one."""
    h = _swiglu(grouped_matmul(rows, gate_up_edf, group_sizes, impl=impl, tail=tail), weight)
    return grouped_matmul(h, down_efd, group_sizes, impl=impl, tail=tail)


def sorted_experts(x: Array, choice: Array, weight: Array, gate_up_edf: Array, down_efd: Array, *, impl: str) -> Array:
    """Each row once: the tokens sorted by expert, multiplied in groups, and sorted back. All experts are here.

    Forwards and backwards, rows move by gathers alone. Three tokens with choices (2, 0), (0, 1), (2, 1):

        row of (token, choice)   0  1  2  3  4  5      expert  2  0  0  1  2  1
        order                    1  2  3  5  0  4      the rows of expert 0, 1, 2
        place                    4  0  1  2  5  3      where each row went
    """
    sizes = _is_expert(choice, down_efd.shape[0]).sum((0, 1), dtype=jnp.int32)
    order, place = _sort(choice, down_efd.shape[0])
    rows = _spread(x, order, place)
    out = _mlp(rows, _permute(weight, order, place), sizes, gate_up_edf, down_efd, impl=impl, tail=False)
    return _collect(out, order, place)


def _sort(choice: Array, experts: int) -> tuple[Array, Array]:
    """choice int32 [T, k] in 0..experts-1 -> (order [R], place [T, k]); rows of an expert stay in the order of the tokens.

    Expert and row are packed into one number: sorting pairs stably takes three times the work and the compile time.
    """
    rows = choice.size
    if experts * rows >= 2**31:
        raise UserError(f"{rows} choices among {experts} experts on a device: fewer rows, there can be 2^31 / {experts} choices")
    order = jax.lax.sort(choice.reshape(-1) * rows + jnp.arange(rows), is_stable=False) % rows
    return order, jnp.argsort(order, stable=False).reshape(choice.shape)


@jax.custom_vjp
def _spread(x: Array, order: Array, place: Array) -> Array:
    """x [T, D] -> each token where its choices went, [R, D]. Its transpose is `_collect`, and the other way round."""
    return x[order // place.shape[1]]


@jax.custom_vjp
def _collect(rows: Array, order: Array, place: Array) -> Array:
    """rows [R, D] -> the sum over each token's choices, [T, D], in float32.

    Slab by slab, which XLA fuses for a TPU: by its own estimate 0.9 million cycles where `sum` takes 3.
    """
    slabs = rows[place.T]
    return functools.reduce(jnp.add, [slabs[i].astype(jnp.float32) for i in range(place.shape[1])]).astype(rows.dtype)


@jax.custom_vjp
def _permute(weight: Array, order: Array, place: Array) -> Array:
    """weight [T, k] -> [R] in the order of the rows."""
    return weight.reshape(-1)[order]


_spread.defvjp(lambda x, *index: (_spread(x, *index), index), lambda index, bar: (_collect(bar, *index), None, None))
_collect.defvjp(lambda x, *index: (_collect(x, *index), index), lambda index, bar: (_spread(bar, *index), None, None))
_permute.defvjp(lambda x, *index: (_permute(x, *index), index), lambda index, bar: (bar[index[1]], None, None))


def some_experts(
    x: Array,
    choice: Array,
    weight: Array,
    gate_up_edf: Array,
    down_efd: Array,
    *,
    impl: str,
    share: int,
    axes: tuple[str, ...],
) -> Array:
    """The same where only some experts are here: choices outside 0..E'-1 are other devices'.

    All choices of all tokens may fall on these experts, though about `share` rows will. So the rows are worked off in chunks
    that take memory one at a time, and chunks behind the last row do nothing: dropless, and paid by the load.
    """
    experts, k = down_efd.shape[0], choice.shape[1]
    mine = (choice >= 0) & (choice < experts)
    sizes = _is_expert(choice, experts).sum((0, 1), dtype=jnp.int32)
    most = x.shape[0] * min(k, experts)
    chunk = min(most, max(CHUNK_ROWS, -(-share // CHUNKS_A_SHARE)))
    chunks = -(-most // chunk)
    order, place = _sort(jnp.where(mine, choice, experts), experts + 1)
    weight = _permute(weight, order, place)
    fit = lambda a: jnp.pad(a, (0, max(0, chunks * chunk - a.size)))[: chunks * chunk].reshape(chunks, chunk)  # noqa: E731
    return _in_chunks(x, fit(weight), gate_up_edf, down_efd, fit(order // k), sizes, impl, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _in_chunks(
    x: Array, weight: Array, gate_up_edf: Array, down_efd: Array, token: Array, sizes: Array, impl: str, axes: tuple[str, ...]
) -> Array:
    """x [T, D]; of each chunk of rows weight and token [chunks, R'] -> [T, D], summed in float32 where the rows came from.

    With a backward pass of its own: each chunk adds its share to the gradients in place. Left to itself JAX makes an array of
    the size of x for every chunk, idle or not, and adds them all up.
    """

    def step(y: Array, chunk):
        token, weight, inside, busy = chunk

        def work(y: Array) -> Array:
            out = _mlp(x[token], weight, inside, gate_up_edf, down_efd, impl=impl, tail=True)
            return y.at[token].add(out.astype(jnp.float32))

        return jax.lax.cond(busy, work, lambda y: y, y), None

    return jax.lax.scan(step, _zeros_like(x), (token, weight, *_inside(token, sizes)))[0].astype(x.dtype)


def _zeros_like(x: Array) -> Array:
    """Float32 zeros to add to. Not a constant: that one XLA keeps beside every layer's, as large as all tokens here."""
    return x.astype(jnp.float32) * 0


def _inside(token: Array, sizes: Array) -> tuple[Array, Array]:
    """Rows of each expert in each chunk, [chunks, E'], and whether there are any, [chunks]."""
    chunks, size = token.shape
    end = jnp.cumsum(sizes)
    edges = jnp.clip(jnp.stack([end - sizes, end]) - (jnp.arange(chunks) * size)[:, None, None], 0, size)
    inside = edges[:, 1] - edges[:, 0]
    return inside, inside.sum(-1) > 0


def _in_chunks_backward(impl: str, axes: tuple[str, ...], saved, y_bar: Array):
    x, weight, gate_up_edf, down_efd, token, sizes = saved

    def step(sums, chunk):
        token, weight, inside, busy = chunk

        def work(sums):
            mlp = lambda rows, weight, *w: _mlp(rows, weight, inside, *w, impl=impl, tail=True)  # noqa: E731
            _, pull = jax.vjp(mlp, x[token], weight, gate_up_edf, down_efd)
            rows_bar, weight_bar, *w_bar = pull(y_bar[token])
            sums = (sums[0].at[token].add(rows_bar.astype(jnp.float32)), *map(jnp.add, sums[1:], w_bar))
            return sums, weight_bar

        return jax.lax.cond(busy, work, lambda sums: (sums, jax.lax.pcast(jnp.zeros(weight.shape), axes, to="varying")), sums)

    zeros = [jnp.zeros(w.shape, w.dtype) for w in (gate_up_edf, down_efd)]
    sums = _zeros_like(x), *jax.lax.pcast(zeros, axes, to="varying")
    (x_bar, *w_bar), weight_bar = jax.lax.scan(step, sums, (token, weight, *_inside(token, sizes)))
    return x_bar.astype(x.dtype), weight_bar, *w_bar, None, None


_in_chunks.defvjp(lambda *a: (_in_chunks(*a), a[:6]), _in_chunks_backward)
