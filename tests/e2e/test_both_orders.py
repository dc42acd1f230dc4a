"""Pairs in both orders side by side, and the reward for agreeing: draws, batches on any shards, rewards by hand, configs."""

import json

import numpy as np
import pytest
from commands import commands
from data_fixtures import CONFIG, WHOLE, data_config, encoded, example, noise, write_records, write_tokenizer
from task_records import record, say

from mtjudge_jax.config import Config
from mtjudge_jax.config_check import check
from mtjudge_jax.data.pipeline import Shard, fixed_mixture, open_split, train_iterator
from mtjudge_jax.data.rows import RowFormat, to_row
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.records import TIE, BadRecord, Label, swapped
from mtjudge_jax.rl.reward_rule import rule_of
from mtjudge_jax.tasks import TASKS, tasks_with
from mtjudge_jax.tasks.answer import TAGS, read_truth, truth_of, write_truth
from mtjudge_jax.tasks.reward import Rule, score
from mtjudge_jax.train.monitor.batch_metrics import Answers, task_numbers, train_metrics

WHICH = {"name": "which", "kind": "pairwise", "question": "Which is better?", "allow_tie": True}
SHARPER = {"name": "sharper", "kind": "pairwise", "question": "Which is sharper?"}
KNOWN = tasks_with((WHICH, SHARPER), seed=3)
COUNTS = {"technical": 10, "which": 14, "sharper": 9}
MODES = ({"mixture": "uniform"}, {"mixture": "proportional"}, {"mixture": "temperature", "mixture_temperature": 2.0})
MODES += ({"mixture": "weights", "mixture_weights": (1, 2, 3)},)


def pair(name: str, number: int, **changes):
    """Two pictures of noise; every third pair of `which` is a tie."""
    winner = TIE if name == "which" and number % 3 == 2 else number % 2
    images = tuple(encoded(noise(10 * number + i, 32, 32)) for i in range(2))
    fields = {"kind": "pairwise", "images": images, "label": Label(winner=winner), "allow_tie": name == "which"}
    return example(number, name, **{**fields, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("data"), {}
    for name, count in COUNTS.items():
        made = [example(i, name) if name == "technical" else pair(name, i) for i in range(count)]
        write_records(folder / "train" / f"{name}.array_record", made)
        files[f"train/{name}"] = {"count": count, "sha256": name}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "dataset": "test", "files": files}))
    return folder


@pytest.fixture(scope="module")
def fmt(tmp_path_factory):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
    return RowFormat(KNOWN, tokenizer, CONFIG, 500, 36, display=True)


def iterator(data, fmt, *, shard=WHOLE, **changes):
    settings = {"prompts": 16, "balance_labels": False, "both_orders": True, **changes}
    return train_iterator(data, fmt, data_config(COUNTS, **settings), shard)


def test_the_mixture_draws_two_at_a_time(data):
    sources = {name: open_split(data, "train", name) for name in COUNTS}
    drawn = fixed_mixture(sources, KNOWN, data_config(COUNTS, seed=1, balance_labels=False, both_orders=True))
    plain = fixed_mixture(sources, KNOWN, data_config(COUNTS, seed=1, balance_labels=False))
    twice, singly = [drawn[i] for i in range(180)], [plain[i] for i in range(180)]
    assert [draw.task for draw in twice[::2]] == [draw.task for draw in singly[:90]]
    seen = {name: [draw.record.example_id for draw in twice if draw.task == name] for name in COUNTS}
    once = {name: [draw.record.example_id for draw in singly if draw.task == name] for name in COUNTS}
    assert seen["technical"] == once["technical"] and len(seen["technical"]) == 60
    for name in ("which", "sharper"):
        assert seen[name][::2] == seen[name][1::2] == once[name][:30]  # each record once an epoch, as without
    assert [draw.other_order for draw in twice if draw.task != "technical"] == [False, True] * 60
    assert not any(draw.other_order for draw in twice if draw.task == "technical")


@pytest.mark.parametrize("how", MODES, ids=lambda how: how["mixture"])
@pytest.mark.parametrize("balance", [False, True])
def test_shares_of_prompts_stay_what_they_are_without(data, how, balance):
    sources = {name: open_split(data, "train", name) for name in COUNTS}
    settings = {"seed": 1, "balance_labels": balance, **how}
    counts = []
    for both in (False, True):
        drawn = fixed_mixture(sources, KNOWN, data_config(COUNTS, both_orders=both, **settings))
        names = [drawn[i].task for i in range(300)]
        counts.append([names.count(name) for name in COUNTS])
    assert np.abs(np.subtract(*counts)).max() <= 4


@pytest.mark.parametrize("how", MODES, ids=lambda how: how["mixture"])
def test_batches_hold_both_orders_side_by_side_on_any_shards(data, fmt, how):
    whole = iterator(data, fmt, **how)
    expected = [next(whole) for _ in range(4)]
    state = whole.get_state()
    expected += [next(whole) for _ in range(2)]
    whole.close()
    pairs = 0
    for batch in expected:
        for q in range(0, 16, 2):
            ab, ba = read_truth(str(batch["truth"][q])), read_truth(str(batch["truth"][q + 1]))
            assert batch["task"][q] == batch["task"][q + 1] and batch["weight"][q] == 1
            if ab.kind != "pairwise":
                continue
            pairs += 1
            assert batch["example_id"][q] == batch["example_id"][q + 1] and ab.words == ba.words and ab.template == ba.template
            assert {0: 1, 1: 0, 2: 2}[int(batch["label"][q])] == batch["label"][q + 1]
            assert batch["uid"][q] ^ batch["uid"][q + 1] == 1 << 31  # or both would be answered by the same random numbers
            first = batch["patches"][q][:4]  # 2 x 2 patches a picture
            assert np.array_equal(first, batch["patches"][q + 1][4:8]) and not np.array_equal(first, batch["patches"][q + 1][:4])
    assert pairs >= 24
    for shards in (2, 4):
        parts = [iterator(data, fmt, shard=Shard(i, shards), **how) for i in range(shards)]
        got = [[next(part) for part in parts] for _ in range(4)]
        assert all(part.get_state() == state for part in parts)
        for part in parts:
            part.set_state(json.loads(json.dumps(state)))
        got += [[next(part) for part in parts] for _ in range(2)]
        for batch, rows in zip(expected, got, strict=True):
            for key in ("example_id", "tokens", "patches", "label", "uid", "task", "truth"):
                assert np.array_equal(np.concatenate([row[key] for row in rows]), batch[key])
        for part in parts:
            part.close()


def test_balanced_batches_stay_balanced(data, fmt):
    """Two labels, three and two, two rows each: 14."""
    batches = iterator(data, fmt, prompts=14, balance_labels=True)
    for _ in range(10):
        batch = next(batches)
        assert np.bincount(batch["label"][batch["task"] == "technical"], minlength=2).tolist() == [2, 2]
        assert np.bincount(batch["label"][batch["task"] == "which"], minlength=3).tolist() == [2, 2, 2]
        assert np.bincount(batch["label"][batch["task"] == "sharper"], minlength=2).tolist() == [2, 2]
    batches.close()


def test_the_iterator_refuses_what_cannot_be(data, fmt):
    with pytest.raises(ValueError, match="both orders of a pair need an even number of prompts on a shard, not 3"):
        iterator(data, fmt, prompts=12, shard=Shard(0, 4))


def test_a_record_that_cannot_be_turned_is_a_row_of_weight_0(fmt):
    made = pair("sharper", 1)
    row, again = to_row(made, "sharper", fmt), to_row(made, "sharper", fmt, other_order=True)
    assert row["weight"] == again["weight"] == 1 and row["uid"] == made.uid and again["uid"] == made.uid ^ (1 << 31)
    bad = to_row(pair("sharper", 1, label=Label()), "sharper", fmt, other_order=True)
    assert bad["weight"] == 0 and str(bad["error"]).startswith("wrong_fields: sharper-1 is no pairwise example")
    broken = to_row(BadRecord("image_hash", "x", "sharper-2"), "sharper", fmt, other_order=True)
    assert broken["weight"] == 0 and str(broken["error"]).startswith("image_hash: x")


# Rewards


def scored(examples, texts, weights, cut=None, unasked=()):
    truths = [truth_of(KNOWN[e.task] if e.task in KNOWN else TASKS[e.task], e) for e in examples]
    written = ["" if i in unasked else write_truth(t) for i, t in enumerate(truths)]
    cut = np.zeros((len(texts), len(texts[0])), bool) if cut is None else cut
    known = {"labels": np.array([t.label for t in truths]), "truths": written, "known": KNOWN}
    return score(texts, cut, tasks=[e.task for e in examples], alpha=Rule(0.1, weights), **known)


def test_consistency_by_hand():
    """A binary row pair, then a pair that may be a tie: AB says A A B TIE, BA says B B A TIE, so its choices are A A B TIE too;
    then a pair whose other order was answered A, A, without a form, cut off.
    """
    e, f = pair("which", 0), pair("which", 1)
    examples = [example(0), example(0), e, swapped(e), f, swapped(f)]
    a, b, tie = say("A"), say("B"), say("TIE")
    texts = [[say("yes")] * 4] * 2 + [[a, a, b, tie], [b, b, a, tie], [b, a, b, "A"], [a, a, "A", a]]
    cut = np.zeros((6, 4), bool)
    cut[5, 3] = True
    got = scored(examples, texts, {"accuracy": 0.5, "format": 0.1, "consistency": 0.4}, cut)
    expected = [[0] * 4, [0] * 4, [0.5, 0.5, 0.25, 0.25], [0.5, 0.5, 0.25, 0.25], [0.5, 0, 0.5, 0], [0.5, 0.5, 0, 0]]
    np.testing.assert_array_equal(got.parts["consistency"], np.float32(expected))
    np.testing.assert_allclose(
        got.total, 0.5 * got.accuracy + 0.1 * got.format + 0.4 * np.float32(expected), rtol=1e-6, atol=1e-7
    )
    assert got.total.dtype == np.float32 and got.total[2, 0] == got.total[2, 1]
    # pair 1's second is better: row 4's B is right, and so is row 5's A
    np.testing.assert_array_equal(got.accuracy[4:], [[1, 0, 1, 0], [1, 1, 0, 0]])


def test_a_judge_that_goes_by_position_earns_nothing_for_consistency():
    e = pair("sharper", 0)
    for word, other, part in (("A", "A", 0.0), ("B", "B", 0.0), ("A", "B", 1.0), ("B", "A", 1.0)):
        got = scored([e, swapped(e)], [[say(word)] * 3, [say(other)] * 3], {"consistency": 2.0})
        assert got.parts["consistency"].tolist() == [[part] * 3] * 2 and got.total.tolist() == [[2 * part] * 3] * 2


def test_hostile_answers_earn_nothing_and_nobody_agrees_with_them():
    good = say("A")
    hostile = ["", "A", "<answer>A</answer>", good + good, good + "B", say("a B"), say("C"), say("TIE"), say("\u0410"), say(" "),
               "<think></think><answer>A</answer>", good.replace("</answer>", ""), "\n" * 100_000, TAGS[0] * 10_000]  # fmt: skip
    e = pair("sharper", 0)
    for rows in ([hostile, hostile], [hostile, [say("B")] * len(hostile)]):
        got = scored([e, swapped(e)], rows, {"accuracy": 1.0, "format": 1.0, "consistency": 1.0})
        assert not got.parts["consistency"].any() and not got.total[0].any()
    got = scored([e, swapped(e)], [[good, "A"], [say("B"), "B"]], {"consistency": 1.0})
    assert got.total.tolist() == [[0.5, 0.0], [0.5, 0.0]]  # the other half of the other order could not be read


def test_the_other_order_that_could_not_be_shown_and_rows_that_do_not_belong_together():
    e = pair("sharper", 0)
    got = scored([e, swapped(e)], [[say("A")], [say("B")]], {"consistency": 1.0}, unasked=(1,))
    assert got.total.tolist() == [[0.0], [0.0]]
    with pytest.raises(ValueError, match="rows 0 and 1 are sharper-0 and sharper-1: consistency needs both orders"):
        scored([e, pair("sharper", 1)], [[say("A")], [say("B")]], {"consistency": 1.0})
    alone = scored([e, pair("sharper", 1)], [[say("A")], [say("B")]], {"accuracy": 1.0})
    assert "consistency" not in alone.parts
    published = record("mj_safety", 1)
    assert scored([published, swapped(published)], [[say("A")], [say("B")]], {"consistency": 1.0}).total.all()


def test_it_is_logged_a_task():
    e = pair("sharper", 0)
    got = scored([e, swapped(e), example(0), example(1)], [[say("A")], [say("B")], [say("no")], ["x"]], {"consistency": 0.3})
    ones = np.ones((4, 1), np.int32)
    numbers = task_numbers(["sharper", "sharper", "technical", "technical"], KNOWN)
    line = train_metrics(Answers(got, numbers, np.ones(4, np.float32), ones, ones.astype(np.float32), ones < 1), KNOWN)
    assert line["tasks"]["sharper"]["consistency"] == 1.0 and line["tasks"]["technical"]["consistency"] == 0.0
    assert line["tasks"]["sharper"]["reward"] == pytest.approx(0.3) and line["consistency"] == 0.5


# Configs


def config(**changes) -> Config:
    cfg = Config()
    cfg.model.path, cfg.data.tasks, cfg.data.custom_tasks = "demo", ("technical", "which"), (WHICH,)
    cfg.reward.weights = ("accuracy=0.8", "format=0.1", "consistency=0.1")
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(getattr(cfg, section) if section else cfg, field, value)
    return cfg


def test_a_good_config_is_taken():
    check(config())
    assert rule_of(config()).weights == {"accuracy": 0.8, "format": 0.1, "consistency": 0.1}
    balanced = {"rollout__prompts": 20, "update__prompts": 10, "update__micro_prompts": 10, "data__balance_labels": True}
    check(config(**balanced))  # 2 and 3 labels, twice
    check(config(data__mixture="uniform"), devices=4, processes=4)


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"stage": "sft"}, 1, "reward.weights has consistency, but stage = 'sft' has no rewards: leave it out"),
        ({"data__mixture": "mt_grpo"}, 1, "data.mixture = 'mt_grpo' draws no pair in both orders: take another mixture"),
        ({"data__tasks": ("technical",)}, 1, r"data.tasks = \('technical',\) has no pairwise task: name one, or leave it out"),
        ({"rollout__prompts": 5, "update__prompts": 5, "update__micro_prompts": 5}, 1,
         "two orders per pair, but rollout.prompts = 5 gives 5: take a multiple of 2"),
        ({"rollout__prompts": 12, "update__prompts": 12, "update__micro_prompts": 4}, 4,
         "two orders per pair, but rollout.prompts = 12 over 4 processes gives 3: take a multiple of 8"),
        ({"rollout__prompts": 6, "update__prompts": 6, "update__micro_prompts": 6, "data__balance_labels": True}, 1,
         "update.prompts = 6 is not divisible by twice the labels of all data.tasks .* = 10: take for example 10"),
    ],
)  # fmt: skip
def test_a_bad_config_is_refused_in_one_line(changes, devices, message):
    with pytest.raises(ConfigError, match=message) as error:
        check(config(**changes), devices, devices)
    assert "\n" not in str(error.value)


# A run


def test_a_run_earns_and_logs_it():
    """The part of every answer, counted again from the verdicts, and each task's means in the log."""
    run = commands().call("task_drills.both_orders", folder=str(commands().folder / "orders"))
    assert len(run["scored"]) == len(run["train"]) == 2
    earned = 0
    for step, line in zip(run["scored"], run["train"], strict=True):
        assert step["tasks"].count("pairwise_technical") == step["tasks"].count("technical") == 6
        for q, (task, said) in enumerate(zip(step["tasks"], step["verdict"], strict=True)):
            other = step["verdict"][q ^ 1]
            agreed = [sum(o >= 0 and o == 1 - v for o in other) / 4 if v >= 0 else 0.0 for v in said]
            assert step["part"][q] == (agreed if task == "pairwise_technical" else [0.0] * 4)
            if task == "pairwise_technical":
                ids = [read_truth(step["truths"][i]).facts["example_id"] for i in (q, q ^ 1)]
                assert ids[0] == ids[1] and step["truths"][q] != step["truths"][q ^ 1]
            earned += sum(part > 0 for part in step["part"][q])
        means = line["tasks"]["pairwise_technical"]
        parts = [part for task, part in zip(step["tasks"], step["part"], strict=True) if task == "pairwise_technical"]
        assert means["consistency"] == pytest.approx(np.mean(parts)) and line["tasks"]["technical"]["consistency"] == 0
        total = 0.5 * means["accuracy"] + 0.1 * means["format"] + 0.4 * means["consistency"]
        assert means["reward"] == pytest.approx(total, abs=1e-6)
    assert earned > 0
