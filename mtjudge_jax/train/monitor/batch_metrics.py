"""The numbers of a training batch: rewards, lengths and entropy per task, and means over the updates of a step."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.config import Config, offline
from mtjudge_jax.errors import UserError
from mtjudge_jax.rl.optim import schedule
from mtjudge_jax.tasks import TASKS, Task
from mtjudge_jax.tasks.reward import Scores


class Answers(NamedTuple):
    """The answers of a training step, in numpy. Tasks are numbers, so that processes can exchange them."""

    scores: Scores
    task: np.ndarray  # int32 [Q], number in TASKS
    weight: np.ndarray  # float32 [Q], 0 where the record could not be used
    tokens: np.ndarray  # int32 [Q, G], length of an answer
    surprise: np.ndarray  # float32 [Q, G], minus the sum of its tokens' log-probabilities as sampled
    truncated: np.ndarray  # bool [Q, G], whether it was cut off


def task_numbers(names: Sequence[str], known: Mapping[str, Task] = TASKS) -> np.ndarray:
    numbers = {name: number for number, name in enumerate(known)}
    return np.array([numbers[name] for name in names], np.int32)


def train_metrics(answers: Answers, known: Mapping[str, Task] = TASKS) -> dict:
    """Means of a batch for metrics.jsonl: reward, accuracy, format, zero_variance, truncated, invalid. "tasks" has the same per
    task, with completion_tokens, entropy (nats per token: minus the mean log-probability of the sampled tokens) and labels.

    zero_variance is the share of prompts whose G rewards are all equal, which teach nothing. truncated is the share of answers
    that were cut off, invalid that of answers without a verdict in the strict form, cut ones included; labels has the share of
    each verdict among the others. Prompts of weight 0 are left out, and so is a task that has no others.
    """
    kept = answers.weight > 0
    if not kept.any():
        raise UserError(f"all {len(kept)} prompts of the batch have weight 0: no record of it could be read")
    names = list(known)
    tasks = {names[number]: kept & (answers.task == number) for number in dict.fromkeys(answers.task[kept].tolist())}
    return _means(answers, kept) | {"tasks": {name: _task_means(answers, rows, known[name]) for name, rows in tasks.items()}}


def all_equal(total: np.ndarray) -> np.ndarray:
    """bool [Q] of rewards [Q, G]: whether a prompt teaches nothing. By equality, not by a small deviation: float32 rounding gives
    eight equal rewards a nonzero one. A group with NaN is not equal."""
    return total.max(axis=1) == total.min(axis=1)


def mean_of_updates(metrics: list[dict], *, kl: bool) -> dict:
    """Means over the updates of a step that were applied, None where none was; `skipped` counts the others."""
    applied = [m for m in metrics if m["finite"]]
    names = [name for name in metrics[0] if name != "finite"]
    out = {name: float(np.mean([m[name] for m in applied])) if applied else None for name in names}
    return out | {"skipped": len(metrics) - len(applied)} | ({} if kl else {"kl": None})


def updates_of(cfg: Config) -> int:
    """Number of updates in the whole run, over which the learning rate is scheduled."""
    return cfg.steps if offline(cfg) else cfg.steps * (cfg.rollout.prompts // cfg.update.prompts)


def learning_rate(cfg: Config, applied: int) -> float:
    """That of the last of `applied` updates, counted from the beginning of the run; before the first, that of the first."""
    return float(schedule(cfg.optim, updates_of(cfg))(max(0, applied - 1)))


def _means(answers: Answers, rows: np.ndarray) -> dict[str, float]:
    scores, total = answers.scores, answers.scores.total[rows]
    return {
        "reward": float(total.mean()),
        "accuracy": float(scores.accuracy[rows].mean()),
        "format": float(scores.format[rows].mean()),
        **{name: float(part[rows].mean()) for name, part in scores.parts.items()},
        "zero_variance": float(np.mean(all_equal(total))),
        "truncated": float(answers.truncated[rows].mean()),
        "invalid": float((scores.verdict[rows] < 0).mean()),
    }


def _task_means(answers: Answers, rows: np.ndarray, task: Task) -> dict[str, float | dict[str, float]]:
    tokens, verdict = answers.tokens[rows], answers.scores.verdict[rows]
    entropy = float(answers.surprise[rows].sum() / max(1, tokens.sum()))
    found = _means(answers, rows) | {"completion_tokens": float(tokens.mean()), "entropy": entropy}
    if task.kind == "listwise" or not (valid := verdict[verdict >= 0]).size:
        return found
    return found | {"labels": {label: float((valid == place).mean()) for place, label in enumerate(task.labels)}}
