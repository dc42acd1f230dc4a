"""`mtjudge sample` on the demo: killed and gone on, what it keeps, what it leaves alone; and DPO on the pairs that it made."""

import json
import os
import signal
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import commands

from mtjudge_jax.data.pipeline import open_split, read_manifest
from mtjudge_jax.policy.model import pair_of_answers, true_target
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.answer import parse_strict, truth_of

CHOSEN = ("technical", "safety")
FLAGS = ("--tasks=technical,safety", "--samples=8", "--keep=pairs", "--config.rollout.completion_tokens=24")


def sample(out: Path, *flags: str):
    folder = commands().folder
    return ("sample", f"--config={commands().config}", f"--data={folder / 'data'}", f"--out={out}", *FLAGS, *flags)


@cache
def pairs() -> Path:
    """The folder of a command that was killed after its first batch, and gone on."""
    out = commands().folder / "pairs"
    batches = out.with_name(".pairs.partial") / "batches"
    started = commands().start(*sample(out))
    assert commands().until(lambda: (batches / "000000.jsonl").exists(), started)
    os.kill(started.pid, signal.SIGKILL)
    assert commands().wait(started).status == -signal.SIGKILL and not out.exists()
    ended = commands().run(*sample(out))
    assert ended.status == 0 and "continuing after " in ended.err, ended.err
    assert not batches.parent.exists()
    return out


def records(folder: Path, task: str) -> list:
    source = open_split(folder, "train", task)
    return [source[i] for i in range(len(source))]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_command_goes_on_and_writes_the_same():
    whole = commands().folder / "pairs_whole"
    ended = commands().run(*sample(whole))
    assert ended.status == 0, ended.err
    assert files(whole) == files(pairs())
    lines = ended.out.splitlines()
    told = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    for name in CHOSEN:
        (said,) = [line for line in lines if line.startswith(f"{name}: ")]
        rates = [line["pass_rate"] for line in told if line["task"] == name]
        assert len(rates) == 12 and set(np.multiply(rates, 8) % 1) == {0}
        assert said.startswith(f"{name}: 12 prompts, pass rate {np.mean(rates):.2f}, ")
        kept = sum(line["kept"] for line in told if line["task"] == name)
        assert f"kept {kept} (no {kept // 2}, yes {kept // 2})" in said and kept >= 4
    ended = commands().run(*sample(whole))
    assert ended.status == 0 and "already holds these data: nothing to do" in ended.out
    ended = commands().run(*sample(whole, "--keep=right"))
    assert ended.status == 2 and "holds data made with keep 'pairs', asked for 'right'" in ended.err


def test_what_is_kept_is_right_and_its_pair_is_wrong():
    rates = {line["example_id"]: line for line in map(json.loads, (pairs() / "samples.jsonl").read_text().splitlines())}
    for name in CHOSEN:
        source = {record.example_id: record for record in records(commands().folder / "data", name)}
        found = records(pairs(), name)
        assert [one.example_id for one in found] == [name for name in source if rates[name]["kept"]]
        assert sum(one.label.binary for one in found) * 2 == len(found)
        for one in found:
            truth = truth_of(TASKS[name], one)
            chosen, rejected = pair_of_answers(TASKS, one)
            assert parse_strict(chosen, truth.words).verdict == truth.label
            assert parse_strict(rejected, truth.words).verdict != truth.label
            assert true_target(TASKS, one) == chosen  # SFT teaches the same answer
            assert one.pass_rate == rates[one.example_id]["pass_rate"] and 0 < one.pass_rate < 1
            before = source[one.example_id]
            assert (one.images, one.label, one.split) == (before.images, before.label, "train")


def test_validation_and_test_are_never_sampled_and_stay_as_they_are():
    before, after = read_manifest(commands().folder / "data")["files"], read_manifest(pairs())["files"]
    held_out = {name for name in before if not name.startswith("train/")}
    assert set(after) == held_out | {f"train/{name}" for name in CHOSEN}
    for name in held_out:
        assert (after[name]["count"], after[name]["sha256"]) == (before[name]["count"], before[name]["sha256"])
        path = f"{name}.array_record"
        assert (pairs() / path).read_bytes() == (commands().folder / "data" / path).read_bytes()
    hidden = {open_split(pairs(), *name.split("/"))[0].example_id for name in held_out}
    sampled = [json.loads(line)["example_id"] for line in (pairs() / "samples.jsonl").read_text().splitlines()]
    assert not hidden & set(sampled) and all("/train/" in name for name in sampled)


def test_a_model_without_the_form_is_told():
    out = commands().folder / "nothing"
    ended = commands().run(*sample(out, "--config.rollout.completion_tokens=2", "--limit=4", "--samples=2", "--keep=right"))
    said = "error: no prompt was kept of 8 with --keep=right: 0% of the answers have the form <think>reasoning</think>"
    assert ended.status == 2 and said in ended.err and not out.exists(), ended.err
    assert "technical: 4 prompts, pass rate 0.00, 4 without a right answer" in ended.out
    ended = commands().run(*sample(out, "--samples=1"))
    assert ended.status == 2 and "--samples=1 with --keep=pairs: a right and a wrong answer are two" in ended.err


@cache
def dpo() -> dict:
    return commands().call("regime_drills.dpo", folder=str(commands().folder / "dpo"), data=str(pairs()))


def test_a_dpo_run_resumes():
    facts = dpo()
    assert facts["stopped"] == "KeyboardInterrupt: "
    assert facts["again"] == facts["whole"] and facts["whole"]["step"] == 4
    assert 1 <= facts["update"][0] <= 6 and set(facts["traces"].values()) == {1}
    assert {name.split(" ")[0] for name in facts["traces"]} == {"logp", "sample"}


def test_the_metrics_of_dpo():
    """The first step begins at the reference, so its loss is that of a coin; then the policy leaves it."""
    for name in ("whole", "adapters"):
        lines = [line for line in dpo()[name]["metrics"] if line["kind"] == "train"]
        assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and abs(lines[0]["margin"]) < 1e-4
        assert abs(lines[1]["margin"]) > 1e-4
        for line in lines:
            assert line["margin"] == pytest.approx(line["reward_chosen"] - line["reward_rejected"], abs=1e-5)
            assert 0 <= line["pair_accuracy"] <= 1 and line["grad_norm"] > 0 and line["skipped"] == 0
    assert {line["kind"] for line in dpo()["whole"]["metrics"]} >= {"train", "eval"}
