"""Supervised fine-tuning on gold reasoning and true verdicts: the second loop over the same functions.

`mtjudge train` runs it for a config with `stage = "sft"`.
"""

from functools import partial

import jax

from mtjudge_jax.run import Progress, Run, loop, start
from mtjudge_jax.sharding import shard_batch
from mtjudge_jax.stages import place_prompts
from mtjudge_jax.step_log import Clock, summarise
from mtjudge_jax.types import SftBatch, TrainState
from mtjudge_jax.update import make_update, sft_loss


def train(run: Run) -> Progress:
    """The SFT loop."""
    stages = run.model.stages
    progress, _ = start(run)
    update = make_update(progress.state, partial(sft_loss, logp_fn=stages.logp_fn), run.optimizer, stages.mesh, run.cfg)

    def step_fn(progress: Progress) -> tuple[TrainState, dict]:
        clock = Clock()
        rows = next(progress.data)
        run.bad_rows.add(rows)
        mask = rows["target_mask"] & (rows["weight"] > 0)[:, None]
        tokens, mask = shard_batch((rows["target"][:, None], mask[:, None]), stages.mesh)
        batch = SftBatch(place_prompts(rows, stages.mesh), tokens, mask)
        clock.lap("data")
        state, metrics = update(progress.state, progress.frozen, batch)
        line = summarise([jax.device_get(metrics)], progress.step, kl=True)
        clock.lap("update")
        seen = int(rows["valid"].sum() + rows["target_mask"].sum()) * jax.process_count()
        return state, line | {"tokens_per_s": seen / sum(clock.seconds.values()), "seconds": clock.seconds}

    return loop(run, progress, step_fn)
