"""The configuration of a run: every field, its one default and, by `check`, what it may be.

Defaults are the paper's where it gives a value and otherwise EasyR1's, in whose words the paper writes its settings (see
README, Sources). A config file in `configs/` is Python that returns a `Config`; flags override it (`--config.optim.lr=1e-5`).
"""

import dataclasses
import math
import types
from dataclasses import dataclass, field

from mtjudge_jax.config_check import AMONG, AT_LEAST, BELOW_ONE, CHOICES, POSITIVE, WITHIN
from mtjudge_jax.errors import ConfigError, differences, flatten, unknown
from mtjudge_jax.tasks import Task, tasks_with
from mtjudge_jax.tasks.reward import weights_of

__all__ = [
    "Config", "ConfigError", "check", "differences", "flatten", "from_dict", "get_tasks", "in_both_orders", "to_dict", "unknown",
]  # fmt: skip


@dataclass
class MeshConfig:
    """Devices along each axis; their product is the number of devices. -1, at most once: all that are left."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1


@dataclass
class ModelConfig:
    path: str = ""  # a Hugging Face folder of type qwen3_vl; "demo" is the base that ships with the package
    dtype: str = "float32"  # of activations, of weights that are not trained and of the reference policy
    param_dtype: str = "float32"  # of the trained weights, cast to dtype where they are used
    freeze: tuple[str, ...] = ()  # not trained: vision (the tower), mergers (its outputs), embeddings (and the head)
    remat: str = "dots"  # the backward pass computes again: none | all but matrix products (dots) | full
    attention: str = "auto"  # xla | chunked | splash (TPU) | tokamax (GPU); auto: xla on a CPU, else its kernel
    experts: str = "auto"  # dense | ragged | tokamax (GPU); auto: dense on a CPU, ragged on a TPU, tokamax on a GPU
    head_chunk: int = 4096  # tokens whose logits exist at a time


@dataclass
class LoraConfig:
    """Adapters on the decoder, the only weights trained where rank is above 0; the base without them is the reference."""

    rank: int = 0
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o")  # also gate, up, down; a mixture of experts has none of these three


@dataclass
class DataConfig:
    path: str = ""  # folder of `mtjudge prepare`; "" = <workdir>/data
    tasks: tuple[str, ...] = ()
    mixture: str = "proportional"  # (the paper's plain union) | uniform | temperature | weights | mt_grpo (arXiv 2602.05547)
    mixture_temperature: float = 2.0  # T of temperature, n^(1/T); 1 is proportional, large uniform, 2 halfway in exponent
    mixture_weights: tuple[float, ...] = ()  # of weights: one above 0 for each of data.tasks
    mt_grpo_lambda: float = 0.6  # large favours the worst task; it tries 0.1 to 1.2
    mt_grpo_beta: float = 1.0  # step of the logits: of six tasks one 0.3 of reward behind doubles its weight in some 25 steps
    mt_grpo_max_oversample: float = 4.0  # M: more would give a hopeless task the whole batch
    mt_grpo_rho_decay: float = 0.9  # of the running no-gradient rates: the last 10 steps or so
    mt_grpo_rounds: int = 3  # rollouts a step at most, another one while fewer prompts than wanted give a gradient; 1: no more
    mt_grpo_improvement: str = "objective"  # change by the update, a forward pass or two | reward: since the task's last step
    custom_tasks: tuple[dict, ...] = ()  # tasks of your own, one dict each, see tasks/custom.py
    polarity: str = "plain"  # plain | varied: some examples are asked for the opposite class ("is it safe?" "is it unsafe?")
    label_words: str = "plain"  # plain | varied: some are to be answered in other words (Yes or True, A or 1)
    balance_labels: bool = False  # every batch holds as many of each label, a task
    prompt_tokens: int = 2048
    patches: int = 4096  # of all images of a prompt together
    max_bad_share: float = 0.01  # of records that cannot be read; more stops the run


@dataclass
class RolloutConfig:
    prompts: int = 512  # prompts a rollout batch
    group_size: int = 20  # answers a prompt
    completion_tokens: int = 2048
    micro_prompts: int = 0  # prompts whose caches exist at a time; 0 = all
    temperature: float = 1.0


@dataclass
class SftConfig:
    target: str = "rationale"  # gold reasoning, then the verdict | answer: the verdict alone, as where a record has no reasoning


@dataclass
class RewardConfig:
    alpha: float = 0.1  # weight of the format reward; the paper gives no value, 0.1 is common in this family
    weights: tuple[str, ...] = ()  # "part=weight" of tasks/reward.py; () = the paper's accuracy=1-alpha, format=alpha
    # consistency=.. draws pairs in both orders, which are rewarded for agreeing; also with weight 0, to measure it alone
    tie_credit: float = 0.0  # part ties: for a tie where there is a winner, or a winner where there is a tie
    overlong_buffer: int = 0  # part overlong: tokens before rollout.completion_tokens in which it falls to -1; DAPO takes 4096
    custom: tuple[str, ...] = ()  # module:function(facts, text, parsed) -> float, see score.py


@dataclass
class LossConfig:
    advantage_std: str = "unbiased"  # divide by the group's standard deviation: unbiased | population | none
    advantage_eps: float = 1e-6
    clip_low: float = 0.2
    clip_high: float = 0.3
    dual_clip: float = 3.0
    kl_estimator: str = "k3"  # k1 | k2 | k3
    kl_coef: float = 0.01
    aggregation: str = "token_mean"  # token_mean | sequence_mean


@dataclass
class OptimConfig:
    name: str = "adamw"  # adamw | muon (matrices by Muon, the rest by AdamW)
    lr: float = 1e-6
    schedule: str = "constant"  # constant | cosine, both after a linear warm-up
    warmup_steps: int = 0
    final_lr_ratio: float = 0.1  # of cosine
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass
class UpdateConfig:
    prompts: int = 256  # prompts an update; a rollout batch serves rollout.prompts / update.prompts updates
    micro_prompts: int = 256  # prompts whose activations exist at a time; the rest is accumulated
    max_skipped: int = 3  # steps in a row whose loss, gradient or reward is not finite, until the run stops


@dataclass
class EvalConfig:
    every_steps: int = 5
    samples: int = 8  # answers a prompt: the first greedy, the others sampled at rollout.temperature
    tasks: tuple[str, ...] = ()  # () = data.tasks
    limit: int = 0  # validation examples a task; 0 = all
    templates: str = "train"  # wordings asked in: train | held_out | all | first
    patience: int = 0  # evaluations without a better mean macro-F1 before the run stops; 0 = never


@dataclass
class CheckpointConfig:
    every_steps: int = 5
    keep: int = 2
    max_failed_saves: int = 3  # in a row, for want of room or rights; then the run stops with its last good step


@dataclass
class HostsConfig:
    """Processes that train together, one a host: how long they wait for each other."""

    start_seconds: int = 300  # for all to come
    heartbeat_seconds: int = 100  # one that is silent for so long is dead: the others stop
    stuck_seconds: int = 3600  # without the end of a phase of a step: stacks are written, the process stops; 0 = never


@dataclass
class Config:
    stage: str = "grpo"  # grpo | sft
    seed: int = 0
    steps: int = 1000  # rollout batches (grpo) or updates (sft)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)


def from_dict(raw: dict, cls: type = Config, where: str = ""):
    """Builds a Config from nested dicts, as `to_dict` writes them; an unknown key names the nearest field."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(unknown("field", f"{where}{key}", [where + k for k in known]))
        kind = known[key].type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}{key} = {value!r} must be a group of fields: {', '.join(flatten(kind()))}")
            value = from_dict(value, kind, f"{where}{key}.")
        values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def to_dict(cfg: Config) -> dict:
    return dataclasses.asdict(cfg)


def get_tasks(cfg: Config, templates: str = "train") -> dict[str, Task]:
    """All tasks of a run, its own among them, in the wordings it asks in. Raises ConfigError for an entry that cannot be."""
    varied = {"vary_polarity": cfg.data.polarity == "varied", "vary_words": cfg.data.label_words == "varied"}
    try:
        return tasks_with(cfg.data.custom_tasks, templates=templates, seed=cfg.seed, **varied)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def in_both_orders(cfg: Config) -> bool:
    """Whether pairs are trained on in both orders, side by side, to be rewarded for agreeing."""
    return "consistency" in weights_of(cfg.reward.weights, cfg.reward.custom, cfg.reward.alpha)


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
