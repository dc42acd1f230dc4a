"""Judges held-out examples: a greedy answer, some sampled ones, the probability of each verdict, and the scores.

`evaluate` judges one task after the other. batches.py judges the examples of a task, predictions.py and probabilities.py make a
prediction, scores.py makes the scores, resume.py keeps finished batches, console.py shows progress and scores.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence

import jax

from mtjudge_jax.data.bad_rows import BadRowCounter, remedy_of
from mtjudge_jax.errors import UserError
from mtjudge_jax.eval.batches import Judging, judge
from mtjudge_jax.eval.resume import Kept
from mtjudge_jax.eval.scores import mean_score, pairwise_score, task_score
from mtjudge_jax.paths import as_path, write_whole
from mtjudge_jax.records import JudgeExample, Label, swapped
from mtjudge_jax.tasks import TASKS, Task
from mtjudge_jax.types import Params

Official = Callable[[str, list[dict]], Mapping[str, float]]  # task, its predictions -> the data set's own numbers


def evaluate(
    params: Params,
    examples: dict[str, list[JudgeExample]],
    how: Judging,
    *,
    step: int,
    probabilities: bool = False,
    progress=lambda rows: None,
    kept: Kept | None = None,
    official: Official = lambda task, predictions: {},
) -> tuple[list[dict], dict]:
    """Judges the examples of every task. Returns all predictions, and {"step": .., "tasks": {name: score}, "mean": score or None,
    "unusable": {reason: count}}; a score has the data set's own numbers under "official".

    Raises TooManyBadRecords if more than max_bad_share of at least 100 records cannot be used.
    """
    predictions, tasks = [], {}
    for name, group in examples.items():
        settings = {"step": step, "probabilities": probabilities, "progress": progress, "kept": kept}
        rows, tasks[name] = judge_task(params, group, how, **settings)
        if numbers := official(name, usable(rows)):
            tasks[name]["official"] = numbers
        predictions += rows
    bad = BadRowCounter(how.max_bad_share)
    for p in predictions:
        bad.add_one(p["example_id"], p["error"] if p["unusable"] else "")
    bad.check()
    known = how.fmt.tasks
    mean = mean_score(tasks, known) if any(not known[name].ood for name in tasks) else None
    return predictions, {"step": step, "tasks": tasks, "mean": mean, "unusable": dict(bad.reasons)}


def judge_task(
    params: Params,
    examples: Sequence[JudgeExample],
    how: Judging,
    *,
    step: int,
    probabilities: bool,
    progress=lambda rows: None,
    kept: Kept | None = None,
) -> tuple[list[dict], dict]:
    """Predictions and score of one task. A pair is judged in both orders, and if its task has a pointwise twin (`single`), each
    picture alone too. A list is shown in an order that depends on a hash.

    An unusable record gets a prediction that says why, and does not count in the score.
    """
    settings = {"step": step, "progress": progress, "kept": kept}
    task = how.fmt.tasks[examples[0].task]
    if task.kind != "pairwise":
        examples = [in_order(e, task) for e in examples]
        predictions = judge(params, examples, how, probabilities=probabilities, **settings)
        return predictions, task_score(usable(predictions))
    predictions = judge(params, examples, how, probabilities=True, order="ab", **settings)
    predictions += judge(params, [swapped(e) for e in examples], how, probabilities=True, order="ba", **settings)
    if not task.single:
        return predictions, pairwise_score(usable(predictions))
    singles = [_alone(e, i, task) for e in examples for i in (0, 1)]
    yes = [
        p["probabilities"][how.fmt.tasks[p["task"]].labels[1]] if p["probabilities"] else 0.5
        for p in judge(params, singles, how, probabilities=True, **settings)
    ]
    single_yes = {e.example_id: (yes[2 * i], yes[2 * i + 1]) for i, e in enumerate(examples)}
    return predictions, pairwise_score(usable(predictions), single_yes=single_yes)


def _alone(example: JudgeExample, index: int, task: Task) -> JudgeExample:
    """One picture of a pair as a question of the pointwise task with the same criterion."""
    return dataclasses.replace(
        example,
        example_id=f"{example.example_id}/{index}",
        task=task.single,
        kind="pointwise_binary",
        images=(example.images[index],),
        label=Label(binary=int(example.label.winner == index)),
    )


def in_order(example: JudgeExample, task: Task) -> JudgeExample:
    """The example in the order shown; unchanged if it cannot be ordered, which its prediction will say."""
    try:
        return task.displayed(example)
    except ValueError:
        return example


def usable(predictions: list[dict]) -> list[dict]:
    """The predictions that can be scored. Raises UserError if there is none."""
    kept = [p for p in predictions if not p["unusable"]]
    if not kept:
        name, example_id, error = (predictions[0][key] for key in ("task", "example_id", "error"))
        raise UserError(f"no record of {name} can be used, {example_id}: {error}. {remedy_of([error])}")
    return kept


def count_rows(examples: dict[str, list[JudgeExample]], known: Mapping[str, Task] = TASKS) -> int:
    """The number of prompts that `evaluate` will judge: both orders of a pair, and both pictures alone if the task says so."""
    each = {name: 1 if known[name].kind != "pairwise" else 4 if known[name].single else 2 for name in examples}
    return sum(len(group) * each[name] for name, group in examples.items())


def write_evaluation(folder: str | os.PathLike, name: str, predictions: list[dict], result: dict) -> None:
    """Writes `<name>.json` with the scores and `<name>.predictions.jsonl` with one prediction per line, on process 0."""
    if jax.process_index() > 0:
        return
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(p) + "\n" for p in predictions)
    for path, text in ((folder / f"{name}.predictions.jsonl", lines), (folder / f"{name}.json", json.dumps(result, indent=1))):
        write_whole(path, text.encode())
