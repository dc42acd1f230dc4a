"""Multi-task GRPO: the loop. It reads from top to bottom: prompts, answers, rewards, advantages, log-probabilities, update."""

from functools import partial

import jax
import numpy as np

from mtjudge_jax import hosts
from mtjudge_jax.config import LossConfig
from mtjudge_jax.eval.scores import task_numbers, train_metrics
from mtjudge_jax.hosts.exchange import gather_rows
from mtjudge_jax.policy.update import grpo_loss, make_update
from mtjudge_jax.rl import grpo
from mtjudge_jax.rl.score import rule_of
from mtjudge_jax.sharding import batch_sharding, local_rows, shard_batch
from mtjudge_jax.train.loop import Drawn, loop, note_skipped, of_hosts
from mtjudge_jax.train.monitor.messages import Clock, summarise
from mtjudge_jax.train.rollouts import Rolled, roll_out
from mtjudge_jax.train.run import STOP, Progress, Run, start
from mtjudge_jax.types import TrainBatch


def train(run: Run) -> Progress:
    """The GRPO loop."""
    cfg, stages = run.cfg, run.model.stages
    progress, reference = start(run)
    updates = cfg.rollout.prompts // cfg.update.prompts
    loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=stages.logp_fn, on_policy=updates == 1)
    update = make_update(progress.state, loss, run.optimizer, stages.mesh, cfg)
    take = jax.jit(partial(take_part, parts=updates), out_shardings=batch_sharding(stages.mesh))
    adaptive = cfg.data.mixture == "mt_grpo"
    objective = adaptive and cfg.data.mt_grpo_improvement == "objective"
    gain = jax.jit(partial(objective_gain, cfg=cfg.loss), out_shardings=batch_sharding(stages.mesh))
    rule = rule_of(cfg)

    def step_fn(progress: Progress) -> tuple[Progress, dict]:
        clock = Clock(lambda phase: run.watch.beat(f"step {progress.step + 1} {phase}"))
        rolled = roll_out(run, progress, rule, clock)
        rows, prompts, out, texts, scores = rolled.batch
        numbers = train_metrics(rolled.answers, run.model.fmt.tasks)
        if adaptive and not objective:  # the next batch is read while this one is learned from
            numbers["mixture"] = progress.data.learn(numbers["tasks"])
        rewards, learn = shard_batch((scores.total, rows["weight"] > 0), stages.mesh)
        advantages = grpo.advantages(rewards, std=cfg.loss.advantage_std, eps=cfg.loss.advantage_eps)
        old_logp = stages.logp(progress.params, prompts, out.tokens) if updates > 1 or objective else out.logp
        ref_logp = stages.reference_logp(reference, prompts, out.tokens) if cfg.loss.kl_coef else old_logp
        batch = TrainBatch(prompts, out.tokens, out.mask & learn[:, None, None], advantages, old_logp, ref_logp)
        jax.block_until_ready(ref_logp)
        clock.lap("logp")
        hosts.stop_if_asked(STOP)  # the last moment: the update takes the state's memory
        state, metrics = progress.state, []
        for i in range(updates):
            state, m = update(state, progress.frozen, batch if updates == 1 else take(batch, i))
            metrics.append(jax.device_get(m))
        clock.lap("update")
        line = summarise(metrics, kl=bool(cfg.loss.kl_coef))
        progress = note_skipped(run, progress._replace(state=state), line["skipped"], rows, Drawn(texts, scores, batch))
        if objective:
            gains = by_task(run, rows, gain(batch, stages.logp(progress.params, prompts, out.tokens)))
            numbers["mixture"] = progress.data.learn(numbers["tasks"], gains)
            clock.lap("mixture")
        return progress, numbers | line | rates(rolled, clock) | of_hosts(run, rolled.rows, clock)

    return loop(run, progress, step_fn)


def take_part(batch: TrainBatch, i, *, parts: int) -> TrainBatch:
    """Rows of the i-th of `parts` updates: a block, so that a batch balanced in every block stays balanced."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:])[i], batch)


def objective_gain(batch: TrainBatch, logp, *, cfg: LossConfig):
    """(sums, weights), both [Q], of the change of the batch's objective from the parameters that gave old_logp to those that
    gave logp: the I_k of MT-GRPO, exact, on the step's own prompts."""
    rest = (batch.old_logp, batch.ref_logp, batch.advantages, batch.mask)
    after, weights = grpo.row_objective(logp, *rest, cfg=cfg)
    return after - grpo.row_objective(batch.old_logp, *rest, cfg=cfg)[0], weights


def by_task(run: Run, rows: dict, gains: tuple) -> dict[str, float]:
    """`objective_gain` by task, over the rows of all processes."""
    mine = tuple(local_rows(x, run.model.stages.mesh) for x in gains)
    known = run.model.fmt.tasks
    sums, weights, numbers = gather_rows((*mine, task_numbers(rows["task"].tolist(), known)))
    names, out = list(known), {}
    for number in np.unique(numbers).tolist():
        of = numbers == number
        out[names[number]] = float(sums[of].sum(dtype=np.float64) / max(weights[of].sum(dtype=np.float64), 1.0))
    return out


def rates(rolled: Rolled, clock: Clock) -> dict:
    """Tokens of prompts and answers a second over the whole step, and where the seconds went."""
    lengths = rolled.answers.tokens
    tokens = int(lengths.sum()) + rolled.prompt_tokens
    length = {"tokens_per_s": tokens / sum(clock.seconds.values()), "completion_tokens": float(lengths.mean(dtype=np.float64))}
    return length | {"rounds": rolled.rounds, "wanted_met": rolled.met, "seconds": clock.seconds}
