"""A run in all trackers, killed and started again: each holds every step once, with the numbers of metrics.jsonl.

TensorBoard is real. The others are stubs that write late, so a kill costs them what they had in memory.
"""

import json
import os
import re
import signal
from functools import cache
from pathlib import Path

import pytest
import trackers
from commands import commands

STEPS = 6
FLAGS = [
    "--config.log.to=tensorboard,wandb,mlflow,swanlab,trackio", "--config.log.rollouts=1", "--config.log.rollouts_every=2",
    f"--config.steps={STEPS}", "--config.eval.every_steps=3", "--config.checkpoint.every_steps=2",
]  # fmt: skip


@cache
def disturbed() -> Path:
    """A workdir whose run was killed after its fifth step and went on from the newest checkpoint, so it did steps again."""
    workdir, data = commands().folder / "tracked", commands().folder / "data"
    argv = ["train", f"--config={commands().config}", f"--config.data.path={data}", f"--workdir={workdir}", *FLAGS]
    how = {"argv": argv, "kept": str(workdir / "kept"), "env": {"WANDB_MODE": "offline", "SWANLAB_MODE": "online"}}
    run = commands().start_call("trackers.train", **how)
    assert commands().until(lambda: f"\nstep {STEPS - 1}/" in run.out.read_text(), run)
    os.kill(run.pid, signal.SIGKILL)
    assert commands().wait(run).status == -signal.SIGKILL
    ended = commands().wait(commands().start_call("trackers.train", **how))
    assert ended.status == 0, ended.err[-3000:]
    assert re.search(r"resumed .* after step [24]\n", ended.out), ended.out
    warned = [line for line in ended.out.splitlines() if line.startswith("warning: ")]  # of so short a run's learning alone
    assert all("within every group" in line or "best/ holds the model" in line for line in warned), warned
    return workdir


def lines(kind: str) -> list[dict]:
    return [line for line in map(json.loads, (disturbed() / "metrics.jsonl").read_text().splitlines()) if line["kind"] == kind]


def groups(step: int) -> list[dict]:
    return [json.loads(line) for line in (disturbed() / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["tensorboard", *trackers.OTHERS])
def test_a_killed_run_is_in_the_tracker_once_and_whole(name):
    workdir = disturbed()
    tracking = workdir / "tracking"
    if name == "tensorboard":
        points = trackers.tensorboard_points(tracking / name)
    else:
        points = trackers.stub_points(name, workdir / "kept", tracking)
    for key, number in (("train/loss", "loss"), ("train/grad_norm", "grad_norm"), ("train/lr", "lr")):
        assert points[key] == [(line["step"], pytest.approx(line[number], rel=1e-6)) for line in lines("train")], key
    rewards = [(line["step"], pytest.approx(line["tasks"]["safety"]["reward"])) for line in lines("train")]
    assert points["tasks/safety/reward"] == rewards and len(rewards) == STEPS
    scores = [(line["step"], pytest.approx(line["mean"]["macro_f1"])) for line in lines("eval")]
    assert points["validation/mean/macro_f1"] == scores and [step for step, _ in scores] == [0, 3, 6]
    shown = next(
        key
        for key in ("rollouts/answers", "rollouts/safety/best/answers", "rollouts/safety/best", "rollouts/step")
        if key in points
    )
    assert [step for step, _ in points[shown]] == [2, 4, 6]


def test_the_rollouts_are_those_that_the_step_learned_from():
    """Six prompts of six tasks, so every group is kept: its rewards are the numbers of metrics.jsonl."""
    for line in lines("train")[1::2]:
        kept = groups(line["step"])
        assert {group["task"] for group in kept} == set(line["tasks"]) and {group["chosen"] for group in kept} == {"best"}
        for group in kept:
            rewards = [answer["reward"] for answer in group["answers"]]
            assert sum(rewards) / 2 == pytest.approx(line["tasks"][group["task"]]["reward"])
            assert all(
                a["reward"] == pytest.approx(0.9 * a["parts"]["accuracy"] + 0.1 * a["parts"]["format"]) for a in group["answers"]
            )
            first, second = (answer["advantage"] for answer in group["answers"])
            assert first == pytest.approx(-second) and (first > 0) == (rewards[0] > rewards[1])
            lengths = [answer["tokens"] for answer in group["answers"]]
            assert sum(lengths) / 2 == line["tasks"][group["task"]]["completion_tokens"] and max(lengths) <= 18
            assert all((disturbed() / "rollouts" / "pictures" / name).is_file() for name in group["pictures"])
            assert group["pictures"] and group["question"].startswith("[picture]\n")


def test_the_page_of_the_run_shows_them():
    ended = commands().run("report", f"--workdir={disturbed()}")
    assert ended.status == 0, ended.err
    page = (disturbed() / "report.html").read_text()
    assert page.count('class="card rollout"') == 3 * 6 and 'data-step="6"' in page
