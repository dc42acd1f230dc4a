"""The paper's SFT-Unified: one model for the six tasks, fine-tuned on the true verdicts (AdamW, 1e-5, batches of 256).

    mtjudge train --config=configs/sft_unified.py:30b-a3b,v5p:4x4x4 --workdir=gs://BUCKET/runs/sft \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size and a slice. Hardware: the slices of mt_rl_judge.py; it needs less memory and time than they have, because
a prompt has one answer and there is no reference model. With --config.sft.target=rationale, records that have a gold reasoning
are trained with it.

The paper's numbers (macro-F1, test): AGIN-Nat 81.75, AGIN-Tech 81.22, AGIN-Rat 81.31, SeeTRUE 82.32, ImageReward 63.34,
UnsafeBench 89.49; pairs, which are not trained on: MJ-Bench alignment 55.82, safety 49.40, below off the shelf.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import layout, read_argument
from mtjudge_jax.tasks.paper import TRAINED


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    size, place, _ = read_argument(argument, file="sft_unified.py")
    cfg = Config()
    cfg.stage, cfg.sft.target = "sft", "answer"  # the verdict alone: the paper's data have no reasoning
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = TRAINED  # the paper's six tasks
    cfg.data.mixture = "proportional"  # the plain union of the tasks
    cfg.data.prompt_tokens, cfg.data.patches = 2048, 4096
    cfg.rollout.prompts, cfg.rollout.completion_tokens = 512, 1024  # of evaluations; answers as long as in RL
    cfg.update.prompts = 256
    cfg.optim.lr, cfg.optim.weight_decay = 1e-5, 0.01
    cfg.steps = 400  # 3 passes through the 33,553 training questions, rounded up
    cfg.eval.every_steps, cfg.eval.patience = 20, 5  # stops after 5 evaluations without a better one
    cfg.eval.limit, cfg.eval.samples = 256, 4  # validation questions per task, answers per question
    cfg.checkpoint.every_steps = 5
    layout(cfg, size, place)
    return cfg
