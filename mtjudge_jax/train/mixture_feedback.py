"""What a step reports to the mixture of tasks: nothing if its shares are fixed; with MT-GRPO, how much each task improved."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from mtjudge_jax.config import LossConfig
from mtjudge_jax.hosts.exchange import gather_rows
from mtjudge_jax.rl.loss import row_objective
from mtjudge_jax.sharding import batch_sharding, local_rows
from mtjudge_jax.train.monitor.batch_metrics import task_numbers
from mtjudge_jax.train.monitor.clock import Clock
from mtjudge_jax.train.run import Progress, Run
from mtjudge_jax.types import TrainBatch


class MixtureFeedback(NamedTuple):
    """`learn` takes (progress after the update, rows, batch, means by task, clock) and returns what metrics.jsonl records."""

    needs_old_logp: bool  # the objective is measured against the log-probabilities before the update
    learn: Callable[[Progress, dict, TrainBatch, dict, Clock], dict]


def mixture_feedback(run: Run) -> MixtureFeedback:
    """For the run's data.mixture. MT-GRPO (arXiv 2602.05547) moves its task weights by each task's reward and improvement."""
    cfg, programs = run.cfg, run.model.programs
    if cfg.data.mixture != "mt_grpo":
        return MixtureFeedback(False, lambda *_: {})
    if cfg.data.mt_grpo_improvement == "reward":
        return MixtureFeedback(False, lambda progress, rows, batch, tasks, clock: {"mixture": progress.data.learn(tasks)})
    gain = jax.jit(partial(_objective_gain, cfg=cfg.loss), out_shardings=batch_sharding(programs.mesh))

    def learn(progress: Progress, rows: dict, batch: TrainBatch, tasks: dict, clock: Clock) -> dict:
        gains = gain(batch, programs.logp(progress.params, batch.prompts, batch.tokens, batch.places))
        moved = progress.data.learn(tasks, gains_by_task(run, rows, gains))
        clock.lap("mixture")
        return {"mixture": moved}

    return MixtureFeedback(True, learn)


def _objective_gain(batch: TrainBatch, logp, *, cfg: LossConfig):
    """(sums, weights), both [Q]: how much the batch's objective changed from the parameters that gave old_logp to those that gave
    logp. This is the I_k of MT-GRPO, exact, on the step's own prompts."""
    rest = (batch.old_logp, batch.ref_logp, batch.advantages, batch.mask)
    after, weights = row_objective(logp, *rest, cfg=cfg)
    return after - row_objective(batch.old_logp, *rest, cfg=cfg)[0], weights


def gains_by_task(run: Run, rows: dict, gains: tuple) -> dict[str, float]:
    """`_objective_gain` by task, over the rows of all processes."""
    mine = tuple(local_rows(x, run.model.programs.mesh) for x in gains)
    known = run.model.fmt.tasks
    sums, weights, numbers = gather_rows((*mine, task_numbers(rows["task"].tolist(), known)))
    names, out = list(known), {}
    for number in np.unique(numbers).tolist():
        of = numbers == number
        out[names[number]] = float(sums[of].sum(dtype=np.float64) / max(weights[of].sum(dtype=np.float64), 1.0))
    return out
