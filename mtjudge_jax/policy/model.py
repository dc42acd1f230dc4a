"""The policy of a run: its model folder, tokenizer and programs, its weights, and the reference policy."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from mtjudge_jax.config import Config, answers_learned, get_tasks, has_reference, offline
from mtjudge_jax.data.image_config import configured, load_image_config
from mtjudge_jax.data.images import Budget
from mtjudge_jax.data.rows import RowFormat, answer_alone, completion_text
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.hosts.exchange import together
from mtjudge_jax.jax_setup import keep_compiled
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.hf.lora import load_peft, merge_lora
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import AdapterConfig, Qwen3VLConfig, load_config
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.policy.judge_file import judge_tasks, without_limits
from mtjudge_jax.policy.programs import Programs, make_programs
from mtjudge_jax.policy.trainable import Split, cast, join, split
from mtjudge_jax.records import BadRecord, JudgeExample
from mtjudge_jax.rl.routing import check_replay
from mtjudge_jax.sharding import make_mesh, param_sharding, path_name
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.answer import answer_text, as_asked, truth_of
from mtjudge_jax.tasks.pictures import most_pictures
from mtjudge_jax.types import Params

DEMO_BASE = Path(__file__).parents[1] / "demo" / "base"


class Model(NamedTuple):
    """A model folder with its tokenizer, row format and jitted programs, without weights."""

    folder: AnyPath
    cfg: Qwen3VLConfig
    programs: Programs
    fmt: RowFormat


def model_folder(path: str, *, said: str = "model.path = ") -> AnyPath:
    """The folder that `path` names. `said` is the flag or field that gave it. Raises ConfigError if it holds no model."""
    folder = DEMO_BASE if path == "demo" else as_path(path)
    if not (folder / "config.json").is_file():
        hub = path.count("/") == 1 and not path.startswith(("/", ".", "~")) and not folder.exists()
        get = f"; a name of the hub is not downloaded: hf download {path} --local-dir=models/{folder.name}, and give that folder"
        raise ConfigError(f"{said}{path!r} has no config.json: give a Hugging Face folder of a Qwen3-VL, or 'demo'{get * hub}")
    return folder


def open_model(cfg: Config) -> Model:
    """Config, tokenizer and jitted programs of `model.path`; the weights are read by `read_params`."""
    folder = model_folder(cfg.model.path)
    model_cfg, fmt = with_adapters(load_config(folder), cfg), row_format(cfg, folder)
    vision = dataclasses.replace(model_cfg.vision, image_mean=fmt.image_cfg.mean, image_std=fmt.image_cfg.std)
    model_cfg = dataclasses.replace(model_cfg, vision=vision)
    check_replay(cfg, model_cfg.text)
    keep_compiled()
    return Model(folder, model_cfg, make_programs(cfg, model_cfg, fmt.tokenizer, make_mesh(cfg.mesh)), fmt)


def row_format(cfg: Config, folder: AnyPath) -> RowFormat:
    """How a run's records become rows for the model of the folder."""
    try:
        tokenizer, own = load_tokenizer(folder), load_image_config(folder)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{folder}: tokenizer or preprocessor settings are damaged ({error}): copy it again") from error
    tasks = get_tasks(cfg)
    return RowFormat(
        tasks,
        tokenizer,
        configured(own, cfg.data, tuple(tasks.values())),
        cfg.data.prompt_tokens,
        cfg.data.patches,
        completion_tokens=cfg.rollout.completion_tokens,
        target=target_of(cfg, tasks),
        targets=answers_learned(cfg) if offline(cfg) else 1,
        display=True,
        taught=taught_texts(cfg),
        budget=Budget(cfg.data.prompt_tokens, cfg.data.patches),
    )


def with_adapters(model_cfg: Qwen3VLConfig, cfg: Config) -> Qwen3VLConfig:
    """The model's config with the run's adapters, if it trains any. Raises ConfigError for a target that the model lacks."""
    if not cfg.lora.rank:
        return model_cfg
    absent = {"gate", "up", "down"} & set(cfg.lora.targets)
    if model_cfg.text.moe and absent:
        raise ConfigError(
            f"lora.targets = {cfg.lora.targets}: a mixture of experts has no single {', '.join(sorted(absent))}: take q, k, v, o"
        )
    return dataclasses.replace(model_cfg, lora=AdapterConfig(cfg.lora.rank, cfg.lora.alpha, cfg.lora.targets))


def taught_texts(cfg: Config) -> tuple[str, ...]:
    """The fields of a record whose texts the run teaches; () in RL, and where SFT teaches the verdict alone."""
    return {"sft": ("rationale",) * (cfg.sft.target == "rationale"), "dpo": ("chosen", "rejected")}.get(cfg.stage, ())


def target_of(cfg: Config, tasks: Mapping[str, Task]) -> Callable[[JudgeExample], tuple[str, ...]] | None:
    """The function that gives the completions that a record teaches: one in SFT, a better and a worse one in DPO; None in RL."""
    if cfg.stage == "dpo":
        return partial(pair_of_answers, tasks)
    return (lambda example: (true_target(tasks, example, form=cfg.sft.target),)) if cfg.stage == "sft" else None


def pair_of_answers(tasks: Mapping[str, Task], example: JudgeExample) -> tuple[str, str]:
    """The chosen and the rejected answer of a record, in the words of its question. Raises BadRecord `no_pair` without them."""
    if not (example.chosen.strip() and example.rejected.strip()):
        remedy = "give both in its row, or make them with `mtjudge sample --keep=pairs`"
        raise BadRecord("no_pair", f"{example.example_id} has no chosen and rejected answer: {remedy}", example.example_id)
    task = tasks[example.task]
    return as_asked(example.chosen, task, example), as_asked(example.rejected, task, example)


def true_target(tasks: Mapping[str, Task], example: JudgeExample, *, form: str = "rationale") -> str:
    """The completion that SFT teaches, by sft.target: gold reasoning and the true verdict in the question's own words, or the
    verdict alone. Reasoning names the candidates of a pair or a list as the question shows them.

        "rationale"  -> "<think>looks blurry</think><answer>no</answer>"
        "answer", and every record without reasoning  -> "<answer>no</answer>"

    The lenient parser reads both. The strict one, which RL rewards, reads only the first.
    """
    truth = truth_of(tasks[example.task], example)
    answer = answer_text(truth)
    if form == "answer" or not example.rationale.strip():
        return answer_alone(answer)
    return completion_text(truth.facts["rationale"], answer)


def eval_format(model: Model, cfg: Config) -> RowFormat:
    """The format of questions in evaluation: the wordings of `eval.templates`, candidates in the given order. Pictures are as
    large as in training.
    """
    tasks = get_tasks(cfg, cfg.eval.templates)
    images = most_pictures([tasks[name] for name in cfg.data.tasks])
    return model.fmt._replace(tasks=tasks, target=None, display=False, budget=model.fmt.budget._replace(images=images))


def judging_format(model: Model, cfg: Config) -> RowFormat:
    """`eval_format` where `cfg` is the `judge_config` of the model's folder, whose judge.json knows the tasks of training.

    Without one, the sizes count as those of a question about one picture. A judge.json without max_pixels is of an older version,
    which made no picture smaller: what its judge could be asked then is shown in the same size now.
    """
    fmt, trained = eval_format(model, cfg), judge_tasks(model.folder)
    if without_limits(model.folder):
        return fmt._replace(budget=None)
    known = [fmt.tasks[name] for name in trained if name in fmt.tasks]
    return fmt._replace(budget=fmt.budget._replace(images=most_pictures(known) if known else 1))


def read_params(model: Model, cfg: Config) -> Params:
    """The weights of the model's folder on its mesh, in model.dtype."""
    return _read(model, cfg.model.dtype)


def read_weights(model: Model, cfg: Config) -> Split:
    """The weights to start from: the trained ones in model.param_dtype, the others in model.dtype.

    With adapters, the trained ones are those of `lora.path`, or fresh ones. Raises UserError for an adapter of another rank,
    alpha or targets.
    """
    if cfg.lora.rank:
        return Split(_adapters(model, cfg), _read(model, cfg.model.dtype))
    trained, frozen = split(_read(model, cfg.model.param_dtype), cfg)
    return Split(trained, jax.jit(partial(cast, dtype=cfg.model.dtype), donate_argnums=0)(frozen))


def _adapters(model: Model, cfg: Config) -> Params:
    if cfg.lora.path:
        with together():
            adapters = load_peft(cfg.lora.path, model.cfg, dtype=cfg.model.param_dtype)
    else:
        adapters = vlm.init_adapters(model.cfg, cfg.seed, cfg.model.param_dtype)
    mesh = model.programs.mesh
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jax.device_put(x, param_sharding(path_name(path), x.shape, mesh)), adapters
    )


def _read(model: Model, dtype: str) -> Params:
    mesh = model.programs.mesh
    base = dataclasses.replace(model.cfg, lora=None)
    return load_params(model.folder, base, dtype=dtype, sharding_of=lambda path, shape: param_sharding(path, shape, mesh))


def reference_of(base: Split, cfg: Config) -> tuple[Params | None, bool]:
    """The reference policy: the starting model in model.dtype, or None if the stage needs none; and whether it shares the arrays
    of `base.trained`.

    With adapters it is the frozen base, so no weight is copied. Otherwise it shares the frozen weights only, unless the dtypes
    are equal.
    """
    if not has_reference(cfg):
        return None, False
    if cfg.lora.rank:
        return base.frozen, False
    if cfg.model.dtype == cfg.model.param_dtype:
        return join(*base), True
    return join(jax.jit(partial(cast, dtype=cfg.model.dtype))(base.trained), base.frozen), False


def exportable(params: Params, model: Model) -> Params:
    """The weights of an ordinary Qwen3-VL: adapters, if there are any, are merged."""
    return merge_lora(params, model.cfg) if model.cfg.lora else params
