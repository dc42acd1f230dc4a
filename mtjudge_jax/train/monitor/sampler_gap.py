"""How far the sampler's log-probabilities are from those that the update computes for the same tokens with the same weights.

Both are the same function, computed by two programs: one token at a time with caches, and a whole stream at once. In float32 they
differ by rounding; in bfloat16, and most of all with experts, by enough to bias the gradient (arXiv 2510.26788).
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtjudge_jax.hosts.exchange import gather_rows
from mtjudge_jax.rl.loss import kl
from mtjudge_jax.sharding import replicated, shard_batch
from mtjudge_jax.train.monitor.batch_metrics import task_numbers
from mtjudge_jax.train.run import Progress, Run
from mtjudge_jax.types import Array, TrainBatch


def sampler_gap(run: Run, progress: Progress, batch: TrainBatch, rows: dict[str, np.ndarray]) -> dict:
    """{"gap": numbers} of `gap_numbers`, with the mean of each task in "tasks"; {} where a step is not measured.

    Measured where the batch has both log-probabilities, else every log.gap_every steps, for a further pass over the answers. All
    processes call it before the update, with their own `rows`.
    """
    every, step = run.cfg.log.gap_every, progress.step + 1
    programs, known = run.model.programs, run.model.fmt.tasks
    if batch.sampler_logp is None and (not every or step % every):
        return {}
    sampler = batch.old_logp if batch.sampler_logp is None else batch.sampler_logp
    update = batch.old_logp
    if batch.sampler_logp is None:
        update = programs.logp(progress.params, batch.prompts, batch.tokens, batch.places)
    mine = task_numbers(rows["task"].tolist(), known)
    measure = _measure(programs.mesh, len(known))
    found = jax.device_get(measure(sampler, update, batch.mask, shard_batch(mine, programs.mesh)))
    by_task = found.pop("tasks")
    names, there = list(known), np.unique(gather_rows(mine)).tolist()
    numbers = {name: float(value) for name, value in found.items()}
    return {"gap": numbers | {"tasks": {names[number]: float(by_task[number]) for number in there}}}


@cache
def _measure(mesh: Mesh, tasks: int) -> Callable:
    return jax.jit(partial(gap_numbers, tasks=tasks), out_shardings=replicated(mesh))


def gap_numbers(sampler: Array, update: Array, mask: Array, task: Array, *, tasks: int) -> dict[str, Array]:
    """Of the tokens that count, d = update - sampler: mean, p99 and max of |d|, k3 (an estimate of KL(sampler || update)) and
    pearson, the correlation of the two probabilities; tasks: the mean of |d| by task, [tasks].

    sampler, update: float32 [Q, G, C], log-probabilities; mask: bool [Q, G, C]; task: int32 [Q]. p99 is the least |d| that at
    least 99 % of the tokens do not exceed. Without a token all are 0, pearson 1; pearson is 1 where neither probability varies.
    """
    weight = mask.astype(jnp.float32)
    count = jnp.maximum(weight.sum(), 1.0)
    apart = jnp.abs(update - sampler) * mask
    ordered = jnp.sort(jnp.where(mask, apart, -1.0).ravel())  # those that do not count come first
    place = ordered.size - mask.sum() + jnp.ceil(0.99 * mask.sum()).astype(jnp.int32) - 1
    p, q = (jnp.where(mask, jnp.exp(x), 0.0) for x in (sampler, update))
    p, q = ((x - x.sum() / count) * weight for x in (p, q))
    spread = jnp.sqrt((p * p).sum() * (q * q).sum())
    total, tokens = (jnp.zeros(tasks).at[task].add(x.sum((1, 2))) for x in (apart, weight))
    return {
        "mean": apart.sum() / count,
        "p99": jnp.maximum(ordered[jnp.clip(place, 0, ordered.size - 1)], 0.0),
        "max": apart.max(),
        "k3": (kl(sampler, update, "k3") * weight).sum() / count,
        "pearson": jnp.where(spread > 0, (p * q).sum() / jnp.where(spread > 0, spread, 1.0), 1.0),
        "tasks": total / jnp.maximum(tokens, 1.0),
    }
