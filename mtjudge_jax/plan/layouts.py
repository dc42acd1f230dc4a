"""The slices that the paper's runs are planned for, and the argument `SIZE,SLICE[,TASK]` of their files in `configs/`.

A config file spells out its recipe and ends with `layout(cfg, size, place)`, which adds what depends on the hardware alone.
docs/plan.md has the plan of each slice.
"""

from collections.abc import Callable

from mtjudge_jax.config import Config
from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.plan.slices import tpu_slice
from mtjudge_jax.tasks.paper import TRAINED

_MODELS = {"30b-a3b": "models/Qwen3-VL-30B-A3B-Instruct", "8b": "models/Qwen3-VL-8B-Instruct", "rehearsal": "demo"}


def read_argument(argument: str, *, file: str, single: bool = False) -> tuple[str, str, str]:
    """`30b-a3b,v5p-128,seetrue` -> ("30b-a3b", "v5p:4x4x4", "seetrue").

    The task is "" unless `single`. Without a slice, the first one of the size is taken. Raises ConfigError that lists the values.
    """
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
        raise ConfigError(f"{file}:{argument}: the layouts are {pairs}; set the mesh of another slice by flags, see mtjudge plan")
    return size, place, task


def layout(cfg: Config, size: str, place: str) -> None:
    """Sets the model's folder, the mesh and the numbers of prompts and tokens that are in memory at a time.

    With `8b` it also sets adapters and their learning rate, and with `rehearsal` it reduces every size.
    """
    cfg.model.path = _MODELS[size]
    LAYOUTS[size, place](cfg)


def _v5p_64(cfg: Config) -> None:
    cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.expert = 1, 8, 8
    cfg.update.micro_prompts = 64
    cfg.rollout.gather_weights = True
    cfg.model.head_chunk = 64 * 1024


def _v5p_32(cfg: Config) -> None:
    cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.expert = 1, 4, 8
    cfg.update.micro_prompts, cfg.rollout.micro_prompts = 32, 256
    cfg.rollout.gather_weights = True
    cfg.model.head_chunk = 32 * 1024


def _v6e_64(cfg: Config) -> None:
    cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.expert = 1, 16, 4
    cfg.update.micro_prompts, cfg.rollout.micro_prompts = 64, 256
    cfg.model.head_chunk = 64 * 512


def _v5e_16_lora(cfg: Config) -> None:
    # tensor 4: with fsdp alone, gathering 17 GB of weights for every decoded token would keep the links busy for an hour
    cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.tensor = 1, 4, 4
    cfg.lora.rank = 32
    cfg.optim.lr = 1e-5  # only adapters are trained
    cfg.update.micro_prompts, cfg.rollout.micro_prompts = 4, 32
    cfg.rollout.gather_weights = True
    cfg.model.head_chunk = 4 * 2048


def _laptop(cfg: Config) -> None:
    """Rehearses an arm on a CPU with the demo's model: the arm's own steps on its own data, at small sizes.

    It shows whether the data folder is complete and the settings are valid, not how good a judge is.
    """
    cfg.steps, cfg.mesh.data = 4, -1
    cfg.data.prompt_tokens, cfg.data.patches = 512, 256
    cfg.rollout.prompts, cfg.rollout.group_size, cfg.rollout.completion_tokens = 16, 4, 32
    cfg.update.prompts, cfg.update.micro_prompts = 8, 8
    cfg.eval.every_steps, cfg.eval.limit, cfg.eval.samples = 2, 4, 2
    cfg.checkpoint.every_steps = 2
    cfg.model.dtype, cfg.model.remat = "float32", "none"


LAYOUTS: dict[tuple[str, str], Callable[[Config], None]] = {
    ("30b-a3b", "v5p:4x4x4"): _v5p_64,
    ("30b-a3b", "v5p:2x4x4"): _v5p_32,
    ("30b-a3b", "v6e:8x8"): _v6e_64,
    ("8b", "v5e:4x4"): _v5e_16_lora,
    ("rehearsal", "laptop"): _laptop,
}
