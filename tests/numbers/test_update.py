"""One update: the same on every mesh and for every split, donated, sharded, stopped by what is not finite, traced once."""

import dataclasses
import functools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from mtjudge_jax.config import Config, LossConfig, OptimConfig, RolloutConfig, UpdateConfig
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.policy.programs import Programs, make_programs, place_prompts, stage_key
from mtjudge_jax.policy.update import init_state, make_update
from mtjudge_jax.rl import loss as formulas
from mtjudge_jax.rl.logp import completion_logp
from mtjudge_jax.rl.loss import grpo_loss
from mtjudge_jax.rl.optim import make_optimizer, schedule
from mtjudge_jax.rl.streams import place_answers
from mtjudge_jax.sharding import path_name, shard_batch
from mtjudge_jax.types import Params, PromptBatch, TrainBatch, TrainState

PROMPTS, GROUP, LENGTH = 8, 4, 6
pytestmark = pytest.mark.usefixtures("quick_to_compile")
MESHES = {"one device": (1, 1, 1, 1), "8 data": (8, 1, 1, 1), "2 data, 2 fsdp, 2 tensor": (2, 2, 1, 2)}
TRACED = ("2 data, 2 fsdp, 2 tensor", "adamw")
TOLERANCE = 1e-5  # relative to the largest entry of each parameter


class World(NamedTuple):
    cfg: Config
    programs: Programs
    update: Any  # what `make_update` gives for TRACED, elsewhere the same compiled ahead
    state: TrainState  # never given away: `fresh` copies it


def settings(name: str, **changes) -> Config:
    """AdamW without divergence and weight decay, so that there may be nothing to learn; Muon with both."""
    both = name == "muon"
    cfg = Config(
        rollout=RolloutConfig(prompts=PROMPTS, group_size=GROUP, completion_tokens=LENGTH),
        update=UpdateConfig(prompts=PROMPTS, micro_prompts=PROMPTS),
        loss=LossConfig(kl_coef=0.1 * both),
        optim=OptimConfig(name=name, lr=1e-3, weight_decay=0.1 * both),
    )
    return dataclasses.replace(cfg, **changes)


@functools.cache
def model():
    return tiny.config(blocks=1), tiny.params(tiny.config(blocks=1))


def placed_stages(cfg: Config, mesh: str) -> tuple[Programs, Params]:
    model_cfg, params = model()
    programs = make_programs(cfg, model_cfg, tiny.tokenizer(), tiny.mesh_of(MESHES[mesh]))
    return programs, tiny.placed(params, programs.mesh)


def build(cfg: Config, mesh: str) -> World:
    programs, placed = placed_stages(cfg, mesh)
    optimizer = make_optimizer(cfg.optim, cfg.steps)
    state = init_state(placed, optimizer, programs.mesh)

    def loss(params, batch, weights):
        programs.traces["update"] += 1
        return grpo_loss(params, batch, weights, cfg=cfg.loss, logp_fn=programs.logp_fn, on_policy=False)

    update = make_update(state, loss, optimizer, programs.mesh, cfg)
    if (mesh, cfg.optim.name) != TRACED:
        update = update.whole.lower(state, {}, shard_batch(host_batch(), programs.mesh)).compile(compiler_options=tiny.QUICK)
    return World(cfg, programs, update, state)


@functools.cache
def world(mesh: str, name: str) -> World:
    return build(settings(name), mesh)


def fresh(w: World) -> TrainState:
    return jax.tree.map(jnp.copy, w.state)


@functools.cache
def host_batch() -> TrainBatch:
    """Unequal answers and ratios; one whole row that is not to be learned from."""
    rng = np.random.default_rng(0)
    tokens, mask = tiny.answers(PROMPTS, GROUP, LENGTH)
    mask[5] = False
    params, rows = model()[1], tiny.prompts(PROMPTS)
    logp = np.asarray(tiny.jit(partial(tiny.unshared_logp, cfg=model()[0], temperature=1.0))(params, rows=rows, tokens=tokens))
    noise = rng.normal(size=(2, *tokens.shape)).astype(np.float32)
    old, ref = np.where(mask, logp + 0.2 * noise[0], 0), np.where(mask, logp + 0.3 * noise[1], 0)
    advantages = rng.normal(size=(PROMPTS, GROUP)).astype(np.float32)
    return TrainBatch(rows, tokens, mask, advantages, old, ref, tiny.packed(mask))


def batch(w: World, **changes) -> TrainBatch:
    return shard_batch(host_batch()._replace(**changes), w.programs.mesh)


@functools.cache
def updated(mesh: str, name: str) -> tuple[TrainState, dict]:
    w = world(mesh, name)
    state, metrics = w.update(fresh(w), {}, batch(w))
    return jax.device_get(state), jax.device_get(metrics)


def bit_equal(a, b) -> bool:
    same = jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
    return all(jax.tree.leaves(same))


def norm_error(got, want, start=None) -> float:
    """Norm of the difference over the norm of `want` (or of its change from `start`), of the worst parameter."""
    norm = lambda x: np.linalg.norm(np.asarray(x, np.float64))  # noqa: E731
    start = jax.tree.map(np.zeros_like, want) if start is None else start
    return max(jax.tree.leaves(jax.tree.map(lambda g, w, s: norm(g - w) / norm(w - s), got, want, start)))


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("mesh", ["8 data", "2 data, 2 fsdp, 2 tensor"])
def test_the_same_update_on_every_mesh(mesh, name, record_testsuite_property):
    """The change of a first AdamW step is looser: it divides each gradient by its own size, so that entries at the noise of
    float32 get another sign. The moments, which are the gradient and its square, are held to 1e-5.
    """
    want, want_metrics = updated("one device", name)
    got, metrics = updated(mesh, name)
    start = jax.device_get(world("one device", name).state)
    errors = {
        "parameters": norm_error(got.params, want.params),
        "change": norm_error(got.params, want.params, start.params),
        "moments": norm_error(got.opt_state, want.opt_state),
        "norm": abs(float(metrics["grad_norm"] / want_metrics["grad_norm"]) - 1),
    }
    record_testsuite_property(f"{mesh}, {name}", str({key: f"{value:.1e}" for key, value in errors.items()}))
    assert errors["parameters"] < TOLERANCE
    assert errors["moments"] < TOLERANCE
    assert errors["norm"] < TOLERANCE
    assert errors["change"] < 5e-3
    assert norm_error(want.params, start.params) > 1e-3  # there was a change to compare
    assert got.step == want.step == 1


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_lie_where_their_parameters_lie(name):
    """Also after an update: no matrix's moment is whole on a device while its parameter is spread over several."""
    w = world("2 data, 2 fsdp, 2 tensor", name)
    for state in (w.state, w.update(fresh(w), {}, batch(w))[0]):
        where = {path_name(path): leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
        spread, moments = {path for path, sharding in where.items() if not sharding.is_fully_replicated}, set()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
            owner = next((p for p in where if path_name(path).endswith(p)), None)
            if owner is None:
                assert leaf.size <= 3  # counts, and Muon's three coefficients
                continue
            moments.add(owner)
            assert leaf.sharding.is_equivalent_to(where[owner], leaf.ndim), path_name(path)
        assert moments == where.keys()
        assert len(spread) >= 20
        assert (
            state.params["text"]["layers"]["q_ldnh"].addressable_shards[0].data.size * 4
            == state.params["text"]["layers"]["q_ldnh"].size
        )


def test_the_old_state_is_donated():
    w = world("2 data, 2 fsdp, 2 tensor", "adamw")
    state = fresh(w)
    w.update(state, {}, batch(w))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(w.state))


def test_accumulating_equals_one_batch(record_testsuite_property):
    """Four pieces of two prompts whose answers have unequal lengths, against all eight at once."""
    want, want_metrics = updated("one device", "adamw")
    w = build(settings("adamw", update=UpdateConfig(prompts=PROMPTS, micro_prompts=2)), "one device")
    got, metrics = jax.device_get(w.update(fresh(w), {}, batch(w)))
    moments, params = norm_error(got.opt_state, want.opt_state), norm_error(got.params, want.params)
    record_testsuite_property("accumulation", f"moments {moments:.1e}, parameters {params:.1e}")
    assert moments < TOLERANCE
    assert params < TOLERANCE
    for name in want_metrics:
        assert float(metrics[name]) == pytest.approx(float(want_metrics[name]), rel=1e-5), name


@pytest.mark.parametrize("mesh", ["one device", "2 data, 2 fsdp, 2 tensor"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_changes_nothing(mesh, value):
    w = world(mesh, "adamw")
    advantages = host_batch().advantages.copy()
    advantages[2, 1] = value
    state, metrics = w.update(fresh(w), {}, batch(w, advantages=advantages))
    assert not bool(metrics["finite"])
    assert not np.isfinite(metrics["loss"])
    assert bit_equal(state, w.state)
    again, metrics = w.update(state, {}, batch(w))
    assert bool(metrics["finite"])
    assert bit_equal(jax.device_get(again), updated(mesh, "adamw")[0])


def test_nothing_to_learn_changes_nothing():
    """Equal rewards in each group, no divergence, no weight decay, a fresh optimizer: parameters bit for bit."""
    w = world("one device", "adamw")
    assert w.cfg.loss.kl_coef == w.cfg.optim.weight_decay == 0
    rewards = np.repeat(np.array([0.1, 0.9, 1 / 3, 1, 0, 0.1, 0.7, 0.3], np.float32)[:, None], GROUP, 1)
    advantages = np.asarray(formulas.group_advantages(rewards, std="unbiased", eps=1e-6))
    state, metrics = w.update(fresh(w), {}, batch(w, advantages=advantages))
    assert bool(metrics["finite"])
    assert float(metrics["grad_norm"]) == 0
    assert int(state.step) == 1
    assert bit_equal(state.params, w.state.params)


def test_a_gradient_of_rounding_moves_nothing():
    """Equal rewards and equal policies: of the divergence only rounding is left, and Muon would make a whole step of it."""
    w = world("one device", "muon")
    params, rows = model()[1], tiny.prompts(PROMPTS)
    tokens, mask = host_batch().tokens, host_batch().mask
    logp = np.asarray(tiny.jit(partial(tiny.unshared_logp, cfg=model()[0], temperature=1.0))(params, rows=rows, tokens=tokens))
    same = {"old_logp": np.where(mask, logp, 0), "ref_logp": np.where(mask, logp, 0)}
    state, metrics = w.update(fresh(w), {}, batch(w, advantages=np.zeros((PROMPTS, GROUP), np.float32), **same))
    assert 0 < float(metrics["grad_norm"]) < 1e-5
    decay = w.cfg.optim.lr * w.cfg.optim.weight_decay
    for before, after in zip(jax.tree.leaves(w.state.params), jax.tree.leaves(state.params), strict=True):
        assert np.abs(np.asarray(after) - before).max() <= 1.01 * decay * np.abs(before).max()


def test_muon_leaves_parameters_without_a_gradient():
    """The other half of the same for Muon, whose Newton-Schulz steps divide by the norm of what they are given."""
    params = model()[1]
    optimizer = make_optimizer(OptimConfig(name="muon", lr=1e-2, weight_decay=0.0), 10)
    run = tiny.jit(lambda params, grads: optax.apply_updates(params, optimizer.update(grads, optimizer.init(params), params)[0]))
    assert bit_equal(run(params, jax.tree.map(jnp.zeros_like, params)), params)


def test_rows_that_are_not_to_be_learned_from_do_not_count():
    """Row 5 is masked out: whatever stands in its advantages, and in the padding's log-probabilities, changes no bit."""
    w = world("one device", "muon")
    host = host_batch()
    assert not host.mask[5].any()
    junk = {name: np.where(host.mask, getattr(host, name), -7.0).astype(np.float32) for name in ("old_logp", "ref_logp")}
    advantages = np.where(np.arange(PROMPTS)[:, None] == 5, 99, host.advantages).astype(np.float32)
    state, _ = w.update(fresh(w), {}, batch(w, advantages=advantages, **junk))
    assert bit_equal(jax.device_get(state), updated("one device", "muon")[0])


def test_one_trace_a_function_over_several_steps():
    """Three steps of sampling, log-probabilities and update on the largest mesh; the sampler agrees with teacher forcing."""
    w = world(*TRACED)
    state, prompts = fresh(w), place_prompts(tiny.prompts(PROMPTS)._asdict(), w.programs.mesh)
    temperature, largest = np.full(GROUP, 1.0, np.float32), 0.0
    caches = []
    for step in range(3):
        out = w.programs.sample(state.params, prompts, stage_key(0, step, "sample"), temperature, LENGTH)
        advantages = formulas.group_advantages((out.tokens < 20).mean(-1), std="unbiased", eps=1e-6)
        places = place_answers(prompts, out.mask, w.programs.mesh)
        old, ref = (w.programs.logp(params, prompts, out.tokens, places) for params in (state.params, w.state.params))
        largest = max(largest, float(jnp.abs(jnp.where(out.mask, old - out.logp, 0)).max()))
        state, metrics = w.update(state, {}, TrainBatch(prompts, out.tokens, out.mask, advantages, old, ref, places))
        assert bool(metrics["finite"])
        assert float(metrics["ratio"]) == pytest.approx(1, abs=1e-4)
        jitted = w.programs.sample_at_once, w.programs.logp.whole, w.update.whole
        caches.append(tuple(one._cache_size() for one in jitted))
    assert largest < 1e-5
    assert int(state.step) == 3
    assert len(w.programs.traces) == 3
    assert set(w.programs.traces.values()) == {1}  # those of the tests before included
    assert caches[0] == caches[2]
    assert caches[0][:2] == (1, 1)


def test_schedule_by_hand():
    """Warm-up of 4 to 1e-3, then a cosine of 10 down to a tenth; or constant."""
    cfg = OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=4, final_lr_ratio=0.1)
    rate = schedule(cfg, 14)
    assert [float(rate(i)) for i in (0, 2, 4, 9, 14, 99)] == pytest.approx([2.5e-4, 6.25e-4, 1e-3, 5.5e-4, 1e-4, 1e-4], rel=1e-5)
    assert [float(schedule(OptimConfig(lr=1e-3), 14)(i)) for i in (0, 7, 99)] == pytest.approx([1e-3] * 3)


def counted(group: int, images: bool) -> tuple[float, float]:
    """(XLA's flops of the gradient of grpo_loss, 6 flops a weight a token of the same) at P = 512, C = 128, one prompt.

    XLA counts the body of a loop once, however often it runs; so there is one text layer and one block of the tower, and the
    head is not chunked. The vocabulary has the share of the 2B model's: a fifth of the work of a token.
    """
    cfg = tiny.config(layers=1, blocks=1, vocabulary=64)
    text = dataclasses.replace(cfg.text, hidden_size=64, intermediate_size=192, vocab_size=160)
    vision = dataclasses.replace(cfg.vision, hidden_size=32, intermediate_size=96, out_hidden_size=64)
    cfg = dataclasses.replace(cfg, text=text, vision=vision)
    p, c, m = 512, 128, 1600 if images else 0
    shape = lambda dtype, *axes: jax.ShapeDtypeStruct((1, *axes), dtype)  # noqa: E731
    rows = PromptBatch(
        shape(jnp.int32, p), shape(bool, p), shape(jnp.int32, p, 3), shape(jnp.int32), shape(jnp.int32, p),
        shape(jnp.uint8, m, 768), shape(jnp.int32, m, 2), shape(jnp.int32, m, 2), shape(jnp.int32, m), shape(jnp.uint32),
    )  # fmt: skip
    answers, weights = (group, c), shape(jnp.float32, group, c)
    tokens, places = shape(jnp.int32, *answers), shape(jnp.int32, group, c - 1)
    full = TrainBatch(rows, tokens, shape(bool, *answers), shape(jnp.float32, group), weights, weights, places)
    settings = {"allowed": np.ones(160, bool), "temperature": 1.0, "chunk": 10**9}
    logp_fn = lambda *args: completion_logp(args[0], cfg, *args[1:], **settings)  # noqa: E731
    loss = partial(grpo_loss, cfg=LossConfig(), logp_fn=logp_fn, on_policy=False)
    params = vlm.abstract_params(cfg)
    lowered = tiny.jit(jax.grad(loss, has_aux=True)).lower(params, full, weights)
    work = lowered if images else lowered.compile()  # the two counts differ by 3 %; the tower takes long to compile
    size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    stream = p + group * (c - 1)
    least = 6.0 * (stream * size(params["text"]["layers"]) + group * c * text.vocab_size * text.hidden_size)
    if images:
        least += 6.0 * (
            m * size(params["vision"]["blocks"])
            + m // 4 * (size(params["vision"]["merger"]) + size(params["vision"]["deepstack"]))
        )
    return work.cost_analysis()["flops"], least


@pytest.mark.parametrize("images", [True, False])
def test_work_for_a_group_of_sixteen(images, record_testsuite_property):
    """At most a third of sixteen times the work of one answer, also without an image, where only the prompt's text is shared."""
    (sixteen, least_sixteen), (one, least_one) = counted(16, images), counted(1, images)
    record_testsuite_property(f"work, images {images}", f"{sixteen:.3g} / {one:.3g} = {sixteen / one:.2f}")
    # Everything was counted; beside it stands attention, which at width 32 is most of the tower.
    assert least_one < one < 6 * least_one
    assert least_sixteen < sixteen < 6 * least_sixteen
    assert sixteen / one <= 16 / 3


def test_sampled_in_pieces_the_answers_are_the_same():
    """rollout.micro_prompts: caches of four prompts of eight at a time, or of all, on one device and on a mesh."""
    temperature, key, rows = np.full(GROUP, 0.7, np.float32), stage_key(0, 0, "sample"), tiny.prompts(8)._asdict()
    outs = []
    for micro, mesh in ((0, "one device"), (4, "one device"), (4, "2 data, 2 fsdp, 2 tensor")):
        cfg = settings("adamw", rollout=RolloutConfig(PROMPTS, GROUP, LENGTH, micro))
        programs, params = placed_stages(cfg, mesh)
        outs.append(jax.device_get(programs.sample(params, place_prompts(rows, programs.mesh), key, temperature, LENGTH)))
    for out in outs[1:]:
        np.testing.assert_array_equal(out.tokens, outs[0].tokens)
        np.testing.assert_array_equal(out.mask, outs[0].mask)
        np.testing.assert_array_equal(out.truncated, outs[0].truncated)
        np.testing.assert_allclose(out.logp, outs[0].logp, atol=TOLERANCE)
    assert len({tuple(answer) for group in outs[0].tokens for answer in group}) > PROMPTS, "answers differ"
