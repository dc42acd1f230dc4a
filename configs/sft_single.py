"""The paper's SFT-Single: one model per task, fine-tuned on the true verdicts (AdamW, 1e-5, batches of 256).

    mtjudge train --config=configs/sft_single.py:30b-a3b,v5p:4x4x4,unsafebench --workdir=gs://BUCKET/runs/sft_unsafebench \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size, a slice and a task: agin_nat agin_tech agin_rat seetrue imagereward unsafebench. Hardware: the slices of
mt_rl_judge.py; it needs less memory and time than they have, because a prompt has one answer and there is no reference model.
With --config.sft.target=rationale, records that have a gold reasoning are trained with it.

The paper's numbers (macro-F1, test, each model on its own task): AGIN-Nat 78.64, AGIN-Tech 77.04, AGIN-Rat 78.08, SeeTRUE
80.41, ImageReward 64.95, UnsafeBench 90.28. It gives no numbers on pairs.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import layout, read_argument

# 3 passes, rounded up to tens, through 4,839 training questions of each AGIN task, 5,544, 6,194 and 7,298.
STEPS = {"agin_nat": 60, "agin_tech": 60, "agin_rat": 60, "seetrue": 70, "imagereward": 80, "unsafebench": 90}


def get_config(argument: str = "30b-a3b,v5p:4x4x4,agin_nat") -> Config:
    size, place, task = read_argument(argument, file="sft_single.py", single=True)
    cfg = Config()
    cfg.stage, cfg.sft.target = "sft", "answer"  # the verdict alone: the paper's data have no reasoning
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = (task,)
    cfg.data.prompt_tokens, cfg.data.patches = 2048, 4096
    cfg.rollout.prompts, cfg.rollout.completion_tokens = 512, 1024  # of evaluations; answers as long as in RL
    cfg.update.prompts = 256
    cfg.optim.lr, cfg.optim.weight_decay = 1e-5, 0.01
    cfg.steps = STEPS[task]
    cfg.eval.every_steps, cfg.eval.patience = max(1, cfg.steps // 20), 5  # stops after 5 evaluations without a better one
    cfg.eval.limit, cfg.eval.samples = 256, 4  # validation questions per task, answers per question
    cfg.checkpoint.every_steps = 5
    layout(cfg, size, place)
    return cfg
