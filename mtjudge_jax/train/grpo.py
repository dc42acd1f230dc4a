"""Multi-task GRPO: the loop. It reads from top to bottom: prompts, answers, rewards, advantages, log-probabilities, update."""

from functools import partial

import jax
import numpy as np

from mtjudge_jax import hosts
from mtjudge_jax.policy.update import make_update
from mtjudge_jax.rl.loss import group_advantages, grpo_loss
from mtjudge_jax.rl.reward_rule import rule_of
from mtjudge_jax.sharding import batch_sharding, shard_batch
from mtjudge_jax.train.loop import loop
from mtjudge_jax.train.mixture_feedback import mixture_feedback
from mtjudge_jax.train.monitor.batch_metrics import mean_of_updates, train_metrics
from mtjudge_jax.train.monitor.clock import Clock
from mtjudge_jax.train.monitor.host_numbers import host_numbers
from mtjudge_jax.train.monitor.nonfinite import Evidence, note_skipped
from mtjudge_jax.train.rollouts import Rolled, roll_out
from mtjudge_jax.train.run import Progress, Run
from mtjudge_jax.train.start import start_or_resume
from mtjudge_jax.types import TrainBatch


def train_grpo(run: Run) -> Progress:
    """The GRPO loop."""
    cfg, programs = run.cfg, run.model.programs
    progress, reference = start_or_resume(run)
    updates = cfg.rollout.prompts // cfg.update.prompts
    loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=programs.logp_fn, on_policy=updates == 1)
    update = make_update(progress.state, loss, run.optimizer, programs.mesh, cfg)
    take = jax.jit(partial(take_part, parts=updates), out_shardings=batch_sharding(programs.mesh))
    feedback = mixture_feedback(run)
    rule = rule_of(cfg)

    def step_fn(progress: Progress) -> tuple[Progress, dict]:
        clock = Clock(lambda phase: run.watch.beat(f"step {progress.step + 1} {phase}"))
        rolled = roll_out(run, progress, rule, clock)
        rows, prompts, out, texts, scores = rolled.batch
        rewards, learn = shard_batch((scores.total, rows["weight"] > 0), programs.mesh)
        advantages = group_advantages(rewards, std=cfg.loss.advantage_std, eps=cfg.loss.advantage_eps)
        needs_old = updates > 1 or feedback.needs_old_logp
        old_logp = programs.logp(progress.params, prompts, out.tokens) if needs_old else out.logp
        ref_logp = programs.reference_logp(reference, prompts, out.tokens) if cfg.loss.kl_coef else old_logp
        batch = TrainBatch(prompts, out.tokens, out.mask & learn[:, None, None], advantages, old_logp, ref_logp)
        jax.block_until_ready(ref_logp)
        clock.lap("logp")
        hosts.stop_if_asked()  # the last moment: the update takes the state's memory
        state, metrics = progress.state, []
        for i in range(updates):
            state, m = update(state, progress.frozen, batch if updates == 1 else take(batch, i))
            metrics.append(jax.device_get(m))
        clock.lap("update")
        numbers = train_metrics(rolled.answers, run.model.fmt.tasks) | mean_of_updates(metrics, kl=bool(cfg.loss.kl_coef))
        progress = note_skipped(run, progress._replace(state=state), numbers["skipped"], rows, Evidence(texts, scores, batch))
        numbers |= feedback.learn(progress, rows, batch, numbers["tasks"], clock)
        return progress, numbers | rates(rolled, clock) | host_numbers(run, rolled.rows, clock)

    return loop(run, progress, step_fn)


def take_part(batch: TrainBatch, i, *, parts: int) -> TrainBatch:
    """The rows of update i of `parts`. They are one block, so that a batch balanced in every block stays balanced."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:])[i], batch)


def rates(rolled: Rolled, clock: Clock) -> dict:
    """Tokens of prompts and answers per second over the whole step, and where the seconds went."""
    lengths = rolled.answers.tokens
    tokens = int(lengths.sum()) + rolled.prompt_tokens
    length = {"tokens_per_s": tokens / sum(clock.seconds.values()), "completion_tokens": float(lengths.mean(dtype=np.float64))}
    return length | {"rounds": rolled.rounds, "wanted_met": rolled.met, "seconds": clock.seconds}
