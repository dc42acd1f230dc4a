"""The table of the demo's arms: a line a model and task of `mtjudge demo --arms=..`, as CSV.

    python benchmarks/study.py runs/arms --out=docs/study/arms.csv && python docs/write_results.py

Beside the scores that the command wrote it holds what its answers say of the pictures: the share that state exactly the facts,
and the share of the right verdicts that rest on other facts. The study takes hours and may be done in parts: the lines of other
models stay, if they were made with the same base and the same settings of the demo.
"""

import json
import sys
from pathlib import Path

import tables
from absl import app, flags

from mtjudge_jax.data.pipeline import read_split
from mtjudge_jax.demo.arms import ARMS
from mtjudge_jax.demo.cases import DEMO_TASKS, stated_facts

OUT = flags.DEFINE_string("out", None, "the CSV to write", required=True)

SCORES = (
    "count", "macro_f1", "accuracy", "consistency", "first_share", "probability_accuracy", "single_accuracy", "invalid_rate",
    "ece", "brier", "spearman", "tau_b",
)  # fmt: skip
FACTS = ("facts", "right_on_other_facts")
HEAD = ("arm", "seed", "task", *SCORES, *FACTS)


def facts_of(predictions: list[dict], rationales: dict[str, str]) -> dict[str, float | None]:
    """facts: share of the answers that state exactly the facts of their pictures; right_on_other_facts: share of the right
    verdicts whose answer does not. Of the answers with a reasoning; of a pair the order as stored.
    """
    read = [p for p in predictions if p["order"] in ("", "ab") and p["reasoning"]]
    if not read:
        return {"facts": None, "right_on_other_facts": None}
    exact = [stated_facts(p["reasoning"]) == stated_facts(rationales[p["example_id"]]) for p in read]
    right = [same for p, same in zip(read, exact, strict=True) if p["correct"]]
    other = 1 - sum(right) / len(right) if right else None
    return {"facts": sum(exact) / len(exact), "right_on_other_facts": other}


def rows_of(workdir: Path) -> list[dict]:
    """The lines of the models in a workdir."""
    rationales = {e.example_id: e.rationale for task in DEMO_TASKS for e in read_split(workdir / "data", "test", task)}
    rows = []
    for path in (workdir / "eval").glob("*.json"):
        result = json.loads(path.read_text())
        lines = [json.loads(line) for line in path.with_suffix(".predictions.jsonl").read_text().splitlines()]
        for task, scores in result["tasks"].items():
            told = facts_of([line for line in lines if line["task"] == task], rationales)
            about = {"arm": result["arm"], "seed": str(result["seed"]), "task": task}
            rows.append(about | tables.written(scores | told, (*SCORES, *FACTS)))
    return rows


def joined(rows: list[dict], before: list[dict]) -> list[dict]:
    """The lines with those of the table so far that belong to other models, by arm, seed and task."""
    anew = {(row["arm"], row["seed"], row["task"]) for row in rows}
    kept = [row for row in before if (row["arm"], row["seed"], row["task"]) not in anew]
    arms, tasks = list(ARMS), list(DEMO_TASKS)
    return sorted(rows + kept, key=lambda row: (arms.index(row["arm"]), int(row["seed"]), tasks.index(row["task"])))


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit("usage: python benchmarks/study.py WORKDIR --out=FILE.csv")
    out = Path(OUT.value)
    tables.write(out, HEAD, joined(rows_of(Path(argv[1])), tables.read(out)))


if __name__ == "__main__":
    app.run(main)
