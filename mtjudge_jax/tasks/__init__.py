"""The judge tasks: question, answer words, parser and reward. A task is added by adding it to `TASKS`."""

import difflib

from mtjudge_jax.tasks.base import CONTRACT, Task
from mtjudge_jax.tasks.pairwise import PAIRWISE_ALIGNMENT, PAIRWISE_SAFETY, PAIRWISE_TECHNICAL
from mtjudge_jax.tasks.pointwise import ALIGNMENT, NATURALNESS, PREFERENCE, RATIONALITY, SAFETY, TECHNICAL

__all__ = ["CONTRACT", "TASKS", "Task", "get_task"]

TASKS: dict[str, Task] = {
    "technical": TECHNICAL,
    "rationality": RATIONALITY,
    "naturalness": NATURALNESS,
    "alignment": ALIGNMENT,
    "preference": PREFERENCE,
    "safety": SAFETY,
    "pairwise_technical": PAIRWISE_TECHNICAL,
    "pairwise_alignment": PAIRWISE_ALIGNMENT,
    "pairwise_safety": PAIRWISE_SAFETY,
}


def get_task(name: str) -> Task:
    """The task of that name. Raises ValueError that lists the known tasks and the nearest name."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown task {name!r}: known tasks are {', '.join(TASKS)}{hint}")
