"""The loop around the steps of a regime: validation, the best model, checkpoints, stopping, what is told and what is noticed."""

import time
from collections.abc import Callable

from mtjudge_jax import checkpoint, hosts
from mtjudge_jax.config import Config
from mtjudge_jax.train.best_model import write_unwritten
from mtjudge_jax.train.monitor.messages import say, step_line
from mtjudge_jax.train.monitor.nonfinite import NonFiniteUpdate
from mtjudge_jax.train.run import STOP, Progress, Run, log, save, settle
from mtjudge_jax.train.validation import validate


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
    again = [f"{name} ({count} times)" for name, count in run.model.programs.traces.items() if count > 1]
    if again:
        say(f"warning: traced more than once, which costs a compilation each: {', '.join(again)}")
