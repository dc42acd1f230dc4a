"""The paper's SFT-Single: one model a task, taught the true verdicts (AdamW, 1e-5, batches of 256).

    mtjudge train --config=configs/sft_single.py:30b-a3b,v5p:4x4x4,unsafebench --workdir=gs://BUCKET/runs/sft_unsafebench \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size, a slice and a task: agin_nat agin_tech agin_rat seetrue imagereward unsafebench. Hardware: the slices of
mt_rl_judge.py; it needs less of them, one answer a prompt and no reference model. Records with a gold reasoning are taught with
it by --config.sft.target=rationale.

The paper's numbers (macro-F1, test, each model on its own task): AGIN-Nat 78.64, AGIN-Tech 77.04, AGIN-Rat 78.08, SeeTRUE
80.41, ImageReward 64.95, UnsafeBench 90.28. On pairs it gives none.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import sft


def get_config(argument: str = "30b-a3b,v5p:4x4x4,agin_nat") -> Config:
    return sft(argument, file="sft_single.py", single=True)
