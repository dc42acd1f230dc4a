"""Supervised fine-tuning on gold reasoning and true verdicts: the loop of a config with stage "sft"."""

from functools import partial

import jax

from mtjudge_jax.data.pipeline import Shard, train_iterator
from mtjudge_jax.hosts.exchange import together
from mtjudge_jax.policy.programs import place_prompts
from mtjudge_jax.policy.update import make_update
from mtjudge_jax.rl.loss import sft_loss
from mtjudge_jax.rl.streams import lengths_of, place_answers
from mtjudge_jax.sharding import shard_batch
from mtjudge_jax.train.loop import loop
from mtjudge_jax.train.monitor.batch_metrics import mean_of_updates
from mtjudge_jax.train.monitor.clock import Clock
from mtjudge_jax.train.monitor.host_numbers import host_numbers
from mtjudge_jax.train.monitor.nonfinite import note_skipped
from mtjudge_jax.train.monitor.work import Work, stream_places, work_numbers
from mtjudge_jax.train.run import Progress, Run
from mtjudge_jax.train.start import start_or_resume
from mtjudge_jax.train.workdir import data_folder
from mtjudge_jax.types import SftBatch


def train_sft(run: Run) -> Progress:
    """The SFT loop."""
    programs = run.model.programs
    with together():
        data = train_iterator(
            data_folder(run.cfg, run.workdir), run.model.fmt, run.cfg, Shard(jax.process_index(), jax.process_count())
        )
    progress, _ = start_or_resume(run, data)
    update = make_update(progress.state, partial(sft_loss, logp_fn=programs.logp_fn), run.optimizer, programs.mesh, run.cfg)

    def step_fn(progress: Progress) -> tuple[Progress, dict]:
        clock = Clock(lambda phase: run.watch.beat(f"step {progress.step + 1} {phase}"))
        rows = next(progress.data)
        mask = rows["target_mask"] & (rows["weight"] > 0)[:, None, None]
        tokens, mask = shard_batch((rows["target"], mask), programs.mesh)
        prompts = place_prompts(rows, programs.mesh)
        batch = SftBatch(prompts, tokens, mask, place_answers(prompts, mask, programs.mesh, run.rooms))
        clock.lap("data")
        state, metrics = update(progress.state, progress.frozen, batch)
        line = mean_of_updates([jax.device_get(metrics)], kl=True)
        clock.lap("update")
        progress = note_skipped(run, progress._replace(state=state), line["skipped"], rows)
        work = Work(None, lengths_of(prompts, mask, programs.mesh), 0, stream_places(prompts, batch.places))
        rate = work_numbers(run, work, clock) | {"seconds": clock.seconds}
        return progress, line | rate | host_numbers(run, rows, clock)

    return loop(run, progress, step_fn)
