"""judge.json, which lies beside a trained model: the sizes, tasks and wordings that it was trained with."""

import json
import os

import jax

from mtjudge_jax.config import Config
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.paths import as_path

JUDGE_FILE = "judge.json"


def judge_file(cfg: Config, step: int, templates: dict[str, str]) -> bytes:
    """What JUDGE_FILE says: the sizes a model was trained with, after which step it was taken, what its questions were."""
    sizes = {"prompt_tokens": cfg.data.prompt_tokens, "patches": cfg.data.patches}
    sizes |= {"completion_tokens": cfg.rollout.completion_tokens}
    asked = {"custom_tasks": cfg.data.custom_tasks, "polarity": cfg.data.polarity, "label_words": cfg.data.label_words}
    plain = {"custom_tasks": (), "polarity": "plain", "label_words": "plain"}
    told = {name: value for name, value in asked.items() if value != plain[name]}
    return json.dumps(sizes | {"step": step, "templates": templates} | told).encode() + b"\n"


def best_of(folder: str | os.PathLike) -> str | os.PathLike:
    """The best/ of a workdir, any other folder as it is. Raises ConfigError for a workdir that has none yet."""
    path = as_path(folder)
    if (path / "best" / "config.json").is_file():
        return path / "best"
    if (path / "metrics.jsonl").is_file():
        raise ConfigError(f"{path} is the workdir of a run that has no best/ yet: give a model folder, or train on")
    return folder


def judge_config(folder: str | os.PathLike, *, batch: int) -> Config:
    """The settings that judging with a folder needs; its judge.json tells the sizes it was trained with and the
    run's own tasks. A question is asked in a task's first wording.
    """
    cfg = Config()
    folder = best_of(folder)
    cfg.model.path = os.fspath(folder)
    devices = jax.device_count()
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = -(-batch // devices) * devices  # a share for each
    cfg.eval.templates = "first"
    path = as_path(folder) / JUDGE_FILE
    if path.is_file():
        try:
            sizes = json.loads(path.read_text())
            cfg.data.prompt_tokens, cfg.data.patches = sizes["prompt_tokens"], sizes["patches"]
            cfg.rollout.completion_tokens = sizes["completion_tokens"]
            cfg.data.custom_tasks = tuple(sizes.get("custom_tasks", ()))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error!r}): copy it again, or remove it to judge with the defaults") from error
    return cfg
