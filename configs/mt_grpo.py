"""MT-GRPO (arXiv 2602.05547) on the paper's six tasks: mt_rl_judge.py with another mixture of them, for the worst task's sake.

    mtjudge train --config=configs/mt_grpo.py:30b-a3b,v5p:4x4x4 --workdir=gs://BUCKET/runs/mt_grpo \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size and a slice. Hardware: that of mt_rl_judge.py. Tasks that learn little are drawn more often, and prompts
whose answers all earn the same are made up for, by up to two further rollouts a step (--config.data.mt_grpo_rounds=1: by none).
No numbers on these tasks are published; on its own ones its paper reports a worst task 16 to 28 points above plain GRPO's. To
compare with: MT-RL-Judge's worst of the six is ImageReward, 64.97.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import rl


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    cfg = rl(argument, file="mt_grpo.py")
    cfg.data.mixture = "mt_grpo"
    return cfg
