"""A run on tasks of its own, by config entries alone: trained by GRPO and SFT, validated, logged, judged with by its folder."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import commands

from mtjudge_jax.tasks.answer import read_truth


@cache
def run() -> dict:
    return commands().call("task_drills.own_tasks", folder=str(commands().folder / "own"))


def test_parts_of_the_reward_are_logged_a_task():
    assert len(run()["train"]) == 2 and run()["sft"].count("train") == 1
    for line in run()["train"]:
        assert set(line["tasks"]) == {"bright", "stars"}
        for means in line["tasks"].values():
            parts = means["graded"], means["overlong"], means["own_rewards:short"]
            total = 0.5 * means["accuracy"] + 0.1 * means["format"] + 0.4 * parts[0] + parts[1] + 0.5 * parts[2]
            assert means["reward"] == pytest.approx(total, abs=1e-5)
            assert -1 <= parts[1] <= 0 and 0 <= parts[2] <= 0.6


def test_predictions_tell_their_task_and_wording():
    lines = run()["predictions"]
    assert {line["task"] for line in lines} == {"bright", "stars", "which"} and not any(line["unusable"] for line in lines)
    for line in lines:
        name, _, rest = line["template"].partition("/")
        number, _, digits = rest.partition("@")
        assert (name, number, len(digits)) == (line["task"], "0", 16)
        assert line["custom"]["name"] == line["task"]
    pairs = [line for line in lines if line["task"] == "which"]
    assert [line["order"] for line in pairs] == ["ab"] * 2 + ["ba"] * 2  # eval.limit is 2
    assert [line["label"] for line in pairs] == ["A", "B", "B", "A"]
    assert [line["label"] for line in lines if line["task"] == "stars"] == ["1", "2"]


def test_a_list_is_judged_in_the_order_shown():
    for line in run()["listed"]:
        assert not line["unusable"] and line["label"] == "B > A = C" and line["probabilities"] is None
        assert line["closeness"] is not None and (line["verdict"] is None) == bool(line["error"])


def test_the_folder_alone_knows_the_tasks():
    told = run()["judge.json"]
    assert [entry["name"] for entry in told["custom_tasks"]] == ["bright", "stars", "which", "order"]
    assert told["polarity"] == "varied" and set(told["templates"]) == {"bright", "stars"}
    words = {"bright": ("dark", "bright"), "stars": ("1", "2", "3")}
    for name, found in run()["asked"].items():
        assert (found["verdict"] is None) == bool(found["error"]) and found["text"]
        assert found["verdict"] in (None, *words.get(name, (found["verdict"],)))


# a reward that asks a service


def paid(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "reward", "tasks", "loss")} for line in lines if line["kind"] == "train"]


def test_a_reward_of_many_answers_survives_faults_and_a_kill():
    """A service that is down at every fifth call; the run is killed while it asks, goes on, and ends as if it had not been."""
    flags = ["--config.steps=3", "--config.eval.every_steps=3"]
    flags += ["--config.reward.batch=own_rewards:remote", "--config.reward.batch_answers=2"]
    whole, killed = (commands().folder / f"remote_{name}" for name in ("whole", "killed"))
    ended = commands().wait(commands().train(whole, *flags))
    assert ended.status == 0, ended.err[-3000:]
    dies = {"REMOTE_DIES": str(commands().folder / "died")}
    assert commands().wait(commands().train(killed, *flags, env=dies)).status == 9
    files = sorted(path.name for path in (killed / "rewards").iterdir())
    assert files[-1].startswith("00000") and not (killed / "done").exists()
    ended = commands().wait(commands().train(killed, *flags, env=dies))
    assert ended.status == 0, ended.err[-3000:]
    assert paid(killed) == paid(whole) and len(paid(whole)) == 3
    first = paid(whole)[0]["tasks"]
    for name, means in first.items():
        part = means["own_rewards:remote"]
        assert means["reward"] == pytest.approx(0.9 * means["accuracy"] + 0.1 * means["format"] + part, abs=1e-5)
        assert (part == 0) == (name == "safety") and part < 1.2
    left = [path.name for path in (whole / "rewards").iterdir()]
    assert left and all(int(name.split(".")[0]) > 1 for name in left)  # of steps that a checkpoint can go back to


# a reward for probabilities


def test_the_part_soft_pays_the_probabilities_whatever_was_drawn():
    facts = commands().call("task_drills.soft", folder=str(commands().folder / "soft"))
    whole, parts = facts["whole"], facts["parts"]
    assert len(whole) == len(parts) == 2
    seen = set()
    for a, b in zip(whole, parts, strict=True):
        if a is whole[0]:  # later steps learned from rewards that differ in the last digit
            assert a["texts"] == b["texts"]
            assert np.abs(np.array(a["soft"]) - b["soft"]).max() < 1e-5
        for q, row in enumerate(a["shares"]):
            truth = read_truth(a["truths"][q])
            for g, shares in enumerate(row):
                if not a["format"][q][g]:
                    assert a["soft"][q][g] == a["total"][q][g] == 0
                    continue
                assert len(shares) == 2 and sum(shares) == pytest.approx(1)
                assert a["soft"][q][g] == pytest.approx(1 - (1 - shares[truth.label]) ** 2, abs=1e-6)
                assert a["total"][q][g] == pytest.approx(0.1 + 0.9 * a["soft"][q][g], abs=1e-6)
                seen.add(a["soft"][q][g])  # near 0 or 1: the base's verdict follows its reasoning
    assert len(seen) > 8  # a number, where the accuracy is 0 or 1
