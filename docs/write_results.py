"""Writes the tables of docs/results.md that stand between `<!-- table NAME -->` and `<!-- end -->`, from docs/study/arms.csv:
python docs/write_results.py"""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

from mtjudge_jax.demo.arms import ARMS
from mtjudge_jax.demo.cases import PAIRWISE, POINTWISE

PAGE = Path(__file__).parent / "results.md"
TABLE = Path(__file__).parent / "study" / "arms.csv"
Scores = dict[str, dict[str, str]]  # of one seed: task -> the line of the CSV


def read(path: Path = TABLE) -> dict[str, list[Scores]]:
    """By arm the scores of its seeds that judged all six tasks."""
    seeds: dict[str, dict[str, Scores]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            seeds.setdefault(row["arm"], {}).setdefault(row["seed"], {})[row["task"]] = row
    found = {arm: [one for one in by_seed.values() if set(POINTWISE) <= set(one)] for arm, by_seed in seeds.items()}
    return {arm: kept for arm in ARMS if (kept := found.get(arm))}


def value_of(scores: Scores, tasks: tuple[str, ...], measure: str, over: Callable = fmean) -> float | None:
    values = [float(scores[task][measure]) for task in tasks if task in scores and scores[task][measure] != ""]
    return over(values) if values else None


def cell(seeds: list[Scores], tasks: tuple[str, ...], measure: str, over: Callable = fmean) -> str:
    """The mean over seeds, with the lowest and the highest if they differ: "0.93 (0.92-0.95)"."""
    values = [value for scores in seeds if (value := value_of(scores, tasks, measure, over)) is not None]
    if not values:
        return "–"
    text, low, high = (f"{value:.2f}" for value in (fmean(values), min(values), max(values)))
    return text if low == high else f"{text} ({low}-{high})"


# Of each table: its columns, each (heading, tasks, measure) or with a function over the tasks.
COLUMNS: dict[str, tuple[tuple, ...]] = {
    "arms": (
        ("six tasks: macro-F1", POINTWISE, "macro_f1"),
        ("worst task", POINTWISE, "macro_f1", min),
        ("pairs: accuracy", PAIRWISE, "accuracy"),
        ("same winner", PAIRWISE, "consistency"),
    ),
    "pairs": (
        *((name.removeprefix("pairwise_"), (name,), "accuracy") for name in PAIRWISE),
        ("by probability", PAIRWISE, "probability_accuracy"),
        ("each alone", PAIRWISE, "single_accuracy"),
    ),
    "places": (
        *((f"{name.removeprefix('pairwise_')}: first wins", (name,), "first_share") for name in PAIRWISE),
        ("no label", PAIRWISE, "invalid_rate"),
    ),
    "tasks 1": tuple((name, (name,), "macro_f1") for name in POINTWISE[:3]),
    "tasks 2": tuple((name, (name,), "macro_f1") for name in POINTWISE[3:]),
    "forms": (
        ("naturalness, 1 to 5: Spearman", ("graded_naturalness",), "spearman"),
        ("preference, 1 to 5: Spearman", ("graded_preference",), "spearman"),
        ("four by quality: tau-b", ("ranked_technical",), "tau_b"),
        ("four by match: tau-b", ("ranked_alignment",), "tau_b"),
    ),
    "reasons": (
        ("facts right, six tasks", POINTWISE, "facts"),
        ("right on other facts", POINTWISE, "right_on_other_facts"),
        ("facts right, pairs", PAIRWISE, "facts"),
        ("calibration error, six tasks", POINTWISE, "ece"),
    ),
}


def table(name: str, seeds: dict[str, list[Scores]]) -> str:
    """A table of Markdown; arms without such a measure are left out."""
    columns = COLUMNS[name]
    lines = ["| " + " | ".join(["arm", *(column[0] for column in columns)]) + " |", "|---" * (len(columns) + 1) + "|"]
    for arm, of_arm in seeds.items():
        cells = [cell(of_arm, *column[1:]) for column in columns]
        if any(text != "–" for text in cells):
            lines.append("| " + " | ".join([ARMS[arm].title, *cells]) + " |")
    return "\n".join(lines)


def written(page: str, seeds: dict[str, list[Scores]]) -> str:
    """The page with all its tables anew. Raises KeyError for a table that is none."""

    def anew(found: re.Match) -> str:
        return f"<!-- table {found[1]} -->\n\n{table(found[1], seeds)}\n\n<!-- end -->"

    return re.sub(r"<!-- table ([a-z0-9 ]+) -->\n.*?<!-- end -->", anew, page, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), read()))
