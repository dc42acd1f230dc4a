"""The paper's arms: their config files, what SFT teaches, `mtjudge demo --arms`, the tables."""

import json
from functools import cache
from pathlib import Path

import pytest
from commands import Ended, commands

from mtjudge_jax.config import ConfigError, check
from mtjudge_jax.demo.arm_tables import Spread, as_markdown, in_distribution, pairwise, shown, write_tables
from mtjudge_jax.demo.arms import ARMS, Job, chosen, jobs_of
from mtjudge_jax.demo.config import TASKS, UNSEEN
from mtjudge_jax.demo.dataset import make_examples
from mtjudge_jax.plan.chips import tpu_slice
from mtjudge_jax.policy import DEMO_BASE, true_target
from mtjudge_jax.tasks import TASKS as KNOWN
from mtjudge_jax.tasks.paper import TRAINED
from mtjudge_jax.tasks.parse import parse_lenient, parse_strict

CONFIGS = Path(__file__).parent.parent / "configs"
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
    if name != "mt_grpo":
        place = tpu_slice("v5p:2x4x4")
        check(cfg, place.devices, place.devices // place.host_devices)


WRONG = [
    ("sft_unified", "7b", "sft_unified.py:7b: planned are 30b-a3b,v5p:4x4x4 30b-a3b,v5p:2x4x4"),
    ("sft_unified", "8b,v5p:4x4x4", "planned are"),
    ("rl_single", "30b-a3b,v5p:4x4x4", "rl_single.py:30b-a3b,v5p:4x4x4: unknown task 'v5p:4x4x4'"),
    ("rl_single", "30b-a3b,v5p:4x4x4,unsafebnch", "write rl_single.py:SIZE,SLICE,TASK"),
    ("mt_rl_judge", "30b-a3b,v5p:4x4x4,agin_nat", "planned are"),
]


@pytest.mark.parametrize(("name", "argument", "says"), WRONG)
def test_an_argument_that_cannot_be(name, argument, says):
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
    assert chosen(["all"]) == list(ARMS) and len(ARMS) == 8
    assert chosen(["mt_rl_judge", "off_the_shelf"]) == ["off_the_shelf", "mt_rl_judge"]
    with pytest.raises(ConfigError, match="--arms: unknown arm 'rl_singel', did you mean 'rl_single'"):
        chosen(["rl_singel"])
    jobs = jobs_of(["off_the_shelf", "rl_single", "mt_grpo"], seeds=2)
    assert [job.arm for job in jobs] == ["off_the_shelf", *["rl_single"] * 6, "mt_grpo", *["rl_single"] * 6, "mt_grpo"]
    assert jobs[1].name == "rl_single.technical.seed0" and jobs[-1].name == "mt_grpo.seed1"
    assert jobs[1].judged == ("technical", "pairwise_technical") and jobs[2].judged == ("rationality",)
    assert Job("mt_grpo", 1).judged == (*TASKS, *UNSEEN)


def result(arm: str, seed: int, tasks: dict[str, float], task: str = "") -> dict:
    """An evaluation whose numbers are all the same."""
    keys = ("macro_f1", "accuracy", "consistency", "probability_accuracy", "single_accuracy", "invalid_rate")
    scores = {name: dict.fromkeys(keys, f1) | {"macro_f1_ci": [f1 - 0.1, f1 + 0.1]} for name, f1 in tasks.items()}
    return {"arm": arm, "seed": seed, "task": task, "tasks": scores}


def results() -> list[dict]:
    """The base; an arm of two seeds, the second of them worse; a single arm of which one model is missing."""
    base = dict.fromkeys(TASKS, 0.4) | {UNSEEN[0]: 0.3, UNSEEN[1]: 0.4, UNSEEN[2]: 0.5}
    first = dict.fromkeys(TASKS, 0.8) | {"safety": 0.5} | {UNSEEN[0]: 0.6, UNSEEN[1]: 0.7, UNSEEN[2]: 0.8}
    second = dict.fromkeys(TASKS, 0.6) | {"safety": 0.3} | {UNSEEN[0]: 0.4, UNSEEN[1]: 0.5, UNSEEN[2]: 0.6}
    singles = [result("rl_single", 0, {task: 0.9}, task) for task in TASKS[1:]]
    return [result("off_the_shelf", 0, base), result("mt_rl_judge", 0, first), result("mt_rl_judge", 1, second), *singles]


def test_the_table_in_distribution():
    rows = in_distribution(results(), ["off_the_shelf", "rl_single", "mt_rl_judge"]).rows
    assert rows["off_the_shelf"]["technical"] == Spread(0.4, 0.4, 0.4, 1, (pytest.approx(0.3), pytest.approx(0.5)))
    both = rows["mt_rl_judge"]
    assert shown(both["technical"]) == "0.70 (0.60-0.80)" and shown(both["safety"]) == "0.40 (0.30-0.50)"
    assert shown(both["mean"]) == "0.65 (0.55-0.75)"  # (5 * 0.8 + 0.5) / 6 and (5 * 0.6 + 0.3) / 6
    assert shown(both["worst"]) == "0.40 (0.30-0.50)"
    assert rows["rl_single"]["technical"] is None and rows["rl_single"]["mean"] is None
    assert shown(rows["rl_single"]["rationality"]) == "0.90 [0.80-1.00]"


def test_the_table_of_pairs():
    table = pairwise(results(), ["off_the_shelf", "rl_single", "mt_rl_judge"])
    both = table.rows["mt_rl_judge"]
    assert shown(both["mean"]) == "0.60 (0.50-0.70)" and shown(both["transfer"]) == "0.20 (0.10-0.30)"
    assert shown(both["same winner"]) == "0.60 (0.50-0.70)" and shown(table.rows["off_the_shelf"]["transfer"]) == "0.00"
    assert all(cell is None for cell in table.rows["rl_single"].values())
    lines = as_markdown(table, {"off_the_shelf": "base", "rl_single": "RL-Single", "mt_rl_judge": "MT"}).splitlines()
    assert lines[4].startswith("| arm | seeds | pairwise_technical |") and lines[4].count("|") == lines[5].count("|") == 13
    assert lines[6].startswith("| base | 1 | 0.30 [0.20-0.40] | 0.40 [0.30-0.50] | 0.50 [0.40-0.60] | 0.40 | 0.00 |")
    assert lines[7] == "| RL-Single | 0 |" + "  |" * 10


def test_tables_of_a_workdir(tmp_path):
    (tmp_path / "eval").mkdir()
    for one in results()[:3]:
        (tmp_path / "eval" / f"{one['arm']}.seed{one['seed']}.json").write_text(json.dumps(one))
    names = ["off_the_shelf.seed0", "mt_rl_judge.seed0", "mt_rl_judge.seed1", "mt_grpo.seed0"]
    path = write_tables(tmp_path, names, {"off_the_shelf": "base", "mt_rl_judge": "<MT>", "mt_grpo": "M"})
    page, text = path.read_text(), (tmp_path / "arms.md").read_text()
    assert "3 of 4 models judged" in page and "&lt;MT&gt;" in page and "<MT>" not in page
    assert "| <MT> | 2 | 0.70 (0.60-0.80) |" in text and "| M |" not in text
    data = json.loads((tmp_path / "arms.json").read_text())
    assert data["In distribution"]["mt_rl_judge"]["worst"] == {"mean": 0.4, "low": 0.3, "high": 0.5, "seeds": 2, "ci": None}


NAMES = "off_the_shelf,sft_unified"


def start(workdir: Path, names: str = NAMES) -> Ended:
    return commands().wait(commands().start_call("drills.arms", workdir=str(workdir), names=names))


@cache
def arms() -> tuple[Path, Ended]:
    workdir = commands().folder / "arms"
    return workdir, start(workdir)


def test_the_command_trains_judges_and_compares():
    workdir, ended = arms()
    assert ended.status == 0, ended.err[-3000:]
    assert "1/2 off_the_shelf.seed0" in ended.out and "step 6/6" in ended.out
    text = (workdir / "arms.md").read_text()
    assert "2 of 2 models judged" in text and "| off the shelf | 1 |" in text and "| SFT-Unified, verdict alone | 1 |" in text
    kept = json.loads((workdir / "eval" / "sft_unified.seed0.json").read_text())
    assert kept["config"]["sft"]["target"] == "answer" and len(kept["tasks"]) == 9
    assert (workdir / "runs" / "sft_unified.seed0" / "metrics.jsonl").exists()
    assert not (workdir / "runs" / "sft_unified.seed0" / "checkpoints").exists()
    assert (workdir / "arms.html").resolve().as_uri() in ended.out


def test_a_second_start_does_what_is_missing():
    workdir, _ = arms()
    first = workdir / "eval" / "sft_unified.seed0.json"
    other = workdir / "eval" / "off_the_shelf.seed0.json"
    before, scores = other.stat().st_mtime_ns, json.loads(first.read_text())["tasks"]
    first.unlink()
    ended = start(workdir)
    assert ended.status == 0 and "done before" in ended.out and "step 6/6" in ended.out
    assert other.stat().st_mtime_ns == before and json.loads(first.read_text())["tasks"] == scores
    changed = json.loads(first.read_text())
    changed["config"]["optim"]["lr"] = 5.0
    first.write_text(json.dumps(changed))
    ended = start(workdir)
    assert ended.status == 2 and "is of another config: optim.lr: 5.0 -> 0.002" in ended.err


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


def test_an_arm_that_there_is_not():
    ended = commands().run("demo", "--arms=mt_rl_juge", f"--workdir={commands().folder / 'none'}")
    assert (ended.status, ended.err) == (2, "error: --arms: unknown arm 'mt_rl_juge', did you mean 'mt_rl_judge'?\n")
