"""The limits of every config field, as tables, and `check`, which raises ConfigError on the first field that breaks one.
`task_settings` reads and checks what single tasks have of their own.
"""

import dataclasses
import math
import types
from collections.abc import Sequence
from typing import NamedTuple

from mtjudge_jax.config import RECIPES, Config, MeshConfig, flatten, get_tasks, in_both_orders
from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.base import TEMPLATES
from mtjudge_jax.tasks.reward import weights_of

_TASK_FIELDS = ("task", "temperature", "completion_tokens", "weights")  # of an entry of rollout.per_task
_CHOICES = {
    "stage": ("grpo", "sft", "dpo"),
    "recipe": ("", *RECIPES),
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("auto", "xla", "chunked", "splash", "tokamax"),
    "model.experts": ("auto", "dense", "ragged", "tokamax"),
    "data.mixture": ("proportional", "uniform", "temperature", "weights", "mt_grpo"),
    "data.mt_grpo_improvement": ("objective", "reward"),
    "data.polarity": ("plain", "varied"),
    "data.label_words": ("plain", "varied"),
    "eval.templates": TEMPLATES,
    "sft.target": ("rationale", "answer"),
    "loss.advantage": ("grpo", "dr_grpo", "rloo", "gdpo"),
    "loss.advantage_std": ("unbiased", "population"),
    "loss.policy": ("clip", "gspo", "gspo_token", "cispo", "sapo"),
    "loss.kl_estimator": ("k1", "k2", "k3"),
    "loss.kl_in": ("loss", "reward"),
    "loss.aggregation": ("token_mean", "sequence_mean", "constant"),
    "loss.flat_groups": ("keep", "out"),
    "loss.truncated": ("keep", "out"),
    "loss.sampler_weight": ("none", "token", "sequence"),
    "optim.name": ("adamw", "muon"),
    "optim.schedule": ("constant", "cosine"),
}
_AMONG = {  # choices of each entry of a tuple
    "model.freeze": ("vision", "mergers", "embeddings"),
    "lora.targets": ("q", "k", "v", "o", "gate", "up", "down"),
    "log.to": ("tensorboard", "wandb", "mlflow", "swanlab", "trackio"),
}
_AT_LEAST = {
    "steps": 1,
    "rollout.prompts": 1,
    "rollout.group_size": 2,
    "rollout.completion_tokens": 2,
    "update.prompts": 1,
    "update.micro_prompts": 1,
    "data.prompt_tokens": 1,
    "data.mt_grpo_max_oversample": 1,
    "data.mt_grpo_rounds": 1,
    "model.head_chunk": 1,
    "eval.every_steps": 1,
    "eval.samples": 1,
    "checkpoint.every_steps": 1,
    "checkpoint.keep": 1,
    "update.max_skipped": 1,
    "reward.batch_answers": 1,
    "reward.batch_threads": 1,
    "hosts.start_seconds": 5,
    "hosts.heartbeat_seconds": 2,
    "checkpoint.max_failed_saves": 1,
    "loss.dual_clip": 1,
    "loss.cispo_cap": 1,
    "loss.sampler_cap": 1,
    "rollout.rounds": 1,
    "log.rollouts_every": 1,
}
_NOT_NEGATIVE = (
    "seed", "lora.rank", "data.patches", "rollout.micro_prompts", "reward.overlong_buffer", "reward.batch_retries", "optim.lr",
    "optim.warmup_steps", "optim.weight_decay", "eval.limit", "eval.patience", "eval.temperature", "eval.top_k",
    "hosts.stuck_seconds", "loss.clip_low", "loss.clip_high", "loss.kl_coef", "loss.advantage_eps", "loss.entropy_coef",
)  # fmt: skip
_NOT_NEGATIVE += ("dpo.sft_coef", "data.max_pixels", "data.min_pixels", "log.rollouts", "log.gap_every")
_AT_LEAST |= dict.fromkeys(_NOT_NEGATIVE, 0)
_SHARES = ("reward.alpha", "reward.tie_credit", "optim.final_lr_ratio", "data.max_bad_share", "loss.clip_low")  # 0 to 1
_SHARES += ("reward.batch_max_failed", "eval.top_p")
_BELOW_ONE = ("optim.b1", "optim.b2", "data.mt_grpo_rho_decay")
_POSITIVE = ("dpo.beta", "lora.alpha", "reward.batch_timeout", "rollout.temperature", "optim.max_grad_norm", "optim.eps")
_POSITIVE += ("loss.sapo_positive", "loss.sapo_negative")
_POSITIVE += ("eval.top_p", "data.mixture_temperature", "data.mt_grpo_lambda", "data.mt_grpo_beta")


def check(cfg: Config, devices: int | None = None, processes: int = 1) -> None:
    """Raises ConfigError on the first invalid field, before anything is compiled.

    With `devices`, the number of devices of all processes together, it checks the mesh too.
    """
    _check_types(cfg)
    _check_limits(flatten(cfg))
    if not cfg.model.path:
        raise ConfigError("model.path is empty: name a Hugging Face folder of a Qwen3-VL, or 'demo'")
    tasks = get_tasks(cfg)
    _check_reward(cfg)
    _check_tasks(cfg, tasks)
    _check_loss(cfg)
    _check_mixture(cfg)
    if (traced := cfg.log.profile) and not (len(traced) == 2 and 1 <= traced[0] <= traced[1]):
        raise ConfigError(f"log.profile = {traced} must be the first and the last step to trace, e.g. (10, 12)")
    if cfg.log.rollouts and cfg.stage != "grpo":
        raise ConfigError(f"log.rollouts = {cfg.log.rollouts}, but stage = {cfg.stage!r} has no rollouts: set it to 0")
    if cfg.rollout.per_task and cfg.stage != "grpo":
        raise ConfigError(f"rollout.per_task is of training by GRPO, and stage = {cfg.stage!r}: leave it out")
    task_settings(cfg)
    if in_both_orders(cfg):
        _check_orders(cfg, tasks, processes)
    _check_model(cfg)
    _check_batches(cfg, tasks, devices)
    if devices is not None:
        _check_processes(cfg, devices, processes)


def _check_limits(values: dict[str, object]) -> None:
    """Compares every field with the tables above. `values` are the fields by dotted name."""
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise ConfigError(f"{name} = {values[name]!r}: {unknown('choice', str(values[name]), choices)}")
    for name, least in _AT_LEAST.items():
        if not values[name] >= least:
            why = ": a single answer has no group to be compared with" if name == "rollout.group_size" else ""
            raise ConfigError(f"{name} = {values[name]} must be at least {least}{why}")
    for name in _SHARES:
        if not 0 <= values[name] <= 1:
            raise ConfigError(f"{name} = {values[name]} must be between 0 and 1")
    for name in _BELOW_ONE:
        if not 0 <= values[name] < 1:
            raise ConfigError(f"{name} = {values[name]} must be at least 0 and below 1")
    for name in _POSITIVE:
        if not values[name] > 0:
            raise ConfigError(f"{name} = {values[name]} must be above 0")
    for name, choices in _AMONG.items():
        for one in values[name]:
            if one not in choices:
                raise ConfigError(f"{name} = {values[name]}: {unknown('name', str(one), choices)}")
        if len(set(values[name])) != len(values[name]):
            raise ConfigError(f"{name} = {values[name]} has a name twice: give each once")


def _check_tasks(cfg: Config, tasks: dict[str, Task]) -> None:
    if not cfg.data.tasks:
        raise ConfigError(
            "data.tasks is empty: name at least one task, e.g. technical or agin_tech (all are in docs/tasks_and_rewards.md)"
        )
    for where, names in (("data.tasks", cfg.data.tasks), ("eval.tasks", cfg.eval.tasks)):
        for name in names:
            if not isinstance(name, str):
                raise ConfigError(f"{where}: {name!r} is a {type(name).__name__}, it must be the name of a task, a str")
            if name not in tasks:
                raise ConfigError(f"{where}: {unknown('task', name, tasks)}; your own have their entries in data.custom_tasks")
        if len(set(names)) != len(names):
            raise ConfigError(f"{where} = {names} has a task twice: give each once")
    for name in cfg.data.tasks:
        if tasks[name].ood:
            raise ConfigError(f"{name!r} is an evaluation-only task: move it from data.tasks to eval.tasks")


def _check_loss(cfg: Config) -> None:
    loss, mixture = cfg.loss, cfg.data.mixture
    if loss.dual_clip <= 1 + loss.clip_high:
        raise ConfigError(f"loss.dual_clip = {loss.dual_clip} must be above 1 + loss.clip_high = {1 + loss.clip_high}")
    if loss.advantage == "gdpo" and loss.kl_in == "reward":
        raise ConfigError("loss.kl_in = 'reward' needs one reward, loss.advantage = 'gdpo' keeps its parts: set kl_in to loss")
    if mixture == "mt_grpo" and cfg.rollout.rounds > 1:
        raise ConfigError(f"rollout.rounds = {cfg.rollout.rounds}, but data.mixture = 'mt_grpo' has data.mt_grpo_rounds")
    if in_both_orders(cfg) and cfg.rollout.rounds > 1:
        raise ConfigError(f"rollout.rounds = {cfg.rollout.rounds} could part a pair's two orders (consistency): leave one out")
    if loss.policy == "cispo" and mixture == "mt_grpo" and cfg.data.mt_grpo_improvement == "objective":
        raise ConfigError("loss.policy = 'cispo' has no objective to measure: set data.mt_grpo_improvement = 'reward'")


def _check_mixture(cfg: Config) -> None:
    mode, weights, tasks = cfg.data.mixture, cfg.data.mixture_weights, len(cfg.data.tasks)
    if len(weights) != tasks * (mode == "weights") or any(type(w) not in (int, float) or not 0 < w < math.inf for w in weights):
        need = f"hold one number above 0 for each of the {tasks} data.tasks" if mode == "weights" else "be empty"
        raise ConfigError(f"data.mixture_weights = {weights} with data.mixture = {mode!r} must {need}")
    if mode == "mt_grpo" and cfg.stage != "grpo":
        raise ConfigError(f"data.mixture = 'mt_grpo' follows rewards, and stage = {cfg.stage!r} has none: take another mixture")


def _check_orders(cfg: Config, tasks: dict[str, Task], processes: int) -> None:
    """The part consistency compares the answers to the two orders of a pair, so one process must have both."""
    part, prompts = "reward.weights has consistency", cfg.rollout.prompts
    if cfg.stage != "grpo":
        raise ConfigError(f"{part}, but stage = {cfg.stage!r} has no rewards: leave it out")
    if cfg.data.mixture == "mt_grpo":
        raise ConfigError(
            f"{part}, but data.mixture = 'mt_grpo' draws no pair in both orders: take another mixture or leave it out"
        )
    if not any(tasks[name].kind == "pairwise" for name in cfg.data.tasks):
        raise ConfigError(f"{part}, but data.tasks = {cfg.data.tasks} has no pairwise task: name one, or leave it out")
    if prompts % (2 * processes) and not prompts % processes:
        over = f" over {processes} processes" if processes > 1 else ""
        raise ConfigError(
            f"{part}, so each process needs an even number of prompts, two orders per pair, but rollout.prompts = {prompts}"
            f"{over} gives {prompts // processes}: take a multiple of {2 * processes}"
        )


def _check_model(cfg: Config) -> None:
    if cfg.lora.rank and not cfg.lora.targets:
        raise ConfigError(
            "lora.targets is empty with lora.rank above 0: name the matrices that get an adapter, or set lora.rank to 0"
        )
    if cfg.lora.path and not cfg.lora.rank:
        raise ConfigError(
            f"lora.path = {cfg.lora.path!r} with lora.rank = 0: set lora.rank, lora.alpha and lora.targets to the adapter's, "
            "or leave lora.path empty"
        )
    if cfg.lora.rank and cfg.model.freeze:
        raise ConfigError(
            f"model.freeze = {cfg.model.freeze} with lora.rank = {cfg.lora.rank}: adapters freeze all other weights, "
            "leave model.freeze empty"
        )


def _check_reward(cfg: Config) -> None:
    weights = weights_of(cfg.reward.weights, (*cfg.reward.custom, *cfg.reward.batch), cfg.reward.alpha)
    if weights.get("overlong") and not cfg.reward.overlong_buffer:
        raise ConfigError(
            "reward.weights has overlong, but reward.overlong_buffer = 0: give the number of tokens over which it falls"
        )
    if cfg.reward.overlong_buffer > cfg.rollout.completion_tokens:
        raise ConfigError(
            f"reward.overlong_buffer = {cfg.reward.overlong_buffer} is more than rollout.completion_tokens = "
            f"{cfg.rollout.completion_tokens}: take a smaller number"
        )


def _check_batches(cfg: Config, tasks: dict[str, Task], devices: int | None) -> None:
    rollout, update, micro = cfg.rollout.prompts, cfg.update.prompts, cfg.update.micro_prompts
    _divides("update.prompts", update, "rollout.prompts", rollout)
    _divides("update.micro_prompts", micro, "update.prompts", update)
    sampled = cfg.rollout.micro_prompts or rollout
    _divides("rollout.micro_prompts", sampled, "rollout.prompts", rollout)
    if cfg.data.balance_labels and cfg.data.mixture != "mt_grpo":  # its shares of tasks change from batch to batch
        labels, twice = sum(len(tasks[name].labels) for name in cfg.data.tasks), in_both_orders(cfg)
        name = f"{'twice the ' * twice}labels of all data.tasks with data.balance_labels"
        _divides(name + " and consistency" * twice, labels * (1 + twice), "update.prompts", update)
    if devices is not None:
        mesh = mesh_shape(cfg.mesh, devices)
        shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
        _divides("mesh.data * mesh.fsdp * mesh.expert", shards, "update.micro_prompts", micro)
        _divides("mesh.data * mesh.fsdp * mesh.expert", shards, "rollout.micro_prompts", sampled)


def _check_processes(cfg: Config, devices: int, processes: int) -> None:
    """One process holds a whole group of answers, and all heads of a token."""
    for name, prompts in (("rollout.prompts", cfg.rollout.prompts), ("update.prompts", cfg.update.prompts)):
        if prompts % processes:
            raise ConfigError(f"{name} = {prompts} is not divisible by the {processes} processes: take a multiple of {processes}")
    own, tensor = devices // processes, mesh_shape(cfg.mesh, devices)["tensor"]
    if own % tensor:
        raise ConfigError(
            f"mesh.tensor = {tensor} does not divide the {own} devices of a process, which must hold all heads: take a divisor"
        )


def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if small > large or large % small:
        near = max(1, round(large / small)) * small
        instead = f", or {small_name} = {large}" if small > large and small_name.split(".")[0] in ("update", "rollout") else ""
        raise ConfigError(f"{large_name} = {large} is not divisible by {small_name} = {small}: take for example {near}{instead}")


def mesh_shape(mesh: MeshConfig, devices: int) -> dict[str, int]:
    """The sizes of the axes, with -1 replaced by the devices that are left. Raises ConfigError if they do not fit."""
    shape = dataclasses.asdict(mesh)
    free = [name for name, n in shape.items() if n == -1]
    fixed = math.prod(n for n in shape.values() if n > 0)
    for name, n in shape.items():
        if n == 0 or n < -1:
            raise ConfigError(f"mesh.{name} = {n} must be at least 1, or -1 for the devices that are left")
    if len(free) > 1:
        raise ConfigError(f"mesh.{free[0]} and mesh.{free[1]} are both -1: only one axis can take the devices that are left")
    if devices % fixed or (not free and fixed != devices):
        sizes = ", ".join(f"mesh.{name} = {n}" for name, n in shape.items())
        raise ConfigError(f"{sizes} need {'a multiple of ' if free else ''}{fixed} devices, here are {devices}: change the axes")
    return {name: devices // fixed if n == -1 else n for name, n in shape.items()}


def _check_types(cfg: Config) -> None:
    for cls, value, where in [(Config, cfg, "")] + [
        (f.type, getattr(cfg, f.name), f.name + ".") for f in dataclasses.fields(cfg) if dataclasses.is_dataclass(f.type)
    ]:
        for f in dataclasses.fields(cls):
            got, kind = getattr(value, f.name), f.type
            want = tuple if isinstance(kind, types.GenericAlias) else kind
            ok = isinstance(got, (int, float)) and not isinstance(got, bool) if want is float else type(got) is want
            if ok and want is float and not math.isfinite(got):
                raise ConfigError(f"{where}{f.name} = {got} must be a finite number")
            if not ok:
                raise ConfigError(f"{where}{f.name} = {got!r} is a {type(got).__name__}, it must be a {want.__name__}")


class TaskSettings(NamedTuple):
    temperature: float  # of its answers in training
    completion_tokens: int  # of its longest answer in training
    weights: dict[str, float]  # of parts of the reward, in the place of those of reward.weights; {}: those


def task_settings(cfg: Config) -> dict[str, TaskSettings]:
    """The settings of each task of `rollout.per_task`. Raises ConfigError for an invalid entry."""
    found: dict[str, TaskSettings] = {}
    for entry in cfg.rollout.per_task:
        for name in entry:
            if name not in _TASK_FIELDS:
                raise ConfigError(f"rollout.per_task: {unknown('field', name, _TASK_FIELDS)}")
        task = entry.get("task", "")
        if task not in cfg.data.tasks:
            raise ConfigError(f"rollout.per_task: {unknown('task', task, cfg.data.tasks)}")
        if task in found:
            raise ConfigError(f"rollout.per_task names {task!r} twice: give one entry")
        where = f"rollout.per_task: {task!r}"
        heat, longest = entry.get("temperature", cfg.rollout.temperature), cfg.rollout.completion_tokens
        if not (isinstance(heat, int | float) and 0 < heat < math.inf):
            raise ConfigError(f"{where}: temperature = {heat!r} must be a number above 0")
        length = entry.get("completion_tokens", longest)
        if not (isinstance(length, int) and 1 <= length <= longest):
            raise ConfigError(f"{where}: completion_tokens = {length!r} must be 1 to rollout.completion_tokens = {longest}")
        found[task] = TaskSettings(float(heat), length, _own_weights(cfg, entry.get("weights", ()), where))
    return found


def _own_weights(cfg: Config, text: Sequence[str], where: str) -> dict[str, float]:
    """A part must be in the weights of all tasks too, where it may have weight 0: then it is measured for every task."""
    if not text:
        return {}
    custom, reward = (*cfg.reward.custom, *cfg.reward.batch), cfg.reward
    common = weights_of(reward.weights, custom, reward.alpha) or {"accuracy": 1.0, "format": 1.0}
    own = {name: weight for name, weight in weights_of(tuple(text), custom, reward.alpha).items() if name not in custom}
    if given := [entry for entry in text if entry.rpartition("=")[0] in custom]:
        raise ConfigError(f"{where}: {', '.join(given)}: rewards of your own have one weight for all tasks, in reward.weights")
    if missing := [name for name in own if name not in common]:
        raise ConfigError(f"{where}: reward.weights lacks {', '.join(missing)}: name it there, with weight 0 for the other tasks")
    if cfg.loss.advantage == "gdpo":
        raise ConfigError(f"{where}: loss.advantage = 'gdpo' has one weight a part for all tasks: leave weights out")
    return own
