"""The sampler whose lanes follow the answers that live, against all answers side by side to the end."""

import functools
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import Config, MeshConfig, RolloutConfig
from mtjudge_jax.plan import lengths as plan_lengths
from mtjudge_jax.policy import programs as sampling
from mtjudge_jax.policy.lanes import Draws, Segment
from mtjudge_jax.policy.programs import Programs, backend_of, bound_logp, make_programs, place_prompts
from mtjudge_jax.rl.logp import EVERY, Filter
from mtjudge_jax.rl.streams import place_answers
from mtjudge_jax.types import Params, Rollout

ROWS, GROUP, LENGTH = 16, 5, 24
TEMPERATURE = np.array([0.0, 0.7, 0.7, 1.0, 1.3], np.float32)
ONE = MeshConfig(1, 1, 1, 1)
ENDS = {"often": (7, 20, 33, 50), "never": (tiny.VOCABULARY,), "at once": tuple(np.flatnonzero(tiny.ALLOWED).tolist())}
# Products over other numbers of lanes round differently, as they do with another rollout.micro_prompts.
TOLERANCE, MEAN_TOLERANCE = 1e-5, 1e-6


class Ids(NamedTuple):
    ends: tuple[int, ...]
    pad: int = tiny.PAD

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        return tiny.ALLOWED


@pytest.fixture(autouse=True, scope="module")
def short_ladders(quick_to_compile):
    """Three rungs of lanes, and 4 columns before all."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (sampling, plan_lengths):
            patch.setattr(module, "lane_ladder", lambda count: (count, -(-count // 2), -(-count // 5)))
            patch.setattr(module, "column_ladder", lambda count: (4, count))
        yield


def make(
    ends: str, mesh: MeshConfig = ONE, micro: int = 0, moe: bool = False, gather: bool = False
) -> tuple[Programs, Params]:
    model_cfg, cfg = tiny.config(blocks=1, moe=moe), Config(rollout=RolloutConfig(ROWS, GROUP, LENGTH, micro, gather))
    mesh = tiny.mesh_of((mesh.data, mesh.fsdp, mesh.expert, mesh.tensor))
    programs = make_programs(cfg, model_cfg, Ids(ENDS[ends]), mesh)
    return programs, tiny.placed(tiny.params(model_cfg), programs.mesh)


def drawn(programs: Programs, params: Params, only: Filter = EVERY, at_once: bool = False) -> Rollout:
    prompts = place_prompts(tiny.prompts(ROWS)._asdict(), programs.mesh)
    arguments = params, prompts, jax.random.key(3), TEMPERATURE, LENGTH
    return jax.device_get(programs.sample_at_once(*arguments, 0, only) if at_once else programs.sample(*arguments, only))


@functools.cache
def plain(ends: str, moe: bool = False, only: Filter = EVERY) -> Rollout:
    return drawn(*make(ends, moe=moe), only, at_once=True)


def planned(lengths: np.ndarray, *, held: int, devices: int = 1) -> int:
    """The lanes' steps of all devices, as `mtjudge plan --lengths` counts them."""
    steps = plan_lengths.decode_steps(lengths.reshape(devices, -1, GROUP), held=held // devices, length=LENGTH)
    return devices * sum(lanes * count for (lanes, _), count in steps.items())


def assert_same(got: Rollout, want: Rollout) -> float:
    for name in ("tokens", "mask", "truncated"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
    gap = np.abs(got.logp - want.logp)
    assert gap.max() < TOLERANCE and gap[want.mask].mean() < MEAN_TOLERANCE
    return float(gap.max())


@pytest.mark.parametrize("ends,micro", [("often", 0), ("often", 4), ("never", 4), ("at once", 8)])
def test_the_answers_are_those_of_all_side_by_side(ends, micro, record_testsuite_property):
    """Twice: the second rollout compiles nothing."""
    programs, params = make(ends, micro=micro)
    got, want = drawn(programs, params), plain(ends)
    lengths = want.mask.sum(-1)
    assert {"often": np.ptp(lengths) > 15, "never": lengths.min() == LENGTH, "at once": lengths.max() == 1}[ends]
    record_testsuite_property(f"logp of the sampler, {ends}, {micro}", assert_same(got, want))
    assert set(programs.traces.values()) == {1}
    steps, live = programs.work["lane steps"], int((lengths - 1).sum())
    assert live <= steps == planned(lengths, held=micro or ROWS)
    if ends == "often":
        assert steps < ROWS * GROUP * (lengths.max() - 1), "fewer than all lanes to the last end"
    assert_same(drawn(programs, params), want)
    assert set(programs.traces.values()) == {1} and programs.work["lane steps"] == 2 * steps


@pytest.mark.parametrize("mesh,moe", [(MeshConfig(2, 2, 1, 2), False), (MeshConfig(2, 1, 4, 1), True)], ids=["dense", "experts"])
def test_on_a_mesh_each_device_keeps_its_own_lanes(mesh, moe):
    """Of 16 prompts 8 at a time: lanes and prompts move within a device, whose answers end when they do."""
    programs, params = make("often", mesh, 8, moe)
    got = drawn(programs, params)
    assert_same(got, plain("often", moe))
    assert any("enter" in name for name in programs.traces) and set(programs.traces.values()) == {1}
    devices = mesh.data * mesh.fsdp * mesh.expert
    assert any(f" {-(-8 * GROUP // devices // 2)} lanes" in name for name in programs.traces)
    assert programs.work["lane steps"] == planned(got.mask.sum(-1), held=8, devices=devices)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_weights_that_are_gathered_first_draw_the_same(moe):
    programs, params = make("often", MeshConfig(1, 2, 2, 2), 8, moe, gather=True)
    assert_same(drawn(programs, params), plain("often", moe))
    at_once = drawn(programs, params, at_once=True)
    assert_same(at_once, plain("often", moe))


def test_with_a_filter_too():
    """An evaluation's; under it other answers come out than without."""
    only = Filter(top_k=9, top_p=0.9)
    got = drawn(*make("often"), only)
    assert_same(got, plain("often", only=only))
    assert not np.array_equal(got.tokens, plain("often").tokens)


HEAT = np.array([1.0, 0.5, 1.7, 1.0] * 4, np.float32)
LONGEST = np.array([LENGTH, 5, 1, 12] * 4, np.int32)


def own_drawn(programs: Programs, params: Params, own: dict, temperature: np.ndarray, at_once: bool = False) -> Rollout:
    prompts = place_prompts(tiny.prompts(ROWS)._asdict(), programs.mesh, own)
    sample = programs.sample_at_once if at_once else programs.sample
    return jax.device_get(sample(params, prompts, jax.random.key(3), temperature, LENGTH))


def test_a_prompt_with_a_temperature_of_its_own_is_drawn_as_at_that_temperature():
    programs, params = make("often", micro=4)
    plain_heat, own = np.full(GROUP, 0.8, np.float32), {"heat": HEAT, "longest": np.full(ROWS, LENGTH, np.int32)}
    got = own_drawn(programs, params, own, plain_heat)
    assert_same(got, own_drawn(programs, params, own, plain_heat, at_once=True))
    for heat in np.unique(HEAT):
        alone, rows = own_drawn(programs, params, {}, heat * plain_heat, at_once=True), heat == HEAT
        np.testing.assert_array_equal(got.tokens[rows], alone.tokens[rows])
        np.testing.assert_allclose(got.logp[rows], alone.logp[rows], atol=TOLERANCE)
    assert not np.array_equal(got.tokens[HEAT != 1], own_drawn(programs, params, {}, plain_heat, at_once=True).tokens[HEAT != 1])
    prompts = place_prompts(tiny.prompts(ROWS)._asdict(), programs.mesh, own)
    places = place_answers(prompts, jax.device_put(got.mask), programs.mesh)
    cfg = Config(rollout=RolloutConfig(temperature=0.8))
    trained = bound_logp(tiny.config(blocks=1), cfg, tiny.ALLOWED, backend_of(cfg, programs.mesh))
    learned = jax.jit(trained)(params, prompts, got.tokens, places).logp
    np.testing.assert_allclose(np.asarray(learned)[got.mask], got.logp[got.mask], atol=2e-5)


@pytest.mark.parametrize("ends,micro,mesh", [("often", 4, ONE), ("never", 8, ONE), ("often", 8, MeshConfig(2, 2, 1, 2))])
def test_an_answer_of_a_length_of_its_own_is_the_beginning_of_the_whole_one(ends, micro, mesh):
    programs, params = make(ends, mesh, micro)
    own = {"heat": np.ones(ROWS, np.float32), "longest": LONGEST}
    got, whole = own_drawn(programs, params, own, TEMPERATURE), plain(ends)
    lengths = np.minimum(whole.mask.sum(-1), LONGEST[:, None])
    np.testing.assert_array_equal(got.mask.sum(-1), lengths)
    np.testing.assert_array_equal(got.tokens[got.mask], whole.tokens[got.mask])
    np.testing.assert_array_equal(got.truncated, whole.truncated | (whole.mask.sum(-1) > LONGEST[:, None]))
    assert np.abs(got.logp[got.mask] - whole.logp[got.mask]).max() < TOLERANCE and not got.logp[~got.mask].any()


def test_a_segment_is_the_smallest_that_holds_what_lives():
    rungs, columns = (512, 384, 256), (64, 256, 511)
    now = lambda live, step, ordered=1: sampling.Now(live, step, 0, ordered)  # noqa: E731
    assert sampling.next_segment(now(512, 0), rungs, columns, 0) == (Segment(512, 64, True), 384)
    assert sampling.next_segment(now(385, 64), rungs, columns, 0) == (Segment(512, 256, True), 384)
    assert sampling.next_segment(now(385, 64, 0), rungs, columns, 0) == (Segment(512, 256, False), 384)
    assert sampling.next_segment(now(384, 63), rungs, columns, 2) == (Segment(384, 64, False, 2), 256)
    assert sampling.next_segment(now(1, 900), rungs, columns, 0) == (Segment(256, 511, False), 0)


def test_devices_that_hold_all_weights_exchange_nothing_but_decisions(monkeypatch):
    """The compiled segment and the entry of prompts, on four devices: no token, cache or lane leaves its device."""
    made, jit_segments = [], sampling._jit_segments
    monkeypatch.setattr(sampling, "_jit_segments", lambda *a: made.append(jit_segments(*a)) or made[-1])
    mesh = MeshConfig(4, 1, 1, 1)
    programs, params = make("often", mesh, 8)
    prompts, draws = place_prompts(tiny.prompts(ROWS)._asdict(), programs.mesh), Draws(params, jax.random.key(0), TEMPERATURE)
    one, (jitted,) = np.int32(1), made
    state, _ = jitted.begin(draws, prompts, one, one, LENGTH, EVERY, 2, Segment(2 * GROUP, 4, True, 1))
    segment = Segment(GROUP, LENGTH - 1, False, 1)
    for lowered in (
        jitted.decode.lower(draws, state, one, one, LENGTH, EVERY, segment),
        jitted.admit.lower(draws, state, prompts, np.int32(2), LENGTH, EVERY, 1),
    ):
        text = lowered.compile().as_text()
        sent = re.findall(r"= (\S+(?: \S+?)*?) (?:all-gather|all-reduce|all-to-all|collective-permute)(?:-start)?\(", text)
        assert sent and all(re.fullmatch(r"\(?((s32|pred)\[\](, )?)+\)?", shapes) for shapes in sent), sent
        assert text.count("-alias)") == len(jax.tree.leaves(state)), "the state is changed in place"
