"""Every measure that a score has, in one table for each kind of measure, with its meaning above."""

from typing import NamedTuple

import numpy as np

from mtjudge_jax.report.compare.compare import Comparison
from mtjudge_jax.report.tables import Table


class _Kind(NamedTuple):
    """Measures that are read together. columns: by the key of a score, the name and, where that does not say it, the meaning."""

    title: str
    columns: dict[str, tuple[str, str]]


_KINDS = (
    _Kind("Verdicts", {
        "count": ("answers", ""),
        "macro_f1": ("macro-F1", ""),
        "constant_macro_f1": ("constant answer", "the macro-F1 of the best judge that always gives the same verdict"),
        "accuracy": ("accuracy", ""),
        "sampled_accuracy": ("sampled accuracy", "the mean over the sampled answers, not of the greedy one"),
        "majority_accuracy": ("majority", "accuracy of the verdict that most sampled answers give"),
        "self_agreement": ("self-agreement", "the share of pairs of sampled answers that give one verdict"),
        "kappa": ("kappa", "agreement beyond chance; 0 is chance, 1 always"),
        "invalid_rate": ("invalid", "the share of answers without a readable verdict"),
        "mean_tokens": ("tokens", "of an answer"),
    }),
    _Kind("Probabilities of the labels", {
        "auroc": ("AUROC", "how often a question of the second label has a larger probability of it than one of the first; "
                  "it can be near 1 where the verdict is always the same"),
        "ece": ("ECE", "the mean gap between probability and share right, in bins; 0 is best"),
        "brier": ("Brier", "the mean squared distance of the probabilities from the truth; 0 is best"),
        "confidence_auroc": ("confidence AUROC", "how often a right verdict is more confident than a wrong one"),
        "risk_coverage": ("risk-coverage", "the share of wrong verdicts among the n most confident, the mean over n; 0 is best"),
    }),
    _Kind("Pairs, over both orders", {
        "accuracy_with_ties": ("with ties", "accuracy where a tie is an answer like others"),
        "accuracy_without_ties": ("without ties", "accuracy on pairs that have a winner"),
        "consistency": ("same winner", "the share of pairs whose two orders give the same winner"),
        "consistent_accuracy": ("both orders right", "the share of pairs that are right in both orders"),
        "flip_rate": ("flips", "the share of pairs whose winner changes with the order"),
        "first_share": ("first wins", "the share of choices for the picture shown first"),
        "position_bias": (
            "position bias",
            "the share of choices (ties left out) for the first picture, minus the share of pairs where it is better; 0 = none",
        ),
    }),
    _Kind("Grades and orders", {
        "quadratic_kappa": ("quadratic kappa", "agreement beyond chance, where a miss by two grades counts four times"),
        "mae": ("MAE", "the mean distance from the true grade"),
        "pearson": ("Pearson", ""),
        "spearman": ("Spearman", ""),
        "kendall": ("Kendall tau-b", ""),
        "tau_b": ("tau-b of lists", "Kendall's tau-b of a list with its true order"),
        "levenshtein": ("Levenshtein", "the share of places of a list that must change; 0 is best"),
    }),
)  # fmt: skip


def measure_tables(c: Comparison) -> list[Table]:
    """One row per task and arm that has such a measure, means over seeds; then the data sets' official numbers.

    A column is shown if a score has it.
    """
    several = any(len(results) > 1 for results in c.runs.values())
    tables = [found for kind in _KINDS if (found := _table(c, kind, "Means over seeds." if several else ""))]
    official = [
        [task, arm, ", ".join(f"{key} {value:.3f}" for key, value in found.items())]
        for task in (*c.tasks, *c.unseen) for arm in c.arms
        if (found := next((score.get("official") for score in _scores(c, task, arm)), None))
    ]  # fmt: skip
    if official:
        note = "The data set's own metric by its own rules" + (", of the first seed." if several else ".")
        tables.append(Table("Official measures", note, ["task", "arm", "official"], official))
    return tables


def _scores(c: Comparison, task: str, arm: str) -> list[dict]:
    return [result["tasks"][task] for result in c.runs[arm] if task in result["tasks"]]


def _table(c: Comparison, kind: _Kind, first: str) -> Table | None:
    rows = [(task, arm, found) for task in (*c.tasks, *c.unseen) for arm in c.arms if (found := _scores(c, task, arm))]
    keys = [key for key in kind.columns if any(score.get(key) is not None for *_, scores in rows for score in scores)]
    if not keys:
        return None
    cells = [[task, arm, *(_mean_text(scores, key) for key in keys)] for task, arm, scores in rows]
    named = [kind.columns[key] for key in keys]
    meanings = [f"{name[0].upper()}{name[1:]}: {meaning}." for name, meaning in named if meaning]
    head = ["task", "arm", *(name for name, _ in named)]
    return Table(kind.title, " ".join([first, *meanings]).strip(), head, [row for row in cells if any(row[2:])])


def _mean_text(scores: list[dict], key: str) -> str:
    values = [score[key] for score in scores if score.get(key) is not None]
    if not values:
        return ""
    return f"{np.mean(values):.0f}" if key in ("count", "mean_tokens") else f"{np.mean(values):.3f}"
