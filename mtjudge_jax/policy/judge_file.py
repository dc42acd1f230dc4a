"""Reads and writes judge.json, a file beside a trained model: the sizes, tasks and wordings of its training, and its stages."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping

import jax

from mtjudge_jax.config import Config, MeshConfig
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.paths import absolute, as_path

JUDGE_FILE = "judge.json"
_STAGE = {"stage", "from", "tasks", "step"}
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # the name of a model's folder in the hub's cache
_PUBLISHED = re.compile(r"Qwen3-VL-(2B|4B|8B|32B|30B-A3B|235B-A22B)-(Instruct|Thinking)")  # the name of a downloaded folder


def judge_file(cfg: Config, step: int, templates: dict[str, str], pixels: tuple[int, int] | None = None) -> bytes:
    """The content of JUDGE_FILE: the sizes that a model was trained with, the step it is from, and its tasks and wordings.

    pixels: smallest and largest area of a single picture; default: what the config says, where 0 is the model folder's own.
    """
    low, high = (cfg.data.min_pixels, cfg.data.max_pixels) if pixels is None else pixels
    sizes = {"prompt_tokens": cfg.data.prompt_tokens, "patches": cfg.data.patches}
    sizes |= {"completion_tokens": cfg.rollout.completion_tokens, "min_pixels": low, "max_pixels": high}
    asked = {"custom_tasks": cfg.data.custom_tasks, "polarity": cfg.data.polarity, "label_words": cfg.data.label_words}
    plain = {"custom_tasks": (), "polarity": "plain", "label_words": "plain"}
    changed = {name: value for name, value in asked.items() if value != plain[name]}
    stage = {"stage": cfg.stage, "from": model_name(cfg.model.path), "tasks": list(cfg.data.tasks), "step": step}
    stages = [*stages_of(cfg.model.path), stage]
    return json.dumps(sizes | {"step": step, "templates": templates, "stages": stages} | changed).encode() + b"\n"


def stages_of(folder: str) -> list[dict]:
    """How the model of a folder was trained, the first run first: {stage, from, tasks, step} each. [] for a model of others."""
    if folder == "demo":  # the base of the package, whatever lies in a folder of that name
        return []
    path = as_path(folder) / JUDGE_FILE
    try:
        stages = json.loads(path.read_text())["stages"] if path.is_file() else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    whole = isinstance(stages, list) and all(isinstance(one, dict) and one.keys() >= _STAGE for one in stages)
    return stages if whole else []


def model_name(folder: str) -> str:
    """What a starting model is called: by its name on the hub if the folder says it, else by the folder, or its run.

    `runs/sft/best` -> `sft/best`, `Qwen3-VL-2B-Instruct` -> `Qwen/Qwen3-VL-2B-Instruct`.
    """
    if folder == "demo":
        return "the demo base of mtjudge_jax"
    path = absolute(as_path(folder))
    return hub_name(folder) or ("/".join(path.parts[-2:]) if path.name == "best" else path.name)


def hub_name(folder: str | os.PathLike) -> str | None:
    """ "Qwen/Qwen3-VL-2B-Instruct", None if the folder's path does not say it."""
    path = absolute(as_path(folder))
    if _PUBLISHED.fullmatch(path.name):
        return f"Qwen/{path.name}"
    cached = [found for part in path.parts if (found := _HUB_CACHE.fullmatch(part))]
    return f"{cached[-1][1]}/{cached[-1][2]}" if cached else None


def best_of(folder: str | os.PathLike) -> str | os.PathLike:
    """The best/ of a workdir; any other folder unchanged. Raises ConfigError for a workdir without best/."""
    path = as_path(folder)
    if (path / "best" / "config.json").is_file():
        return path / "best"
    if (path / "metrics.jsonl").is_file():
        raise ConfigError(f"{path} is the workdir of a run that has no best/ yet: give a model folder, or train on")
    return folder


def judge_tasks(folder: str | os.PathLike) -> tuple[str, ...]:
    """The tasks that the model of a folder was trained on, () if it has no judge.json or that does not name them."""
    path = as_path(folder) / JUDGE_FILE
    try:
        return tuple(json.loads(path.read_text())["templates"]) if path.is_file() else ()
    except (ValueError, KeyError, TypeError):
        return ()


def without_limits(folder: str | os.PathLike) -> bool:
    """Whether a folder has a judge.json of an older version, without the limits of a picture."""
    path = as_path(folder) / JUDGE_FILE
    try:
        return path.is_file() and "max_pixels" not in json.loads(path.read_text())
    except (ValueError, TypeError):
        return False


def mesh_of(axes: str | Iterable[str] | Mapping[str, int]) -> MeshConfig:
    """ "fsdp=2,tensor=2", its parts in a list or {"fsdp": 2, "tensor": 2} -> two devices along each of these axes, the rest along
    data.
    """
    if isinstance(axes, Mapping):
        axes = [f"{name}={devices}" for name, devices in axes.items()]
    mesh, names = MeshConfig(), [field.name for field in dataclasses.fields(MeshConfig)]
    for axis in axes.split(",") if isinstance(axes, str) else axes:
        name, _, devices = axis.strip().partition("=")
        if name not in names or not devices.removeprefix("-").isdecimal():
            raise ConfigError(f"--mesh={axis}: give AXIS=DEVICES with an axis of {', '.join(names)}, e.g. --mesh=fsdp=2,tensor=2")
        mesh = dataclasses.replace(mesh, **{name: int(devices)})
    return mesh


def judge_config(folder: str | os.PathLike, *, batch: int) -> Config:
    """The config for judging with a model folder: sizes and the run's own tasks come from its judge.json. A question is asked in
    the task's first wording.
    """
    cfg = Config()
    folder = best_of(folder)
    cfg.model.path = os.fspath(folder)
    devices = jax.device_count()
    share = -(-batch // devices)  # of each device, rounded up
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = share * devices
    cfg.eval.templates = "first"
    path = as_path(folder) / JUDGE_FILE
    if path.is_file():
        try:
            sizes = json.loads(path.read_text())
            cfg.data.prompt_tokens, cfg.data.patches = sizes["prompt_tokens"], sizes["patches"]
            cfg.rollout.completion_tokens = sizes["completion_tokens"]
            cfg.data.min_pixels, cfg.data.max_pixels = sizes.get("min_pixels", 0), sizes.get("max_pixels", 0)
            cfg.data.custom_tasks = tuple(sizes.get("custom_tasks", ()))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error!r}): copy it again, or remove it to judge with the defaults") from error
    return cfg
