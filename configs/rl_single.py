"""The paper's RL-Single: one model per task, trained by GRPO as in mt_rl_judge.py, on that task alone.

    mtjudge train --config=configs/rl_single.py:30b-a3b,v5p:4x4x4,unsafebench --workdir=gs://BUCKET/runs/rl_unsafebench \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size, a slice and a task: agin_nat agin_tech agin_rat seetrue imagereward unsafebench. Hardware, memory and
seconds per step: those of mt_rl_judge.py, which has the same batches.

The paper's numbers (macro-F1, test, each model on its own task): AGIN-Nat 80.50, AGIN-Tech 80.77, AGIN-Rat 82.71, SeeTRUE
83.41, ImageReward 65.07, UnsafeBench 86.92. It gives no numbers on pairs.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import layout, read_argument

# 3 passes, rounded up to tens, through 4,839 training questions of each AGIN task, 5,544, 6,194 and 7,298.
STEPS = {"agin_nat": 30, "agin_tech": 30, "agin_rat": 30, "seetrue": 40, "imagereward": 40, "unsafebench": 50}


def get_config(argument: str = "30b-a3b,v5p:4x4x4,agin_nat") -> Config:
    size, place, task = read_argument(argument, file="rl_single.py", single=True)
    cfg = Config()
    cfg.stage = "grpo"
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = (task,)
    cfg.data.prompt_tokens, cfg.data.patches = 2048, 4096
    cfg.rollout.prompts, cfg.rollout.group_size = 512, 20
    cfg.rollout.completion_tokens, cfg.rollout.temperature = 1024, 1.0
    cfg.update.prompts = 256  # two updates per rollout batch
    cfg.optim.lr, cfg.optim.weight_decay = 1e-6, 0.01  # EasyR1's, as is the next line
    cfg.loss.kl_coef = 0.01
    cfg.steps = STEPS[task]
    cfg.eval.every_steps, cfg.eval.patience = max(1, cfg.steps // 20), 5  # stops after 5 evaluations without a better one
    cfg.eval.limit, cfg.eval.samples = 256, 4  # validation questions per task, answers per question
    cfg.checkpoint.every_steps = 5
    layout(cfg, size, place)
    return cfg
