"""The paper's run, MT-RL-Judge (arXiv 2603.11665): six tasks, multi-task GRPO, 20 answers a prompt, on a slice of TPUs.

    mtjudge plan  --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --topology=v5p:4x4x4
    mtjudge train --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --workdir=gs://BUCKET/runs/judge \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size and a slice, as `mtjudge plan` writes it or by its number of chips (`v5p-64`; Google's own `v5p-128`
counts two cores a chip). Hardware: exactly the devices of that slice, a process a host. What the plan said (2026-11-25, jax
0.10.2, libtpu 0.0.42.1; rooflines, no measurements; launch/PLAN.md has the tables):

    argument              GB a device, of      a step at least
    30b-a3b,v5p:4x4x4     39.1     102.8        47 s
    30b-a3b,v5p:2x4x4     58.5     102.8        99 s
    30b-a3b,v6e:8x8       33.0      33.6       195 s
    8b,v5e:4x4            13.0      16.9       706 s    (adapters of rank 32; the rest trains everything)
"""

from collections.abc import Callable

from mtjudge_jax.config import Config, ConfigError
from mtjudge_jax.plan.chips import tpu_slice

FOLDERS = {"30b-a3b": "models/Qwen3-VL-30B-A3B-Instruct", "8b": "models/Qwen3-VL-8B-Instruct"}


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    size, _, place = argument.partition(",")
    pairs = [f"{size},{place}" for size, place in LAYOUTS]
    name = tpu_slice(place).name if place else next((place for known, place in LAYOUTS if known == size), "")
    if (size, name) not in LAYOUTS:
        raise ConfigError(f"mt_rl_judge.py:{argument}: planned are {' '.join(pairs)}; others by flags, see mtjudge plan")
    cfg = paper(FOLDERS[size])
    LAYOUTS[size, name](cfg)
    return cfg


def paper(folder: str) -> Config:
    """Its settings; what it leaves open is the default of EasyR1, in whose words it is written, and that of config.py."""
    cfg = Config(steps=200)  # three times through the 33,553 prompts; the best on validation is kept
    cfg.model.path = folder
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = ("technical", "rationality", "naturalness", "alignment", "preference", "safety")
    cfg.data.prompt_tokens, cfg.data.patches = 2048, 4096
    cfg.rollout.prompts, cfg.rollout.group_size, cfg.rollout.completion_tokens = 512, 20, 1024
    cfg.update.prompts = 256
    cfg.optim.lr, cfg.optim.weight_decay, cfg.loss.kl_coef = 1e-6, 1e-2, 1e-2
    cfg.eval.every_steps, cfg.eval.limit, cfg.eval.samples, cfg.eval.patience = 10, 256, 4, 5
    cfg.checkpoint.every_steps = 5
    cfg.mesh.data = 1
    return cfg


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


LAYOUTS: dict[tuple[str, str], Callable[[Config], None]] = {
    ("30b-a3b", "v5p:4x4x4"): v5p_64,
    ("30b-a3b", "v5p:2x4x4"): v5p_32,
    ("30b-a3b", "v6e:8x8"): v6e_64,
    ("8b", "v5e:4x4"): v5e_16_lora,
}
