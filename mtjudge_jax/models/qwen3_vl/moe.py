"""The mixture of experts of a decoder layer: a router chooses k of E mlps for each token, and no choice is dropped.

Source of the order of operations: transformers `models/qwen3_vl_moe/modeling_qwen3_vl_moe.py` (5.23). Only the router's
logits differ: they are float32 here, so that rollout and training choose the same experts. Axes: T tokens, D model, E
experts, F width of an expert, k choices per token, R = T k rows, one per choice.
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
from mtjudge_jax.models.grouped_matmul import OfLayer, grouped_matmul
from mtjudge_jax.models.qwen3_vl.config import MoeConfig
from mtjudge_jax.sharding import BATCH_AXES, param_spec
from mtjudge_jax.types import NO_CHOICE, Array

# Where experts are sharded, a device has its share of all rows if all experts are chosen equally often. It computes them in
# chunks of CHUNK_ROWS, more where the share is more than _CHUNKS_PER_SHARE of these, fewer where it is less, as in decoding: the
# passes over a chunk take as long for rows that are not there.
CHUNK_ROWS = 4096
_CHUNKS_PER_SHARE = 4
_ROOM = 1.5  # a small share has so much room in one chunk


class RouterStats(NamedTuple):
    """Statistics of a layer's router over the real tokens of the whole batch. No gradient flows through them."""

    load: Array  # float32 [E], the share of all choices; sums to 1
    entropy: Array  # float32 [], mean entropy of the softmax over all experts, in nats


class Routed(NamedTuple):
    """What a router did; with the layers on the first axis, where all are stacked."""

    stats: RouterStats
    choice: Array | None  # int32 [Q, .., k], the experts of each token


class Weights(NamedTuple):
    """The weights of one layer; inside `jax.shard_map`, this device's part of them. Also used for their partition specs."""

    router_de: Array
    gate_up_ed2f: Array | OfLayer  # OfLayer: [E, D, 2 F]
    down_efd: Array | OfLayer


class ExpertStack(NamedTuple):
    """The experts of all layers, from which decoding reads. Each device has its own, whole over D."""

    gate_up_led2f: Array  # [L, E, D, 2 F], on each device [gate | up] of its F'
    down_lefd: Array

    def at(self, layer: Array) -> tuple[OfLayer, OfLayer]:
        return OfLayer(self.gate_up_led2f, layer), OfLayer(self.down_lefd, layer)


class _ShardAxes(NamedTuple):
    """The mesh axes over which each array axis is sharded inside `jax.shard_map`; none on one device."""

    rows: tuple[str, ...] = ()  # T
    fsdp: tuple[str | None, str | None] = (None, None)  # D of gate_up and of down
    expert: str | None = None  # E
    tensor: str | None = None  # F

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes over which the products vary."""
        return self.rows + ((self.tensor,) if self.tensor else ())


def expert_mlp(
    x: Array,
    real: Array,
    *,
    router_de: Array,
    gate_up_ed2f: Array | OfLayer,
    down_efd: Array | OfLayer,
    moe: MoeConfig,
    backend: Backend,
    choice: Array | None = None,
) -> tuple[Array, Routed]:
    """x [Q, .., D] -> (y like x, what the router did). All are computed; the statistics are of those where `real`, bool [Q, ..].

    choice: integers [Q, .., k], the experts to take where it is not NO_CHOICE; their weights are still the router's.
    gate_up and down: those of the layer, or its place in the result of `stack_experts`.
    On a mesh, Q is sharded as every batch is. Devices along `expert` exchange tokens: each device gets the tokens of all,
    computes the choices of its own experts, and sends the sums back. Raises UserError when the mesh does not divide Q.
    """
    weights = Weights(router_de, gate_up_ed2f, down_efd)
    layer = functools.partial(_layer, k=moe.experts_per_token, impl=backend.experts)
    if backend.mesh is None or backend.mesh.size == 1:
        return layer(x, real, choice, weights, split=_ShardAxes())
    shards = math.prod(backend.mesh.shape[axis] for axis in BATCH_AXES)
    if x.shape[0] % shards:
        raise UserError(
            f"{x.shape[0]} rows of tokens do not divide over {shards} devices ({' x '.join(BATCH_AXES)}): "
            f"pad the batch to a multiple of {shards}"
        )
    specs = weight_specs(_shapes(down_efd.shape), backend.mesh, gathered=backend.gathered)
    expert, gate_up_d, _, tensor = specs.gate_up_ed2f
    split = _ShardAxes(BATCH_AXES, (gate_up_d, specs.down_efd[2]), expert, tensor)
    rows = P(BATCH_AXES)
    if isinstance(down_efd, OfLayer):
        specs = Weights(specs.router_de, *(OfLayer(spec, P()) for spec in _stack_specs(specs)))
    return jax.shard_map(
        functools.partial(layer, split=split),
        mesh=backend.mesh,
        in_specs=(rows, rows, rows, specs),
        out_specs=(rows, Routed(RouterStats(P(), P()), rows)),
        check_vma=backend.experts != "tokamax",  # its kernels do not declare over which axes they vary
    )(x, real, choice, weights)


def stack_experts(gate_up_led2f: Array, down_lefd: Array, backend: Backend) -> ExpertStack | None:
    """For `expert_mlp` of each layer, so that a TPU need not copy a layer's experts for each token.

    None where that does not help: other backends, and weights that the devices along fsdp gather for each layer.
    """
    merge = lambda gate_up, down: ExpertStack(gate_up.reshape(*gate_up.shape[:3], -1), down)  # noqa: E731
    if backend.experts != "ragged":
        return None
    if backend.mesh is None or backend.mesh.size == 1:
        return merge(gate_up_led2f, down_lefd)
    specs = weight_specs(_shapes(down_lefd.shape[1:]), backend.mesh, gathered=backend.gathered)
    if specs.gate_up_ed2f[1] or specs.down_efd[2]:
        return None
    given = tuple(P(None, *spec) for spec in specs[1:])
    return jax.shard_map(merge, mesh=backend.mesh, in_specs=given, out_specs=_stack_specs(specs))(gate_up_led2f, down_lefd)


def _shapes(down: tuple[int, ...]) -> Weights:
    experts, f, d = down
    return Weights(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((d, experts), (experts, d, 2, f), down)))


def _stack_specs(layer: Weights) -> ExpertStack:
    expert, _, _, tensor = layer.gate_up_ed2f
    return ExpertStack(P(None, expert, None, tensor), P(None, *layer.down_efd))


def weight_specs(weights: Weights, mesh: Mesh, *, gathered: bool = False) -> Weights:
    """The specs of one layer's weights, taken from the table of parameters, without the layer axis.

    An axis that does not divide is whole. A mesh axis of one device is not named, so that it causes no collective. gathered: the
    weights are whole along fsdp.
    """
    named = {axis for axis, size in mesh.shape.items() if size > 1 and not (gathered and axis == "fsdp")}

    def one(path: str, weight: Array) -> P:
        spec = param_spec(f"text/layers/{path}", (1, *weight.shape), mesh)[1:]
        return P(*[axis if axis in named else None for axis in spec])

    paths = Weights("router_lde", "experts_gate_up_led2f", "experts_down_lefd")
    return Weights(*map(one, paths, weights))


def _layer(
    x: Array, real: Array, choice: Array | None, weights: Weights, *, k: int, impl: str, split: _ShardAxes
) -> tuple[Array, Routed]:
    """`expert_mlp` on one device, or one device's part of it."""
    tokens, taken = x.reshape(-1, x.shape[-1]), None if choice is None else choice.reshape(-1, k)
    choice, weight, probability = route(tokens, weights.router_de, k=k, taken=taken)
    routed = choice.reshape(*x.shape[:-1], k)
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
        y = _all_experts(tokens, choice, weight, gate_up, down)
    elif not split.expert:
        y = _sorted_experts(tokens, choice, weight, gate_up, down, impl=impl)
    else:
        share = choice.size // jax.lax.axis_size(split.expert)
        y = _some_experts(tokens, choice, weight, gate_up, down, impl=impl, share=share, axes=split.axes)
    if split.expert:
        y = jax.lax.psum_scatter(y, split.expert, tiled=True)
    if split.tensor:
        y = jax.lax.psum(y, split.tensor)
    return y.reshape(x.shape), Routed(stats, routed)


def _gather_weights(weights: Weights, split: _ShardAxes) -> tuple[Array | OfLayer, Array | OfLayer]:
    """gate_up [E', D, 2 F'] and down [E', F', D] of this device's experts and columns, whole over D."""
    gate_up, down = weights.gate_up_ed2f, weights.down_efd
    if not isinstance(gate_up, OfLayer):
        gate_up = gate_up.reshape(*gate_up.shape[:2], -1)
    whole = []
    for w, axis, fsdp in zip((gate_up, down), (1, 2), split.fsdp, strict=True):
        if fsdp:
            w = jax.lax.all_gather(w, fsdp, axis=axis, tiled=True)
        same = tuple(a for a in split.axes if a not in (fsdp, split.expert, split.tensor))
        whole.append(jax.lax.pcast(w, same, to="varying") if same else w)
    return whole[0], whole[1]


def route(x: Array, router_de: Array, *, k: int, taken: Array | None = None) -> tuple[Array, Array, Array]:
    """x [T, D] -> (choice int32 [T, k], weight float32 [T, k] that sums to 1, probability float32 [T, E]), all in float32.

    Softmax over all experts, then the k largest, then renormalised. (A softmax over the k largest logits alone gives the
    same numbers: the common denominator cancels.) taken [T, k]: the experts to take instead, where it is not NO_CHOICE.
    """
    logits = jnp.einsum("td,de->te", x.astype(jnp.float32), router_de.astype(jnp.float32), precision="highest")
    probability = jax.nn.softmax(logits)
    choice = jax.lax.top_k(jax.lax.stop_gradient(probability), k)[1]
    if taken is not None:
        choice = jnp.where(taken == NO_CHOICE, choice, taken.astype(jnp.int32))
    # Selected by comparison: its backward pass is a sum, where that of `top_k` scatters one number at a time.
    weight = jnp.where(_is_expert(choice, logits.shape[-1]), probability[:, None], 0).sum(-1)
    return choice, weight / weight.sum(-1, keepdims=True), probability


def _is_expert(choice: Array, experts: int) -> Array:
    """int32 [...] -> bool [..., E]; a choice outside 0..E-1 gives all False."""
    return choice[..., None] == jnp.arange(experts)


def _stats(choice: Array, probability: Array, real: Array, axes: tuple[str, ...]) -> RouterStats:
    choice, probability = jax.lax.stop_gradient((choice, probability))
    real = real.astype(jnp.float32)
    count = (_is_expert(choice, probability.shape[-1]) * real[:, None, None]).sum((0, 1))
    entropy = -(jax.scipy.special.xlogy(probability, probability).sum(-1) * real).sum()
    count, entropy, total = jax.lax.psum((count, entropy, real.sum()), axes) if axes else (count, entropy, real.sum())
    total = jnp.maximum(total, 1)
    return RouterStats(count / (total * choice.shape[-1]), entropy / total)


def _all_experts(x: Array, choice: Array, weight: Array, gate_up_edf: Array, down_efd: Array) -> Array:
    """Every expert on every token, with weight zero where it was not chosen: two plain products, [T, E, 2 F] in between."""
    experts = down_efd.shape[0]
    share = (_is_expert(choice, experts) * weight[..., None]).sum(1)
    h = _swiglu(jnp.einsum("td,edf->tef", x, gate_up_edf), share)
    return jnp.einsum("tef,efd->td", h, down_efd)


def _swiglu(gate_up: Array, weight: Array) -> Array:
    """gate_up [..., 2 F] = [gate | up], weight [...] -> [..., F]. Weighted here, where the array is narrowest."""
    gate, up = jnp.split(gate_up, 2, -1)
    return jax.nn.silu(gate) * up * weight[..., None].astype(up.dtype)


def _mlp(rows: Array, weight: Array, group_sizes: Array, gate_up_edf: Array, down_efd: Array, *, impl: str, tail: bool) -> Array:
    """rows [R, D] sorted by expert and their weights [R] -> [R, D]; zero in the tail, if there is one."""
    h = _swiglu(grouped_matmul(rows, gate_up_edf, group_sizes, impl=impl, tail=tail), weight)
    return grouped_matmul(h, down_efd, group_sizes, impl=impl, tail=tail)


def _sorted_experts(x: Array, choice: Array, weight: Array, gate_up_edf: Array, down_efd: Array, *, impl: str) -> Array:
    """Computes each row once: sorts the tokens by expert, multiplies them in groups and sorts them back. All experts are on
    this device.

    Rows move by gathers alone, forward and backward. Three tokens with choices (2, 0), (0, 1), (2, 1):

        row of (token, choice)   0  1  2  3  4  5      expert  2  0  0  1  2  1
        order                    1  2  3  5  0  4      the rows of experts 0, 1, 2
        place                    4  0  1  2  5  3      where each row went
    """
    sizes = _is_expert(choice, down_efd.shape[0]).sum((0, 1), dtype=jnp.int32)
    order, place = _sort(choice, down_efd.shape[0])
    rows = _spread(x, order, place)
    out = _mlp(rows, _permute(weight, order, place), sizes, gate_up_edf, down_efd, impl=impl, tail=False)
    return _collect(out, order, place)


def _sort(choice: Array, experts: int) -> tuple[Array, Array]:
    """choice int32 [T, k] in 0..experts-1 -> (order [R], place [T, k]); rows of an expert stay in the order of the tokens.

    Expert and row are packed into one number, because sorting pairs stably takes three times as long to run and to compile.
    """
    rows = choice.size
    if experts * rows >= 2**31:
        raise UserError(f"{rows} choices among {experts} experts on a device exceed 2^31 / {experts}: use fewer rows")
    order = jax.lax.sort(choice.reshape(-1) * rows + jnp.arange(rows), is_stable=False) % rows
    return order, jnp.argsort(order, stable=False).reshape(choice.shape)


@jax.custom_vjp
def _spread(x: Array, order: Array, place: Array) -> Array:
    """x [T, D] -> each token in the rows of its choices, [R, D]. `_spread` and `_collect` are each other's transpose."""
    return x[order // place.shape[1]]


@jax.custom_vjp
def _collect(rows: Array, order: Array, place: Array) -> Array:
    """rows [R, D] -> the sum over each token's choices, [T, D], in float32.

    Slab by slab, which XLA fuses for a TPU: it estimates 0.9 million cycles, and 3 million for `sum`.
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


def _some_experts(
    x: Array, choice: Array, weight: Array, gate_up_edf: Array, down_efd: Array, *, impl: str, share: int, axes: tuple[str, ...]
) -> Array:
    """The same where this device has only some of the experts: choices outside 0..E'-1 belong to other devices.

    All choices of all tokens may be for these experts, though about `share` rows will be. So the rows are computed in chunks,
    of which only one takes memory at a time. Chunks after the last row do nothing. No choice is dropped, and the time follows
    the load.
    """
    experts, k = down_efd.shape[0], choice.shape[1]
    mine = (choice >= 0) & (choice < experts)
    sizes = _is_expert(choice, experts).sum((0, 1), dtype=jnp.int32)
    most = x.shape[0] * min(k, experts)
    least = -(-int(_ROOM * share) // 128) * 128
    chunk = min(most, max(min(CHUNK_ROWS, least), -(-share // _CHUNKS_PER_SHARE)))
    chunks = -(-most // chunk)
    order, place = _sort(jnp.where(mine, choice, experts), experts + 1)
    weight = _permute(weight, order, place)
    fit = lambda a: jnp.pad(a, (0, max(0, chunks * chunk - a.size)))[: chunks * chunk].reshape(chunks, chunk)  # noqa: E731
    return _in_chunks(x, fit(weight), gate_up_edf, down_efd, fit(order // k), sizes, impl, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def _in_chunks(
    x: Array, weight: Array, gate_up_edf: Array, down_efd: Array, token: Array, sizes: Array, impl: str, axes: tuple[str, ...]
) -> Array:
    """x [T, D]; weight and token [chunks, R'] of each chunk of rows -> [T, D], the rows of each token summed in float32.

    It has its own backward pass, in which each chunk adds its share to the gradients in place. JAX's would make an array of the
    size of x for every chunk, idle or not, and add them all up.
    """

    def step(y: Array, chunk):
        token, weight, inside, busy = chunk

        def work(y: Array) -> Array:
            out = _mlp(x[token], weight, inside, gate_up_edf, down_efd, impl=impl, tail=True)
            return y.at[token].add(out.astype(jnp.float32))

        return jax.lax.cond(busy, work, lambda y: y, y), None

    return jax.lax.scan(step, _zeros_like(x), (token, weight, *_inside(token, sizes)))[0].astype(x.dtype)


def _zeros_like(x: Array) -> Array:
    """Float32 zeros to add to. Not a constant: XLA would keep one for every layer, each as large as all tokens here."""
    return x.astype(jnp.float32) * 0


def _inside(token: Array, sizes: Array) -> tuple[Array, Array]:
    """The number of rows of each expert in each chunk, [chunks, E'], and whether a chunk has any, [chunks]."""
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
