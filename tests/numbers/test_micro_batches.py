"""Rows in rooms of their own sizes: the same log-probabilities, gradient and metrics as all rows in the largest room."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import Config, LossConfig, MeshConfig, OptimConfig, RolloutConfig, UpdateConfig
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.policy import lanes
from mtjudge_jax.policy.programs import make_programs, place_prompts
from mtjudge_jax.policy.update import init_state, make_update
from mtjudge_jax.rl import streams as rl_streams
from mtjudge_jax.rl.loss import dpo_loss, grpo_loss, sft_loss
from mtjudge_jax.rl.optim import make_optimizer
from mtjudge_jax.rl.rooms import Rooms, SharedRoom
from mtjudge_jax.rl.streams import cut_prompts, in_least_room, join_prompts, place_answers
from mtjudge_jax.sharding import make_mesh, shard_batch
from mtjudge_jax.train.grpo import make_take
from mtjudge_jax.types import DpoBatch, MicroBatch, PromptRoom, SftBatch, TrainBatch

ROWS, GROUP, LENGTH = 8, 4, 80  # long enough for bins of several widths
TOLERANCE = 1e-5  # relative to the largest entry
pytestmark = pytest.mark.usefixtures("quick_to_compile")
MESHES = {"one device": (1, 1, 1, 1), "2 data, 2 fsdp, 2 tensor": (2, 2, 1, 2)}


def build(mesh: str, moe: bool = False):
    cfg = Config(
        rollout=RolloutConfig(prompts=ROWS, group_size=GROUP, completion_tokens=LENGTH),
        update=UpdateConfig(prompts=ROWS, micro_prompts=ROWS),
        loss=LossConfig(kl_coef=0.1),
        optim=OptimConfig(name="adamw", lr=1e-3),
    )
    model_cfg = tiny.config(blocks=1, moe=True) if moe else tiny.config(blocks=1)
    programs = make_programs(cfg, model_cfg, tiny.tokenizer(), tiny.mesh_of(MESHES[mesh]))
    return cfg, programs, tiny.placed(tiny.params(model_cfg), programs.mesh)


def rooms(prompts, *shared: SharedRoom) -> Rooms:
    """Two rooms: one that holds the shorter half of the prompts, and the whole."""
    sizes = sorted(zip(prompts.valid.sum(1).tolist(), (prompts.patch_segment > 0).sum(1).tolist(), strict=True))
    half = sizes[: len(sizes) // 2]
    small = PromptRoom(max(p for p, _ in half), max(m for _, m in half))
    return Rooms((small, PromptRoom(prompts.tokens.shape[1], prompts.patches.shape[1])), 1, shared)


def streams(prompts, group: int, devices: int) -> Rooms:
    """Rooms for three prompts a stream, or for a device's."""
    shape = PromptRoom(3 * prompts.tokens.shape[1], 3 * prompts.patches.shape[1])
    each = max(1, ROWS // devices) if devices > 1 else 2.5
    return rooms(prompts, SharedRoom(each, 3, shape, 3 * group * LENGTH))


def case(programs, monkeypatch, group: int = GROUP, seed: int = 0):
    rng = np.random.default_rng(seed)
    prompts = tiny.prompts(ROWS)
    tokens, mask = tiny.answers(ROWS, group, LENGTH)
    mask &= np.arange(LENGTH) < rng.integers(1, LENGTH // 2, (ROWS, group))[..., None]
    mask[5] = False  # a row that is not learned from
    mesh = programs.mesh
    placed, (tokens, mask) = place_prompts(prompts._asdict(), mesh), shard_batch((tokens, mask), mesh)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    uses = {"whole": None, "rooms": rooms(prompts), "streams": streams(prompts, group, devices)}
    monkeypatch.setattr(rl_streams, "_WORTH_SHARING", 100.0)  # small as the case is
    kinds = {name: place_answers(placed, mask, mesh, use) for name, use in uses.items()}
    assert isinstance(kinds["rooms"], tuple) and isinstance(kinds["rooms"][0], MicroBatch)
    assert len({one.shape for one in kinds["rooms"]}) == 2
    assert all(len(one.rows) == 3 * len(one.places) for one in kinds["streams"])
    return placed, tokens, mask, kinds


def close(got, want) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.abs(a - b).max() <= TOLERANCE * max(np.abs(b).max(), 1e-3), path


@pytest.mark.parametrize("mesh,moe", [("one device", True), ("2 data, 2 fsdp, 2 tensor", False)])
def test_log_probabilities_and_the_update_are_those_of_one_room(mesh, moe, monkeypatch):
    cfg, programs, params = build(mesh, moe)
    prompts, tokens, mask, kinds = case(programs, monkeypatch)
    logp = {name: np.where(mask, programs.logp(params, prompts, tokens, places), 0) for name, places in kinds.items()}
    assert np.abs(logp["whole"]).max() > 1
    close(logp["rooms"], logp["whole"])
    close(logp["streams"], logp["whole"])
    rng, optimizer = np.random.default_rng(1), make_optimizer(cfg.optim, cfg.steps)
    advantages = shard_batch(rng.normal(size=(ROWS, GROUP)).astype(np.float32), programs.mesh)
    old = shard_batch((logp["whole"] + 0.1 * rng.normal(size=mask.shape)).astype(np.float32), programs.mesh)
    loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=programs.logp_fn, on_policy=False)
    results = []
    for places in kinds.values():
        state = init_state(params, optimizer, programs.mesh)
        update = make_update(state, loss, optimizer, programs.mesh, cfg)
        batch = TrainBatch(prompts, tokens, mask, advantages, old, old, places)
        state, metrics = update(state, {}, batch)
        results.append((jax.device_get((state.opt_state, state.params)), jax.device_get(metrics)))
    (whole, told), *others = results
    exact = [name for name in told if name != "moved" and not name.startswith("router")]  # a router's is a mean of micro-batches
    for state, said in others:
        close(state[0], whole[0])  # the moments hold the gradient
        assert said.keys() == told.keys()
        close({name: said[name] for name in exact}, {name: told[name] for name in exact})
        assert bool(said["finite"]) and float(said["grad_norm"]) > 1e-3


def test_targets_of_sft_and_pairs_of_dpo_too(monkeypatch):
    cfg, programs, params = build("one device")
    optimizer = make_optimizer(cfg.optim, cfg.steps)
    for stage, group, loss in (("sft", 1, sft_loss), ("dpo", 2, partial(dpo_loss, cfg=cfg.dpo))):
        cfg = dataclasses.replace(cfg, stage=stage)
        prompts, tokens, mask, kinds = case(programs, monkeypatch, group)
        results = []
        for places in kinds.values():
            state = init_state(params, optimizer, programs.mesh)
            update = make_update(state, partial(loss, logp_fn=programs.logp_fn), optimizer, programs.mesh, cfg)
            batch = SftBatch(prompts, tokens, mask, places)
            if stage == "dpo":
                batch = DpoBatch(*batch, programs.logp(params, prompts, tokens, places) - 0.1)
            state, metrics = update(state, {}, batch)
            results.append(jax.device_get((state.opt_state, {k: v for k, v in metrics.items() if k != "moved"})))
        close(results[1], results[0])
        close(results[2], results[0])


def test_prompts_without_any_picture_share_a_row():
    """Arrays of no patches have a size of zero, whatever their rows. Of three rows, the last is no prompt."""
    prompts = jax.tree.map(lambda x: x[:3], tiny.prompts(ROWS))
    prompts = prompts._replace(image_index=np.full_like(prompts.image_index, -1))
    prompts = cut_prompts(prompts, PromptRoom(prompts.tokens.shape[1], 0))
    prompts = jax.tree.map(lambda x: np.concatenate([x[:2], np.zeros_like(x[:1])]), prompts)
    tokens = [row[valid] for row, valid in zip(prompts.tokens, prompts.valid, strict=True)]
    joined = join_prompts(jax.tree.map(jnp.asarray, prompts), count=3, shape=PromptRoom(2 * prompts.tokens.shape[1], 0))
    both = np.concatenate(tokens)
    assert joined.patches.shape == (1, 0, prompts.patches.shape[2])
    assert np.array_equal(joined.tokens[0, -len(both) :], both) and not joined.valid[0, : -len(both)].any()
    ends = np.cumsum([len(row) for row in tokens]) + joined.tokens.shape[1] - len(both) - 1
    assert joined.joined.last[0].tolist() == ends.tolist() and len(tokens[0]) > 0 == len(tokens[2])


def test_prompts_without_any_picture_are_taken_in_parts():
    """By the sampler, some rows at a time, and by an update of some of a rollout's rows."""
    prompts = jax.tree.map(jnp.asarray, cut_prompts(tiny.prompts(ROWS), PromptRoom(tiny.prompts(ROWS).tokens.shape[1], 0)))
    rules = lanes.Rules(tiny.config(), tiny.ALLOWED, 0, 0, 4, Backend())
    some = lanes.rows_of(rules, prompts, 2, 3)
    assert some.patches.shape == (3, 0, prompts.patches.shape[2]) and np.array_equal(some.tokens, prompts.tokens[2:5])
    half = make_take(2, make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1]))(TrainBatch(prompts, *[prompts.uid] * 6), 1)
    assert len(half.prompts.patches) == len(prompts.uid) // 2
    assert np.array_equal(half.prompts.tokens, prompts.tokens[len(prompts.uid) // 2 :])


def test_an_update_of_a_part_has_rooms_of_its_own(monkeypatch):
    """Two updates a rollout: each runs its own rows, all of them once."""
    _, programs, _ = build("one device")
    prompts, tokens, mask, kinds = case(programs, monkeypatch)
    zeros = np.zeros((ROWS, GROUP, LENGTH), np.float32)
    advantages = np.arange(ROWS * GROUP, dtype=np.float32).reshape(ROWS, GROUP)
    batch = TrainBatch(prompts, tokens, mask, advantages, zeros, zeros, kinds["rooms"])
    take = make_take(2, programs.mesh, rooms(tiny.prompts(ROWS)))
    for number in range(2):
        part, half = take(batch, number), slice(4 * number, 4 * number + 4)
        assert np.array_equal(part.advantages, advantages[half]) and np.array_equal(part.tokens, tokens[half])
        assert np.sort(np.concatenate([one.rows.ravel() for one in part.places])).tolist() == [0, 1, 2, 3]
        real = sum(int((one.places >= 0).sum()) for one in part.places)
        assert real == int(np.minimum(mask[half].sum(-1), LENGTH - 1).sum())


def test_the_sampler_draws_the_same_in_the_least_room_that_holds_the_prompts():
    _, programs, params = build("one device")
    prompts = place_prompts(tiny.prompts(ROWS)._asdict(), programs.mesh)
    longest, most = int(prompts.valid.sum(1).max()), int((prompts.patch_segment > 0).sum(1).max())
    whole = PromptRoom(prompts.tokens.shape[1], prompts.patches.shape[1])
    assert longest < whole.prompt
    shapes = PromptRoom(longest - 1, most), PromptRoom(longest, most), whole
    small = in_least_room(prompts, programs.mesh, shapes)
    assert small.tokens.shape[1] == longest and small.patches.shape[1] == most
    assert in_least_room(prompts, programs.mesh, ()) is prompts
    assert in_least_room(prompts, programs.mesh, (*shapes[:1], whole)) is prompts
    key, temperature = jax.random.key(0), np.full(GROUP, 1.0, np.float32)
    want, got = (programs.sample(params, room, key, temperature, 24) for room in (prompts, small))
    assert np.array_equal(got.tokens, want.tokens) and want.mask.sum() > 4 * ROWS
    np.testing.assert_allclose(got.logp, want.logp, atol=1e-5)
