"""The model card: what it says is what was done, and what users named stays text."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from mtjudge_jax.config import Config
from mtjudge_jax.export.model_card import Origin, escape, license_of, model_card, origin_of
from mtjudge_jax.policy.judge_file import JUDGE_FILE, judge_file

HUB = Origin("Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Instruct", "apache-2.0")


def config() -> Config:
    cfg = Config(steps=40, seed=3)
    cfg.model.path = "base"
    cfg.data.tasks = ("alignment", "safety")
    cfg.optim.lr, cfg.loss.kl_coef, cfg.rollout.group_size = 2.5e-6, 0.03, 7
    cfg.mesh.fsdp, cfg.mesh.data = 16, 2
    return cfg


def card(cfg: Config | None = None, **changes) -> str:
    settings = {"title": "judge", "origin": HUB, "step": 10, "best": True, "workdir": None, "dtype": "bfloat16", "adapter": False}
    return model_card(cfg or config(), **(settings | changes))


def head(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def table(text: str, first: str) -> dict[str, list[str]]:
    """Rows of the table whose head begins with `first`, by their first cell."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row[1:] for row in rows[2:]}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def evaluation(folder: Path, name: str, **scores: tuple[float, float, float, float]) -> None:
    tasks = {
        task: {"count": 50, "macro_f1": f1, "macro_f1_ci": [low, high], "constant_macro_f1": 1 / 3, "invalid_rate": invalid}
        for task, (f1, low, high, invalid) in scores.items()
    }
    mean = {"macro_f1": sum(f1 for f1, *_ in scores.values()) / len(scores), "sampled_accuracy": None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"split": "val", "step": 0, "tasks": tasks, "mean": mean, "unusable": {}}))


def test_the_head_is_what_a_hub_reads():
    read = head(card())
    tags = ["mtjudge_jax", "judge", "image-quality-assessment", "grpo", "reinforcement-learning"]
    assert read == {
        "base_model": "Qwen/Qwen3-VL-2B-Instruct", "base_model_relation": "finetune", "library_name": "transformers",
        "pipeline_tag": "image-text-to-text", "license": "apache-2.0", "tags": tags,
    }  # fmt: skip
    cfg = config()
    cfg.stage, cfg.lora.rank = "sft", 4
    read = head(card(cfg, adapter=True, origin=Origin("mine", None, None)))
    assert read["library_name"] == "peft" and read["tags"][3:] == ["sft", "lora"]
    assert read.keys().isdisjoint({"base_model", "license"})


def test_the_recipe_is_the_config():
    cfg = config()
    rows = table(card(cfg), "what")
    assert rows["stage"] == ["grpo"] and rows["tasks"] == ["alignment, safety (proportional)"]
    assert rows["steps"] == ["10 of 40, the best by mean validation macro-F1"]
    assert rows["learning rate"] == ["2.5e-06, constant, 0 steps of warm-up"] and rows["KL"] == ["0.03, k3"]
    assert rows["answers per prompt (G)"] == ["7 at temperature 1"] and rows["seed"] == ["3"]
    assert rows["devices per mesh axis"] == ["data 2, fsdp 16, expert 1, tensor 1"]
    assert rows["trained weights"] == ["all"] and "jax" in rows["exported with"][0]
    cfg.lora.rank, cfg.lora.alpha = 16, 24.0
    assert table(card(cfg), "what")["trained weights"] == ["LoRA of rank 16, alpha 24, on q, k, v, o"]
    cfg.lora.rank, cfg.model.freeze = 0, ("vision", "mergers")
    assert table(card(cfg), "what")["trained weights"] == ["all but vision, mergers"]
    cfg.stage = "sft"
    rows = table(card(cfg, best=False), "what")
    assert rows.keys().isdisjoint({"KL", "clip", "reward", "beta"}) and rows["steps"] == ["10 of 40"]
    cfg.stage, cfg.dpo.beta = "dpo", 0.25
    text = card(cfg)
    assert table(text, "what")["beta"] == ["0.25"] and "by\ndirect preference optimisation (DPO)." in text


def test_scores_before_and_after_are_those_of_the_run(tmp_path):
    evaluation(tmp_path / "eval", "val_000000", alignment=(0.4, 0.35, 0.45, 0.02), safety=(0.5, 0.4, 0.6, 0.0))
    evaluation(tmp_path / "eval", "val_000010", alignment=(0.9, 0.85, 0.95, 0.0), safety=(0.8, 0.7, 0.9, 0.01))
    text = card(workdir=tmp_path)
    rows = table(text, "task | questions")
    assert rows["alignment"] == ["50", "0.33", "0.40 (0.35 to 0.45)", "0.90 (0.85 to 0.95)", "0.02", "0.00"]
    assert rows["safety"][2:] == ["0.50 (0.40 to 0.60)", "0.80 (0.70 to 0.90)", "0.00", "0.01"]
    assert rows["mean of the trained tasks"] == ["", "", "0.45", "0.85", "", ""]
    assert "the validation split" in text and "chosen because it did best on these same questions" in text
    assert "these same questions" not in card(workdir=tmp_path, best=False)
    evaluation(tmp_path / "eval", "trained_test", alignment=(0.7, 0.6, 0.8, 0.0), pairwise_safety=(0.6, 0.5, 0.7, 0.0))
    text = card(workdir=tmp_path)
    rows = table(text, "task | questions")
    assert "the test split" in text and "these same questions" not in text
    assert rows["alignment"] == ["50", "0.33", "0.70 (0.60 to 0.80)", "0.00"] and "pairwise\\_safety (never trained on)" in rows
    assert rows["mean of the trained tasks"] == ["", "", "0.65", ""] and "began with was not evaluated" in text
    assert "the test split" not in card(workdir=tmp_path, best=False)


def test_a_whole_evaluation_beside_the_run_counts_too(tmp_path):
    """`mtjudge eval --out=runs/scores`: as the report finds it; one of a part of the questions does not stand for the test."""
    run, beside = tmp_path / "run", tmp_path / "scores"
    evaluation(run / "eval", "val_000010", alignment=(0.9, 0.85, 0.95, 0.0), safety=(0.9, 0.85, 0.95, 0.0))
    (run / "best").mkdir()
    (run / "best" / "judge.json").write_text('{"step": 10}')
    (run / "config.json").write_text(json.dumps({"data": {"tasks": ["alignment", "safety"]}}))
    evaluation(beside, "test", alignment=(0.7, 0.6, 0.8, 0.0), safety=(0.6, 0.5, 0.7, 0.0))
    result = json.loads((beside / "test.json").read_text())
    whole = result | {"split": "test", "judged": {"model": str(run / "best"), "data": None, "step": 10}, "settings": {"limit": 0}}
    for changes, split, value in (({"settings": {"limit": 5}}, "validation", "0.90"), ({}, "test", "0.70")):
        (beside / "test.json").write_text(json.dumps(whole | changes))
        text = card(workdir=run)
        assert f"the {split} split" in text and table(text, "task | questions")["alignment"][2].startswith(value)


@pytest.mark.parametrize("content", ["{", "[]", '{"tasks": 3}', '{"tasks": {"safety": 3}}', '{"tasks": {}}'])
def test_a_card_is_written_without_scores_that_cannot_be_read(tmp_path, content):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "val_000010.json").write_text(content)
    text = card(workdir=tmp_path)
    assert "Not evaluated: the run has no scores for this step." in text
    assert "Not evaluated" in card(workdir=tmp_path / "nowhere") and "Not evaluated" in card(workdir=None)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("tasks", [("alignment",), ("technical", "safety")])
def test_the_examples_are_programs(adapter, tasks):
    cfg = config()
    cfg.data.tasks, cfg.lora.rank = tasks, 12
    cfg.data.prompt_tokens, cfg.rollout.completion_tokens = 700, 100
    text = card(cfg, adapter=adapter)
    programs = blocks(text, "python")
    assert len(programs) == (1 if adapter else 2)
    for program in programs:
        ast.parse(program)
    asked = f"Is it right that this picture {'shows a dog' if tasks == ('alignment',) else 'has good technical quality'}?"
    text_part = f'{{"type": "text", "text": "{asked}'
    assert '{"type": "image", "image": "picture.jpg"},\n        ' + text_part in programs[0]
    assert [f'"{task}": [' in programs[0] for task in tasks] == [True] * len(tasks) and "[image]" not in programs[0]
    assert "{instruction}" not in programs[0] and ("a dog" in programs[0]) == (tasks == ("alignment",))
    assert "max_new_tokens=100," in programs[0] and "dtype=torch.bfloat16" in programs[0]
    (serve,) = blocks(text, "bash")
    limits = "--limit-mm-per-prompt '{\"image\": 1}' --max-model-len 800 --chat-template-content-format openai\n"
    if adapter:
        lora = "--enable-lora --max-lora-rank 16 --lora-modules judge=PATH "
        assert serve == f"vllm serve Qwen/Qwen3-VL-2B-Instruct {lora}{limits}"
        assert 'PeftModel.from_pretrained(model, "PATH")' in programs[0]
    else:
        assert serve == f"vllm serve PATH {limits}"
        assert ('instruction="a dog"' in programs[1]) == (tasks == ("alignment",))


HOSTILE = 'a|b\n# head\n<script>alert(1)</script> [x](http://e.vil) `code` *bold* _u_ ~~s~~ $x$ &amp; \\ "q"\n---\nlicense: mit'


def test_names_stay_text(tmp_path):
    assert "\n" not in escape(HOSTILE)
    assert not re.search(r"(?<!\\)[|<>\[\]`*_~$&#]", escape(HOSTILE).replace("\\\\", ""))
    text = card(title=HOSTILE, origin=Origin(HOSTILE, None, None))
    assert "license" not in head(text) and "<script>" not in text and "[x](" not in text
    assert next(line for line in text.splitlines() if line.startswith("# ")).startswith("# a\\|b \\# head")
    evaluation(tmp_path / "eval", "val_000010", **{HOSTILE: (0.5, 0.4, 0.6, 0.0)})
    text = card(workdir=tmp_path)
    assert "<script>" not in text and len(table(text, "task | questions")) == 2


def test_the_base_is_named_only_where_the_folder_tells(tmp_path):
    for path, name, hub in (
        ("models--Qwen--Qwen3-VL-8B-Instruct/snapshots/abc", "Qwen/Qwen3-VL-8B-Instruct", True),
        ("Qwen3-VL-30B-A3B-Thinking", "Qwen/Qwen3-VL-30B-A3B-Thinking", True),
        ("my-base", "my-base", False),
    ):
        (tmp_path / path).mkdir(parents=True)
        assert origin_of(tmp_path / path) == Origin(name, name if hub else None, None)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"README.md": "---\nlicense: apache-2.0\n---\n# x"}, "apache-2.0"),
        ({"README.md": '---\nlicense: "mit"\n---\n# x', "LICENSE": "Apache License Version 2.0"}, "mit"),
        ({"README.md": "# no head\nlicense: mit"}, None),
        ({"LICENSE": "        Apache License\n    Version 2.0, January 2004"}, "apache-2.0"),
        ({"LICENSE": "Permission is hereby granted, free of charge, to any person"}, "mit"),
        ({"LICENSE": "All rights reserved"}, "other"),
        ({}, None),
    ],
)
def test_the_license_is_that_of_the_source(tmp_path, files, found):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert license_of(tmp_path / "nowhere", tmp_path) == found


@pytest.mark.parametrize(
    "reward,said",
    [
        ({}, "0.9 accuracy + 0.1 format"),
        ({"alpha": 0.25}, "0.75 accuracy + 0.25 format"),
        ({"weights": ("accuracy=0.5", "soft=0.5")}, "0.5 accuracy + 0.5 soft"),
        ({"custom": ("m:short",)}, "1 m:short + 0.9 accuracy + 0.1 format"),
        ({"batch": ("m:far",), "weights": ("format=0.1", "m:far=2")}, "2 m:far + 0.1 format"),
    ],
)
def test_the_recipe_has_the_rewards_that_were_paid(reward, said):
    cfg = Config(stage="grpo")
    cfg.data.tasks, cfg.data.balance_labels = ("technical",), True
    cfg.reward = dataclasses.replace(cfg.reward, **reward)
    text = card(cfg).replace("\\", "")
    assert f"| reward | {said} |" in text and "technical (proportional, labels balanced)" in text


def test_the_best_of_a_run_is_called_by_the_run(tmp_path):
    assert origin_of(tmp_path / "taught" / "best").name == "taught/best" and origin_of(tmp_path / "mine").name == "mine"


def test_the_card_tells_the_runs_before(tmp_path):
    taught, cfg = tmp_path / "taught" / "best", Config(stage="sft")
    taught.mkdir(parents=True)
    cfg.data.tasks, cfg.model.path = ("technical", "safety"), str(tmp_path / "Qwen3-VL-2B-Instruct")
    (taught / JUDGE_FILE).write_bytes(judge_file(cfg, 40, {}))
    then = Config(stage="grpo")
    then.data.tasks, then.model.path = ("technical",), str(taught)
    text = card(then, origin=origin_of(taught))
    assert "| run 1 | sft of Qwen/Qwen3-VL-2B-Instruct on technical, safety, step 40 |" in text
    assert "| run 2, this one | grpo |" in text and head(text)["base_model"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert "base_model" not in head(card(then, origin=origin_of(taught), adapter=True))  # needs the taught model
    assert [stage["step"] for stage in json.loads(judge_file(then, 7, {}))["stages"]] == [40, 7]


def test_the_demo_base_is_no_folder_that_is_called_so(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / JUDGE_FILE).write_bytes(judge_file(Config(stage="sft"), 40, {}))
    monkeypatch.chdir(tmp_path)
    cfg = Config(stage="grpo")
    cfg.model.path = "demo"
    assert [stage["from"] for stage in json.loads(judge_file(cfg, 7, {}))["stages"]] == ["the demo base of mtjudge_jax"]
