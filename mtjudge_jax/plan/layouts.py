"""The paper's settings for the files in `configs/`: its six tasks, its five arms, the slices of TPUs its runs are planned for.

MT-RL-Judge, arXiv 2603.11665. What the paper leaves open is a named default: EasyR1's, in whose words the paper writes its RL
settings, where config.py says so, or a constant below that says whose choice it is.
"""

from collections.abc import Callable

from mtjudge_jax.config import Config
from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.plan.chips import tpu_slice
from mtjudge_jax.tasks.paper import TRAINED

TRAIN = dict(zip(TRAINED, (4_839, 4_839, 4_839, 5_544, 6_194, 7_298), strict=True))  # questions
FOLDERS = {"30b-a3b": "models/Qwen3-VL-30B-A3B-Instruct", "8b": "models/Qwen3-VL-8B-Instruct", "rehearsal": "demo"}
# Our choices, the paper gives none. It stops where validation no longer rises: after so many evaluations without a better one,
# at the latest after so many times through the data.
PASSES, EVALUATIONS, PATIENCE = 3, 20, 5
VALIDATION = 256  # questions a task, of 605 to 2,584


def rl(argument: str, *, file: str, single: bool = False) -> Config:
    """GRPO on all tasks, or on the one that the argument ends in: 20 answers a prompt, 512 prompts a rollout, 256 an update."""
    cfg, layout = shared(argument, file=file, single=single)
    cfg.rollout.group_size, cfg.update.prompts = 20, 256
    cfg.optim.lr, cfg.optim.weight_decay, cfg.loss.kl_coef = 1e-6, 1e-2, 1e-2  # EasyR1's
    last(cfg, cfg.rollout.prompts)
    layout(cfg)
    return cfg


def sft(argument: str, *, file: str, single: bool = False) -> Config:
    """AdamW at 1e-5, batches of 256, on the verdict alone: the paper's data have no reasoning to teach.

    An answer may be as long as in RL, so that a pair is judged with the same room. Weight decay is config.py's default.
    """
    cfg, layout = shared(argument, file=file, single=single)
    cfg.stage, cfg.sft.target = "sft", "answer"
    cfg.update.prompts = 256
    last(cfg, cfg.update.prompts)
    layout(cfg)
    cfg.optim.lr = 1e-5
    return cfg


def shared(argument: str, *, file: str, single: bool = False) -> tuple[Config, Callable[[Config], None]]:
    """What all arms have in common, and what the slice adds, of an argument `SIZE,SLICE[,TASK]`; the slice may be left out."""
    size, place, task = split_argument(argument, file=file, single=single)
    cfg = Config()
    cfg.model.path = FOLDERS[size]
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = (task,) if task else TRAINED
    cfg.data.prompt_tokens, cfg.data.patches = 2048, 4096
    cfg.rollout.prompts, cfg.rollout.completion_tokens = 512, 1024
    cfg.eval.limit, cfg.eval.samples, cfg.eval.patience = VALIDATION, 4, PATIENCE
    cfg.checkpoint.every_steps = 5
    cfg.mesh.data = 1
    return cfg, LAYOUTS[size, place]


def split_argument(argument: str, *, file: str, single: bool) -> tuple[str, str, str]:
    """`30b-a3b,v5p-128,seetrue` -> ("30b-a3b", "v5p:4x4x4", "seetrue"). Raises ConfigError that shows what may stand there."""
    size, *rest = argument.split(",")
    places = [place for known, place in LAYOUTS if known == size]
    task = rest.pop() if single and rest else ""
    if single and task not in TRAINED:
        raise ConfigError(f"{file}:{argument}: {unknown('task', task, TRAINED)}; write {file}:SIZE,SLICE,TASK")
    place = rest[0] if rest else next(iter(places), "")
    if rest and place not in places and places != ["laptop"]:
        place = tpu_slice(place).name  # v5p-128 is v5p:4x4x4
    if len(rest) > 1 or place not in places:
        pairs = " ".join(",".join(pair) for pair in LAYOUTS)
        raise ConfigError(f"{file}:{argument}: planned are {pairs}; others by flags, see mtjudge plan")
    return size, place, task


def last(cfg: Config, batch: int) -> None:
    """The last step, PASSES times through the data rounded up to tens, and how often the model is judged until then."""
    examples = sum(TRAIN[task] for task in cfg.data.tasks)
    cfg.steps = 10 * -(-PASSES * examples // (10 * batch))
    cfg.eval.every_steps = max(1, cfg.steps // EVALUATIONS)


def v5p_64(cfg: Config) -> None:
    cfg.mesh.fsdp, cfg.mesh.expert = 8, 8
    cfg.update.micro_prompts = 64
    cfg.model.head_chunk = 64 * 1024


def v5p_32(cfg: Config) -> None:
    cfg.mesh.fsdp, cfg.mesh.expert = 4, 8
    cfg.update.micro_prompts, cfg.rollout.micro_prompts = 32, 256
    cfg.model.head_chunk = 32 * 1024


def v6e_64(cfg: Config) -> None:
    cfg.mesh.fsdp, cfg.mesh.expert = 16, 4
    cfg.update.micro_prompts, cfg.rollout.micro_prompts = 64, 256
    cfg.model.head_chunk = 64 * 512


def v5e_16_lora(cfg: Config) -> None:
    cfg.mesh.fsdp, cfg.mesh.tensor = 4, 4  # heads and mlp apart: gathering 17 GB for every token would take the links an hour
    cfg.lora.rank = 32
    cfg.optim.lr = 1e-5  # of adapters alone
    cfg.update.micro_prompts, cfg.rollout.micro_prompts = 4, 32
    cfg.model.head_chunk = 4 * 2048


def laptop(cfg: Config) -> None:
    """Not the paper's run but its rehearsal on a CPU, with the demo's model: an arm's own steps on its own data. It shows what
    the data folder lacks and what does not fit, not how good a judge is.
    """
    cfg.steps, cfg.mesh.data = 4, -1
    cfg.data.prompt_tokens, cfg.data.patches = 512, 256
    cfg.rollout.prompts, cfg.rollout.completion_tokens = 16, 32
    cfg.rollout.group_size = min(4, cfg.rollout.group_size)
    cfg.update.prompts, cfg.update.micro_prompts = 8, 8
    cfg.eval.every_steps, cfg.eval.limit, cfg.eval.samples = 2, 4, 2
    cfg.checkpoint.every_steps = 2
    cfg.model.dtype, cfg.model.remat = "float32", "none"


# Each slice's was compiled for it: launch/PLAN.md has the plans.
LAYOUTS: dict[tuple[str, str], Callable[[Config], None]] = {
    ("30b-a3b", "v5p:4x4x4"): v5p_64,
    ("30b-a3b", "v5p:2x4x4"): v5p_32,
    ("30b-a3b", "v6e:8x8"): v6e_64,
    ("8b", "v5e:4x4"): v5e_16_lora,
    ("rehearsal", "laptop"): laptop,
}
