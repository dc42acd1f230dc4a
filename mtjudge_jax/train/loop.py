"""The loop around the training steps: validation, checkpoints, stopping, and what is printed and logged per step."""

import time
from collections.abc import Callable

from mtjudge_jax import checkpoint, hosts
from mtjudge_jax.cli import EXIT_CTRL_C, ctrl_c_asked, first_ctrl_c_saves
from mtjudge_jax.config import Config
from mtjudge_jax.hosts.exchange import on_any_process
from mtjudge_jax.train.best_model import write_unwritten
from mtjudge_jax.train.monitor.batch_metrics import learning_rate
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.monitor.nonfinite import NonFiniteUpdate
from mtjudge_jax.train.monitor.profile import Profile
from mtjudge_jax.train.monitor.step_table import StepTable, on_terminal
from mtjudge_jax.train.run import Progress, Run, log, save_progress, settle
from mtjudge_jax.train.validation import validate


@first_ctrl_c_saves()
def loop(run: Run, progress: Progress, step_fn: Callable[[Progress], tuple[Progress, dict]]) -> Progress:
    """Trains, validates and saves until `steps` is reached or the patience ends. `step_fn` is one step of a stage and returns
    the state after it with a line for metrics.jsonl. After a SIGTERM or a first Ctrl-C to any host, saves and
    raises Preempted.
    """
    cfg, first, warm = run.cfg, progress.step + 1, 0.0
    table, profile = StepTable(cfg, colour=on_terminal()), Profile(cfg.log.profile, run.workdir)
    while True:
        before = progress.data.get_state()
        try:
            again = progress.step < first and _due(cfg, progress)  # resumed from a stop within this step's validation
            if _due(cfg, progress):
                progress = validate(run, progress)
            saves = progress.step >= first and (progress.step % cfg.checkpoint.every_steps == 0 or _finished(cfg, progress))
            if saves or (again and progress.step > 0):
                progress = write_unwritten(run, progress)
                save_progress(run, progress)
            if _finished(cfg, progress):
                break
            hosts.stop_if_asked()
            profile.before(progress.step + 1)
            progress, line = step_fn(progress)
            profile.after(progress.step + 1)
        except hosts.Preempted as stop:
            profile.close()
            save_progress(run, progress, before)
            settle(run, progress.step)
            steps = checkpoint.saved_steps(run.checkpoints)
            kept = f"step {steps[-1]} is saved, the same command continues from it" if steps else "nothing could be saved"
            status = EXIT_CTRL_C if on_any_process(ctrl_c_asked()) else stop.status
            raise hosts.Preempted(f"asked to stop: {kept}", status) from stop
        progress = progress._replace(step=progress.step + 1)
        line["lr"] = learning_rate(cfg, int(progress.state.step))
        now = time.perf_counter()
        if progress.step == first:  # mostly compilation, so it says nothing about the time per step
            warm, left = now, None
        else:
            left = (now - warm) / (progress.step - first) * (cfg.steps - progress.step)
        log(run, {"kind": "train", "step": progress.step, **line})
        for text in table.lines(progress.step, line, left):
            say(text)
        for warning in run.health.add(line):
            say(warning)
        run.bar.update(1)
        if progress.skipped >= cfg.update.max_skipped:
            save_progress(run, progress)
            settle(run, progress.step)
            raise NonFiniteUpdate(
                f"{progress.skipped} updates in a row, up to step {progress.step}, were not finite and were skipped; the state "
                f"of the last good one is saved as step {progress.step}. The lines above name the examples, their batches are in "
                f"{run.workdir / 'skipped'}: remove these examples, or lower optim.lr or loss.kl_coef with --allow_change"
            )
    profile.close()  # the run may end before the last of these steps
    settle(run, progress.step)
    _report_end(run)
    return progress


def _due(cfg: Config, progress: Progress) -> bool:
    """Whether this step is to be validated and has not been yet."""
    return progress.judged < progress.step and (progress.step % cfg.eval.every_steps == 0 or progress.step == cfg.steps)


def _finished(cfg: Config, progress: Progress) -> bool:
    """Whether the last step is done or the patience is used up."""
    return progress.step >= cfg.steps or (cfg.eval.patience > 0 and progress.since_best >= cfg.eval.patience)


def _report_end(run: Run) -> None:
    """Reports at the end what no line reported before."""
    if run.bad_rows.bad:
        reasons = ", ".join(f"{reason} {count}" for reason, count in run.bad_rows.reasons.most_common())
        say(f"{run.bad_rows.bad} of {run.bad_rows.rows} records could not be used and were skipped: {reasons}")
    again = [f"{name} ({count} times)" for name, count in run.model.programs.traces.items() if count > 1]
    if again:
        say(f"warning: traced more than once, each time with a compilation: {', '.join(again)}")
