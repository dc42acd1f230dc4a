"""Token log-probabilities: the shared prompt against a prompt for every answer, the head in chunks, entropy, banned ids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import LossConfig, MeshConfig
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.rl.logp import _chunk_logp, completion_logp, sampling_logits
from mtjudge_jax.rl.loss import grpo_loss, token_weights
from mtjudge_jax.sharding import make_mesh, shard_batch, tree_shardings
from mtjudge_jax.types import TrainBatch

GROUP, LENGTH, TEMPERATURE = 3, 6, 0.8
TOLERANCE = 1e-5  # relative, float32


@functools.cache
def shared(tied: bool, chunk: int, remat: str):
    """The jitted ((loss, TokenLogp), gradient) of a weighted sum of log-probabilities through the code under test."""
    cfg = tiny.config(tied=tied)
    settings = {"allowed": tiny.ALLOWED, "temperature": TEMPERATURE, "backend": Backend(remat=remat), "chunk": chunk}

    def loss(params, rows, tokens, weights, places):
        out = completion_logp(params, cfg, rows, tokens, places, **settings)
        return (out.logp * weights).sum(), out

    return tiny.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def unshared(tied: bool):
    cfg = tiny.config(tied=tied)

    def loss(params, rows, tokens, weights):
        out = tiny.unshared_logp(params, cfg, rows, tokens, TEMPERATURE)
        return jnp.where(weights == 0, 0, out * weights).sum(), out

    return tiny.jit(jax.value_and_grad(loss, has_aux=True))


@functools.cache
def inputs(tied: bool):
    tokens, mask = tiny.answers(4, GROUP, LENGTH)
    weights = np.random.default_rng(1).normal(size=mask.shape).astype(np.float32) * mask
    return tiny.params(tiny.config(tied=tied)), tiny.prompts(), tokens, weights, tiny.packed(mask)


@pytest.mark.parametrize("tied", [False, True])
def test_shared_prompt_equals_a_prompt_for_every_answer(tied, record_testsuite_property):
    """Log-probabilities, and the gradient of every parameter, the tower's too, against Q * G whole texts."""
    args = inputs(tied)
    (_, out), gradient = shared(tied, 4096, "none")(*args)
    (_, want), want_gradient = unshared(tied)(*args[:4])
    mask = args[3] != 0
    logp_error = float(np.abs(out.logp / want - 1)[mask].max())
    gradient_error = tiny.relative(gradient, want_gradient)
    record_testsuite_property(f"shared prompt, tied {tied}: log-probabilities", logp_error)
    record_testsuite_property(f"shared prompt, tied {tied}: gradient", gradient_error)
    assert out.logp.dtype == jnp.float32
    assert logp_error < TOLERANCE
    assert gradient_error < TOLERANCE
    assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(want_gradient)) > 1e-5  # so nothing was compared with nothing


WHERE = {
    "dense": (False, Backend(), None),
    "dense in blocks": (False, Backend(attention="chunked", remat="full"), None),
    "experts": (True, Backend(experts="dense"), None),
    "experts, kernel interpreted": (True, Backend(attention="splash", experts="ragged"), None),
    "dense on a mesh": (False, Backend(attention="chunked"), MeshConfig(2, 2, 1, 2)),
    "experts on a mesh": (True, Backend(experts="ragged", remat="full"), MeshConfig(1, 2, 2, 2)),
}


@pytest.mark.parametrize("where", WHERE)
def test_packed_equals_a_bin_for_every_answer(where, record_testsuite_property):
    """GRPO's loss and its metrics, log-probabilities, every gradient and the routers' statistics: bins change none of them."""
    moe, backend, mesh = WHERE[where]
    cfg, rows = tiny.config(blocks=1, moe=moe), tiny.prompts(4)
    tokens, mask = tiny.answers(4, 4, 9)
    mask &= np.arange(9) < np.array([4, 9, 3, 2])[:, None, None]  # rows of unequal fill
    params, rng = tiny.params(cfg), np.random.default_rng(2)
    noise = -2 + 0.3 * rng.normal(size=(2, *tokens.shape)).astype(np.float32)
    batch = TrainBatch(rows, tokens, mask, rng.normal(size=(4, 4)).astype(np.float32), *noise, tiny.packed(mask))
    apart = batch._replace(places=np.where(mask[..., :-1], tiny.full(tokens), -1).astype(np.int32))
    assert batch.places[0].size < 0.8 * apart.places[0].size
    if mesh is not None:
        mesh = make_mesh(mesh)
        backend = backend._replace(mesh=mesh)
        params, (batch, apart) = jax.device_put(params, tree_shardings(params, mesh)), shard_batch((batch, apart), mesh)
    settings = {"allowed": tiny.ALLOWED, "temperature": TEMPERATURE, "backend": backend, "chunk": 40}
    logp_fn = lambda params, *answers: completion_logp(params, cfg, *answers, **settings)  # noqa: E731

    def run(params, batch):
        weights = token_weights(batch.mask, "sequence_mean")
        loss = functools.partial(grpo_loss, cfg=LossConfig(kl_coef=0.1), logp_fn=logp_fn, on_policy=False)
        out = logp_fn(params, batch.prompts, batch.tokens, batch.places)
        inside = jax.tree.map(lambda x: jnp.where(batch.mask, x, 0), (out.logp, out.entropy))
        return jax.value_and_grad(loss, has_aux=True)(params, batch, weights), inside

    ((loss, metrics), gradient), inside = tiny.jit(run)(params, batch)
    ((want_loss, want_metrics), want_gradient), want_inside = tiny.jit(run)(params, apart)
    pairs = {
        "loss": (loss, want_loss), "gradient": (gradient, want_gradient), "log-probabilities": (inside, want_inside),
        "metrics": (metrics, want_metrics),
    }  # fmt: skip
    errors = {name: tiny.relative(*pair) for name, pair in pairs.items()}
    record_testsuite_property(f"packed, {where}", str({name: f"{error:.1e}" for name, error in errors.items()}))
    assert ("router_load" in metrics) == moe
    assert max(errors.values()) < TOLERANCE, errors


def test_what_stands_behind_an_answer_does_not_touch_it():
    params, rows, tokens, weights, places = inputs(False)
    junk = np.where(weights == 0, np.random.default_rng(2).integers(0, tiny.PAD, tokens.shape), tokens).astype(np.int32)
    assert (junk != tokens).any()
    run = shared(False, 4096, "none")
    (_, out), gradient = run(params, rows, tokens, weights, places)
    (_, other), other_gradient = run(params, rows, junk, weights, places)
    assert np.array_equal(out.logp[weights != 0], other.logp[weights != 0])
    assert tiny.relative(other_gradient, gradient) < 1e-6


def test_chunks_of_the_head_and_remat_change_nothing():
    """4 rows of 18 tokens: 7 columns at a time, which do not divide them, with all activations computed again; and 1 column."""
    args = inputs(False)
    (loss, out), gradient = shared(False, 4096, "none")(*args)
    (other_loss, other), other_gradient = shared(False, 28, "full")(*args)
    mask = args[3] != 0
    assert tiny.relative(other_loss, loss) < 1e-5
    assert tiny.relative(other_gradient, gradient) < 1e-5
    settings = {"allowed": tiny.ALLOWED, "temperature": TEMPERATURE, "chunk": 4}
    in_ones = lambda params, rows, tokens, places: completion_logp(params, tiny.config(), rows, tokens, places, **settings)  # noqa: E731
    single = tiny.jit(in_ones)(*args[:3], args[4])
    for got in (other, single):
        assert tiny.relative(got.logp[mask], out.logp[mask]) < 1e-6
        assert tiny.relative(got.entropy, out.entropy) < 1e-6


def test_entropy_is_that_of_the_distribution_sampled_from():
    """Against -sum p log p in float64 over the allowed ids; an allowed id with probability 0 adds nothing."""
    params, rows, tokens, weights, places = inputs(False)
    (_, out), _ = shared(False, 4096, "none")(params, rows, tokens, weights, places)
    logits = np.asarray(
        tiny.jit(functools.partial(tiny.unshared_logits, cfg=tiny.config()))(params, rows=rows, tokens=tokens), np.float64
    )
    odds = np.exp(logits[..., tiny.ALLOWED] / TEMPERATURE)
    p = odds / odds.sum(-1, keepdims=True)
    mask = weights != 0
    assert tiny.relative(out.entropy[mask], -(p * np.log(p)).sum(-1)[mask]) < TOLERANCE
    assert 0 < float(out.entropy[mask].min()) <= float(out.entropy[mask].max()) < np.log(tiny.ALLOWED.sum())


def test_entropy_by_hand():
    """Logits (0, 0, ln 2) at temperature 1 and a banned fourth: p = 1/4, 1/4, 1/2, entropy 1.5 ln 2 = 1.0397."""
    logits = sampling_logits(
        jnp.array([1.0]), jnp.array([[0.0], [0.0], [np.log(2)], [50.0]]), jnp.array([True, True, True, False]), 1.0
    )
    p = jax.nn.softmax(logits)
    assert np.allclose(p, [0.25, 0.25, 0.5, 0], atol=1e-7)
    assert p[3] == 0
    cfg, params = tiny.config(), tiny.params(tiny.config())
    # A head of zeros: every allowed id alike, whatever the hidden state is.
    flat = {**params, "text": {**params["text"], "head_vd": jnp.zeros_like(params["text"]["head_vd"])}}
    tokens, weights, places = inputs(False)[2:]
    out = shared(False, 4096, "none")(flat, tiny.prompts(), tokens, weights, places)[0][1]
    assert np.allclose(out.entropy[weights != 0], np.log(tiny.ALLOWED.sum()), atol=1e-5)
    assert np.allclose(out.logp[weights != 0], -np.log(tiny.ALLOWED.sum()), atol=1e-5)
    assert cfg.text.vocab_size - tiny.ALLOWED.sum() == len(tiny.CONTROL)


def test_banned_ids_have_probability_zero():
    """Even where their logit is the largest by far: the others' probabilities sum to 1 without them."""
    rng = np.random.default_rng(3)
    hidden, head = rng.normal(size=(5, 7, 32)).astype(np.float32), rng.normal(size=(tiny.VOCABULARY, 32)).astype(np.float32)
    head[~tiny.ALLOWED] *= 1e4
    p = jax.nn.softmax(sampling_logits(hidden, head, tiny.ALLOWED, TEMPERATURE))
    assert (p[..., ~tiny.ALLOWED] == 0).all()
    assert np.allclose(p.sum(-1), 1, atol=1e-6)
    args = inputs(False)
    tokens = np.full_like(args[2], tiny.IMAGE)
    logp = shared(False, 4096, "none")(args[0], args[1], tokens, np.zeros_like(args[3]), tiny.full(tokens))[0][1].logp
    assert (np.exp(logp) == 0).all()


def test_a_banned_target_that_is_masked_leaves_the_gradient_finite():
    """Padding behind an answer is a banned id: its log-probability is huge and must not turn 0 * inf into NaN."""
    params, rows, tokens, weights, places = inputs(False)
    assert (tokens[weights == 0] == tiny.PAD).all()
    (_, out), gradient = shared(False, 4096, "none")(params, rows, tokens, weights, places)
    assert np.isfinite(out.logp).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_logits_past_the_range_of_an_exponential(scale):
    """Logits (2, 1, -1) * scale, whose exponentials a float32 does not hold at 1000, against float64."""
    logits = scale * np.array([2.0, 1.0, -1.0])
    p = np.exp(logits - logits[0]) / np.exp(logits - logits[0]).sum()
    want = logits - logits[0] - np.log(np.exp(logits - logits[0]).sum())
    head, hidden = jnp.asarray(logits[:, None], jnp.float32), jnp.ones((3, 1))
    logp, entropy = _chunk_logp(head, jnp.ones(3, bool), 1.0, None, False, hidden, jnp.arange(3))
    assert np.allclose(logp, want, rtol=1e-6)
    assert np.allclose(entropy, -(p * want).sum(), atol=1e-6)


@pytest.mark.parametrize("wanted", [False, True])
def test_the_entropy_has_a_gradient_where_it_is_asked_for(wanted):
    """dH / d logit_i = -p_i (log p_i + H), by hand."""
    logits = jnp.asarray([0.3, -1.0, 0.9])
    p = np.exp(np.asarray(logits, np.float64)) / np.exp(np.asarray(logits, np.float64)).sum()
    entropy = -(p * np.log(p)).sum()

    def of(head):
        return _chunk_logp(head[:, None], jnp.ones(3, bool), 1.0, None, wanted, jnp.ones((1, 1)), jnp.zeros(1, int))[1].sum()

    assert float(of(logits)) == pytest.approx(entropy, rel=1e-6)
    assert np.abs(jax.grad(of)(logits) - wanted * -p * (np.log(p) + entropy)).max() < 1e-6
