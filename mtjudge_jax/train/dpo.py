"""Direct preference optimisation on pairs of answers, a better and a worse one: the loop of a config with stage "dpo"."""

from functools import partial

import jax

from mtjudge_jax import hosts
from mtjudge_jax.data.pipeline import Shard, train_iterator
from mtjudge_jax.hosts.exchange import together
from mtjudge_jax.policy.programs import place_prompts
from mtjudge_jax.policy.update import make_update
from mtjudge_jax.rl.loss import dpo_loss
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
from mtjudge_jax.types import DpoBatch


def train_dpo(run: Run) -> Progress:
    """The DPO loop."""
    cfg, programs = run.cfg, run.model.programs
    with together():
        data = train_iterator(data_folder(cfg, run.workdir), run.model.fmt, cfg, Shard(jax.process_index(), jax.process_count()))
    progress, reference = start_or_resume(run, data)
    loss = partial(dpo_loss, cfg=cfg.dpo, logp_fn=programs.logp_fn)
    update = make_update(progress.state, loss, run.optimizer, programs.mesh, cfg)

    def step_fn(progress: Progress) -> tuple[Progress, dict]:
        clock = Clock(lambda phase: run.watch.beat(f"step {progress.step + 1} {phase}"))
        rows = next(progress.data)
        mask = rows["target_mask"] & (rows["weight"] > 0)[:, None, None]
        tokens, mask = shard_batch((rows["target"], mask), programs.mesh)
        prompts = place_prompts(rows, programs.mesh)
        places = place_answers(prompts, mask, programs.mesh, run.rooms)
        clock.lap("data")
        ref_logp = programs.reference_logp(reference, prompts, tokens, places)
        jax.block_until_ready(ref_logp)
        clock.lap("logp")
        hosts.stop_if_asked()  # the last moment: the update takes the state's memory
        batch = DpoBatch(prompts, tokens, mask, places, ref_logp)
        state, metrics = update(progress.state, progress.frozen, batch)
        line = mean_of_updates([jax.device_get(metrics)], kl=True)
        clock.lap("update")
        progress = note_skipped(run, progress._replace(state=state), line["skipped"], rows)
        work = Work(None, lengths_of(prompts, mask, programs.mesh), 1, stream_places(prompts, places))
        rate = work_numbers(run, work, clock) | {"seconds": clock.seconds}
        return progress, line | rate | host_numbers(run, rows, clock)

    return loop(run, progress, step_fn)
