"""The configuration of a run: every field with its one default. config_check.py has the limits.

Defaults are the paper's values, or EasyR1's where the paper gives none: the paper describes its settings in EasyR1's terms (see
docs/design.md, Sources). A config file in `configs/` is Python that returns a `Config`, and flags override its fields
(`--config.optim.lr=1e-5`).
"""

import dataclasses
import difflib
import json
from dataclasses import dataclass, field

from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.tasks import Task, tasks_with
from mtjudge_jax.tasks.reward import weights_of


@dataclass
class MeshConfig:
    """Devices along each axis. Their product is the number of devices; one axis may be -1 and takes the devices that are left."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1


@dataclass
class ModelConfig:
    path: str = ""  # a Hugging Face folder of type qwen3_vl; "demo" is the base that ships with the package
    dtype: str = "float32"  # of activations, frozen weights and the reference policy
    param_dtype: str = "float32"  # of the trained weights, which are cast to dtype where they are used
    freeze: tuple[str, ...] = ()  # parts that are not trained: vision (the tower), mergers (its outputs), embeddings (and head)
    remat: str = "dots"  # what the backward pass recomputes: none | dots (all but matrix products) | full
    attention: str = "auto"  # xla | chunked | splash (TPU) | tokamax (GPU); auto: xla on a CPU, the kernel on a TPU or GPU
    experts: str = "auto"  # dense | ragged | tokamax (GPU); auto: dense on a CPU, ragged on a TPU, tokamax on a GPU
    head_chunk: int = 4096  # tokens whose logits are in memory at a time


@dataclass
class LoraConfig:
    """Adapters on the decoder. With a rank above 0 only they are trained, and the base without them is the reference policy."""

    rank: int = 0
    alpha: float = 32.0
    path: str = ""  # start from this adapter, a folder of PEFT or of `mtjudge export --adapter=peft`; "" = a fresh one
    targets: tuple[str, ...] = ("q", "k", "v", "o")  # also gate, up, down, except in a mixture of experts


@dataclass
class DataConfig:
    path: str = ""  # folder of `mtjudge prepare`; "" = <workdir>/data
    tasks: tuple[str, ...] = ()
    mixture: str = "proportional"  # (the paper's plain union) | uniform | temperature | weights | mt_grpo (arXiv 2602.05547)
    mixture_temperature: float = 2.0  # T of temperature: a task of n records has weight n^(1/T); 1 is proportional
    mixture_weights: tuple[float, ...] = ()  # for mixture weights: one number above 0 for each of data.tasks
    mt_grpo_lambda: float = 0.6  # a larger value favours the worst task; the MT-GRPO paper tries 0.1 to 1.2
    mt_grpo_beta: float = 1.0  # step of the logits: of six tasks, one whose reward is 0.3 behind doubles its weight in ~25 steps
    mt_grpo_max_oversample: float = 4.0  # M: more would give the whole batch to a task that cannot be learned
    mt_grpo_rho_decay: float = 0.9  # of the running rates of prompts without a gradient: about the last 10 steps
    mt_grpo_rounds: int = 3  # most rollouts per step; a further one follows while too few prompts give a gradient
    mt_grpo_improvement: str = "objective"  # change by the update, costs one or two forward passes | reward: since the last step
    custom_tasks: tuple[dict, ...] = ()  # your own tasks, one dict each, see tasks/custom.py
    polarity: str = "plain"  # plain | varied: some questions ask for the opposite class ("is it safe?", "is it unsafe?")
    label_words: str = "plain"  # plain | varied: some questions ask for other answer words (Yes or True, A or 1)
    balance_labels: bool = False  # every batch holds the same number of each label of each task
    prompt_tokens: int = 2048  # longest prompt; shorter ones learn together in less room, see docs/training.md
    patches: int = 4096  # room of all images of a prompt together: each of n gets an n-th, and is made smaller to fit
    max_pixels: int = 0  # of an image after resizing, an area: larger ones are made smaller; 0 = the model folder's own
    min_pixels: int = 0  # smaller images are enlarged to it, and none is made smaller than it; 0 = the model folder's own
    max_bad_share: float = 0.01  # share of unreadable records; above it the run stops


@dataclass
class RolloutConfig:
    prompts: int = 512  # prompts per rollout batch
    group_size: int = 20  # answers per prompt
    completion_tokens: int = 2048  # longest answer
    micro_prompts: int = 0  # prompts whose key-value caches are in memory at a time; 0 = all
    gather_weights: bool = False  # each device holds the weights whole along mesh.fsdp while it samples: else it gathers them for
    # every token. Takes the memory of that copy, in model.dtype
    temperature: float = 1.0
    per_task: tuple[dict, ...] = ()  # a task's own in training: {"task": "a", "temperature": 0.8, "completion_tokens": 64,
    # "weights": ("accuracy=1", "format=0")}, each but task optional
    rounds: int = 1  # most rollouts of a step: further prompts are drawn while too few teach (mt_grpo has data.mt_grpo_rounds)


@dataclass
class SftConfig:
    target: str = "rationale"  # the record's gold reasoning, if it has one, then the verdict | answer: the verdict alone


@dataclass
class DpoConfig:
    beta: float = 0.1  # how strictly the policy stays near the reference; a larger one moves it less
    sft_coef: float = 0.0  # of the chosen answer's negative log-likelihood a token: holds it up, where DPO alone may lower both


@dataclass
class RewardConfig:
    alpha: float = 0.1  # weight of the format reward; the paper gives no value, 0.1 is common in this family
    weights: tuple[str, ...] = ()  # "part=weight" of tasks/reward.py; () = the paper's accuracy=1-alpha, format=alpha
    # consistency=.. draws every pair in both orders and rewards answers that agree; weight 0 only measures it
    tie_credit: float = 0.0  # part ties: reward of a tie where the label has a winner, and the reverse
    overlong_buffer: int = 0  # part overlong: falls to -1 over the last so many tokens before rollout.completion_tokens
    custom: tuple[str, ...] = ()  # module:function(facts, text, parsed) -> float, see tasks/reward.py
    batch: tuple[str, ...] = ()  # module:function of many answers at a time, as of another model, see tasks/batch_reward.py
    batch_answers: int = 8  # of a call of these
    batch_threads: int = 32  # calls side by side
    batch_timeout: float = 60.0  # seconds for a call
    batch_retries: int = 2  # further tries of a call that fails or takes too long
    batch_max_failed: float = 0.1  # share of a step's answers without their reward; above it the run stops


@dataclass
class LossConfig:
    # The formulas and their papers are in rl/loss.py.
    advantage: str = "grpo"  # grpo | dr_grpo: not divided | rloo: against the others' mean | gdpo: each part of the reward alone
    advantage_std: str = "unbiased"  # grpo and gdpo divide by the group's standard deviation: unbiased | population
    advantage_eps: float = 1e-6
    policy: str = "clip"  # clip | gspo | gspo_token: ratios of whole answers | cispo | sapo
    clip_low: float = 0.2
    clip_high: float = 0.3
    dual_clip: float = 3.0
    cispo_cap: float = 5.0  # largest ratio
    sapo_positive: float = 1.0  # how steeply a ratio is held back where the advantage is above 0, and where it is not
    sapo_negative: float = 1.05
    kl_estimator: str = "k3"  # k1 | k2 | k3
    kl_coef: float = 0.01
    kl_in: str = "loss"  # loss | reward: taken off each answer's reward, summed over its tokens
    entropy_coef: float = 0.0  # of the entropy, which the update then raises
    aggregation: str = "token_mean"  # token_mean | sequence_mean | constant: over rollout.completion_tokens, whatever the lengths
    flat_groups: str = "keep"  # keep | out: prompts whose answers all earn the same, out of the divergence and the means too
    truncated: str = "keep"  # keep | out: answers that were cut off
    sampler_weight: str = "none"  # none | token | sequence: corrects for a sampler whose probabilities differ from the update's
    sampler_cap: float = 2.0  # largest such weight
    replay_routing: bool = False  # of a mixture of experts: the update takes the experts that the sampler chose for each token


@dataclass
class OptimConfig:
    name: str = "adamw"  # adamw | muon (matrices by Muon, the rest by AdamW)
    lr: float = 1e-6
    schedule: str = "constant"  # constant | cosine, both after a linear warm-up
    warmup_steps: int = 0
    final_lr_ratio: float = 0.1  # cosine: last learning rate / lr
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass
class UpdateConfig:
    prompts: int = 256  # prompts per update; a rollout batch serves rollout.prompts / update.prompts updates
    micro_prompts: int = 256  # most prompts whose activations are in memory at a time; gradients add up over the update
    max_skipped: int = 3  # successive steps with a non-finite loss, gradient or reward after which the run stops


@dataclass
class EvalConfig:
    every_steps: int = 5
    samples: int = 8  # answers per prompt: the first is greedy, the others are sampled
    temperature: float = 0.0  # of the sampled answers; 0 = rollout.temperature
    top_p: float = 1.0  # sampled from the fewest likeliest tokens with this share, of those that top_k leaves; 1 = all
    top_k: int = 0  # sampled from so many likeliest tokens; 0 = all
    tasks: tuple[str, ...] = ()  # () = data.tasks
    limit: int = 0  # validation examples per task; 0 = all
    templates: str = "train"  # wordings of the questions: train | held_out | all | first
    patience: int = 0  # evaluations without a better mean macro-F1 after which the run stops; 0 = never


@dataclass
class CheckpointConfig:
    every_steps: int = 5
    keep: int = 2
    max_failed_saves: int = 3  # successive saves that may fail before the run stops; its last good checkpoint is kept


@dataclass
class LogConfig:
    """Where a run can be watched, beside its metrics.jsonl and its report."""

    to: tuple[str, ...] = ()  # some of tensorboard, wandb, mlflow, swanlab, trackio; each is an extra of the package
    project: str = "mtjudge"  # of the run, in a tracker that has projects
    name: str = ""  # of the run in a tracker; "" = the name of the workdir
    folder: str = ""  # on a disk, for what trackers keep on this machine; "" = <workdir>/tracking
    rollouts: int = 0  # so many best, worst and random groups of answers per task are kept to be read; 0 = none
    rollouts_every: int = 10  # steps
    gap_every: int = 20  # steps after which the sampler is compared with the update where that costs a pass; 0 = never
    profile: tuple[int, ...] = ()  # (first, last): JAX's profiler traces these steps, to <workdir>/profile


@dataclass
class HostsConfig:
    """How long the processes of a run, one per host, wait for each other."""

    start_seconds: int = 300  # for all processes to start
    heartbeat_seconds: int = 100  # a process that is silent for longer counts as dead, and the others stop
    stuck_seconds: int = 3600  # a phase of a step that takes longer stops the process, which writes its stacks; 0 = never


@dataclass
class Config:
    stage: str = "grpo"  # grpo | sft | dpo
    recipe: str = ""  # grpo_paper | dapo | dr_grpo | gspo | cispo: sets the fields of RECIPES that have their defaults
    seed: int = 0
    steps: int = 1000  # rollout batches (grpo) or updates (sft, dpo)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)


# Objectives by the name of their paper, as the fields that differ from the defaults.
RECIPES = {
    "grpo_paper": {  # DeepSeekMath, arXiv 2402.03300
        "loss.clip_high": 0.2, "loss.kl_coef": 0.04, "loss.aggregation": "sequence_mean",
    },
    "dapo": {  # arXiv 2503.14476; its penalty of long answers falls over the last fifth of their room
        "loss.clip_high": 0.28, "loss.kl_coef": 0.0, "rollout.rounds": 3,
        "reward.weights": ("accuracy=0.9", "format=0.1", "overlong=1"),
    },
    "dr_grpo": {  # arXiv 2503.20783
        "loss.advantage": "dr_grpo", "loss.aggregation": "constant", "loss.kl_coef": 0.0,
    },
    "gspo": {  # arXiv 2507.18071
        "loss.policy": "gspo", "loss.clip_low": 3e-4, "loss.clip_high": 4e-4, "loss.aggregation": "sequence_mean",
        "loss.kl_coef": 0.0,
    },
    "cispo": {  # arXiv 2506.13585
        "loss.policy": "cispo", "loss.kl_coef": 0.0,
    },
}  # fmt: skip


# How other trainers call a field; TRL, verl and EasyR1 among them.
_OTHER_NAMES = {
    "learning_rate": "optim.lr",
    "beta": "loss.kl_coef",
    "num_generations": "rollout.group_size",
    "loss_type": "loss.policy",
    "importance_sampling_level": "loss.policy",
    "scale_rewards": "loss.advantage_std",
    **dict.fromkeys(("adv_estimator", "multi_objective_aggregation"), "loss.advantage"),
    **dict.fromkeys(("epsilon", "epsilon_low", "clip_ratio", "clip_ratio_low"), "loss.clip_low"),
    **dict.fromkeys(("epsilon_high", "clip_ratio_high"), "loss.clip_high"),
    **dict.fromkeys(("delta", "clip_ratio_dual", "clip_ratio_c"), "loss.dual_clip"),
    "mask_truncated_completions": "loss.truncated",
    **dict.fromkeys(("loss_avg_mode", "loss_agg_mode"), "loss.aggregation"),
    "use_kl_loss": "loss.kl_in",
    "online_filtering": "rollout.rounds",
    **dict.fromkeys(("router_replay", "moe_enable_routing_replay"), "loss.replay_routing"),
    "max_steps": "steps",
    "total_steps": "steps",
    "max_prompt_length": "data.prompt_tokens",
    **dict.fromkeys(("max_completion_length", "max_response_length", "max_new_tokens"), "rollout.completion_tokens"),
    **dict.fromkeys(("batch_size", "train_batch_size", "rollout_batch_size"), "rollout.prompts"),
    "micro_batch_size": "update.micro_prompts",
    "warmup_ratio": "optim.warmup_steps",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "model_name_or_path": "model.path",
    "save_steps": "checkpoint.every_steps",
    "eval_steps": "eval.every_steps",
    "report_to": "log.to",
    "log_completions": "log.rollouts",
}


def field_meant(name: str) -> str:
    """The field whose last word is that of `name`, or that other trainers call so, else "". `learning_rate` -> `optim.lr`."""
    last = name.rpartition(".")[2]
    same = [field for field in flatten(Config()) if field.rpartition(".")[2] == last]
    if last in _OTHER_NAMES:  # first: their beta is the coefficient of the divergence, ours that of DPO
        return _OTHER_NAMES[last]
    return difflib.get_close_matches(name, same, 1, 0)[0] if same else ""


def unknown_field(name: str) -> str:
    """A line that suggests the field, or the group of fields, meant by a dotted name.

    `unknown field 'optim.learning_rate', did you mean 'optim.lr'?`
    """
    if meant := field_meant(name):
        return f"unknown field {name!r}, did you mean {meant!r}?"
    return unknown("field", name, [*(f.name for f in dataclasses.fields(Config)), *flatten(Config())])


def from_dict(raw: dict, cls: type = Config, where: str = ""):
    """Builds a Config from nested dicts, as `to_dict` writes them. Raises ConfigError for an unknown key."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(unknown_field(f"{where}{key}"))
        kind = known[key].type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{where}{key} = {value!r} is not a group of fields: give a dict of {', '.join(flatten(kind()))}"
                )
            value = from_dict(value, kind, f"{where}{key}.")
        values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def to_dict(cfg: Config) -> dict:
    return dataclasses.asdict(cfg)


def get_tasks(cfg: Config, templates: str = "train") -> dict[str, Task]:
    """All tasks of a run, with its custom ones, in the wordings that it asks. Raises UserError for an invalid entry."""
    varied = {"vary_polarity": cfg.data.polarity == "varied", "vary_words": cfg.data.label_words == "varied"}
    return tasks_with(cfg.data.custom_tasks, templates=templates, seed=cfg.seed, **varied)


def offline(cfg: Config) -> bool:
    """Whether a run learns from answers that its records hold, as SFT and DPO do: then a step is one update without a rollout."""
    return cfg.stage in ("sft", "dpo")


def has_reference(cfg: Config) -> bool:
    """Whether an update is held near a reference policy."""
    return cfg.stage == "dpo" or (cfg.stage == "grpo" and cfg.loss.kl_coef > 0)


def answers_learned(cfg: Config) -> int:
    """Answers per prompt in an update, G."""
    return {"sft": 1, "dpo": 2}.get(cfg.stage, cfg.rollout.group_size)


def in_both_orders(cfg: Config) -> bool:
    """Whether pairs are trained in both orders, side by side, and rewarded for answers that agree."""
    return "consistency" in weights_of(cfg.reward.weights, (*cfg.reward.custom, *cfg.reward.batch), cfg.reward.alpha)


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


def with_defaults(stored: dict, default: dict | None = None) -> dict:
    """A stored config with the default of each field that it lacks: such a field came later, and its default changes nothing."""
    default = to_dict(Config()) if default is None else default

    def one(key: str, value: object) -> object:
        groups = isinstance(value, dict) and isinstance(stored.get(key), dict)
        return with_defaults(stored[key], value) if groups else stored.get(key, value)

    return stored | {key: one(key, value) for key, value in default.items()}


def differences(old: dict, new: dict, where: str = "") -> list[str]:
    """The dotted fields that differ, `optim.lr: 1e-06 -> 1e-05`. Both are compared as JSON, so a tuple equals its list."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    out = []
    for key in [*old, *[key for key in new if key not in old]]:
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{where}{key}.")
        elif a != b:
            out.append(f"{where}{key}: {a} -> {b}")
    return out
