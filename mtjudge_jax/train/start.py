"""Opens a workdir: checks everything before a device computes, takes a first look at the records, starts or resumes."""

import os
import sys
from functools import partial
from math import prod
from typing import Any

import jax
from tqdm import tqdm

from mtjudge_jax import checkpoint
from mtjudge_jax.config import Config, get_tasks, to_dict
from mtjudge_jax.config_check import check
from mtjudge_jax.data.bad_rows import BadRowCounter
from mtjudge_jax.data.pipeline import read_split
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.hosts.differences import refuse_differences
from mtjudge_jax.hosts.exchange import on_any_process, together
from mtjudge_jax.hosts.watchdog import Watch, watch_path
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.policy.model import Model, open_model, read_weights, reference_of
from mtjudge_jax.policy.trainable import join, without_adapters
from mtjudge_jax.policy.update import abstract_state, init_state
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.rl.optim import make_optimizer
from mtjudge_jax.rl.rooms import rooms_of
from mtjudge_jax.sharding import BATCH_AXES
from mtjudge_jax.train.monitor.batch_metrics import updates_of
from mtjudge_jax.train.monitor.health import Health
from mtjudge_jax.train.monitor.messages import opening_lines, room_lines, say
from mtjudge_jax.train.monitor.metrics_file import open_metrics, read_metrics, truncate_metrics, write_json_atomic
from mtjudge_jax.train.monitor.shown import drop_shown
from mtjudge_jax.train.monitor.trackers import Trackers
from mtjudge_jax.train.record_check import check_records
from mtjudge_jax.train.run import KEPT, Progress, Run
from mtjudge_jax.train.workdir import (
    check_allowed,
    data_folder,
    facts_of_host,
    refuse_other_config,
    refuse_other_sources,
    sources_of,
)
from mtjudge_jax.types import Params


def compare_hosts(cfg: Config, workdir: str | os.PathLike) -> None:
    """Raises HostsDiffer on all processes unless they all run the same code, packages and config on the same data."""
    if jax.process_count() == 1:
        return
    with together():
        check(cfg, jax.device_count(), jax.process_count())
        facts = facts_of_host(cfg, as_path(workdir))
    refuse_differences(facts)


def open_run(cfg: Config, workdir: str | os.PathLike, model: Model | None = None, allowed: tuple[str, ...] = ()) -> Run:
    """Checks everything that can be checked before a device computes. Raises UserError.

    `model`: the result of `open_model(cfg)`, if the caller has it already. `allowed`: names of what may differ from the run in
    the workdir.
    """
    check(cfg, jax.device_count(), jax.process_count())
    check_allowed(cfg, allowed)
    workdir = as_path(workdir)
    checkpoint.check_workdir(workdir)
    trackers = Trackers(cfg, workdir, cfg.log.to if jax.process_index() == 0 else ())
    model = open_model(cfg) if model is None else model
    folder = data_folder(cfg, workdir)
    bad_rows = BadRowCounter(cfg.data.max_bad_share)
    # Every process reads all of it, so only one counts.
    validation = read_validation(cfg, folder, bad_rows if jax.process_index() == 0 else BadRowCounter(cfg.data.max_bad_share))
    looked = check_records(cfg, folder, model.fmt)
    if checkpoint.complete_steps(workdir / "checkpoints"):  # else nothing was trained yet, and the run begins anew
        for change in refuse_other_config(cfg, workdir / "config.json", allowed):
            say(f"changed, as --allow_change permits: {change}")
    bar = tqdm(total=cfg.steps, unit="step", disable=not sys.stderr.isatty() or jax.process_index() > 0, dynamic_ncols=True)
    checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", cfg.checkpoint)
    optimizer = make_optimizer(cfg.optim, updates_of(cfg))
    watch = Watch(watch_path(str(workdir), jax.process_index()), cfg.hosts.stuck_seconds)
    metrics, health = open_metrics(workdir / "metrics.jsonl"), Health()
    opened = (cfg, workdir, model, optimizer, validation, checkpoints, metrics, bad_rows, bar, watch, health, allowed)
    mesh = model.programs.mesh.shape
    rooms = rooms_of(cfg, looked.sizes, devices=prod(mesh[axis] for axis in BATCH_AXES))
    return Run(*opened, [*looked.notes, *room_lines(rooms)], rooms, trackers)


def read_validation(cfg: Config, folder: AnyPath, bad_rows: BadRowCounter) -> dict[str, list[JudgeExample]]:
    """The validation examples by task, which choose the best model. Raises ConfigError if a task has none."""
    names = cfg.eval.tasks or cfg.data.tasks
    validation = {name: read_split(folder, "val", name, bad_rows)[: cfg.eval.limit or None] for name in names}
    if empty := [name for name, examples in validation.items() if not examples]:
        raise ConfigError(f"{folder} has no validation record of {', '.join(empty)}: list in eval.tasks only those that have")
    tasks = get_tasks(cfg)
    if all(tasks[name].ood for name in names):
        raise ConfigError(f"{', '.join(names)}: evaluation-only tasks cannot choose the best model: add a trained one")
    return validation


def start_or_resume(run: Run, data: Any) -> tuple[Progress, Params]:
    """State, data position and step of the newest good checkpoint, or of a fresh run; and the reference's weights.

    data: this process's part of the training data, from the beginning.
    """
    cfg = run.cfg
    base = read_weights(run.model, cfg)
    run.watch.beat("weights read")
    for line in (*run.record_notes, *opening_lines(cfg, join(*base))):
        say(line)
    sources = sources_of(cfg, run.workdir, without_adapters(join(*base)))
    mesh = run.model.programs.mesh
    abstract = abstract_state(base.trained, run.optimizer, mesh)
    reference, shared = reference_of(base, cfg)
    same = partial(refuse_other_sources, run.workdir, sources, allowed=run.allowed)
    other_dtype = "model.param_dtype" in run.allowed
    restored = checkpoint.restore_latest(run.checkpoints, abstract, check_meta=same, any_dtype=other_dtype)
    with together():  # from here on the workdir belongs to this run
        if jax.process_index() == 0:
            write_json_atomic(run.workdir / "config.json", to_dict(cfg))
            truncate_metrics(run.metrics, *((-1, -1) if restored is None else (restored.step, restored.meta["judged"])))
            drop_shown(run.workdir / "rollouts", -1 if restored is None else restored.step)
            run.trackers.begin(read_metrics(run.workdir / "metrics.jsonl"), resumed=restored is not None)
    if restored is None:
        state = init_state(base.trained, run.optimizer, mesh, keep=shared)
        return Progress(state, base.frozen, data, 0, -1.0, 0, -1, 0, sources), reference
    data.set_state(restored.data_state)
    with together():
        for line in read_metrics(run.workdir / "metrics.jsonl") if jax.process_index() == 0 else []:
            if line["kind"] == "train":
                run.health.add(line)
    run.bar.update(restored.step)
    say(f"resumed {run.workdir} after step {restored.step}")
    kept = {name: restored.meta[name] for name in KEPT} | _lost_best(run, restored.meta["best"])
    cast = partial(jax.tree.map, lambda x, like: x.astype(like.dtype))  # changes nothing unless the dtype was allowed to change
    state = cast(restored.state, abstract)
    return Progress(state, base.frozen, data, restored.step, **kept, sources=sources), reference


def _lost_best(run: Run, best: float) -> dict:
    """What to begin the search for the best model with, where the one of the checkpoint is no longer on disk; else {}."""
    if best < 0 or not on_any_process(not (run.workdir / "best" / "config.json").is_file()):
        return {}
    say(f"warning: {run.workdir / 'best'} is gone, the best model so far ({best:.3f}): the next validation begins anew")
    return {"best": -1.0, "since_best": 0}
