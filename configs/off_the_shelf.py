"""The paper's first row: the starting model as it is. Nothing is trained; the config says how it is laid out to be judged.

    mtjudge eval --config=configs/off_the_shelf.py:30b-a3b,v5p:4x4x4 --model=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct \\
        --data=gs://BUCKET/six --out=gs://BUCKET/runs/off_the_shelf \\
        --tasks=agin_nat,agin_tech,agin_rat,seetrue,imagereward,unsafebench,mj_alignment,mj_safety

The argument is a size and a slice. Hardware: the slices of mt_rl_judge.py, a process a host. The same command with another
--model, a trained arm's `best` folder, judges that arm in the same way.

The paper's numbers (macro-F1, test): AGIN-Nat 67.99, AGIN-Tech 63.24, AGIN-Rat 64.77, SeeTRUE 80.01, ImageReward 55.07,
UnsafeBench 72.78; pairs: MJ-Bench alignment 59.41, safety 73.07.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import rl


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    return rl(argument, file="off_the_shelf.py")
