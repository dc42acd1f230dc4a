"""The paper's arms: their config files, what SFT teaches, `mtjudge demo --arms`, the tables."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import pytest
from commands import Ended, commands
from places import CONFIGS

from mtjudge_jax.config_check import check
from mtjudge_jax.demo.arms import ARMS, Job, chosen, jobs_of, write_tables
from mtjudge_jax.demo.cases import DEMO_TASKS, PAIRWISE, POINTWISE
from mtjudge_jax.demo.dataset import make_examples
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.plan.slices import tpu_slice
from mtjudge_jax.policy.model import DEMO_BASE, true_target
from mtjudge_jax.tasks import TASKS as KNOWN
from mtjudge_jax.tasks.answer import parse_lenient, parse_strict
from mtjudge_jax.tasks.paper import TRAINED

# file: stage, single, steps of all tasks or of the first, evaluations every so many steps, learning rate
FILES = {
    "off_the_shelf": ("grpo", False, 200, 10, 1e-6),
    "sft_single": ("sft", True, 60, 3, 1e-5),
    "sft_unified": ("sft", False, 400, 20, 1e-5),
    "rl_single": ("grpo", True, 30, 1, 1e-6),
    "mt_rl_judge": ("grpo", False, 200, 10, 1e-6),
    "mt_grpo": ("grpo", False, 200, 10, 1e-6),
}


def config_of(name: str, argument: str | None = None):
    scope = {}
    exec((CONFIGS / f"{name}.py").read_text(), scope)
    return scope["get_config"]() if argument is None else scope["get_config"](argument)


@pytest.mark.parametrize("name", FILES)
def test_a_config_of_the_paper(name):
    stage, single, steps, every, rate = FILES[name]
    first = TRAINED[0]
    cfg = config_of(name, f"30b-a3b,v5p:2x4x4{f',{first}' if single else ''}")
    assert (cfg.stage, cfg.steps, cfg.eval.every_steps, cfg.optim.lr) == (stage, steps, every, rate)
    assert cfg.data.tasks == ((first,) if single else TRAINED)
    assert (cfg.optim.name, cfg.update.prompts, cfg.eval.patience, cfg.mesh.fsdp) == ("adamw", 256, 5, 4)
    assert (cfg.rollout.group_size, cfg.rollout.prompts) == (20, 512)
    assert cfg.sft.target == ("answer" if stage == "sft" else "rationale")
    text = (CONFIGS / f"{name}.py").read_text()
    assert f"configs/{name}.py:30b-a3b,v5p:4x4x4" in text and "Hardware" in text
    assert ("The paper's numbers (macro-F1" in text) == (name != "mt_grpo")
    assert (cfg.data.mixture == "mt_grpo") == (name == "mt_grpo")
    place = tpu_slice("v5p:2x4x4")
    check(cfg, place.devices, place.devices // place.host_devices)


@pytest.mark.parametrize("name", FILES)
def test_an_arm_is_rehearsed_with_all_but_its_sizes(name):
    """Four steps with the demo's model on any CPU; tasks, reward, loss, optimizer and mixture are the arm's."""
    single = FILES[name][1]
    whole, cfg = (config_of(name, f"{place}{',seetrue' if single else ''}") for place in ("30b-a3b,v5p:4x4x4", "rehearsal"))
    assert cfg == config_of(name, f"rehearsal,laptop{',seetrue' if single else ''}")
    assert cfg.model.path == "demo" and (cfg.steps, cfg.model.dtype) == (4, "float32")
    for same in ("stage", "reward", "loss", "optim", "sft", "lora"):
        assert getattr(cfg, same) == getattr(whole, same), same
    sizes = {"prompt_tokens": 512, "patches": 256}
    assert cfg.data == dataclasses.replace(whole.data, **sizes)
    assert cfg.rollout.group_size == min(4, whole.rollout.group_size)
    check(cfg, 1)
    check(cfg, 2, 2)


WRONG = [
    ("sft_unified", "7b", "sft_unified.py:7b: the layouts are 30b-a3b,v5p:4x4x4 30b-a3b,v5p:2x4x4"),
    ("sft_unified", "8b,v5p:4x4x4", "the layouts are"),
    ("rl_single", "30b-a3b,v5p:4x4x4", "rl_single.py:30b-a3b,v5p:4x4x4: unknown task 'v5p:4x4x4'"),
    ("rl_single", "30b-a3b,v5p:4x4x4,unsafebnch", "write rl_single.py:SIZE,SLICE,TASK"),
    ("mt_rl_judge", "30b-a3b,v5p:4x4x4,agin_nat", "the layouts are"),
    ("mt_grpo", "rehearsal,v5p:4x4x4", "mt_grpo.py:rehearsal,v5p:4x4x4: the layouts are 30b-a3b,v5p:4x4x4"),
]


@pytest.mark.parametrize(("name", "argument", "says"), WRONG)
def test_an_invalid_argument(name, argument, says):
    with pytest.raises(ConfigError) as error:
        config_of(name, argument)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_what_sft_teaches():
    example = next(iter(make_examples(split="train", task="technical", count=2, seed=0)))
    answer = ("no", "yes")[example.label.binary]
    whole, alone = true_target(KNOWN, example), true_target(KNOWN, example, form="answer")
    assert whole == f"<think>{example.rationale}</think><answer>{answer}</answer>"
    assert alone == f"<answer>{answer}</answer>"
    assert parse_strict(whole, ("no", "yes")).verdict == parse_lenient(alone, ("no", "yes")).verdict == example.label.binary
    assert parse_strict(alone, ("no", "yes")).error == "missing <think>"
    object.__setattr__(example, "rationale", " ")
    assert true_target(KNOWN, example) == alone


def test_the_arms_and_their_models():
    assert chosen(["all"]) == list(ARMS) and len(ARMS) == 12
    assert chosen(["mt_rl_judge", "off_the_shelf"]) == ["off_the_shelf", "mt_rl_judge"]
    with pytest.raises(ConfigError, match="--arms: unknown arm 'rl_singel', did you mean 'rl_single'"):
        chosen(["rl_singel"])
    jobs = jobs_of(["off_the_shelf", "rl_single", "mt_grpo"], seeds=2)
    assert [job.arm for job in jobs] == ["off_the_shelf", *["rl_single"] * 6, "mt_grpo", *["rl_single"] * 6, "mt_grpo"]
    assert jobs[1].name == "rl_single.technical.seed0" and jobs[-1].name == "mt_grpo.seed1"
    assert jobs[1].judged == ("technical", "pairwise_technical", "ranked_technical") and jobs[2].judged == ("rationality",)
    assert Job("mt_grpo", 1).judged == DEMO_TASKS


def write_result(workdir: Path, job: Job, numbers: dict[str, float]) -> None:
    """An evaluation whose numbers are all the same, in the job's file."""
    keys = ("macro_f1", "accuracy", "consistency", "probability_accuracy", "single_accuracy", "invalid_rate")
    tasks = {name: dict.fromkeys(keys, f1) | {"macro_f1_ci": [f1 - 0.1, f1 + 0.1]} for name, f1 in numbers.items()}
    (workdir / "eval" / f"{job.name}.json").write_text(json.dumps({"tasks": tasks}))


def test_tables_of_a_workdir(tmp_path):
    """The base; an arm of two seeds, the second of them worse; a single arm of which one model is missing."""
    (tmp_path / "eval").mkdir()
    jobs = jobs_of(["off_the_shelf", "rl_single", "mt_rl_judge", "mt_grpo"], seeds=2)
    base = dict.fromkeys(POINTWISE, 0.4) | {PAIRWISE[0]: 0.3, PAIRWISE[1]: 0.4, PAIRWISE[2]: 0.5}
    first = dict.fromkeys(POINTWISE, 0.8) | {"safety": 0.5} | {PAIRWISE[0]: 0.6, PAIRWISE[1]: 0.7, PAIRWISE[2]: 0.8}
    second = dict.fromkeys(POINTWISE, 0.6) | {"safety": 0.3} | {PAIRWISE[0]: 0.4, PAIRWISE[1]: 0.5, PAIRWISE[2]: 0.6}
    write_result(tmp_path, Job("off_the_shelf", 0), base)
    for seed, numbers in enumerate((first, second)):
        write_result(tmp_path, Job("mt_rl_judge", seed), numbers)
        for task in POINTWISE[1 - seed :]:  # a model that seed 0 lacks is not taken from seed 1
            write_result(tmp_path, Job("rl_single", seed, task), {task: 0.9 - 0.2 * seed})
    page = write_tables(tmp_path, jobs).read_text()
    text = (tmp_path / "comparison.md").read_text()
    assert "14 of 17 models judged" in page and "14 of 17 models judged" in text and "MT-GRPO" not in text
    assert "| arm | seeds | technical | rationality | naturalness | alignment | preference | safety | mean | worst |" in text
    single, several = "40.0 [30.0, 50.0]", "70.0 (60.0 to 80.0)"
    assert f"| off the shelf | 1 | {' | '.join([single] * 6)} | 40.0 | 40.0 |" in text
    # (5 * 0.8 + 0.5) / 6 and (5 * 0.6 + 0.3) / 6
    assert f"| MT-RL-Judge | 2 | {' | '.join([several] * 5)} | 40.0 (30.0 to 50.0) | 65.0 (55.0 to 75.0) | 40.0 (30.0" in text
    assert "| RL-Single | 2 | 70.0 | 80.0 (70.0 to 90.0) |" in text and "| 80.0 (70.0 to 90.0) | 70.0 | 70.0 |" in text
    assert f"| {' | '.join(PAIRWISE)} | mean | accuracy | same winner | by probability | each alone | invalid |" in text
    assert "| 60.0 (50.0 to 70.0) | 60.0 (50.0 to 70.0) | 60.0 (50.0 to 70.0) |" in text  # mean, accuracy, same winner ..
    assert "## Format transfer: pairwise minus off the shelf" in text and "+20.0 (+10.0 to +30.0) |" in text
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert data["scores"]["MT-RL-Judge"]["worst"] == {"value": 0.4, "low": 0.3, "high": 0.5, "seeds": 2}
    assert data["scores"]["MT-RL-Judge"]["unseen mean"]["value"] == pytest.approx(0.6)


NAMES = "off_the_shelf,sft_unified"


def start(workdir: Path, names: str = NAMES) -> Ended:
    return commands().wait(commands().start_call("command_drills.arms", workdir=str(workdir), names=names))


@cache
def arms() -> tuple[Path, Ended]:
    workdir = commands().folder / "arms"
    return workdir, start(workdir)


def test_the_command_trains_judges_and_compares():
    workdir, ended = arms()
    assert ended.status == 0, ended.err[-3000:]
    assert "1/2 off_the_shelf.seed0" in ended.out and "step 6/6" in ended.out
    text = (workdir / "comparison.md").read_text()
    assert "2 of 2 models judged" in text and "\n| off the shelf | " in text and "\n| SFT-Unified, verdict alone | " in text
    kept = json.loads((workdir / "eval" / "sft_unified.seed0.json").read_text())
    assert kept["config"]["sft"]["target"] == "answer" and len(kept["tasks"]) == 13
    assert (workdir / "runs" / "sft_unified.seed0" / "metrics.jsonl").exists()
    assert not (workdir / "runs" / "sft_unified.seed0" / "checkpoints").exists()
    assert (workdir / "comparison.html").resolve().as_uri() in ended.out


def test_a_second_start_does_what_is_missing():
    workdir, _ = arms()
    first = workdir / "eval" / "sft_unified.seed0.json"
    other = workdir / "eval" / "off_the_shelf.seed0.json"
    before, scores = other.stat().st_mtime_ns, json.loads(first.read_text())["tasks"]
    first.unlink()
    ended = start(workdir)
    assert ended.status == 0 and "already done" in ended.out and "step 6/6" in ended.out
    assert other.stat().st_mtime_ns == before and json.loads(first.read_text())["tasks"] == scores
    changed = json.loads(first.read_text())
    changed["config"]["optim"]["lr"] = 5.0
    first.write_text(json.dumps(changed))
    ended = start(workdir)
    assert ended.status == 2 and "has another config: optim.lr: 5.0 -> 0.002" in ended.err


def test_the_base_is_judged_as_a_config_lays_it_out():
    """configs/off_the_shelf.py says how; here the config of the tests: its sizes, its mesh."""
    where = (f"--data={commands().folder / 'data'}", f"--out={commands().folder / 'base'}", f"--model={DEMO_BASE}")
    command = ("eval", f"--config={commands().config}", *where, "--tasks=technical", "--samples=1", "--limit=2")
    ended = commands().run(*command, "--config.mesh.fsdp=2")
    assert ended.status == 2 and "mesh.fsdp = 2" in ended.err and "here are 1: " in ended.err
    ended = commands().run(*command)
    assert ended.status == 0, ended.err[-2000:]
    scores = json.loads((commands().folder / "base" / "test.json").read_text())
    assert list(scores["tasks"]) == ["technical"] and scores["tasks"]["technical"]["count"] == 2


def test_an_unknown_arm_names_the_nearest():
    ended = commands().run("demo", "--arms=mt_rl_juge", f"--workdir={commands().folder / 'none'}")
    assert (ended.status, ended.err) == (2, "error: --arms: unknown arm 'mt_rl_juge', did you mean 'mt_rl_judge'?\n")
