"""What both training loops share: opening a workdir, starting or resuming, evaluating, keeping the best, logging."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mtjudge_jax import checkpoint
from mtjudge_jax.config import Config, ConfigError, check, to_dict
from mtjudge_jax.data.pipeline import BadRowCounter, read_split, train_iterator
from mtjudge_jax.data.records import JudgeExample
from mtjudge_jax.evaluate import Judging, evaluate, write_evaluation
from mtjudge_jax.metrics_log import (
    MetricsFile,
    append_metrics,
    flush_metrics,
    open_metrics,
    truncate_metrics,
    write_json_atomic,
)
from mtjudge_jax.models.qwen3_vl.convert import save_hf
from mtjudge_jax.optim import make_optimizer
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.policy import JUDGE_FILE, Model, exportable, judge_file, open_model, read_weights, reference_of
from mtjudge_jax.step_log import step_line
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.trainable import join, without_adapters
from mtjudge_jax.types import Params, TrainState
from mtjudge_jax.update import abstract_state, init_state
from mtjudge_jax.workdir import data_folder, refuse_other_config, refuse_other_sources, sources_of, templates


class Run(NamedTuple):
    """An open workdir: what stays the same from the first step to the last."""

    cfg: Config
    workdir: AnyPath
    model: Model
    optimizer: Any
    validation: dict[str, list[JudgeExample]]
    checkpoints: Any
    metrics: MetricsFile
    bad_rows: BadRowCounter
    bar: tqdm


class Progress(NamedTuple):
    """What changes from step to step and goes into the checkpoint."""

    state: TrainState
    frozen: Params  # what is not trained; never changes and is not in the checkpoint
    data: Any  # Grain iterator
    step: int
    best: float  # mean validation macro-F1 so far, -1 before the first
    since_best: int  # evaluations since
    sources: dict[str, str]  # what the run is made of, see sources_of

    @property
    def params(self) -> Params:
        """The whole model."""
        return join(self.frozen, self.state.params)


def open_run(cfg: Config, workdir: str | os.PathLike, model: Model | None = None) -> Run:
    """Checks everything that can be checked before a device computes. Raises ConfigError, CheckpointError or ValueError.

    `model`: `open_model(cfg)` where the caller has it already.
    """
    check(cfg, jax.device_count())
    workdir = as_path(workdir)
    checkpoint.check_workdir(workdir)
    model = open_model(cfg) if model is None else model
    folder = data_folder(cfg, workdir)
    bad_rows = BadRowCounter(cfg.data.max_bad_share)
    validation = read_validation(cfg, folder, bad_rows)
    refuse_other_config(cfg, workdir / "config.json")
    updates = cfg.steps if cfg.stage == "sft" else cfg.steps * (cfg.rollout.prompts // cfg.update.prompts)
    bar = tqdm(total=cfg.steps, unit="step", disable=not sys.stderr.isatty() or jax.process_index() > 0, dynamic_ncols=True)
    checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", cfg.checkpoint)
    metrics = open_metrics(workdir / "metrics.jsonl")
    return Run(cfg, workdir, model, make_optimizer(cfg.optim, updates), validation, checkpoints, metrics, bad_rows, bar)


def read_validation(cfg: Config, folder: AnyPath, bad_rows: BadRowCounter) -> dict[str, list[JudgeExample]]:
    """What chooses the best model, by task. Raises ConfigError where that is nothing."""
    names = cfg.eval.tasks or cfg.data.tasks
    validation = {name: read_split(folder, "val", name, bad_rows)[: cfg.eval.limit or None] for name in names}
    if empty := [name for name, examples in validation.items() if not examples]:
        raise ConfigError(f"{folder} has no validation record of {', '.join(empty)}: name in eval.tasks the tasks that have some")
    if all(TASKS[name].ood for name in names):
        raise ConfigError(f"{', '.join(names)}: tasks never trained on cannot choose the best model; add another to eval.tasks")
    return validation


def start(run: Run) -> tuple[Progress, Params]:
    """State, data position and step of the newest good checkpoint, or of a fresh run; and the starting model's weights."""
    cfg = run.cfg
    data = train_iterator(
        data=data_folder(cfg, run.workdir),
        split="train",
        task_names=cfg.data.tasks,
        fmt=run.model.fmt,
        global_batch=cfg.update.prompts if cfg.stage == "sft" else cfg.rollout.prompts,
        seed=cfg.seed,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        balance_labels=cfg.data.balance_labels,
        mode=cfg.data.mixture,
    )
    base = read_weights(run.model, cfg)
    if jax.process_index() == 0:
        write_json_atomic(run.workdir / "config.json", to_dict(cfg))
    sources = sources_of(cfg, run.workdir, without_adapters(join(*base)))
    mesh = run.model.stages.mesh
    abstract = abstract_state(base.trained, run.optimizer, mesh)
    reference, shared = reference_of(base, cfg)
    same = partial(refuse_other_sources, run.workdir, sources)
    restored = checkpoint.restore_latest(run.checkpoints, abstract, check_meta=same)
    if jax.process_index() == 0:
        truncate_metrics(run.metrics, -1 if restored is None else restored.step)
    if restored is None:
        state = init_state(base.trained, run.optimizer, mesh, keep=shared)
        return Progress(state, base.frozen, data, 0, -1.0, 0, sources), reference
    data.set_state(restored.data_state)
    run.bar.update(restored.step)
    say(run, f"resumed {run.workdir} after step {restored.step}")
    best, since = restored.meta["best"], restored.meta["since_best"]
    return Progress(restored.state, base.frozen, data, restored.step, best, since, sources), reference


def say(run: Run, text: str) -> None:
    """One line, on process 0, above the progress bar where there is one."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def log(run: Run, line: dict) -> None:
    if jax.process_index() == 0:
        append_metrics(run.metrics, line)


def save(run: Run, progress: Progress) -> None:
    meta = {"config": to_dict(run.cfg), "sources": progress.sources, "best": progress.best, "since_best": progress.since_best}
    data = progress.data.get_state()
    for text in checkpoint.save(run.checkpoints, progress.step, state=progress.state, data_state=data, meta=meta):
        warn(run, progress.step, text)
    flush_metrics(run.metrics)


def warn(run: Run, step: int, text: str) -> None:
    """What must not be overlooked and does not end the run: on the terminal and among the metrics."""
    say(run, f"warning: {text}")
    log(run, {"kind": "warning", "step": step, "text": text})


def judging(cfg: Config, model: Model) -> Judging:
    """One greedy answer a prompt and samples at the training temperature; the sampler's training shapes where they fit."""
    temperature = np.full(cfg.eval.samples, cfg.rollout.temperature, np.float32)
    temperature[0] = 0
    return Judging(model.stages, model.fmt, cfg.rollout.prompts, temperature, cfg.reward.alpha, cfg.seed, cfg.data.max_bad_share)


def validate(run: Run, progress: Progress) -> Progress:
    """Judges the validation split, logs it and keeps the best model as a Hugging Face folder."""
    began = time.perf_counter()
    predictions, result = evaluate(progress.params, run.validation, judging(run.cfg, run.model), step=progress.step)
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
        run,
        f"validation after step {progress.step}: mean macro-F1 {mean:.3f}{' (best)' if better else ''}"
        + (f", sampled accuracy {sampled:.3f}" if sampled is not None else "")
        + (f", left out {result['unusable']}" if result["unusable"] else "")
        + f" | {each}",
    )
    if not better:
        return progress._replace(since_best=progress.since_best + 1)
    best = run.workdir / "best"
    params = exportable(progress.params, run.model)
    files = {JUDGE_FILE: judge_file(run.cfg, progress.step, templates(run.cfg))}
    try:
        save_hf(params, best, source_folder=run.model.folder, dtype=run.cfg.model.dtype, overwrite=True, files=files)
    except FileExistsError:
        raise
    except OSError as error:  # on every process: the older best is whole, and the next one as good is written
        warn(run, progress.step, f"the best model, of step {progress.step}, was not written: {error}")
        return progress._replace(since_best=0)
    return progress._replace(best=mean, since_best=0)


def loop(run: Run, progress: Progress, step_fn: Callable[[Progress], tuple[TrainState, dict]]) -> Progress:
    """Steps, evaluations and checkpoints until `steps` or until the patience ends. `step_fn` is one step of a regime."""
    cfg = run.cfg
    if progress.step == 0:
        progress = validate(run, progress)
    first, warm = progress.step + 1, 0.0
    while not finished(cfg, progress):
        state, line = step_fn(progress)
        progress = progress._replace(state=state, step=progress.step + 1)
        done = progress.step == cfg.steps
        now = time.perf_counter()
        if progress.step == first:  # mostly compilation: it says nothing about the steps to come
            warm, left = now, None
        else:
            left = (now - warm) / (progress.step - first) * (cfg.steps - progress.step)
        log(run, {"kind": "train", "step": progress.step, **line})
        say(run, step_line(cfg, progress.step, line, left))
        run.bar.update(1)
        if progress.step % cfg.eval.every_steps == 0 or done:
            progress = validate(run, progress)
        if progress.step % cfg.checkpoint.every_steps == 0 or finished(cfg, progress):
            save(run, progress)
    for text in checkpoint.wait(run.checkpoints):
        warn(run, progress.step, text)
    flush_metrics(run.metrics)
    if run.bad_rows.bad:
        reasons = ", ".join(f"{reason} {count}" for reason, count in run.bad_rows.reasons.most_common())
        say(run, f"{run.bad_rows.bad} of {run.bad_rows.rows} records could not be used and taught nothing: {reasons}")
    again = [f"{name} ({count} times)" for name, count in run.model.stages.traces.items() if count > 1]
    if again:
        say(run, f"warning: traced more than once, which costs a compilation each: {', '.join(again)}")
    return progress


def finished(cfg: Config, progress: Progress) -> bool:
    """After the last step, or when the patience is over."""
    return progress.step >= cfg.steps or (cfg.eval.patience > 0 and progress.since_best >= cfg.eval.patience)
