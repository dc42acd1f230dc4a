"""The reward of one completion: R = (1 - alpha) R_acc + alpha R_for (MT-RL-Judge, arXiv 2603.11665)."""

from typing import NamedTuple

from mtjudge_jax.tasks.base import Task
from mtjudge_jax.tasks.parse import Parsed, parse_strict


class Reward(NamedTuple):
    """All three in [0, 1]; `accuracy` and `format` are 0 or 1."""

    total: float
    accuracy: float
    format: float


def check_alpha(alpha: float) -> None:
    """Raises ValueError unless 0 <= alpha <= 1 (NaN is refused too)."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}, must be between 0 (accuracy alone) and 1 (format alone)")


def reward(text: str, *, task: Task, label_index: int, truncated: bool, alpha: float) -> Reward:
    """The reward of one completion (text without the end-of-sequence token).

    `truncated` says that the completion ran out of room before its end-of-sequence token: it earns nothing, whatever
    stands in it. Raises ValueError for alpha outside [0, 1] or a label index that the task does not have.
    """
    check_alpha(alpha)
    if not 0 <= label_index < len(task.labels):
        raise ValueError(f"label index {label_index} of task {task.name!r}, must be 0 to {len(task.labels) - 1}")
    return reward_of(parse_strict(text, task.labels), label_index=label_index, truncated=truncated, alpha=alpha)


def reward_of(parsed: Parsed, *, label_index: int, truncated: bool, alpha: float) -> Reward:
    """The reward of a strictly parsed completion: only the whole form earns R_for, only a right verdict in it R_acc."""
    well_formed = not truncated and parsed.verdict is not None
    accuracy = float(well_formed and parsed.verdict == label_index)
    return Reward((1.0 - alpha) * accuracy + alpha * float(well_formed), accuracy, float(well_formed))
