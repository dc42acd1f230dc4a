"""What each field of a config may be: the limits, and `check`, which raises on the first field that breaks one."""

import dataclasses
import math
import types

from mtjudge_jax.config import Config, MeshConfig, flatten, get_tasks, in_both_orders
from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.reward import weights_of
from mtjudge_jax.tasks.wording import TEMPLATES

CHOICES = {
    "stage": ("grpo", "sft"),
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
    "loss.advantage_std": ("unbiased", "population", "none"),
    "loss.kl_estimator": ("k1", "k2", "k3"),
    "loss.aggregation": ("token_mean", "sequence_mean"),
    "optim.name": ("adamw", "muon"),
    "optim.schedule": ("constant", "cosine"),
}
AMONG = {  # each entry of a tuple
    "model.freeze": ("vision", "mergers", "embeddings"),
    "lora.targets": ("q", "k", "v", "o", "gate", "up", "down"),
}
AT_LEAST = {
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
    "hosts.start_seconds": 5,
    "hosts.heartbeat_seconds": 2,
    "checkpoint.max_failed_saves": 1,
    "loss.dual_clip": 1,
}
NOT_NEGATIVE = (
    "seed", "lora.rank", "data.patches", "rollout.micro_prompts", "reward.overlong_buffer", "optim.lr", "optim.warmup_steps",
    "optim.weight_decay", "eval.limit", "eval.patience", "hosts.stuck_seconds", "loss.clip_low", "loss.clip_high",
    "loss.kl_coef", "loss.advantage_eps",
)  # fmt: skip
AT_LEAST |= dict.fromkeys(NOT_NEGATIVE, 0)
SHARES = ("reward.alpha", "reward.tie_credit", "optim.final_lr_ratio", "data.max_bad_share", "loss.clip_low")
WITHIN = dict.fromkeys(SHARES, (0, 1))
BELOW_ONE = ("optim.b1", "optim.b2", "data.mt_grpo_rho_decay")
POSITIVE = ("lora.alpha", "rollout.temperature", "optim.max_grad_norm", "optim.eps")
POSITIVE += ("data.mixture_temperature", "data.mt_grpo_lambda", "data.mt_grpo_beta")


def check(cfg: Config, devices: int | None = None, processes: int = 1) -> None:
    """Raises ConfigError on the first field that cannot be, before anything is compiled. `devices`, in all of the processes,
    checks the mesh too.
    """
    values = flatten(cfg)
    _check_types(cfg)
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            raise ConfigError(f"{name} = {values[name]!r}: {unknown('choice', str(values[name]), choices)}")
    for name, least in AT_LEAST.items():
        if not values[name] >= least:
            why = ": one answer has no group to be compared with" if name == "rollout.group_size" else ""
            raise ConfigError(f"{name} = {values[name]} must be at least {least}{why}")
    for name, (low, high) in WITHIN.items():
        if not low <= values[name] <= high:
            raise ConfigError(f"{name} = {values[name]} must be between {low} and {high}")
    for name in BELOW_ONE:
        if not 0 <= values[name] < 1:
            raise ConfigError(f"{name} = {values[name]} must be at least 0 and below 1")
    for name in POSITIVE:
        if not values[name] > 0:
            raise ConfigError(f"{name} = {values[name]} must be above 0")
    if not cfg.model.path:
        raise ConfigError("model.path is empty: name a Hugging Face folder of a Qwen3-VL, or 'demo'")
    tasks = get_tasks(cfg)
    _check_reward(cfg)
    if not cfg.data.tasks:
        raise ConfigError("data.tasks is empty: name at least one, e.g. technical or agin_tech (tasks/__init__.py has all)")
    for where, names in (("data.tasks", cfg.data.tasks), ("eval.tasks", cfg.eval.tasks)):
        for name in names:
            if not isinstance(name, str):
                raise ConfigError(f"{where}: {name!r} is a {type(name).__name__}, it must be the name of a task, a str")
            if name not in tasks:
                raise ConfigError(f"{where}: {unknown('task', name, tasks)}")
        if len(set(names)) != len(names):
            raise ConfigError(f"{where} = {names} names a task twice: name each once")
    for name in cfg.data.tasks:
        if tasks[name].ood:
            raise ConfigError(f"data.tasks: {name!r} is there to be judged and never trained on; it may stand in eval.tasks")
    if cfg.loss.dual_clip <= 1 + cfg.loss.clip_high:
        raise ConfigError(f"loss.dual_clip = {cfg.loss.dual_clip} must be above 1 + loss.clip_high = {1 + cfg.loss.clip_high}")
    _check_mixture(cfg)
    if in_both_orders(cfg):
        _check_orders(cfg, tasks, processes)
    _check_model(cfg, values)
    _check_batches(cfg, tasks, devices)
    if devices is not None:
        _check_processes(cfg, devices, processes)


def _check_mixture(cfg: Config) -> None:
    mode, weights, tasks = cfg.data.mixture, cfg.data.mixture_weights, len(cfg.data.tasks)
    if len(weights) != tasks * (mode == "weights") or any(type(w) not in (int, float) or not 0 < w < math.inf for w in weights):
        need = f"one number above 0 for each of the {tasks} data.tasks" if mode == "weights" else "nothing"
        raise ConfigError(f"data.mixture_weights = {weights} with data.mixture = {mode!r} must hold {need}")
    if mode == "mt_grpo" and cfg.stage != "grpo":
        raise ConfigError(f"data.mixture = 'mt_grpo' follows rewards, stage = {cfg.stage!r} has none: take another mixture")


def _check_orders(cfg: Config, tasks: dict[str, Task], processes: int) -> None:
    """The part consistency needs answers to pairs of which both orders are on one process."""
    part, prompts = "reward.weights has consistency", cfg.rollout.prompts
    if cfg.stage != "grpo":
        raise ConfigError(f"{part}, stage = {cfg.stage!r} has no rewards: leave it out")
    if cfg.data.mixture == "mt_grpo":
        raise ConfigError(f"{part}, data.mixture = 'mt_grpo' draws no pair in both orders: take another mixture or leave it out")
    if not any(tasks[name].kind == "pairwise" for name in cfg.data.tasks):
        raise ConfigError(f"{part}, data.tasks = {cfg.data.tasks} has no task of pairs: name one, or leave it out")
    if prompts % (2 * processes) and not prompts % processes:
        of = f" over {processes} processes" if processes > 1 else ""
        raise ConfigError(
            f"{part}, rollout.prompts = {prompts}{of} is {prompts // processes} each, which must be even, two orders a pair: "
            f"take a multiple of {2 * processes}"
        )


def _check_model(cfg: Config, values: dict[str, object]) -> None:
    for name, choices in AMONG.items():
        for one in values[name]:
            if one not in choices:
                raise ConfigError(f"{name} = {values[name]}: {unknown('name', str(one), choices)}")
        if len(set(values[name])) != len(values[name]):
            raise ConfigError(f"{name} = {values[name]} holds a name twice: give each once")
    if cfg.lora.rank and not cfg.lora.targets:
        raise ConfigError("lora.targets is empty with lora.rank above 0: name what gets an adapter, or set lora.rank to 0")
    if cfg.lora.path and not cfg.lora.rank:
        raise ConfigError(
            f"lora.path = {cfg.lora.path!r} with lora.rank = 0: set lora.rank, lora.alpha and lora.targets to the adapter's, "
            "or leave lora.path empty"
        )
    if cfg.lora.rank and cfg.model.freeze:
        raise ConfigError(
            f"model.freeze = {cfg.model.freeze} with lora.rank = {cfg.lora.rank}: adapters freeze all else, leave freeze empty"
        )


def _check_reward(cfg: Config) -> None:
    try:
        weights = weights_of(cfg.reward.weights, cfg.reward.custom, cfg.reward.alpha)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if weights.get("overlong") and not cfg.reward.overlong_buffer:
        raise ConfigError("reward.weights has overlong, reward.overlong_buffer is 0: say over how many tokens it falls")
    if cfg.reward.overlong_buffer > cfg.rollout.completion_tokens:
        raise ConfigError(
            f"reward.overlong_buffer = {cfg.reward.overlong_buffer} is more than rollout.completion_tokens = "
            f"{cfg.rollout.completion_tokens}: take a part of it"
        )


def _check_batches(cfg: Config, tasks: dict[str, Task], devices: int | None) -> None:
    rollout, update, micro = cfg.rollout.prompts, cfg.update.prompts, cfg.update.micro_prompts
    _divides("update.prompts", update, "rollout.prompts", rollout)
    _divides("update.micro_prompts", micro, "update.prompts", update)
    sampled = cfg.rollout.micro_prompts or rollout
    _divides("rollout.micro_prompts", sampled, "rollout.prompts", rollout)
    if cfg.data.balance_labels and cfg.data.mixture != "mt_grpo":  # whose batches hold tasks in other shares each
        labels, twice = sum(len(tasks[name].labels) for name in cfg.data.tasks), in_both_orders(cfg)
        name = f"{'twice the ' * twice}labels of all data.tasks with data.balance_labels"
        _divides(name + " and consistency" * twice, labels * (1 + twice), "update.prompts", update)
    if devices is not None:
        mesh = mesh_shape(cfg.mesh, devices)
        shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
        _divides("mesh.data * mesh.fsdp * mesh.expert", shards, "update.micro_prompts", micro)
        _divides("mesh.data * mesh.fsdp * mesh.expert", shards, "rollout.micro_prompts", sampled)


def _check_processes(cfg: Config, devices: int, processes: int) -> None:
    """A group of answers stays on one process, and so do the heads of a token."""
    for name, prompts in (("rollout.prompts", cfg.rollout.prompts), ("update.prompts", cfg.update.prompts)):
        if prompts % processes:
            raise ConfigError(f"{name} = {prompts} does not divide by the {processes} processes: take a multiple of {processes}")
    own, tensor = devices // processes, mesh_shape(cfg.mesh, devices)["tensor"]
    if own % tensor:
        raise ConfigError(
            f"mesh.tensor = {tensor} does not divide the {own} devices of a process: its heads belong on one host, take a divisor"
        )


def _divides(small_name: str, small: int, large_name: str, large: int) -> None:
    if small > large or large % small:
        near = max(1, round(large / small)) * small
        instead = f", or {small_name} = {large}" if small > large and small_name.split(".")[0] in ("update", "rollout") else ""
        raise ConfigError(f"{large_name} = {large} is not divisible by {small_name} = {small}: take for example {near}{instead}")


def mesh_shape(mesh: MeshConfig, devices: int) -> dict[str, int]:
    """Axis sizes with -1 filled in."""
    shape = dataclasses.asdict(mesh)
    free = [name for name, n in shape.items() if n == -1]
    fixed = math.prod(n for n in shape.values() if n > 0)
    for name, n in shape.items():
        if n == 0 or n < -1:
            raise ConfigError(f"mesh.{name} = {n} must be at least 1, or -1 for all devices that are left")
    if len(free) > 1:
        raise ConfigError(f"mesh.{free[0]} and mesh.{free[1]} are both -1: only one axis can take what is left")
    if devices % fixed or (not free and fixed != devices):
        sizes = ", ".join(f"mesh.{name} = {n}" for name, n in shape.items())
        raise ConfigError(f"{sizes} need a multiple of {fixed} devices, here are {devices}: set the axes so that they fit")
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
