"""Whole training runs: killed, interrupted, with damaged records, other data, a full disk."""

import json
import os
import random
import re
import signal
import time
from functools import cache
from pathlib import Path

import drills
import numpy as np
import pytest
from commands import Ended, Started, commands

from mtjudge_jax.checkpoint.folders import UNFINISHED
from mtjudge_jax.demo.cases import POINTWISE

STEPS, EVERY = 6, 3  # of evaluations


def train(workdir: Path, *flags: str) -> Started:
    return commands().train(workdir, f"--config.steps={STEPS}", f"--config.eval.every_steps={EVERY}", *flags)


@cache
def whole() -> Path:
    """The workdir of a run that nothing disturbed."""
    workdir = commands().folder / "whole"
    ended = commands().wait(train(workdir))
    assert ended.status == 0, ended.err[-3000:]
    assert "traced more than once" not in ended.out
    return workdir


def files(folder: Path, mark: str) -> bool:
    """Whether a file's name has the mark; of an empty one, whether a step is complete."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(mark in name if mark else name.isdecimal() for name in names)


def hit(process: Started, number: int, *, within: float) -> Ended:
    """Sends a signal after a random part of `within` seconds."""
    time.sleep(random.uniform(0, within))
    os.kill(process.pid, number)
    return commands().wait(process)


def test_a_run_killed_twice_and_interrupted_ends_as_if_nothing_had_happened():
    reference = drills.ending(whole())
    workdir = commands().folder / "disturbed"
    folder = workdir / "checkpoints"

    run = train(workdir)
    assert commands().until(lambda: files(folder, ""), run)
    assert hit(run, signal.SIGKILL, within=0.2).status == -signal.SIGKILL
    step = drills.ending(workdir)["step"]

    run = train(workdir)
    assert commands().until(lambda: "\nstep " in run.out.read_text() and files(folder, UNFINISHED[0]), run)
    ended = hit(run, signal.SIGKILL, within=0)  # inside a save
    assert ended.status == -signal.SIGKILL and f"resumed {workdir} after step {step}" in ended.out

    run = train(workdir, "--config.checkpoint.every_steps=100")
    assert commands().until(lambda: "\nstep " in run.out.read_text(), run)
    ended = hit(run, signal.SIGINT, within=0.2)
    assert ended.status == 130, ended.err
    saved = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    assert saved > step and f"\nstep {saved}/" in ended.out  # not one of the steps that it had done is lost
    assert ended.out.splitlines()[-1] == f"asked to stop: step {saved} is saved, the same command continues from it"
    assert ended.err.splitlines() == ["stopping after what is computed now, and saving; Ctrl-C again ends at once"]

    run = train(workdir)
    assert commands().until(lambda: "resumed" in run.out.read_text(), run)
    assert commands().until(lambda: files(folder, UNFINISHED[0]) or "\nstep " in run.out.read_text(), run)
    os.kill(run.pid, signal.SIGINT)
    time.sleep(0.02)  # two at once would be one
    began = time.monotonic()
    ended = hit(run, signal.SIGINT, within=0)
    assert time.monotonic() - began < 1 and ended.status == 130, ended.err
    assert re.fullmatch(r"stopping after .*\nstopped; the same command continues after step \d+\n", ended.err)

    ended = commands().wait(train(workdir))
    assert ended.status == 0, ended.err[-3000:]
    assert drills.ending(workdir) == reference
    assert [line["step"] for line in reference["metrics"] if line["kind"] == "train"] == list(range(1, STEPS + 1))
    assert [line["step"] for line in reference["metrics"] if line["kind"] == "eval"] == list(range(0, STEPS + 1, EVERY))
    assert len({leaf["digest"] for leaf in reference["leaves"].values()}) > 50
    for path in (*(whole() / "best").iterdir(), *(whole() / "eval").iterdir()):
        assert path.read_bytes() == (workdir / path.relative_to(whole())).read_bytes(), path
    assert {path.name for path in workdir.iterdir()} == {path.name for path in whole().iterdir()}
    assert {path.name for path in folder.iterdir()} == {str(STEPS - 1), str(STEPS)}


def test_the_run_learns_and_keeps_its_best_model():
    """Guards the test above: a run whose parameters never move would resume exactly too."""
    lines = drills.ending(whole())["metrics"]
    assert all(line["grad_norm"] > 0 for line in lines if line["kind"] == "train")
    assert max(line["kl"] for line in lines if line["kind"] == "train") > 1e-3
    scores = [line["mean"]["macro_f1"] for line in lines if line["kind"] == "eval"]
    assert drills.ending(whole())["meta"]["best"] == max(scores)
    names = {path.name for path in (whole() / "best").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "judge.json"} <= names


@cache
def grpo() -> dict:
    folder = commands().folder / "grpo"
    folder.mkdir(exist_ok=True)
    return commands().call("drills.grpo", folder=str(folder))


def test_two_updates_a_rollout_batch_trace_every_function_once():
    """Once for each width of the stream: answers of three steps need at most three."""
    traces = grpo()["traces"]
    assert set(traces.values()) == {1} and {name.split()[0] for name in traces} == {"sample", "logp"}
    widths = sum(name.startswith("logp") for name in traces)
    assert len(traces) == 1 + widths <= 4 and grpo()["update"] == [widths]


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room():
    """With two updates a rollout batch: the other resumed runs have one."""
    said = grpo()["full disk"]
    assert said.startswith("CheckpointError") and "step 2 was not written (it needs" in said
    assert "1,000 are free); good checkpoints kept: step 1; 1 saves in a row failed" in said
    assert "\n" not in said
    assert grpo()["kept"]["step"] == 1
    assert grpo()["again"] == grpo()["whole"]
    assert [line["step"] for line in grpo()["again"]["metrics"] if line["kind"] == "train"] == [1, 2, 3]


@pytest.mark.parametrize(("case", "what"), [("other data", "training data, validation data"), ("other model", "starting model")])
def test_a_run_does_not_go_on_with_other_sources(case, what):
    said = grpo()[case]
    said = re.sub(r" \([0-9a-f]{16} -> [0-9a-f]{16}\)", "", said)
    names = {"training data, validation data": "training_data,validation_data", "starting model": "starting_model"}[what]
    assert said.startswith(f"ConfigError: {what}: not what the checkpoints of") and "\n" not in said
    assert said.endswith(f"by --allow_change={names}")


def test_a_best_model_that_cannot_be_written_is_said_and_the_run_goes_on():
    text = "could not write the best model (step 0), retrying at the next checkpoint: [Errno 28] No space left on device"
    assert grpo()["warnings"] == [f"warning: {text}"] and grpo()["logged"] == [{"kind": "warning", "step": 0, "text": text}]
    assert grpo()["best"]  # at the next try


def test_a_best_model_that_could_not_be_written_is_written_with_the_next_checkpoint_that_finds_room():
    folder = commands().folder / "late"
    facts = commands().call("full_disk.late_best", folder=str(folder), data=str(commands().folder / "data"))
    want = facts["whole"]
    assert want["written"] == [0] and facts["late"]["written"] == ["no", "no", 0]  # at step 0, 1 and 2
    assert want["said"] == [] and facts["late"]["said"] == [
        "warning: could not write the best model (step 0), retrying at the next checkpoint: [Errno 28] full"
    ] * 2 + ["the best model (step 0) is written now"]
    assert facts["late"]["files"] == want["files"] and len(want["files"]) > 5
    assert facts["late"]["saved"] == [[1, -1.0, 0], *want["saved"][1:]]
    assert want["saved"][0][1] == want["saved"][1][1] > want["saved"][0][2] == 0
    assert facts["late"]["ending"] == want["ending"]


def test_damaged_training_records_are_counted_shown_and_teach_nothing():
    facts = grpo()
    assert facts["bad"] == {"truncated_image": 1, "unreadable_record": 1}
    assert set(facts["ids"]) == {"demo/technical/train/000000", "technical[1]"}
    assert len(facts["weights"]) == 36 and facts["weights"].count(0.0) == 2
    assert facts["learned"] == [weight > 0 for weight in facts["weights"]]
    # 3 x 32 validation records and 3 x 12 rows of training, in which every technical record comes once.
    said, _, reasons = facts["last line"].partition(": ")
    assert said == "2 of 132 records could not be used and were skipped"
    assert sorted(reasons.split(", ")) == ["truncated_image 1", "unreadable_record 1"]


def test_over_one_percent_of_damaged_records_stops_the_run():
    said = grpo()["too many"]
    assert re.match(r"TooManyBadRecords: 2 of (108|120|132) rows drawn, 2 records, cannot be used, the limit is 1\.0%", said)
    assert "truncated_image 1" in said and "unreadable_record 1" in said


def test_an_sft_run_resumes():
    folder = commands().folder / "sft"
    facts = commands().call("regime_drills.sft", folder=str(folder), data=str(commands().folder / "data"))
    assert facts["stopped"] == "KeyboardInterrupt: "
    assert facts["again"] == facts["whole"] and facts["whole"]["step"] == 4
    losses = [line["loss"] for line in facts["whole"]["metrics"] if line["kind"] == "train"]
    assert len(losses) == 4 and all(loss > 0 for loss in losses)
    assert 1 <= facts["update"][0] <= 3 and list(facts["traces"].values()) == [1]  # one for each width of the targets


def test_an_mt_grpo_run_resumes_and_its_weights_follow_the_steps():
    folder = commands().folder / "adaptive"
    facts = commands().call("regime_drills.adaptive", folder=str(folder), data=str(commands().folder / "data"))
    assert facts["stopped"] == "KeyboardInterrupt: "
    said = "Preempted: asked to stop: step 2 is saved, the same command continues from it"
    assert facts["asked"] == facts["asked_late"] == said
    assert facts["again"] == facts["whole"] and facts["whole"]["step"] == 3
    assert facts["asked_on"] == facts["asked_late_on"] == facts["reward"]
    assert facts["rounds"][2] > 1 and set(facts["rounds"]) <= {1, 2, 3}
    (whole, parts), traces = facts["update"][0], facts["traces"]
    assert whole == 0 and 1 <= parts <= 4 and set(traces.values()) == {1}, "all in rooms, of one program a width"
    assert {name.split(" ")[0] for name in facts["traces"]} == {"logp", "sample"}
    for run, zeros in ((facts["whole"], 0), (facts["reward"], 1)):
        lines = [line for line in run["metrics"] if line["kind"] == "train"]
        assert len(lines) == 3
        logits = np.zeros(6)
        for step, line in enumerate(lines):
            seen = line["mixture"]
            improvement = np.array([seen[name]["improvement"] for name in POINTWISE])
            assert (not improvement.any()) == (zeros == 1 and step == 0)  # nothing to compare the first reward with
            assert all(0 <= seen[name]["no_gradient"] <= 1 for name in POINTWISE)
            if step == 0:  # the paper's formula, on what the line says
                reward = np.array([line["tasks"].get(name, {"reward": 0.0})["reward"] for name in POINTWISE])
                s = improvement + 0.6 * reward
                logits = -20.0 * (s - s.mean()) / 6
                weights = np.exp(logits) / np.exp(logits).sum()
                assert np.allclose([seen[name]["weight"] for name in POINTWISE], weights, atol=1e-6)
                rates = [line["tasks"].get(name, {"zero_variance": 0.0})["zero_variance"] for name in POINTWISE]
                assert np.allclose([seen[name]["no_gradient"] for name in POINTWISE], 0.1 * np.array(rates), atol=1e-9)
        assert run["data"]["step"] == 3
        assert sum(task["position"] for task in run["data"]["tasks"].values()) == sum(line["rounds"] for line in lines) * 12


def numbers(workdir: Path) -> list[dict]:
    """The train lines of a run, without what a clock says."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_s", "time", "hosts", "own_seconds")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines if line["kind"] == "train"]


def test_further_rounds_bring_prompts_that_teach_and_a_resumed_run_draws_the_same():
    """DAPO's recipe: a rollout whose prompts do not all teach is followed by another."""
    flags = ["--config.recipe=dapo", "--config.optim.schedule=constant", "--config.loss.flat_groups=out"]
    one, two = commands().folder / "dapo", commands().folder / "dapo_in_two"
    ended = commands().wait(commands().train(one, *flags, "--config.steps=3"))
    assert ended.status == 0 and "recipe dapo: loss.clip_high=0.28, loss.kl_coef=0.0, rollout.rounds=3" in ended.out, ended.err
    lines = numbers(one)
    assert [line["rounds"] > 1 for line in lines] == [line["rounds"] == 3 or line["wanted_met"] == 1 for line in lines]
    assert max(line["rounds"] for line in lines) > 1 and all(0 < line["wanted_met"] <= 1 for line in lines)
    for steps, more in ((1, []), (3, ["--allow_change=steps"])):
        ended = commands().wait(commands().train(two, *flags, f"--config.steps={steps}", *more))
        assert ended.status == 0, ended.err
    assert numbers(two) == lines


def test_a_best_model_that_was_deleted_is_looked_for_again():
    """The checkpoint knows its score; nothing would ever be written where no later model is better."""
    workdir, flags = commands().folder / "lost", ["--config.optim.lr=0", "--config.optim.schedule=constant"]
    workdir.mkdir()
    (workdir / "config.json").write_text('{"optim": {"lr": 5.0}}')  # of a run that ended before its first checkpoint
    assert commands().wait(commands().train(workdir, *flags, "--config.steps=1")).status == 0
    (workdir / "best").rename(workdir / "elsewhere")
    ended = commands().wait(commands().train(workdir, *flags, "--config.steps=2", "--allow_change=steps"))
    assert ended.status == 0 and "best is gone, the best model so far" in ended.out, ended.err
    assert json.loads((workdir / "best" / "judge.json").read_text())["step"] == 2


def test_other_objectives_train_as_well():
    flags = ["--config.steps=2", "--config.loss.advantage=gdpo", "--config.loss.policy=gspo_token", "--config.loss.truncated=out"]
    flags += ["--config.loss.aggregation=constant", "--config.loss.sampler_weight=sequence", "--config.loss.entropy_coef=0.01"]
    ended = commands().wait(commands().train(commands().folder / "objectives", *flags))
    assert ended.status == 0, ended.err[-2000:]
    for line in numbers(commands().folder / "objectives"):
        assert line["grad_norm"] > 1e-3 and line["moved"] > 0.5 and line["skipped"] == 0 and line["sampler_gap"] < 1e-4
    flags = ["--config.steps=2", "--config.loss.advantage=rloo", "--config.loss.kl_in=reward", "--config.loss.policy=sapo"]
    ended = commands().wait(commands().train(commands().folder / "in_reward", *flags))
    assert ended.status == 0, ended.err[-2000:]
    first, second = numbers(commands().folder / "in_reward")
    assert abs(first["kl"]) < 1e-6 < second["kl"] and second["loss"] == pytest.approx(second["policy_loss"])


def test_adapters_on_a_mixture_of_experts_train_and_resume():
    """The checkpoint holds adapters and their moments alone; what comes out is the base but for what was adapted."""
    folder = commands().folder / "adapters"
    folder.mkdir()
    facts = commands().call("regime_drills.adapters", folder=str(folder), data=str(commands().folder / "data"))
    assert facts["stopped"] == "KeyboardInterrupt: "
    assert facts["again"] == facts["whole"] and facts["whole"]["step"] == 4
    assert {name.split(" (")[0] for name in facts["traces"]} == {"logp of the reference", "sample"}
    assert set(facts["traces"].values()) == {1}
    lines = [line for line in facts["whole"]["metrics"] if line["kind"] == "train"]
    assert lines[0]["kl"] < 1e-5 and max(line["kl"] for line in lines) > 1e-4, lines
    for line in lines:
        assert 0 < line["router_entropy"] < np.log(6) and 1 <= line["router_peak"] <= 3 and 0 <= line["router_idle"] < 1
    leaves = facts["whole"]["leaves"]
    assert sum("_lora_" in name for name in leaves) == 3 * 8  # parameters and two moments, of four targets
    assert all("_lora_" in name or "count" in name or name == "step" for name in leaves)
    assert facts["changed"] == [f"text/layers/{name}" for name in ("k_ldkh", "o_lnhd", "q_ldnh", "v_ldkh")]


@cache
def non_finite() -> dict:
    folder = commands().folder / "non_finite"
    return commands().call("drills.non_finite", folder=str(folder), data=str(commands().folder / "data"))


def test_a_reward_and_a_gradient_that_are_not_finite_change_nothing_and_the_run_goes_on():
    facts = non_finite()
    assert facts["digests"] == [False, True, False, True, False]  # of the whole state, bit for bit
    lines = [line for line in facts["end"]["metrics"] if line["kind"] == "train"]
    assert [line["skipped"] for line in lines] == [0, 1, 0, 1, 0]
    assert [line["loss"] is None for line in lines] == [False, True, False, True, False]
    assert lines[1]["reward"] is None and lines[3]["reward"] is not None
    assert facts["end"]["step"] == 5 and facts["end"]["meta"]["skipped"] == 0


def test_a_skipped_step_names_its_examples_and_leaves_its_batch():
    facts = non_finite()
    assert len(facts["said"]) == 2
    first, second = facts["said"]
    rows = [json.loads(line) for line in facts["files"]["step_000002.host_0.jsonl"].splitlines()]
    assert sorted(facts["files"]) == ["step_000002.host_0.jsonl", "step_000004.host_0.jsonl"] and len(rows) == 6
    bad = [row for row in rows if any(answer["reward"] == "nan" for answer in row["answers"])]
    assert [answer["reward"] for answer in bad[0]["answers"]][1] == "nan" and len(bad) == 1
    assert first.startswith("step 2: the loss, a gradient or a reward is not finite; the update was skipped and changed nothing")
    assert f"(1 in a row, the run stops at 3); examples: {bad[0]['example_id']} ({bad[0]['task']}); its batch is in" in first
    assert second.startswith("step 4: ") and " and 1 more; " in second  # the gradient alone: it could be any of the 6
    assert {"text", "reward", "accuracy", "tokens", "old_logp", "ref_logp"} == set(rows[0]["answers"][0])


def test_too_many_skipped_steps_in_a_row_stop_the_run_at_its_last_good_state():
    facts = non_finite()
    assert facts["stopped"].startswith("NonFiniteUpdate: 2 updates in a row, up to step 2, were not finite and were skipped")
    assert "\n" not in facts["stopped"] and "lower optim.lr or loss.kl_coef" in facts["stopped"]
    assert facts["all"]["step"] == 2 and facts["all"]["meta"]["skipped"] == 2
    assert [line["skipped"] for line in facts["all"]["metrics"] if line["kind"] == "train"] == [1, 1]


def test_changes_are_allowed_by_name():
    folder = commands().folder / "allowed"
    facts = commands().call("drills.allowed", folder=str(folder), data=str(commands().folder / "data"))
    said = "ConfigError: {}/run holds a run of another config: {}. Choose another --workdir, undo the change, or allow it by "
    said += "{}"
    steps, lr = "steps: 1 -> 2", "optim.lr: 0.001 -> 0.002"
    assert facts["refused"] == said.format(folder, f"{steps}; {lr}", "--allow_change=steps,optim.lr")
    assert facts["one name"] == said.format(folder, lr, "--allow_change=steps,optim.lr")
    assert facts["unknown"] == "ConfigError: --allow_change: unknown name 'optim.lrr', did you mean 'optim.lr'?"
    assert facts["on"]["step"] == 2 and facts["on"]["meta"]["config"]["optim"]["lr"] == 2e-3
    assert facts["on"]["leaves"]["params/text/norm_d"]["dtype"] == "float32"
    assert facts["dtypes"] == ["bfloat16"] and facts["half"]["step"] == 3
    assert facts["half"]["leaves"]["params/text/norm_d"]["dtype"] == "bfloat16"


def test_a_run_stopped_in_its_last_validation_ends_as_if_it_had_not_been():
    folder = commands().folder / "asked"
    facts = commands().call("drills.asked_in_validation", folder=str(folder), data=str(commands().folder / "data"))
    assert facts["first"] == facts["second"] == "Preempted: asked to stop: step 2 is saved, the same command continues from it"
    assert facts["judged"] == [2, 0]
    assert facts["on"] and facts["finished"] and facts["same"]


def test_the_tiny_config_is_the_demos_tasks():
    assert drills.config().data.tasks == POINTWISE
