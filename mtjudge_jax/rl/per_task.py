"""How the answers to prompts of several tasks are drawn, where a task has its own temperature or length (`rollout.per_task`)."""

from collections.abc import Sequence

import numpy as np

from mtjudge_jax.config import Config
from mtjudge_jax.config_check import TaskSettings, task_settings


def own_draws(cfg: Config, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """What PromptBatch has of it, for prompts of these tasks: `heat` float32 [Q] and `longest` int32 [Q]; {} where no task has
    settings of its own.
    """
    settings, rollout = task_settings(cfg), cfg.rollout
    if not settings:
        return {}
    plain = TaskSettings(rollout.temperature, rollout.completion_tokens, {})
    each = [settings.get(task, plain) for task in tasks]
    heat = np.array([one.temperature / rollout.temperature for one in each], np.float32)
    return {"heat": heat, "longest": np.array([one.completion_tokens for one in each], np.int32)}
