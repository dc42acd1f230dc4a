"""Mixture of experts against a loop over tokens in float64, on one device and on meshes of eight.

Softmax over the logits of the chosen experts alone gives the same weights as softmax over all and renormalising: a test holds
that too, so nobody hunts for the difference.
"""

import sys
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from tiny import jit, relative

from mtjudge_jax.models import grouped_matmul as grouped
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.grouped_matmul import IMPLS, OfLayer, grouped_matmul, matrix_gradient_tpu, product_of_layer_tpu
from mtjudge_jax.models.qwen3_vl import moe
from mtjudge_jax.models.qwen3_vl.config import MoeConfig
from mtjudge_jax.models.qwen3_vl.layers import REMAT_POLICIES

Q, S, D, E, F, K = 8, 3, 16, 8, 12, 2
MESHES = [(1, 1, 8, 1), (1, 2, 2, 2), (2, 1, 4, 1), (8, 1, 1, 1), (1, 8, 1, 1)]
REAL = np.random.default_rng(5).random((Q, S)) < 0.7


def case(seed: int = 0, *, d: int = D, e: int = E, f: int = F) -> tuple[np.ndarray, ...]:
    """x [Q, S, D], router [D, E], gate_up [E, D, 2, F], down [E, F, D] in float64, with clear choices of experts."""
    rng = np.random.default_rng(seed)
    router = rng.normal(size=(d, e))
    return rng.normal(size=(Q, S, d)), router, rng.normal(size=(e, d, 2, f)) / 4, rng.normal(size=(e, f, d)) / 4


def plain(x, router, gate_up, down, *, k: int = K):
    """One token after another. Returns y like x, and of each token the chosen experts and all probabilities."""
    y, chosen, probabilities = np.zeros_like(x), [], []
    for at in np.ndindex(x.shape[:-1]):
        logits = x[at] @ router
        p = np.exp(logits - logits.max())
        p /= p.sum()
        best = np.argsort(-p)[:k]
        for expert in best:
            gate, up = x[at] @ gate_up[expert, :, 0], x[at] @ gate_up[expert, :, 1]
            y[at] += p[expert] / p[best].sum() * ((gate / (1 + np.exp(-gate)) * up) @ down[expert])
        chosen.append(best)
        probabilities.append(p)
    return y, np.array(chosen), np.array(probabilities)


def plain_stats(chosen, probabilities, experts: int = E) -> moe.RouterStats:
    real = REAL.reshape(-1)
    load = np.bincount(chosen[real].reshape(-1), minlength=experts) / chosen[real].size
    return moe.RouterStats(load, -(probabilities[real] * np.log(probabilities[real])).sum(-1).mean())


def apply(x, router, gate_up, down, *, backend: Backend, k: int = K, real=REAL):
    cfg = MoeConfig(num_experts=down.shape[0], experts_per_token=k, intermediate_size=down.shape[1])
    y, routed = moe.expert_mlp(x, real, router_de=router, gate_up_ed2f=gate_up, down_efd=down, moe=cfg, backend=backend)
    return y, routed.stats


def with_gradients(args, backend: Backend, *, seed: int = 9, wrap=lambda f: f):
    """(y, statistics, gradients of sum(y * c) for a random c) in float32, from one compiled function."""
    c = np.random.default_rng(seed).normal(size=args[0].shape).astype(np.float32)

    def loss(*args):
        y, stats = wrap(partial(apply, backend=backend))(*args)
        return (y * c).sum(), (y, stats)

    (_, (y, stats)), gradients = jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*[np.float32(a) for a in args])
    return y, stats, gradients


def fake_mesh(shape: tuple[int, ...]) -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(shape), ("data", "fsdp", "expert", "tensor"), axis_types=(AxisType.Auto,) * 4)


@pytest.fixture(scope="module")
def reference():
    """The dense path on one device; the first test holds it to the loop."""
    return with_gradients(case(), Backend())


@pytest.mark.parametrize("impl", IMPLS)
def test_equals_a_loop_over_tokens(impl):
    args = case()
    y, stats, gradients = with_gradients(args, Backend(experts=impl))
    want, chosen, probabilities = plain(*args)
    assert relative(y, want) < 1e-6
    assert relative(stats, plain_stats(chosen, probabilities)) < 1e-6
    assert stats.load.sum() == pytest.approx(1, abs=1e-6)
    c = np.float64(np.random.default_rng(9).normal(size=want.shape).astype(np.float32))
    rng = np.random.default_rng(1)
    for i, gradient in enumerate(gradients):
        for _ in range(3):  # slopes of the loop along random directions
            step = 1e-5 * rng.normal(size=args[i].shape)
            ends = [(plain(*args[:i], args[i] + s, *args[i + 1 :])[0] * c).sum() for s in (step, -step)]
            scale = np.linalg.norm(gradient) * np.linalg.norm(step) / np.sqrt(step.size)  # of such a slope
            assert np.vdot(np.float64(gradient), step) == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-4, abs=1e-4 * scale)


def not_renormalised(x, router_de, *, k, taken):
    choice, _, probability = moe_route(x, router_de, k=k)
    return choice, jnp.take_along_axis(probability, choice, -1), probability


def softmax_of_the_chosen(x, router_de, *, k, taken):
    logits = x @ router_de
    top, choice = jax.lax.top_k(logits, k)
    return choice, jax.nn.softmax(top), jax.nn.softmax(logits)


moe_route = moe.route
MISTAKES = {
    "no renormalisation": ("route", not_renormalised),
    "the least likely experts": ("route", lambda x, router, k, taken: moe_route(x, -router, k=k)),
    "gate and up swapped": ("_swiglu", lambda gu, w: jax.nn.silu(gu[..., F:]) * gu[..., :F] * w[..., None]),
    "not weighed": ("_swiglu", lambda gu, w: jax.nn.silu(gu[..., :F]) * gu[..., F:]),
    "sorted back by order": ("_collect", lambda rows, order, place: rows[order.reshape(place.shape)].sum(1)),
    "not sorted back": ("_collect", lambda rows, order, place: rows.reshape(*place.shape, -1).sum(1)),
    "weights not sorted": ("_permute", lambda weight, order, place: weight.reshape(-1)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_show(mistake, monkeypatch):
    args = [np.float32(a) for a in case()]
    want = plain(*case())[0]
    assert relative(apply(*args, backend=Backend(experts="ragged"))[0], want) < 1e-6
    monkeypatch.setattr(moe, *MISTAKES[mistake])
    assert relative(apply(*args, backend=Backend(experts="ragged"))[0], want) > 0.05


def test_softmax_of_the_chosen_alone_is_the_same(monkeypatch):
    monkeypatch.setattr(moe, "route", softmax_of_the_chosen)
    assert relative(apply(*[np.float32(a) for a in case()], backend=Backend())[0], plain(*case())[0]) < 1e-6


@pytest.mark.parametrize("impl", ["dense", "ragged"])
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_every_mesh_gives_the_same(shape, impl, reference, monkeypatch):
    monkeypatch.setattr(moe, "CHUNK_ROWS", 4)  # several chunks a device where experts are apart
    assert relative(with_gradients(case(), Backend(experts=impl, mesh=fake_mesh(shape))), reference) < 1e-5


@pytest.mark.parametrize("rows", [1, 84, 256, 606])
def test_tokamax_gets_whole_tiles_of_rows(rows, monkeypatch):
    """Its kernels for Hopper refuse 84 rows: "must have size smaller or a multiple of its tiling". The products are the same."""
    seen = []

    def product(lhs, rhs, sizes, dimensions, *, preferred_element_type, implementation):
        seen.append(lhs.shape[0])
        return jax.lax.ragged_dot_general(lhs, rhs, sizes, dimensions, preferred_element_type=preferred_element_type)

    monkeypatch.setattr(grouped, "import_tokamax", lambda *_: types.SimpleNamespace(ragged_dot_general=product))
    rng = np.random.default_rng(0)
    lhs, bar, rhs = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((rows, 8), (rows, 4), (3, 8, 4)))
    sizes = jnp.array([rows // 2, 0, rows - rows // 2], jnp.int32)
    for args in ((lhs, rhs, sizes, grouped._PLAIN), (bar, rhs, sizes, grouped._TRANSPOSED), (lhs, bar, sizes, grouped.GRADIENT)):
        got, want = (grouped._product(kind)(*args) for kind in ("tokamax", "ragged"))
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert len(seen) == 3 and all(count % 64 == 0 for count in seen), seen


def test_tokamax_on_a_mesh(reference):
    assert relative(with_gradients(case(), Backend(experts="tokamax", mesh=fake_mesh((1, 2, 2, 2)))), reference) < 1e-5


@pytest.mark.parametrize("shape", [None, (1, 1, 8, 1), (1, 2, 2, 2)], ids=str)
def test_all_tokens_to_the_same_experts(shape):
    """Experts 5 and 6 get every token, six get none: all rows of the batch on one device or two, none dropped."""
    x, _, gate_up, down = case(3)
    x[..., 0] = 1
    router = np.zeros((D, E))
    router[0, [5, 6]] = 3, 2
    router[1:] = np.random.default_rng(0).normal(size=(D - 1, E)) / 50
    want, chosen, probabilities = plain(x, router, gate_up, down)
    assert (chosen == [5, 6]).all()
    single = with_gradients((x, router, gate_up, down), Backend())
    backend = Backend(experts="ragged", mesh=shape and fake_mesh(shape))
    y, stats, gradients = with_gradients((x, router, gate_up, down), backend)
    assert relative(y, want) < 1e-6
    assert relative(stats, plain_stats(chosen, probabilities)) < 1e-6
    assert relative(gradients, single[2]) < 1e-5
    assert not np.delete(gradients[2], [5, 6], 0).any()


@pytest.mark.parametrize("impl", ["dense", "ragged"])
def test_sizes_that_the_mesh_does_not_divide_stay_whole(impl):
    args = case(e=5, d=15, f=9)
    mesh = fake_mesh((1, 2, 2, 2))
    specs = moe.weight_specs(moe.Weights(*[jax.ShapeDtypeStruct(a.shape, np.float32) for a in args[1:]]), mesh)
    assert all(axis is None for spec in specs for axis in spec)
    assert relative(with_gradients(args, Backend(experts=impl, mesh=mesh)), with_gradients(args, Backend())) < 1e-5


@pytest.mark.parametrize("shape", [None, (1, 1, 8, 1), (1, 2, 2, 2), (2, 1, 2, 2)], ids=str)
def test_a_layer_out_of_the_stack_of_all(shape, monkeypatch):
    """As decoding reads it: each layer gives what its own weights give, wherever these lie."""
    monkeypatch.setattr(moe, "CHUNK_ROWS", 4)
    first, second = ([np.float32(a) for a in case(seed=seed)] for seed in (0, 1))
    backend = Backend(experts="ragged", mesh=shape and fake_mesh(shape), gathered=bool(shape and shape[1] > 1))
    gate_up, down = (jnp.stack(pair) for pair in zip(first[2:], second[2:], strict=True))
    stacked = jit(lambda *weights: moe.stack_experts(*weights, backend))(gate_up, down)
    for layer, args in enumerate((first, second)):
        got = jit(lambda x, router, stack, at: apply(x, router, *stack.at(at), backend=backend))(*args[:2], stacked, layer)
        assert relative(got, jit(partial(apply, backend=Backend()))(*args)) < 1e-5


def test_experts_are_not_stacked_where_that_does_not_help():
    gate_up, down = (a[None] for a in case()[2:])
    assert moe.stack_experts(gate_up, down, Backend(experts="dense")) is None
    assert moe.stack_experts(gate_up, down, Backend(experts="ragged", mesh=fake_mesh((1, 8, 1, 1)))) is None


def test_weights_lie_as_the_parameter_table_says():
    shapes = [(D, E), (E, D, 2, F), (E, F, D)]
    weights = moe.Weights(*[jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes])
    specs = moe.weight_specs(weights, fake_mesh((1, 2, 2, 2)))
    assert [tuple(spec) for spec in specs] == [(None, None), ("expert", "fsdp", None, "tensor"), ("expert", "tensor", "fsdp")]
    assert [tuple(spec) for spec in moe.weight_specs(weights, fake_mesh((1, 8, 1, 1)))][1] == (None, "fsdp", None, None)


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_inside_a_scan_that_computes_again(remat, reference):
    """As the decoder uses it: a scanned layer under jax.checkpoint, here of one layer."""
    policy = REMAT_POLICIES[remat]

    def wrap(f):
        def scanned(x, *weights):
            step = jax.checkpoint(lambda x, weights: f(x, *weights), policy=policy, prevent_cse=False)
            y, stats = jax.lax.scan(step, x, jax.tree.map(lambda w: w[None], weights))
            return y, jax.tree.map(lambda s: s[0], stats)

        return scanned

    backend = Backend(experts="ragged", mesh=fake_mesh((1, 2, 2, 2)))
    assert relative(with_gradients(case(), backend, wrap=wrap), reference) < 1e-5


@pytest.mark.parametrize("impl", ["dense", "ragged"])
def test_bfloat16(impl):
    args = case()
    low = [jnp.asarray(a, jnp.bfloat16) for a in args]
    y, stats = apply(*low, backend=Backend(experts=impl))
    assert y.dtype == jnp.bfloat16 and stats.load.dtype == stats.entropy.dtype == jnp.float32
    want, chosen, probabilities = plain(*[np.asarray(a, np.float64) for a in low])
    assert relative(y, want) < 2e-2
    assert relative(stats, plain_stats(chosen, probabilities)) < 1e-5  # the router lost nothing to bfloat16


def test_router_tells_apart_what_bfloat16_cannot():
    x = jnp.ones((1, D), jnp.bfloat16)
    router = np.full((D, E), 0.5, np.float32)
    router[0, 6] += 1e-3  # logits 8 and 8.001: equal in bfloat16, where the first would win
    choice, weight, _ = moe.route(x, jnp.asarray(router), k=1)
    assert choice.item() == 6 and weight.item() == 1


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("sizes", [(3, 0, 4, 5), (0, 12, 0, 0), (2, 3, 0, 1), (0, 0, 0, 0)], ids=str)
def test_grouped_matmul(impl, sizes):
    rng = np.random.default_rng(2)
    lhs, rhs, c = (rng.normal(size=shape).astype(np.float32) for shape in ((12, 6), (4, 6, 5), (12, 5)))
    product = partial(grouped_matmul, group_sizes=jnp.array(sizes, jnp.int32), impl=impl, tail=sum(sizes) < 12)
    out, pullback = jax.vjp(product, lhs, rhs)
    want, lhs_bar, rhs_bar = np.zeros((12, 5)), np.zeros_like(lhs), np.zeros_like(rhs)
    for row, group in enumerate(np.repeat(np.arange(4), sizes)):
        want[row] = lhs[row] @ rhs[group]
        lhs_bar[row] = rhs[group] @ c[row]
        rhs_bar[group] += np.outer(lhs[row], c[row])
    assert relative((out, *pullback(c)), (want, lhs_bar, rhs_bar)) < 1e-6


def test_what_a_kernel_leaves_behind_the_last_group_is_cleared(monkeypatch):
    """A kernel may leave anything there; neither the output nor a gradient may see it."""

    def dirty(lhs, rhs, group_sizes, dimensions):
        out = ragged_dot(lhs, rhs, group_sizes, dimensions)
        if dimensions == grouped.GRADIENT:
            return out
        return jnp.where((jnp.arange(out.shape[0]) < group_sizes.sum())[:, None], out, jnp.nan)

    ragged_dot = grouped._ragged_dot
    want = with_gradients(case(), Backend(experts="ragged", mesh=fake_mesh((1, 1, 8, 1))))
    monkeypatch.setattr(grouped, "_ragged_dot", dirty)
    assert relative(with_gradients(case(), Backend(experts="ragged", mesh=fake_mesh((1, 1, 8, 1)))), want) < 1e-6


@pytest.mark.parametrize("rows", [48, 41])
@pytest.mark.parametrize("sizes", [(5, 0, 16, 20), (0, 0, 41, 0), (16, 0, 16, 3), (1, 1, 1, 1), (0, 0, 0, 0)], ids=str)
def test_tpu_kernel_of_the_matrices_gradient(sizes, rows, monkeypatch):
    """Interpreted here. Several tiles along every axis; what stands behind the last group is infinite."""
    monkeypatch.setattr(grouped, "ROW_TILE", 16)
    monkeypatch.setattr(grouped, "COLUMN_TILE", 256)  # 128 in float32
    rng = np.random.default_rng(4)
    lhs, c = rng.normal(size=(rows, 256)).astype(np.float32), rng.normal(size=(rows, 40)).astype(np.float32)
    groups = np.split(np.arange(rows), np.cumsum(sizes))
    want = np.stack([lhs[g].T @ c[g] for g in groups[:-1]])
    lhs[groups[-1]] = c[groups[-1]] = np.inf
    got = matrix_gradient_tpu(lhs, c, jnp.array(sizes, jnp.int32), interpret=True)
    assert relative(got, want) < 1e-5


@pytest.mark.parametrize("rows", [48, 41])
@pytest.mark.parametrize("sizes", [(5, 0, 16, 20), (0, 0, 41, 0), (16, 0, 16, 3), (1, 1, 1, 1), (0, 0, 0, 0)], ids=str)
def test_tpu_kernel_of_a_layers_product(sizes, rows, monkeypatch):
    """Interpreted here. Several tiles of rows and columns; other layers and what stands behind the last group are infinite."""
    monkeypatch.setattr(grouped, "_FEW_ROWS", 16)
    monkeypatch.setattr(grouped, "_BLOCK", 4 * 40 * 128)
    rng = np.random.default_rng(5)
    lhs, matrices = rng.normal(size=(rows, 40)).astype(np.float32), rng.normal(size=(4, 40, 256)).astype(np.float32)
    groups = np.split(np.arange(rows), np.cumsum(sizes))
    lhs[groups[-1]] = np.inf
    stack = np.full((3, *matrices.shape), np.inf, np.float32)
    stack[1] = matrices
    group_sizes = jnp.array(sizes, jnp.int32)
    got = product_of_layer_tpu(lhs, stack, jnp.int32(1), group_sizes, interpret=True)
    for rows, matrix in zip(groups[:-1], matrices, strict=True):
        assert rows.size == 0 or relative(got[rows], lhs[rows] @ matrix) < 1e-5
    cleared = grouped_matmul(lhs, OfLayer(stack, jnp.int32(1)), group_sizes, impl="ragged")
    assert np.isfinite(cleared).all() and not np.asarray(cleared)[groups[-1]].any()


def test_errors_name_the_remedy(monkeypatch):
    args = [np.float32(a) for a in case()]
    with pytest.raises(ValueError, match=r"experts = 'sparse'.*choose one of dense, ragged, tokamax"):
        apply(*args, backend=Backend(experts="sparse"))
    with pytest.raises(ValueError, match=r"6 rows of tokens do not divide over 8 devices .*multiple of 8"):
        apply(args[0][:6], *args[1:], backend=Backend(mesh=fake_mesh((8, 1, 1, 1))), real=REAL[:6])
    with pytest.raises(ValueError, match=r"16777216 choices among 128 experts.*2\^31 / 128: use fewer rows"):
        jax.eval_shape(partial(moe._sort, experts=128), jax.ShapeDtypeStruct((2**21, 8), np.int32))
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(ValueError, match=r"experts = 'tokamax' needs the package.*\.\[tokamax\].*ragged or dense"):
        apply(*args, backend=Backend(experts="tokamax"))
