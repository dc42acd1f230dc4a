"""Completions to rewards, on the host."""

from typing import NamedTuple

import numpy as np

from mtjudge_jax.tasks import get_task
from mtjudge_jax.tasks.parse import parse_strict
from mtjudge_jax.tasks.reward import check_alpha, reward_of


class Scores(NamedTuple):
    """Rewards of a batch, all `[Q, G]`. `total` lies in [0, 1], `accuracy` and `format` are 0 or 1: never NaN."""

    total: np.ndarray  # float32
    accuracy: np.ndarray  # float32
    format: np.ndarray  # float32
    verdict: np.ndarray  # int32, index of the answered label; -1 where there is no valid answer, or it was truncated


def score(
    texts: list[list[str]], truncated: np.ndarray, *, tasks: list[str], labels: np.ndarray, alpha: float
) -> Scores:
    """Rewards of Q times G completions.

    texts: Q lists of G completions, without the end-of-sequence token. truncated: bool [Q, G], True where a completion
    ran out of room before that token. tasks: Q names of `TASKS`. labels: int [Q], the true label indices.

    Raises ValueError for an unknown task, for shapes that do not agree, for a label index that the task does not have
    and for alpha outside [0, 1].
    """
    check_alpha(alpha)
    _check_shapes(texts, truncated, tasks=tasks, labels=labels)
    shape = truncated.shape
    scores = Scores(*(np.zeros(shape, np.float32) for _ in range(3)), np.full(shape, -1, np.int32))
    for q, (group, name, label) in enumerate(zip(texts, tasks, labels.tolist(), strict=True)):
        answers = get_task(name).labels
        if not 0 <= label < len(answers):
            raise ValueError(f"labels[{q}] is {label}, must be 0 to {len(answers) - 1} for task {name!r}")
        for g, text in enumerate(group):
            parsed, cut = parse_strict(text, answers), bool(truncated[q, g])
            reward = reward_of(parsed, label_index=label, truncated=cut, alpha=alpha)
            scores.total[q, g], scores.accuracy[q, g], scores.format[q, g] = reward
            if parsed.verdict is not None and not cut:
                scores.verdict[q, g] = parsed.verdict
    return scores


def _check_shapes(texts: list[list[str]], truncated: np.ndarray, *, tasks: list[str], labels: np.ndarray) -> None:
    if truncated.ndim != 2:
        raise ValueError(f"truncated has shape {truncated.shape}, must be [Q, G]")
    prompts, completions = truncated.shape
    if not len(texts) == len(tasks) == len(labels) == prompts:
        raise ValueError(
            f"{len(texts)} lists of texts, {len(tasks)} tasks and {len(labels)} labels for {prompts} prompts: one each"
        )
    for q, group in enumerate(texts):
        if len(group) != completions:
            raise ValueError(f"texts[{q}] has {len(group)} completions, truncated has {completions}: give one each")
