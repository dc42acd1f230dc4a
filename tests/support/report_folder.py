"""A synthetic workdir of a finished run, and a parser of its report page."""

import html.parser
import io
import json

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from mtjudge_jax.records import JudgeExample, Label, pack
from mtjudge_jax.tasks import DEMO, TASKS

POINTWISE = [name for name, task in DEMO.items() if task.kind == "pointwise_binary"]
PAIRWISE = [name for name, task in DEMO.items() if task.kind == "pairwise"]


def make_workdir(folder, *, steps=12, per_task=6, seed=0):
    """A whole run: config, metrics, data of two splits, base and trained on test, two validations."""
    rng = np.random.default_rng(seed)
    data, examples = folder / "data", {"val": [], "test": []}
    manifest = {"version": 1, "dataset": "demo", "files": {}}
    for split, kept in examples.items():
        (data / split).mkdir(parents=True)
        for task in POINTWISE + (PAIRWISE if split == "test" else []):
            rows = [make_example(rng, task, split, i) for i in range(per_task)]
            writer = ArrayRecordWriter(str(data / split / f"{task}.array_record"), "group_size:1")
            for row in rows:
                writer.write(pack(row))
            writer.close()
            kept += rows
            manifest["files"][f"{split}/{task}"] = {"count": per_task, "sha256": ""}
    (data / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.json").write_text(
        json.dumps({"seed": 0, "steps": steps, "data": {"path": ""}, "optim": {"lr": 2e-4}})
    )
    write_metrics(folder / "metrics.jsonl", rng, steps=steps, every=max(1, steps // 6))
    for name, split, skill in (
        ("base_test", "test", 0.5), ("trained_test", "test", 0.85), ("val_000000", "val", 0.5),
        (f"val_{steps:06d}", "val", 0.85),
    ):  # fmt: skip
        write_evaluation(folder / "eval", name, examples[split], rng, skill=skill)
    return folder


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.inside = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and tag == self.inside[-1]:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def make_example(rng, task, split, i):
    kind = TASKS[task].kind
    pair, label = kind == "pairwise", int(i % 2)
    return JudgeExample(
        example_id=f"{split}_{task}_{i:04d}", dataset="demo", split=split, task=task,
        group_id=f"{split}_photo_{i // 2}",
        criterion=task, kind=kind, instruction="a dog" if i % 3 else "a cup of tea",
        images=tuple(draw_picture(rng) for _ in range(2 if pair else 1)),
        label=Label(winner=label) if pair else Label(binary=label),
    )  # fmt: skip


def make_prediction(rng, example, *, skill, order=""):
    words = TASKS[example.task].labels
    index = example.label.winner if example.kind == "pairwise" else example.label.binary
    index = 1 - index if order == "ba" else index
    correct = bool(rng.random() < skill)
    verdict = words[index if correct else 1 - index]
    invalid = rng.random() < 0.03
    reasoning = str(
        rng.choice(["looks blurry", "looks sharp, parts ordered", "shows a cat, differs", "shows a knife and a dog"])
    )
    yes = float(np.clip(rng.normal(0.85 if verdict == words[1] else 0.15, 0.1), 0, 1))
    return {
        "example_id": example.example_id, "task": example.task, "group_id": example.group_id, "split": example.split,
        "label": words[index], "label_index": index, "verdict": None if invalid else verdict,
        "correct": correct and not invalid,
        "text": f"<think>{reasoning}</think>" + ("" if invalid else f"<answer>{verdict}</answer>"),
        "reasoning": "" if invalid else reasoning, "error": "no <answer>" if invalid else "",
        "reward": 0.0 if invalid else 0.1 + 0.9 * correct, "sampled_accuracy": float(rng.binomial(8, skill) / 8),
        "probabilities": {words[0]: 1 - yes, words[1]: yes}, "order": order,
        "probability": None if invalid else {words[0]: 1 - yes, words[1]: yes}[verdict],
    }  # fmt: skip


def score_task(rows, *, pairwise):
    accuracy = float(np.mean([r["correct"] for r in rows]))
    sampled = float(np.mean([r["sampled_accuracy"] for r in rows]))
    around = lambda x: [max(0.0, x - 0.05), min(1.0, x + 0.05)]  # noqa: E731
    score = {
        "count": len(rows), "macro_f1": accuracy, "macro_f1_ci": around(accuracy), "accuracy": accuracy,
        "accuracy_ci": around(accuracy), "sampled_accuracy": sampled, "sampled_accuracy_ci": around(sampled),
        "invalid_rate": float(np.mean([r["verdict"] is None for r in rows])), "constant_macro_f1": 1 / 3,
        "label_share": {"no": 0.5, "yes": 0.5}, "verdict_share": {"no": 0.5, "yes": 0.5},
        "kappa": 2 * accuracy - 1, "ece": 0.125, "official": {"acc_with_tie": accuracy},
    }  # fmt: skip
    if pairwise:
        score |= {
            "accuracy_ab": accuracy,
            "accuracy_ba": accuracy,
            "consistency": 0.7,
            "consistent_accuracy": accuracy**2,
        }
        score |= {"first_share": 0.44, "probability_accuracy": 0.83, "single_accuracy": 0.86}
    return score


def write_evaluation(folder, name, examples, rng, *, skill):
    rows = []
    for example in examples:
        orders = ("ab", "ba") if example.kind == "pairwise" else ("",)
        rows += [make_prediction(rng, example, skill=skill, order=order) for order in orders]
    tasks = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        tasks[task] = score_task([r for r in rows if r["task"] == task], pairwise=task in PAIRWISE)
    mean = {key: float(np.mean([tasks[t][key] for t in POINTWISE])) for key in ("macro_f1", "sampled_accuracy")}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"tasks": tasks, "mean": mean}))
    (folder / f"{name}.predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks, mean


def write_metrics(path, rng, *, steps, every):
    lines = []
    for step in range(0, steps + 1):
        skill = 0.5 + 0.38 / (1 + np.exp(-(step - steps * 0.4) / (steps * 0.1)))
        tasks = {}
        for i, task in enumerate(POINTWISE):
            accuracy = float(np.clip(skill - 0.03 * i + rng.normal(0, 0.08), 0, 1))
            tasks[task] = {"reward": 0.9 * accuracy + 0.1, "accuracy": accuracy, "format": 1 - 0.02 * rng.random()}
            tasks[task]["zero_variance"] = float(np.clip(skill - 0.4 + rng.normal(0, 0.1), 0, 1))
        line = {key: float(np.mean([t[key] for t in tasks.values()])) for key in tasks[POINTWISE[0]]}
        line |= {"kind": "train", "step": step, "kl": 0.05 * skill * rng.random() + 1e-3 * step / steps, "loss": 0.01}
        line |= {
            "entropy": 0.3 - 0.2 * skill + 0.02 * rng.random(),
            "grad_norm": 1.0,
            "lr": 2e-4,
            "tokens_per_s": 3000 + 300 * rng.random(),
        }
        line |= {
            "seconds": {"rollout": 0.4, "score": 0.01, "logp": 0.1, "update": 0.5 + 20 * (step == 1)},
            "tasks": tasks,
        }
        if step:
            lines.append(line)
        if step % every == 0:
            scores = {t: {"macro_f1": tasks[t]["accuracy"], "sampled_accuracy": skill} for t in POINTWISE}
            mean = {"macro_f1": float(np.mean([s["macro_f1"] for s in scores.values()])), "sampled_accuracy": skill}
            lines.append({"kind": "eval", "step": step, "split": "val", "tasks": scores, "mean": mean})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def draw_picture(rng, side=96):
    """A PNG of two colours and a block: enough to be told apart on the page."""
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[:] = rng.integers(60, 255, 3)
    pixels[np.arange(side) % 16 < 8] //= np.uint8(2)
    a, b = rng.integers(0, side // 2, 2)
    pixels[a : a + side // 3, b : b + side // 3] = rng.integers(0, 255, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def result(**scores):
    """technical=0.5 or technical=(0.5, 0.4, 0.6), of every metric."""
    tasks = {}
    for name, given in scores.items():
        value, low, high = given if isinstance(given, tuple) else (given, None, None)
        ci = None if low is None else [low, high]
        tasks[name] = dict.fromkeys(("macro_f1", "accuracy"), value) | {f"{key}_ci": ci for key in ("macro_f1", "accuracy")}
    return {"tasks": tasks}


def save(path, scores, predictions=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(scores))
    path.with_name(f"{path.stem}.predictions.jsonl").write_text("".join(json.dumps(p) + "\n" for p in predictions))
