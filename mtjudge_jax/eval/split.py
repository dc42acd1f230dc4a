"""`mtjudge eval`: judges a split of prepared data with a model, and writes scores and predictions.

Each batch is kept when it is done, so the same command continues a killed evaluation and writes the same bytes.
"""

import collections
import contextlib
import json
import os
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from mtjudge_jax import hosts
from mtjudge_jax.checkpoint import check_workdir
from mtjudge_jax.checkpoint.digest import digests
from mtjudge_jax.config import Config, HostsConfig, get_tasks
from mtjudge_jax.config_check import check
from mtjudge_jax.data.bad_rows import BadRowCounter
from mtjudge_jax.data.pipeline import read_manifest, read_split
from mtjudge_jax.errors import ConfigError, UserError, unknown
from mtjudge_jax.eval.batches import Judging, how_sampled
from mtjudge_jax.eval.console import progress_bar, table
from mtjudge_jax.eval.evaluate import evaluate, write_evaluation
from mtjudge_jax.eval.official import official
from mtjudge_jax.eval.resume import Kept, open_kept, refuse_other
from mtjudge_jax.hosts.exchange import gather, together
from mtjudge_jax.locks import held
from mtjudge_jax.paths import AnyPath, absolute, as_path, read_object, remove_tree
from mtjudge_jax.policy.judge_file import JUDGE_FILE, best_of, judge_config, mesh_of
from mtjudge_jax.policy.model import eval_format, judging_format, model_folder, open_model, read_params
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.rl.logp import EVERY
from mtjudge_jax.tasks import Task, get_task
from mtjudge_jax.types import Params


class Request(NamedTuple):
    """What the flags of `mtjudge eval` ask for, and most of those of `mtjudge sample`."""

    config: Config | None
    model: str
    data: str
    out: str
    name: str
    split: str
    tasks: list[str]
    limit: int
    batch: int
    samples: int
    seed: int
    templates: str
    mesh: list[str]


def run(ask: Request) -> None:
    """Judges on all processes, in one process group."""
    with hosts.joined(HostsConfig()):
        _judge_split(ask)


def examples_asked(ask: Request, unreadable: BadRowCounter, known: Mapping[str, Task]) -> dict[str, list[JudgeExample]]:
    """The examples to judge, by task. Raises UserError if there are none."""
    files = read_manifest(ask.data)["files"]
    splits = list(dict.fromkeys(name.split("/")[0] for name in files))
    if ask.split not in splits:
        raise UserError(f"{ask.data}: {unknown('split', ask.split, splits)}")
    names = ask.tasks or [name.split("/")[1] for name in files if name.split("/")[0] == ask.split]
    for name in names:
        if name not in known and f"{ask.split}/{name}" in files:
            raise ConfigError(
                f"unknown task {name!r}, but {ask.data} has records for it: give the config that defines it in "
                "data.custom_tasks, --config=FILE.py, or select other tasks with --tasks"
            )
    examples = {get_task(name, known).name: read_split(ask.data, ask.split, name, unreadable) for name in names}
    if empty := [name for name, group in examples.items() if not group]:
        raise UserError(f"{ask.data} has no record of {', '.join(empty)} in {ask.split}: select other tasks with --tasks")
    return {name: group[: ask.limit or None] for name, group in examples.items()}


def settings_of(ask: Request, cfg: Config, how: Judging, params: Params, tasks: Sequence[str]) -> dict:
    """Everything that the predictions depend on. Two evaluations with equal settings have equal results."""
    files = read_manifest(ask.data)["files"]
    return {
        "model": f"{zlib.crc32(json.dumps(digests(params)).encode()):08x}",
        "data": {name: files[f"{ask.split}/{name}"]["sha256"] for name in tasks},
        "split": ask.split,
        "tasks": list(tasks),
        "limit": ask.limit,
        "batch": how.batch,
        "samples": ask.samples,
        "temperature": cfg.eval.temperature or cfg.rollout.temperature,
        **({} if how.only == EVERY else {"filter": how.only._asdict()}),
        "seed": ask.seed,
        "sizes": [how.fmt.prompt_tokens, how.fmt.patch_count, how.fmt.completion_tokens],
        "wordings": ask.templates,
        "templates": {name: how.fmt.tasks[name].template_hash for name in tasks},
    } | ({"pictures": [*how.fmt.image_cfg[2:4], *how.fmt.budget]} if how.fmt.budget else {})


def _judged(ask: Request, cfg: Config) -> dict:
    """Which model judged which data: absolute names of the folders, by which `mtjudge report` finds the evaluation of a run, and
    the step of the model if it was trained here.
    """
    folder = as_path(cfg.model.path)
    model = cfg.model.path if cfg.model.path == "demo" else os.fspath(absolute(folder))
    step = read_object(folder / JUDGE_FILE).get("step") if (folder / JUDGE_FILE).is_file() else None
    return {"model": model, "data": os.fspath(absolute(as_path(ask.data))), "step": step}


def _already_judged(path: AnyPath, settings: dict) -> dict | None:
    """The scores, if this evaluation was finished before. Raises ConfigError if the file is from another evaluation."""
    if not path.is_file():
        return None
    result = json.loads(path.read_text())
    if "settings" not in result:
        raise ConfigError(f"{path} is not from mtjudge eval: give another --out or --name")
    refuse_other(result["settings"], settings, f"{path} is from another evaluation")
    return result


def config_of(ask: Request) -> Config:
    """The config to judge with. Without --config: the sizes of the model's judge.json, and --mesh or a whole model per device.
    With --config: that config, whose model is used unless --model names another.
    """
    if ask.config is not None:
        if ask.mesh:
            raise ConfigError(f"--mesh={','.join(ask.mesh)} with --config, which has a mesh: give --config.mesh.fsdp=.. instead")
        cfg = ask.config
        cfg.stage = "grpo"
        cfg.model.path = os.fspath(best_of(ask.model)) if ask.model else cfg.model.path
        check(cfg, jax.device_count(), jax.process_count())
    else:
        cfg = judge_config(ask.model, batch=ask.batch)
        cfg.mesh = mesh_of(ask.mesh)
    # Checked before the data is read: the model's judge.json defines the run's own tasks.
    model_folder(cfg.model.path, said="--model=" if ask.model else "model.path = ")
    cfg.eval.templates = ask.templates
    return cfg


def _check_held_out(names: list[str], known: Mapping[str, Task]) -> None:
    """Warns of tasks that have no wording held out, which are asked in their only ones. Raises ConfigError if none has any."""
    forms = {name: known[name].wordings.forms if known[name].wordings else () for name in names}
    without = [name for name in names if not any(form.held_out for form in forms[name])]
    if len(without) == len(names):
        remedy = "give the tasks held_out=(..) in data.custom_tasks before training, or leave --templates out"
        raise ConfigError(f"--templates=held_out, but no wording is held out of {', '.join(names)}: {remedy}")
    if without:
        print(f"warning: no wording is held out of {', '.join(without)}: asked as in training", file=sys.stderr)


def _judge_split(ask: Request) -> None:
    cfg = config_of(ask)
    unreadable = BadRowCounter()
    examples = examples_asked(ask, unreadable, get_tasks(cfg))
    if ask.templates == "held_out":
        _check_held_out(list(examples), get_tasks(cfg))
    check_workdir(ask.out)
    with contextlib.ExitStack() as stack:
        with together():
            stack.enter_context(held(as_path(ask.out), name=ask.name or ask.split, holds=jax.process_index() == 0))
        _judge_into_folder(ask, cfg, examples, unreadable)


def _judge_into_folder(ask: Request, cfg: Config, examples: dict[str, list[JudgeExample]], unreadable: BadRowCounter) -> None:
    """Judges what no earlier command has judged, writes the scores and prints them."""
    model = open_model(cfg)
    fmt = (judging_format if ask.config is None else eval_format)(model, cfg)
    sizes = {"batch": cfg.rollout.prompts, "kept": cfg.rollout.micro_prompts} | how_sampled(cfg, ask.samples)
    how = Judging(model.programs, fmt, alpha=cfg.reward.alpha, seed=ask.seed, **sizes)
    params, name = read_params(model, cfg), ask.name or ask.split
    settings = settings_of(ask, cfg, how, params, list(examples))
    written, part = as_path(ask.out) / f"{name}.json", as_path(ask.out) / f"{name}.partial"
    with together():
        found = _already_judged(written, settings) if jax.process_index() == 0 else None
    speed, found = "judged before", gather(found)[0]
    if found is None:
        kept = open_kept(part, settings)
        predictions, found, speed = _judge_all(params, examples, how, kept)
        found["unusable"] = dict(unreadable.reasons + collections.Counter(found["unusable"]))
        found |= {"split": ask.split, "predictions": len(predictions), "settings": settings, "judged": _judged(ask, cfg)}
        write_evaluation(ask.out, name, predictions, found)
    if jax.process_index() > 0:
        return
    remove_tree(part)
    print(table(found))
    print(f"{found['predictions']} predictions, {speed}, written to {written}")


def _judge_all(params: Params, examples: dict[str, list[JudgeExample]], how: Judging, kept: Kept) -> tuple[list[dict], dict, str]:
    """Predictions, scores, and the speed in words."""
    if len(kept) and jax.process_index() == 0:
        print(f"continuing after {len(kept)} batches that were judged before", file=sys.stderr)
    began = time.perf_counter()
    with progress_bar(examples, how.fmt.tasks) as progress:
        settings = {"step": 0, "probabilities": True, "progress": progress, "kept": kept, "official": official}
        predictions, result = evaluate(params, examples, how, **settings)
    seconds = time.perf_counter() - began
    rate = f"{kept.prompts / seconds:.1f} prompts/s, {kept.tokens / seconds:.0f} tokens/s"
    return predictions, result, f"{kept.prompts} prompts judged in {seconds:.1f} s ({rate})"
