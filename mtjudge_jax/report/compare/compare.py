"""Compares runs: arms in rows, tasks in columns, as in MT-RL-Judge's tables. `compare` takes scores, not files."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.report.compare.paired import Paired, paired_rows
from mtjudge_jax.report.compare.paper import PAPER, paper_arm
from mtjudge_jax.report.intervals import mean_interval, score_difference
from mtjudge_jax.tasks import TASKS, Task, task_of

_BASE = "off_the_shelf"
# Further means over the unseen tasks: column, key of a score.
BESIDE = {
    "accuracy": "accuracy",
    "same winner": "consistency",
    "by probability": "probability_accuracy",
    "each alone": "single_accuracy",
    "invalid": "invalid_rate",
}


class Cell(NamedTuple):
    """A number between 0 and 1 (a difference: between -1 and 1). low and high are the 95 % interval of one seed, or the lowest
    and the highest of several seeds.
    """

    value: float
    low: float | None = None
    high: float | None = None
    seeds: int = 1


ArmRow = dict[str, Cell]  # by column


class Comparison(NamedTuple):
    """The numbers of the tables. A row has only those cells that its runs give."""

    arms: list[str]
    tasks: list[str]  # trained form
    unseen: list[str]  # evaluated only: pairwise
    scores: dict[str, ArmRow]  # by arm: tasks, unseen, "mean" and "worst" of the tasks, "unseen mean", "unseen accuracy" ..
    transfer: dict[str, ArmRow]  # by arm but the base: unseen and "mean", minus the base's
    base: str
    metrics: dict[str, str]  # the key of the score that is shown, by task
    paper: dict[str, dict[str, float]]  # by the paper's arm and task, in percent
    runs: dict[str, list[dict]]
    paired: dict[str, list[Paired]]  # by arm but the base, of arms with one seed, where both have predictions


def compare(
    runs: Mapping[str, dict | Sequence[dict]], *, base: str = "", tasks: Sequence[str] = (), metric: str = ""
) -> Comparison:
    """Compares arms: name -> result of an evaluation, or a list of results, one per seed.

    A result is {"tasks": {task: score}} as `evaluate` returns it. If it has "predictions" too, its means and differences get
    intervals by group. base: the arm subtracted from the others, by default "off_the_shelf", else the first. tasks: the columns
    in order, by default all tasks. metric: one score for all tasks, by default each task's own.
    """
    seeds = {name: [result] if isinstance(result, Mapping) else list(result) for name, result in runs.items()}
    if not seeds or not all(seeds.values()):
        raise ValueError(f"nothing to compare: {', '.join(seeds) or 'no run'} without a result")
    found = dict.fromkeys(task for results in seeds.values() for result in results for task in result["tasks"])
    names = [task for task in tasks or found if task in found]
    if not names:
        raise UserError(f"--tasks={','.join(tasks)}: none is in the runs, they have {', '.join(found)}")
    known = TASKS | _own_tasks(seeds)
    unseen = [task for task in names if task in known and known[task].ood]
    trained = [task for task in names if task not in unseen]
    metrics = {task: metric or (known[task].metric if task in known else "macro_f1") for task in names}
    base = base or next((name for name in seeds if name == _BASE or paper_arm(name) == _BASE), next(iter(seeds)))
    if base not in seeds:
        raise UserError(f"--base={base}: no such run, there are {', '.join(seeds)}")
    scores = {name: _score_row(results, trained, unseen, metrics) for name, results in seeds.items()}
    others = {name: results for name, results in seeds.items() if name != base and unseen}
    transfer = {name: _transfer_row(seeds[base], results, unseen, metrics) for name, results in others.items()}
    paper = {arm: {task: x for task, x in row.items() if task in names} for arm, row in PAPER.items()}
    paper = {arm: row for arm, row in paper.items() if row}
    transfer = {name: row for name, row in transfer.items() if row}
    paired = _paired(seeds, base, [*trained, *unseen])
    return Comparison(list(seeds), trained, unseen, scores, transfer, base, metrics, paper, seeds, paired)


def _own_tasks(seeds: Mapping[str, Sequence[dict]]) -> dict[str, Task]:
    """The tasks of the runs' own that the predictions describe."""
    found = {}
    for results in seeds.values():
        for result in results:
            for p in result.get("predictions", []):
                if p["task"] not in found and p["task"] not in TASKS and p.get("custom"):
                    found[p["task"]] = task_of(p)
    return found


def _paired(seeds: Mapping[str, list[dict]], base: str, tasks: Sequence[str]) -> dict[str, list[Paired]]:
    single = {name: results[0].get("predictions", []) for name, results in seeds.items() if len(results) == 1}
    if not single.get(base):
        return {}
    rows = {name: paired_rows(single[base], predictions, tasks) for name, predictions in single.items() if name != base}
    return {name: found for name, found in rows.items() if found}


def _value(result: dict, task: str, metrics: Mapping[str, str]) -> float | None:
    return result["tasks"].get(task, {}).get(metrics[task])


def _score_row(results: list[dict], trained: list[str], unseen: list[str], metrics: Mapping[str, str]) -> ArmRow:
    row = {}
    for task in (*trained, *unseen):
        values = [v for v in (_value(result, task, metrics) for result in results) if v is not None]
        interval = results[0]["tasks"].get(task, {}).get(f"{metrics[task]}_ci")
        row |= _cell(task, values, interval)
    row |= _over_tasks("mean", np.mean, results, trained, metrics) | _over_tasks("worst", np.min, results, trained, metrics)
    row |= _over_tasks("unseen mean", np.mean, results, unseen, metrics)
    for name, key in BESIDE.items():
        row |= _over_tasks(f"unseen {name}", np.mean, results, unseen, dict.fromkeys(unseen, key))
    return row


def _over_tasks(name: str, statistic: Callable, results: list[dict], tasks: list[str], metrics: Mapping[str, str]) -> ArmRow:
    """The cell of the mean or the worst over the tasks."""
    values, kinds, interval = _per_seed(results, tasks, metrics, statistic), {metrics[task] for task in tasks}, None
    if len(values) == 1 and name != "worst" and len(kinds) == 1:
        interval = mean_interval(results[0].get("predictions", []), tasks, score=kinds.pop())
    return _cell(name, values, interval)


def _transfer_row(base: list[dict], results: list[dict], unseen: list[str], metrics: Mapping[str, str]) -> ArmRow:
    """The arm minus the base. With one seed each, the interval of the difference too, from answers to the same groups.

    With several seeds, each is compared with the mean of the base's seeds.
    """
    columns = {task: [task] for task in unseen} | {"mean": unseen}
    row = {}
    for column, tasks in columns.items():
        before, after = (_per_seed(results, tasks, metrics) for results in (base, results))
        if not before or not after:
            continue
        interval, kinds = None, {metrics[task] for task in tasks}
        if len(before) == len(after) == len(kinds) == 1:
            pair = (base[0].get("predictions", []), results[0].get("predictions", []))
            found = score_difference(*pair, tasks, score=kinds.pop())
            interval = found and found[1:]
        row |= _cell(column, [value - float(np.mean(before)) for value in after], interval)
    return row


def _per_seed(results: list[dict], tasks: list[str], metrics: Mapping[str, str], statistic: Callable = np.mean) -> list[float]:
    """The mean (or another statistic) over the tasks, for each seed that has all of them."""
    rows = [[_value(result, task, metrics) for task in tasks] for result in results]
    return [float(statistic(row)) for row in rows if row and None not in row]


def _cell(column: str, values: list[float], interval: Sequence[float] | None) -> ArmRow:
    """{column: cell}, {} without a value."""
    if not values:
        return {}
    if len(values) > 1:
        return {column: Cell(float(np.mean(values)), min(values), max(values), len(values))}
    low, high = interval or (None, None)
    return {column: Cell(values[0], low, high)}
