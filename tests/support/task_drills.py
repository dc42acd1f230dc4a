"""A run on tasks of its own, from records to a judge, for test_own_run.py; one on pairs in both orders, for
test_both_orders.py."""

import dataclasses
import json
from pathlib import Path
from unittest import mock

from data_fixtures import encoded, example, noise, write_records
from drills import config

from mtjudge_jax.data.pipeline import read_split
from mtjudge_jax.demo.dataset import write_demo_data
from mtjudge_jax.records import Label

BRIGHT = {"name": "bright", "kind": "pointwise_binary", "question": "Is it bright?", "labels": ("dark", "bright")}
STARS = {"name": "stars", "kind": "pointwise_score", "question": "How good is it?", "score_min": 1, "score_max": 3}
WHICH = {"name": "which", "kind": "pairwise", "question": "Which is better?", "allow_tie": True, "ood": True}
ORDER = {"name": "order", "kind": "listwise", "question": "Put them in order.", "ood": True}
KIND = {entry["name"]: entry["kind"] for entry in (BRIGHT, STARS, WHICH, ORDER)}


def record(name: str, split: str, number: int):
    """A picture of noise, two or three."""
    count = {"pairwise": 2, "listwise": 3}.get(KIND[name], 1)
    label = {
        "bright": Label(binary=number % 2),
        "stars": Label(score=1.0 + number % 3),
        "which": Label(winner=number % 2),
        "order": Label(ranks=(2, 1, 2)),
    }[name]
    low, high = (1.0, 3.0) if name == "stars" else (None, None)
    images = tuple(encoded(noise(10 * number + i, 32, 32)) for i in range(count))
    return example(
        number, name, example_id=f"{name}/{split}/{number}", group_id=f"{split}{number}", split=split, kind=KIND[name],
        images=images, label=label, allow_tie=name == "which", score_min=low, score_max=high, rationale="looks sharp",
    )  # fmt: skip


def write_data(folder: Path) -> None:
    files = {}
    for split, names, count in (("train", ("bright", "stars"), 12), ("val", ("bright", "stars", "which"), 4)):
        for name in names:
            write_records(folder / split / f"{name}.array_record", [record(name, split, i) for i in range(count)])
            files[f"{split}/{name}"] = {"count": count, "sha256": f"{split}{name}"}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "dataset": "own", "arguments": {}, "files": files}))


def own_tasks(*, folder: str) -> dict:
    """Two steps of GRPO and one of SFT, what was logged and predicted, and the model judging by its folder alone."""
    from mtjudge_jax.eval.batches import judge
    from mtjudge_jax.judge.judge import Judge
    from mtjudge_jax.train.fit import fit
    from mtjudge_jax.train.validation import judging

    folder = Path(folder)
    write_data(folder / "data")
    changes = {"data__custom_tasks": (BRIGHT, STARS, WHICH, ORDER), "data__tasks": ("bright", "stars")}
    changes |= {"data__polarity": "varied", "data__path": str(folder / "data")}
    changes |= {"data__prompt_tokens": 300, "eval__every_steps": 2}
    changes |= {"eval__tasks": ("bright", "stars", "which"), "checkpoint__every_steps": 2}
    weights = ("accuracy=0.5", "format=0.1", "graded=0.4", "overlong=1", "own_rewards:short=0.5")
    reward = {"reward__weights": weights, "reward__custom": ("own_rewards:short",), "reward__overlong_buffer": 8}
    run, progress = fit(config(steps=2, **changes, **reward), folder / "grpo")
    fit(config(steps=1, stage="sft", **(changes | {"eval__tasks": ("bright",)})), folder / "sft")
    lines = [json.loads(line) for line in (folder / "grpo" / "metrics.jsonl").read_text().splitlines()]
    val = (folder / "grpo" / "eval" / "val_000002.predictions.jsonl").read_text().splitlines()
    lists = [record("order", "val", i) for i in range(3)]
    listed = judge(progress.params, lists, judging(run.cfg, run.model), step=0, probabilities=True)
    told = Judge.from_pretrained(folder / "grpo" / "best", batch=1)
    pictures = record("order", "val", 0).images
    counts = {"bright": 1, "stars": 1, "order": 3}
    asked = {name: told.judge(images=pictures[:n], task=name)._asdict() for name, n in counts.items()}
    return {
        "train": [line for line in lines if line["kind"] == "train"],
        "predictions": [json.loads(line) for line in val],
        "listed": listed,
        "asked": asked,
        "judge.json": json.loads((folder / "grpo" / "best" / "judge.json").read_text()),
        "sft": [json.loads(line)["kind"] for line in (folder / "sft" / "metrics.jsonl").read_text().splitlines()],
    }


def soft(*, folder: str) -> dict:
    """Two steps rewarded for probabilities, all prompts at a time and in two parts: what was scored."""
    from mtjudge_jax.train import grpo
    from mtjudge_jax.train.fit import fit

    write_demo_data(Path(folder) / "data", train=12, val=4, test=4, unseen=4)
    score, facts = grpo.score, {}
    for name, micro in (("whole", 0), ("parts", 3)):
        scored = facts[name] = []

        def watched(texts, truncated, *, scored=scored, **arguments):
            scores = score(texts, truncated, **arguments)
            told = {"texts": texts, "shares": arguments["shares"], "truths": arguments["truths"]}
            parts = {"soft": scores.parts["soft"].tolist(), "total": scores.total.tolist(), "format": scores.format.tolist()}
            scored.append(told | parts)
            return scores

        changes = {"data__path": str(Path(folder) / "data"), "rollout__micro_prompts": micro, "eval__every_steps": 9}
        changes |= {"reward__weights": ("format=0.1", "soft=0.9"), "rollout__group_size": 4}
        with mock.patch.object(grpo, "score", watched):
            fit(config(steps=2, **changes), Path(folder) / name)
    return facts


def both_orders(*, folder: str) -> dict:
    """Two steps of GRPO rewarded for consistency: what was scored, and what was logged. The pairs are the demo's, whose answer
    form its base model knows.
    """
    from mtjudge_jax.tasks import TASKS
    from mtjudge_jax.train import grpo
    from mtjudge_jax.train.fit import fit

    name, folder, scored = "pairwise_technical", Path(folder), []
    TASKS[name] = dataclasses.replace(TASKS[name], ood=False)
    write_demo_data(folder / "data", train=12, val=4, test=4, unseen=4)
    pairs = read_split(folder / "data", "test", name)
    write_records(folder / "data" / "train" / f"{name}.array_record", [dataclasses.replace(e, split="train") for e in pairs])
    manifest = json.loads((folder / "data" / "manifest.json").read_text())
    manifest["files"][f"train/{name}"] = {"count": len(pairs), "sha256": "pairs"}
    (folder / "data" / "manifest.json").write_text(json.dumps(manifest))
    changes = {"data__tasks": ("technical", name), "eval__tasks": ("technical",), "eval__every_steps": 9}
    changes |= {"data__path": str(folder / "data"), "rollout__prompts": 12, "update__prompts": 12, "update__micro_prompts": 12}
    changes |= {"data__prompt_tokens": 96, "data__patches": 72, "rollout__group_size": 4, "rollout__completion_tokens": 28}
    changes |= {"reward__weights": ("accuracy=0.5", "format=0.1", "consistency=0.4")}
    score = grpo.score

    def watched(texts, truncated, **arguments):
        scores = score(texts, truncated, **arguments)
        told = {"tasks": arguments["tasks"], "truths": arguments["truths"], "verdict": scores.verdict.tolist()}
        scored.append(told | {"part": scores.parts["consistency"].tolist(), "total": scores.total.tolist()})
        return scores

    with mock.patch.object(grpo, "score", watched):
        fit(config(steps=2, **changes), folder / "grpo")
    lines = [json.loads(line) for line in (folder / "grpo" / "metrics.jsonl").read_text().splitlines()]
    return {"scored": scored, "train": [line for line in lines if line["kind"] == "train"]}
