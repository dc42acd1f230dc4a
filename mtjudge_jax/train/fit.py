"""A whole run: opens the workdir, runs the loop of the config's stage, and reports where the model is."""

import contextlib
import json
import shlex
import traceback

import jax

from mtjudge_jax import checkpoint, hosts
from mtjudge_jax.config import Config
from mtjudge_jax.config_check import check
from mtjudge_jax.hosts.exchange import together
from mtjudge_jax.locks import held
from mtjudge_jax.paths import as_path
from mtjudge_jax.policy.judge_file import JUDGE_FILE
from mtjudge_jax.policy.model import Model
from mtjudge_jax.train.dpo import train_dpo
from mtjudge_jax.train.grpo import train_grpo
from mtjudge_jax.train.monitor.trackers import STOP_SECONDS
from mtjudge_jax.train.run import Progress, Run, close_run
from mtjudge_jax.train.sft import train_sft
from mtjudge_jax.train.start import compare_hosts, open_run


def fit(cfg: Config, workdir: str, model: Model | None = None, allowed: tuple[str, ...] = ()) -> tuple[Run, Progress]:
    """Opens the workdir, which no other command may write meanwhile, and trains to the end of the config, from the newest
    checkpoint if there is one.
    """
    compare_hosts(cfg, workdir)
    with contextlib.ExitStack() as stack:
        with together():
            check(cfg, jax.device_count(), jax.process_count())
            checkpoint.check_workdir(workdir)
            stack.enter_context(held(as_path(workdir), holds=jax.process_index() == 0, again=True))
            run = open_run(cfg, workdir, model, allowed)
        try:
            progress = {"grpo": train_grpo, "sft": train_sft, "dpo": train_dpo}[cfg.stage](run)
        except Exception:  # wait for no other process: one may be gone
            run.watch.note(traceback.format_exc())
            run.trackers.close(STOP_SECONDS)
            run.watch.close()
            raise
        close_run(run)
    return run, progress


def fit_and_report(cfg: Config, workdir: str, *, allowed: tuple[str, ...]) -> None:
    """The command: trains in one process group and prints the result on process 0."""
    with hosts.joined(cfg.hosts):
        run, progress = fit(cfg, workdir, allowed=allowed)
        first = jax.process_index() == 0
    if not first:
        return
    print(f"done: step {progress.step}, best mean validation macro-F1 {progress.best:.3f}{when_best(run)}")
    if text := untrained_best(run, progress):
        print(text)
    print(f"to export it with a model card: mtjudge export {shlex.quote(f'--workdir={run.workdir}')} --out=FOLDER")
    print("to train it longer: the same command with --config.steps=N --allow_change=steps")


def untrained_best(run: Run, progress: Progress) -> str:
    """A warning if the best model is the one that training began with; else nothing."""
    if not progress.step or "(the starting model" not in when_best(run):
        return ""
    workdir = shlex.quote(f"--workdir={run.workdir}")
    return (
        "warning: best/ holds the model that training began with, not a trained one; "
        f"`mtjudge export {workdir} --step=latest --out=FOLDER` takes the trained weights. Read the answers in "
        f"eval/val_*.predictions.jsonl, or `mtjudge report {workdir}` to see why"
    )


def when_best(run: Run) -> str:
    """`, after step 80, model in runs/mine/best`; nothing where no model was written."""
    folder = run.workdir / "best"
    try:
        step = json.loads((folder / JUDGE_FILE).read_text())["step"]
    except (OSError, ValueError, KeyError):
        return ""
    start = " (the starting model: no later validation was better)" if step == 0 else ""
    return f", after step {step}{start}, model in {folder}"
