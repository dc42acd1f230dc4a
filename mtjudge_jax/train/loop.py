"""The loop around the steps of a regime: validation, the best model, checkpoints, stopping, what is told and what is noticed."""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mtjudge_jax import checkpoint, hosts
from mtjudge_jax.config import Config
from mtjudge_jax.data.pipeline import BadRowCounter
from mtjudge_jax.eval.batches import Judging
from mtjudge_jax.eval.evaluate import evaluate, write_evaluation
from mtjudge_jax.hosts.exchange import gather
from mtjudge_jax.policy.model import Model, eval_format
from mtjudge_jax.rl.score import Scores
from mtjudge_jax.sharding import local_rows
from mtjudge_jax.train.best_model import write_best, write_unwritten
from mtjudge_jax.train.monitor.messages import Clock, step_line
from mtjudge_jax.train.monitor.nonfinite import NonFiniteUpdate, dump_batch, skipped_line, suspects
from mtjudge_jax.train.run import STOP, Progress, Run, log, save, say, settle, warn
from mtjudge_jax.types import TrainBatch


def judging(cfg: Config, model: Model) -> Judging:
    """One greedy answer a prompt and samples at the training temperature; the sampler's training shapes where they fit."""
    temperature = np.full(cfg.eval.samples, cfg.rollout.temperature, np.float32)
    temperature[0] = 0
    fmt = eval_format(model, cfg)
    return Judging(model.stages, fmt, cfg.rollout.prompts, temperature, cfg.reward.alpha, cfg.seed, cfg.data.max_bad_share)


def validate(run: Run, progress: Progress) -> Progress:
    """Judges the validation split, logs it and keeps the best model as a Hugging Face folder."""
    began = time.perf_counter()

    def judged(rows: int) -> None:
        run.watch.beat(f"step {progress.step} validation")
        hosts.stop_if_asked(STOP)

    how = judging(run.cfg, run.model)
    predictions, result = evaluate(progress.params, run.validation, how, step=progress.step, progress=judged)
    mean = result["mean"]["macro_f1"]
    log(run, {"kind": "eval", "split": "val", "seconds": time.perf_counter() - began, **result})
    try:
        write_evaluation(run.workdir / "eval", f"val_{progress.step:06d}", predictions, {"split": "val", **result})
    except OSError as error:
        warn(run, progress.step, f"the evaluation after step {progress.step} was not written: {error}")
    better = mean > progress.best
    sampled = result["mean"]["sampled_accuracy"]
    each = " ".join(f"{name} {score['macro_f1']:.3f}" for name, score in result["tasks"].items())
    say(
        f"validation after step {progress.step}: mean macro-F1 {mean:.3f}{' (best)' if better else ''}"
        + (f", sampled accuracy {sampled:.3f}" if sampled is not None else "")
        + (f", left out {result['unusable']}" if result["unusable"] else "")
        + f" | {each}",
    )
    progress = progress._replace(judged=progress.step)
    if not better:
        return progress._replace(since_best=progress.since_best + 1)
    hosts.stop_if_asked(STOP)  # the last moment before many bytes are written
    return write_best(run, progress, mean)


class Drawn(NamedTuple):
    """This process's answers of a step, and the batch they became."""

    texts: list[list[str]]
    scores: Scores
    batch: TrainBatch


def note_skipped(run: Run, progress: Progress, skipped: int, rows: dict, drawn: Drawn | None = None) -> Progress:
    """Counts a step with an update that was not finite, says whose it was and writes its batch down. `progress` has the state
    after the step, `skipped` says how many of its updates were not applied.
    """
    if not skipped:
        return progress._replace(skipped=0)
    progress, step = progress._replace(skipped=progress.skipped + 1), progress.step + 1
    names, where = [f"{name} ({task})" for name, task in zip(rows["example_id"], rows["task"], strict=True)], None
    if drawn is not None:
        mesh, batch = run.model.stages.mesh, drawn.batch
        logps = {"old_logp": local_rows(batch.old_logp, mesh), "ref_logp": local_rows(batch.ref_logp, mesh)}
        mask = local_rows(batch.mask, mesh)
        names = suspects(rows, drawn.scores, logps, mask)
        path = run.workdir / "skipped" / f"step_{step:06d}.host_{jax.process_index()}.jsonl"
        with contextlib.suppress(OSError):  # a full disk costs the file alone
            where = path.parent if dump_batch(path, rows, drawn.texts, drawn.scores, logps, mask) else None
    everyone = [name for some in gather(names) for name in some]
    say(skipped_line(step, everyone, progress.skipped, run.cfg.update.max_skipped, where))
    return progress


def of_hosts(run: Run, rows: dict, clock: Clock) -> dict:
    """Memory in MB and seconds of waiting for data and of own work, by host. Raises TooManyBadRecords on all of them together."""
    run.bad_rows.add(rows)
    own = clock.seconds["data"] + clock.seconds.get("score", 0.0)
    mine = {"memory_mb": hosts.memory_bytes() / 1e6, "data_seconds": clock.seconds["data"], "own_seconds": own}
    everyone = gather(mine | {"bad": run.bad_rows.facts()})
    counted = BadRowCounter(run.cfg.data.max_bad_share)
    for one in everyone:
        counted.add_facts(one["bad"])
    counted.check()
    return {"hosts": {name: [one[name] for one in everyone] for name in mine}}


def loop(run: Run, progress: Progress, step_fn: Callable[[Progress], tuple[Progress, dict]]) -> Progress:
    """Steps, evaluations and checkpoints until `steps` or until the patience ends. `step_fn` is one step of a regime, up to the
    state after it. Raises Preempted, everything saved, soon after a host got a SIGTERM.
    """
    cfg, first, warm = run.cfg, progress.step + 1, 0.0
    while True:
        before = progress.data.get_state()
        try:
            again = progress.step < first and due(cfg, progress)  # restored, and stopped in its validation
            if due(cfg, progress):
                progress = validate(run, progress)
            saves = progress.step >= first and (progress.step % cfg.checkpoint.every_steps == 0 or finished(cfg, progress))
            if saves or (again and progress.step > 0):
                progress = write_unwritten(run, progress)
                save(run, progress)
            if finished(cfg, progress):
                break
            hosts.stop_if_asked(STOP)
            progress, line = step_fn(progress)
        except hosts.Preempted as stop:
            save(run, progress, before)
            settle(run, progress.step)
            steps = checkpoint.saved_steps(run.checkpoints)
            kept = f"step {steps[-1]} is saved" if steps else "nothing could be saved"
            raise hosts.Preempted(f"{STOP}: {kept}, the same command goes on from it") from stop
        progress = progress._replace(step=progress.step + 1)
        now = time.perf_counter()
        if progress.step == first:  # mostly compilation: it says nothing about the steps to come
            warm, left = now, None
        else:
            left = (now - warm) / (progress.step - first) * (cfg.steps - progress.step)
        log(run, {"kind": "train", "step": progress.step, **line})
        say(step_line(cfg, progress.step, line, left))
        for warning in run.health.add(line):
            say(warning)
        run.bar.update(1)
        if progress.skipped >= cfg.update.max_skipped:
            save(run, progress)
            settle(run, progress.step)
            raise NonFiniteUpdate(
                f"{progress.skipped} steps in a row, up to {progress.step}, had an update that was not finite and was skipped; "
                f"the state of the last good one is saved as step {progress.step}: the lines above name the examples, "
                f"{run.workdir / 'skipped'} has the batches; leave them out, or lower optim.lr or loss.kl_coef by --allow_change"
            )
    settle(run, progress.step)
    tell_end(run)
    return progress


def due(cfg: Config, progress: Progress) -> bool:
    """Whether this step's validation is still to come."""
    return progress.judged < progress.step and (progress.step % cfg.eval.every_steps == 0 or progress.step == cfg.steps)


def finished(cfg: Config, progress: Progress) -> bool:
    """After the last step, or when the patience is over."""
    return progress.step >= cfg.steps or (cfg.eval.patience > 0 and progress.since_best >= cfg.eval.patience)


def tell_end(run: Run) -> None:
    """What went on in silence."""
    if run.bad_rows.bad:
        reasons = ", ".join(f"{reason} {count}" for reason, count in run.bad_rows.reasons.most_common())
        say(f"{run.bad_rows.bad} of {run.bad_rows.rows} records could not be used and taught nothing: {reasons}")
    again = [f"{name} ({count} times)" for name, count in run.model.stages.traces.items() if count > 1]
    if again:
        say(f"warning: traced more than once, which costs a compilation each: {', '.join(again)}")
