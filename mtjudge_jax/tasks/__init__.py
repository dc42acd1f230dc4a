"""The judge tasks: question, answer words, parser and reward. To add a task, write an entry in the config or in `TASKS`."""

import dataclasses
from collections.abc import Mapping, Sequence

from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.tasks.base import Task
from mtjudge_jax.tasks.benchmarks import BENCHMARKS
from mtjudge_jax.tasks.custom import custom_task
from mtjudge_jax.tasks.demo import DEMO, NEUTRAL
from mtjudge_jax.tasks.paper import PAPER

__all__ = ["DEMO", "TASKS", "Task", "get_task", "task_of", "tasks_with"]

TASKS: dict[str, Task] = DEMO | NEUTRAL | PAPER | BENCHMARKS
_ALL_TASKS = "; docs/tasks_and_rewards.md lists the built-in tasks, and data.custom_tasks makes your own"


def get_task(name: str, known: Mapping[str, Task] = TASKS) -> Task:
    """The task of that name. Raises UserError with the nearest name, or with known tasks, the run's own first."""
    if name in known:
        return known[name]
    own = [task for task in known if task not in TASKS]
    raise UserError(f"{unknown('task', name, [*own, *(task for task in known if task in TASKS)])}{_ALL_TASKS}")


def tasks_with(
    custom: Sequence[dict], *, templates: str = "train", vary_polarity: bool = False, vary_words: bool = False, seed: int = 0
) -> dict[str, Task]:
    """All tasks of a run, including its own (`custom`), in the wordings it asks. Raises UserError for an invalid entry.

    A task with a single template ignores `templates`.
    """
    tasks = dict(TASKS)
    for raw in custom:
        task = custom_task(raw, tuple(tasks))
        tasks[task.name] = task
    how = {"templates": templates, "vary_polarity": vary_polarity, "vary_words": vary_words, "seed": seed}
    return {name: task if task.wordings is None else _asking(task, how) for name, task in tasks.items()}


def _asking(task: Task, how: dict) -> Task:
    if how["templates"] == "held_out" and not any(form.held_out for form in task.wordings.forms):
        how = how | {"templates": "train"}  # a user's entry may have no held-out wording
    return dataclasses.replace(task, wordings=dataclasses.replace(task.wordings, **how))


def task_of(prediction: dict) -> Task:
    """The task of a prediction line; a line of a run's own task holds its entry."""
    entry = prediction.get("custom")
    if prediction["task"] in TASKS or not entry:
        return get_task(prediction["task"])
    return custom_task(entry, tuple(TASKS))
