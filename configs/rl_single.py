"""The paper's RL-Single: one model a task, GRPO as in mt_rl_judge.py on that task alone.

    mtjudge train --config=configs/rl_single.py:30b-a3b,v5p:4x4x4,unsafebench --workdir=gs://BUCKET/runs/rl_unsafebench \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size, a slice and a task: agin_nat agin_tech agin_rat seetrue imagereward unsafebench. Hardware, memory and
seconds a step: those of mt_rl_judge.py, whose batches it has.

The paper's numbers (macro-F1, test, each model on its own task): AGIN-Nat 80.50, AGIN-Tech 80.77, AGIN-Rat 82.71, SeeTRUE
83.41, ImageReward 65.07, UnsafeBench 86.92. On pairs it gives none.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import rl


def get_config(argument: str = "30b-a3b,v5p:4x4x4,agin_nat") -> Config:
    return rl(argument, file="rl_single.py", single=True)
