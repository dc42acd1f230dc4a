"""Opens a workdir: checks everything before a device computes, takes a first look at the records, starts or resumes."""

import os
import sys
from functools import partial
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mtjudge_jax import checkpoint
from mtjudge_jax.config import Config, get_tasks, to_dict
from mtjudge_jax.config_check import check
from mtjudge_jax.data.images import image_size
from mtjudge_jax.data.limits import limits_of, tokens_of
from mtjudge_jax.data.rows import Row, RowFormat, to_row
from mtjudge_jax.data.sources import BadRowCounter, open_split, read_split
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.hosts.differences import refuse_differences
from mtjudge_jax.hosts.exchange import on_any_process, together
from mtjudge_jax.hosts.watchdog import Watch, watch_path
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.policy.model import Model, open_model, read_weights, reference_of
from mtjudge_jax.policy.trainable import join, without_adapters
from mtjudge_jax.policy.update import abstract_state, init_state
from mtjudge_jax.records import BadRecord, JudgeExample, holds_in_one_order
from mtjudge_jax.rl.optim import make_optimizer
from mtjudge_jax.train.monitor.batch_metrics import updates_of
from mtjudge_jax.train.monitor.health import Health
from mtjudge_jax.train.monitor.messages import opening_lines, say
from mtjudge_jax.train.monitor.metrics_file import open_metrics, read_metrics, truncate_metrics, write_json_atomic
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

LOOKED_AT = 8  # training records per task, spread evenly
_SAME_BY_CHANCE = 4  # records of a task that may have the same right answer without a warning


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
    model = open_model(cfg) if model is None else model
    folder = data_folder(cfg, workdir)
    bad_rows = BadRowCounter(cfg.data.max_bad_share)
    # Every process reads all of it, so only one counts.
    validation = read_validation(cfg, folder, bad_rows if jax.process_index() == 0 else BadRowCounter(cfg.data.max_bad_share))
    notes = check_records(cfg, folder, model.fmt)
    for change in refuse_other_config(cfg, workdir / "config.json", allowed):
        say(f"changed, as --allow_change permits: {change}")
    bar = tqdm(total=cfg.steps, unit="step", disable=not sys.stderr.isatty() or jax.process_index() > 0, dynamic_ncols=True)
    checkpoints = checkpoint.open_checkpoints(workdir / "checkpoints", cfg.checkpoint)
    optimizer = make_optimizer(cfg.optim, updates_of(cfg))
    watch = Watch(watch_path(str(workdir), jax.process_index()), cfg.hosts.stuck_seconds)
    metrics, health = open_metrics(workdir / "metrics.jsonl"), Health()
    return Run(cfg, workdir, model, optimizer, validation, checkpoints, metrics, bad_rows, bar, watch, health, allowed, notes)


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


def check_records(cfg: Config, folder: AnyPath, fmt: RowFormat) -> list[str]:
    """Makes the rows of a few training records per task. Returns notes to print: the numbers of records, the longest row,
    warnings.

    Raises ConfigError if none of a task's records can be used: each would be skipped, and the run would end without an error
    and without having trained the task.
    """
    counts, alone, one_sided, rows, shrunk = [], [], [], [], [0, 0]
    for name in cfg.data.tasks:
        source = open_split(folder, "train", name)
        counts.append(f"{name} {len(source):,}")
        places = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT, dtype=int)).tolist()
        records = [source[place] for place in places]
        made = [to_row(record, name, fmt) for record in records]
        errors, good = [str(row["error"]) for row in made], [row for row in made if not row["error"]]
        if all(errors):
            looked = f"{len(errors)} of {len(source)}" if len(errors) < len(source) else str(len(source))
            raise ConfigError(f"{folder}: no training record of {name} can be used ({looked} checked): {errors[0]}")
        if not any(record.rationale.strip() for record in records if not isinstance(record, BadRecord)):
            alone.append(name)
        rows += good
        for record, row in zip(records, made, strict=True):
            if not row["error"]:
                shrunk = [a + b for a, b in zip(shrunk, _made_smaller(record, row, fmt), strict=True)]
        if len(good) > _SAME_BY_CHANCE and len({record.label for record in records if _fixed_order(record)}) == 1:
            one_sided.append(name)
    smaller, pictures = shrunk
    said = [f"training records: {', '.join(counts)}", _longest(rows, fmt)]
    if smaller:
        said.append(
            f"{smaller} of {pictures} pictures checked were made smaller so that their prompts fit data.patches and "
            "data.prompt_tokens: larger values keep more of them, a lower data.max_pixels saves time"
        )
    if cfg.stage == "sft" and cfg.sft.target == "rationale" and alone:
        said.append(
            f"warning: {', '.join(alone)}: no record checked has gold reasoning (rationale), so SFT teaches the verdict alone. "
            "GRPO from that model will earn no reward, because it pays only for reasoning before the verdict"
        )
    if fmt.reasoning and one_sided:
        said.append(
            f"warning: {', '.join(one_sided)}: all records checked have the same right answer, and SFT shows them in the order "
            "stored, because their gold reasoning (rationale) does not name the candidates by {A}, {B}: it teaches the place. "
            "Write {A}, {B} in the rationale, or swap the candidates of half of the records"
        )
    return said


def _fixed_order(record: JudgeExample | BadRecord) -> bool:
    return not isinstance(record, BadRecord) and holds_in_one_order(record)


def _made_smaller(record: JudgeExample, row: Row, fmt: RowFormat) -> tuple[int, int]:
    """How many pictures of a record are smaller than the limits of the config alone would make them, and how many it has."""
    cfg = limits_of(fmt.image_cfg, fmt.tasks[record.task])
    segment = row["patch_segment"]
    whole = sorted(tokens_of(image_size(image), cfg) for image in record.images)
    shown = sorted(int((segment == number).sum()) // cfg.merge**2 for number in range(1, len(whole) + 1))
    return sum(mine < wanted for mine, wanted in zip(shown, whole, strict=True)), len(whole)


def _longest(rows: list[Row], fmt: RowFormat) -> str:
    tokens = max(int(row["valid"].sum()) for row in rows)
    patches = max(int((row["patch_segment"] > 0).sum()) for row in rows)
    limits = f"the limits are {fmt.prompt_tokens:,} (data.prompt_tokens) and {fmt.patch_count:,} (data.patches)"
    text = f"longest of {len(rows)} prompts checked: {tokens:,} tokens and {patches:,} patches, {limits}"
    if fmt.target is not None:
        answer = max(int(row["target_mask"].sum()) for row in rows)
        text += f"; longest answer: {answer:,} tokens, the limit is {fmt.completion_tokens:,} (rollout.completion_tokens)"
    return text
