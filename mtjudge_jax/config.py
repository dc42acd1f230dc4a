"""The configuration of a run: every field and its one default; config_check.py says what a field may be.

Defaults are the paper's where it gives a value and otherwise EasyR1's, in whose words the paper writes its settings (see
docs/design.md, Sources). A config file in `configs/` is Python that returns a `Config`; flags override it
(`--config.optim.lr=1e-5`).
"""

import dataclasses
import json
from dataclasses import dataclass, field

from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.tasks import Task, tasks_with
from mtjudge_jax.tasks.reward import weights_of


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
    """Adapters on the decoder. Where rank is above 0 only they are trained, and the base without them is the reference."""

    rank: int = 0
    alpha: float = 32.0
    path: str = ""  # start from this adapter, a folder of PEFT or of `mtjudge export --adapter=peft`; "" = a fresh one
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


def flatten(cfg: object) -> dict[str, object]:
    """Every field by its dotted name, `optim.lr`."""
    out = {}
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        if dataclasses.is_dataclass(value):
            out |= {f"{f.name}.{k}": v for k, v in flatten(value).items()}
        else:
            out[f.name] = value
    return out


def differences(old: dict, new: dict, where: str = "") -> list[str]:
    """Dotted fields that differ, `optim.lr: 1e-06 -> 1e-05`; both are compared as JSON, so a tuple equals its list."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    out = []
    for key in [*old, *[key for key in new if key not in old]]:
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{where}{key}.")
        elif a != b:
            out.append(f"{where}{key}: {a} -> {b}")
    return out
