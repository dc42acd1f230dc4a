"""The paper's run, MT-RL-Judge (arXiv 2603.11665): six tasks, multi-task GRPO, 20 answers a prompt, on a slice of TPUs.

    mtjudge plan  --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --topology=v5p:4x4x4
    mtjudge train --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --workdir=gs://BUCKET/runs/judge \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size and a slice, as `mtjudge plan` writes it or by Google Cloud's name (`v5p-128`, which counts two cores a
chip). Hardware: exactly the devices of that slice, a process a host. What the plan said (2026-11-25, jax
0.10.2, libtpu 0.0.42.1; rooflines, no measurements; launch/PLAN.md has the tables):

    argument              GB a device, of      a step at least
    30b-a3b,v5p:4x4x4     39.1     102.8        47 s
    30b-a3b,v5p:2x4x4     58.5     102.8        99 s
    30b-a3b,v6e:8x8       33.0      33.6       195 s
    8b,v5e:4x4            13.0      16.9       706 s    (adapters of rank 32; the rest trains everything)

The paper's numbers (macro-F1, test): AGIN-Nat 81.63, AGIN-Tech 81.37, AGIN-Rat 81.58, SeeTRUE 83.67, ImageReward 64.97,
UnsafeBench 85.22; pairs never trained on: MJ-Bench alignment 60.59, safety 82.23.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import LAYOUTS, rl

__all__ = ["LAYOUTS", "get_config"]


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    return rl(argument, file="mt_rl_judge.py")
