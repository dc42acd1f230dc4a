"""The paper's first row: the starting model, without training. The config gives the layout in which it is evaluated.

    mtjudge eval --config=configs/off_the_shelf.py:30b-a3b,v5p:4x4x4 --model=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct \\
        --data=gs://BUCKET/six --out=gs://BUCKET/runs/off_the_shelf \\
        --tasks=agin_nat,agin_tech,agin_rat,seetrue,imagereward,unsafebench,mj_alignment,mj_safety

The argument is a size and a slice. Hardware: the slices of mt_rl_judge.py, one process per host. With a trained
arm's `best` folder as --model, the same command evaluates that arm.

The paper's numbers (macro-F1, test): AGIN-Nat 67.99, AGIN-Tech 63.24, AGIN-Rat 64.77, SeeTRUE 80.01, ImageReward 55.07,
UnsafeBench 72.78; pairs: MJ-Bench alignment 59.41, safety 73.07.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import layout, read_argument
from mtjudge_jax.tasks.paper import TRAINED


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    size, place, _ = read_argument(argument, file="off_the_shelf.py")
    cfg = Config()
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = TRAINED  # the paper's six tasks
    cfg.data.prompt_tokens, cfg.data.patches = 2048, 4096
    cfg.rollout.prompts, cfg.rollout.completion_tokens = 512, 1024
    cfg.rollout.temperature = 1.0  # of the answers after the first, which is greedy
    cfg.eval.limit, cfg.eval.samples, cfg.eval.patience = 256, 4, 5
    cfg.steps, cfg.eval.every_steps, cfg.checkpoint.every_steps = 200, 10, 5  # mt_rl_judge.py's; not used without training
    layout(cfg, size, place)
    return cfg
