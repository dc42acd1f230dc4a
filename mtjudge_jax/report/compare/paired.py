"""Two arms on the questions that both were asked: differences with intervals, and the questions on which they disagree."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.metrics.paired import mcnemar_exact, paired_interval
from mtjudge_jax.report.examples import Judged, wrong_first
from mtjudge_jax.report.intervals import score_difference

ALL = "all tasks"


class Paired(NamedTuple):
    """An arm against the base on the same questions; the two orders of a pair are two questions. Shares are 0 to 1."""

    task: str  # ALL: the mean over the tasks, with the counts of all
    questions: int
    base: float  # accuracy
    arm: float
    difference: tuple[float, float, float]  # of the accuracies, low, high
    macro_f1: tuple[float, float, float] | None  # its difference, None for lists
    only_base: int  # questions that only the base has right
    only_arm: int
    p: float  # of McNemar's exact test


def paired_rows(base: list[dict], arm: list[dict], tasks: Sequence[str]) -> list[Paired]:
    """A row per task that has shared questions, in order, and one over them if there are several."""
    old, new = (_by_question(predictions) for predictions in (base, arm))
    shared = [key for key in old if key in new and key[0] in tasks and old[key]["label"] == new[key]["label"]]
    named = [task for task in tasks if any(key[0] == task for key in shared)]
    rows = [_row(task, [key for key in shared if key[0] == task], old, new) for task in named]
    return [*rows, _row(ALL, shared, old, new)] if len(rows) > 1 else rows


def _by_question(predictions: list[dict]) -> dict[tuple[str, str, str], dict]:
    return {(p["task"], p["example_id"], p.get("order") or ""): p for p in predictions if not p.get("unusable")}


def _row(task: str, keys: list[tuple], old: dict, new: dict) -> Paired:
    rows = [(old[key], new[key]) for key in keys]
    right = np.array([[float(before["correct"]), float(after["correct"])] for before, after in rows])
    place = np.unique([key[0] for key in keys], return_inverse=True)[1]
    groups = {name: number for number, name in enumerate(dict.fromkeys(before["group_id"] for before, _ in rows))}
    group = np.array([groups[before["group_id"]] for before, _ in rows])
    base, arm = (float(np.mean([right[place == t, side].mean() for t in range(place.max() + 1)])) for side in (0, 1))
    only_base, only_arm = int((right[:, 0] > right[:, 1]).sum()), int((right[:, 1] > right[:, 0]).sum())
    names = list(dict.fromkeys(key[0] for key in keys))
    before, after = ([pair[side] for pair in rows] for side in (0, 1))
    return Paired(
        task, len(rows), base, arm, (arm - base, *paired_interval(right[:, 1] - right[:, 0], place, group)),
        score_difference(before, after, names, score="macro_f1"), only_base, only_arm, mcnemar_exact(only_base, only_arm),
    )  # fmt: skip


def disagreements(base: list[dict], arm: list[dict], tasks: Sequence[str], most: int) -> list[Judged]:
    """At most `most` questions that one of the two has right and the other wrong: first those that only the base has right, the
    tasks in turn, then those that only the arm has, half of each if there are enough.
    """
    old, new = (_by_question(predictions) for predictions in (base, arm))
    differ = [
        [Judged(p.get("split") or "test", old[key], p)] for key, p in new.items()
        if key[0] in tasks and key in old and bool(old[key]["correct"]) is not bool(p["correct"])
    ]  # fmt: skip
    ordered = [question[0] for question in wrong_first(differ)]
    lost, won = ([one for one in ordered if bool(one.after["correct"]) is right] for right in (False, True))
    share = max(most // 2, most - len(won))
    return [*lost[:share], *won[: most - len(lost[:share])]]
