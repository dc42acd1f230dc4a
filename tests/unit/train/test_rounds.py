"""Rounds of MT-GRPO: what is kept of two of them is one row in all its arrays, and teaches what is wanted of each task."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from data_fixtures import row_format
from feeding import NAMES, iterator, write_data

from mtjudge_jax.config import Config, LossConfig, MeshConfig
from mtjudge_jax.data.pipeline import Shard
from mtjudge_jax.rl import mt_grpo
from mtjudge_jax.sharding import local_rows, make_mesh, shard_batch
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.reward import Rule, Scores
from mtjudge_jax.train import grpo
from mtjudge_jax.train.monitor.batch_metrics import Answers
from mtjudge_jax.types import Rollout

SIZE, GROUP, LENGTH = 16, 3, 5
RULE = Rule(0.1)


def select(task, teaches, wanted, *, size, blocks=1, usable=None, broken=()):
    n = len(task)
    return mt_grpo.select(
        np.array(task),
        teaches=np.array(teaches, bool),
        usable=np.ones(n, bool) if usable is None else np.array(usable, bool),
        broken=np.isin(np.arange(n), broken),
        wanted=np.array(wanted),
        size=size,
        blocks=blocks,
    ).tolist()


def test_selection_by_hand():
    assert select([0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0], (2, 2), size=4, blocks=2) == [0, 3, 1, 4]
    # Task 0 teaches once too often: the one that does not teach fills up before it, and it before the one that cannot be used.
    assert select([0, 0, 1], [1, 1, 0], (1, 1), size=2) == [0, 2]
    assert select([0, 0, 1], [1, 1, 0], (1, 1), size=2, usable=[1, 1, 0]) == [0, 1]
    assert select([0, 0, 1, 1], [1, 0, 0, 1], (0, 4), size=2) == [3, 1]
    # A reward that is not finite is never passed over.
    assert select([0, 0, 0, 0], [1, 1, 1, 1], (2,), size=2, broken=[3]) == [3, 0]
    assert sorted(select([0] * 6, [0] * 6, (6,), size=6, blocks=3)) == list(range(6))


@pytest.mark.parametrize("seed", range(20))
def test_selection_holds_as_much_of_what_is_wanted_as_there_is(seed):
    rng = np.random.default_rng(seed)
    task, usable = rng.integers(0, 4, 2 * SIZE), rng.random(2 * SIZE) < 0.9
    teaches = usable & (rng.random(2 * SIZE) < rng.random())
    wanted = rng.multinomial(SIZE, np.ones(4) / 4)
    blocks = int(rng.choice([1, 2, 4]))
    chosen = np.array(select(task, teaches, wanted, size=SIZE, blocks=blocks, usable=usable))
    assert len(set(chosen.tolist())) == SIZE
    there, got = (np.bincount(task[rows][teaches[rows]], minlength=4) for rows in (np.arange(2 * SIZE), chosen))
    assert (got >= np.minimum(there, wanted)).all()
    beyond, idle = (got - np.minimum(there, wanted)).sum(), (usable & ~teaches).sum()
    if usable[chosen].all():
        assert beyond == max(0, SIZE - np.minimum(there, wanted).sum() - idle)
    for block in chosen.reshape(blocks, -1):  # every update has its part of each task
        in_block = np.bincount(task[block][teaches[block]], minlength=4)
        assert (np.abs(in_block - got / blocks) < 2).all()


def one_round(seed: int, mesh, *, nan: bool = False) -> grpo.Round:
    """Random prompts whose answers and rewards say which row they are of: 1000 times the seed and the row's number."""
    rng = np.random.default_rng(seed)
    names = np.arange(SIZE) + 1000 * seed
    prompts = tiny.prompts(SIZE, seed)._replace(uid=names.astype(np.uint32))
    tokens = np.broadcast_to(names[:, None, None], (SIZE, GROUP, LENGTH)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    out = Rollout(tokens, mask, tokens.astype(np.float32), np.zeros((SIZE, GROUP), bool))
    total = np.where(rng.random((SIZE, 1)) < 0.5, rng.random((SIZE, GROUP)), 0.5).astype(np.float32)
    if nan:
        total[-1, 0] = np.nan
    scores = Scores(total, total, total, np.broadcast_to(names[:, None], total.shape).astype(np.int32), {"mine": total})
    task = rng.choice(NAMES, SIZE)
    weight = (rng.random(SIZE) < 0.9).astype(np.float32) if not nan else np.ones(SIZE, np.float32)
    text = np.array([f"example {name}{'!' * (name % 7)}" for name in names])
    rows = {"example_id": text, "task": task, "label": names.astype(np.int32), "truth": text, "weight": weight, "error": text}
    texts = [[str(name)] * GROUP for name in names]
    prompts, out = shard_batch((prompts, out), mesh)
    return grpo.Round(rows, prompts, out, texts, scores)


def a_run(mesh, updates: int):
    """As much of a run as rounds need."""
    tokenizer = SimpleNamespace(decode_answer=lambda tokens: str(int(tokens[0])))
    programs = SimpleNamespace(mesh=mesh, tokenizer=tokenizer)
    cfg = SimpleNamespace(rollout=SimpleNamespace(prompts=SIZE), update=SimpleNamespace(prompts=SIZE // updates))
    cfg.loss = LossConfig()
    return SimpleNamespace(cfg=cfg, model=SimpleNamespace(programs=programs, fmt=SimpleNamespace(tasks=TASKS)))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_merged_batch_is_of_whole_rows(devices):
    mesh = make_mesh(MeshConfig(data=devices, fsdp=1), jax.devices()[:devices])
    wanted = {"technical": 6, "safety": 8, "alignment": 2}
    kept, new = one_round(1, mesh), one_round(2, mesh)
    merged = grpo._merge(kept, new, a_run(mesh, 2), wanted, RULE)
    names = merged.rows["label"]
    assert len(set(names.tolist())) == SIZE and {name // 1000 for name in names.tolist()} == {1, 2}
    assert local_rows(merged.prompts.uid, mesh).tolist() == names.tolist()
    assert (local_rows(merged.out.tokens, mesh) == names[:, None, None]).all()
    assert (merged.scores.verdict == names[:, None]).all()
    assert merged.texts == [[str(name)] * GROUP for name in names]
    assert merged.rows["example_id"].tolist() == [f"example {name}{'!' * (name % 7)}" for name in names]
    patches = np.concatenate([local_rows(one.prompts.patches, mesh) for one in (kept, new)])
    rows = names % 1000 + SIZE * (names // 1000 - 1)
    assert np.array_equal(local_rows(merged.prompts.patches, mesh), patches[rows])
    total = np.concatenate([kept.scores.total, new.scores.total])[rows]
    assert np.array_equal(merged.scores.total, total) and np.array_equal(merged.scores.parts["mine"], total)
    assert len(merged.prompts.uid.sharding.device_set) == devices
    for name, count in wanted.items():
        teaching = lambda one: grpo._teaches(one.scores.total[..., None], one.rows["weight"])  # noqa: E731
        before, after = [
            sum(int((teaching(one) & (one.rows["task"] == name)).sum()) for one in part) for part in ((kept, new), (merged,))
        ]
        assert after >= min(count, before) > 0


def test_a_reward_that_is_not_finite_stays_in_the_batch():
    mesh = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1])
    merged = grpo._merge(one_round(1, mesh), one_round(2, mesh, nan=True), a_run(mesh, 1), dict.fromkeys(NAMES, 1), RULE)
    assert np.isnan(merged.scores.total).sum() == 1 and merged.rows["label"][0] == 2000 + SIZE - 1


def test_what_is_found_is_counted_over_all_rounds():
    def answers(task: list[int], total: list[list[float]], weight: list[float]) -> Answers:
        total = np.array(total, np.float32)
        return Answers(Scores(total, total, total, total), np.array(task), np.array(weight), total, total, total < 0)

    seen = [answers([0, 1, 1], [[0, 1], [0, 1], [1, 1]], [1, 0, 1]), answers([1, 2, 0], [[1, 0], [0.5, 0.5], [0, 1]], [1, 1, 1])]
    names = ["a", "b", "c"]
    found = grpo._found(seen, names, RULE, Config())
    assert found == {"a": 2, "b": 1, "c": 0}
    assert grpo._met(found, {"a": 1, "b": 2, "c": 1}) == 0.5 and grpo._met(found, {"a": 2, "b": 1}) == 1
    broken = answers([2], [[np.nan, 1]], [1])
    assert grpo._found([*seen, broken], names, RULE, Config())["c"] == 1


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    data, fmt = write_data(tmp_path_factory.mktemp("data")), row_format(tmp_path_factory.mktemp("tokenizer"))

    def some(**changes):
        settings = {"mixture": "mt_grpo", "mt_grpo_lambda": 1.0, "mt_grpo_beta": 2.0, "mt_grpo_rho_decay": 0.0}
        return iterator(data, fmt, **{**settings, **changes})

    return some


MEASURED = {name: {"reward": 0.5, "zero_variance": rate} for name, rate in zip(NAMES, (0.75, 0.0, 0.0), strict=True)}


@pytest.mark.parametrize("shards", [2, 4])
def test_further_rounds_are_the_same_on_any_shards_and_go_on_in_the_stream(batches, shards):
    whole, parts = batches(), [batches(shard=Shard(i, shards)) for i in range(shards)]
    seen, saved = {name: [] for name in NAMES}, None
    for step in range(3):
        if step == 2:
            saved = whole.get_state()
        for number in range(3):
            found = {name: max(0, count - number % 2 - 1) for name, count in whole.wanted().items()}
            want, *got = [next(one) if number == 0 else one.more(found) for one in (whole, *parts)]
            for key in ("example_id", "tokens", "label", "task"):
                assert np.array_equal(np.concatenate([batch[key] for batch in got]), want[key])
            for name in NAMES:
                seen[name] += want["example_id"][want["task"] == name].tolist()
        for one in (whole, *parts):
            one.learn(MEASURED)
    state = whole.get_state()
    assert all(part.get_state() == state for part in parts) and state["step"] == 3
    assert {name: len(ids) for name, ids in seen.items()} == {name: state["tasks"][name]["position"] for name in NAMES}
    again = batches()
    again.set_state(saved)
    last = next(again)
    assert sum(again.wanted().values()) == len(last["task"])
    for one in (whole, again, *parts):
        one.close()


def test_a_further_round_is_of_the_tasks_that_are_short_over_sampled(batches):
    one = batches(prompts=60)
    with pytest.raises(RuntimeError, match="no batch is being learned from: ask for the first one of the step by next"):
        one.more({})
    next(one)
    one.learn(MEASURED)
    next(one)
    wanted = one.wanted()
    short = {**wanted, "technical": wanted["technical"] - 4, "safety": wanted["safety"] - 4}
    got = one.more(short)  # in the ratio 4 * 4 to 4
    assert {name: int((got["task"] == name).sum()) for name in NAMES} == {"technical": 48, "safety": 12, "alignment": 0}
    with pytest.raises(ValueError, match="is all that is wanted"):
        one.more(wanted)
    one.close()


def test_with_gdpo_a_group_is_flat_only_if_every_part_is():
    """Accuracy and the user's part make up for each other: the sums are equal, the parts are not."""
    accuracy, own = np.array([[0, 1], [1, 1]], np.float32), np.array([[1, 0], [0, 0]], np.float32)
    scores = Scores(accuracy + own, accuracy, np.ones((2, 2), np.float32), np.zeros((2, 2), np.int32), {"own": own, "seen": own})
    rule, cfg = Rule(0.1, {"accuracy": 1.0, "own": 1.0, "seen": 0.0}), Config()
    assert grpo._teaches(grpo.compared(scores, rule, cfg), np.ones(2)).tolist() == [False, False]
    cfg.loss.advantage = "gdpo"
    parts = grpo.compared(scores, rule, cfg)
    assert parts.shape == (2, 2, 2) and grpo._teaches(parts, np.ones(2)).tolist() == [True, False]
    assert grpo._teaches(parts, np.array([0, 1])).tolist() == [False, False]
