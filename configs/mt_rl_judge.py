"""The paper's run: MT-RL-Judge (arXiv 2603.11665), six tasks, multi-task GRPO, on a slice of TPUs.

    mtjudge plan  --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --topology=v5p:4x4x4
    mtjudge train --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --workdir=gs://BUCKET/runs/judge \\
        --config.model.path=models/Qwen3-VL-30B-A3B-Instruct --config.data.path=data/six
"""

from mtjudge_jax.config import Config


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    cfg = Config(steps=200)
    cfg.model.path = "models/Qwen3-VL-30B-A3B-Instruct"
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = ("technical", "rationality", "naturalness", "alignment", "preference", "safety")
    cfg.data.prompt_tokens, cfg.data.patches = 2048, 4096
    cfg.rollout.prompts, cfg.rollout.group_size, cfg.rollout.completion_tokens = 512, 20, 1024
    cfg.update.prompts, cfg.update.micro_prompts = 256, 64
    cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.expert = 1, 8, 8
    cfg.model.head_chunk = 64 * 1024
    return cfg
