"""The paper's SFT-Unified: one model for the six tasks, taught the true verdicts (AdamW, 1e-5, batches of 256).

    mtjudge train --config=configs/sft_unified.py:30b-a3b,v5p:4x4x4 --workdir=gs://BUCKET/runs/sft \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size and a slice. Hardware: the slices of mt_rl_judge.py; it needs less of them, one answer a prompt and no
reference model. Records with a gold reasoning are taught with it by --config.sft.target=rationale.

The paper's numbers (macro-F1, test): AGIN-Nat 81.75, AGIN-Tech 81.22, AGIN-Rat 81.31, SeeTRUE 82.32, ImageReward 63.34,
UnsafeBench 89.49; pairs never trained on: MJ-Bench alignment 55.82, safety 49.40, below off the shelf.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import sft


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    return sft(argument, file="sft_unified.py")
