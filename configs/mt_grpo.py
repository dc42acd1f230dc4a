"""MT-GRPO (arXiv 2602.05547) on the paper's six tasks: mt_rl_judge.py with an adaptive mixture that favours the worst task.

    mtjudge train --config=configs/mt_grpo.py:30b-a3b,v5p:4x4x4 --workdir=gs://BUCKET/runs/mt_grpo \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size and a slice. Hardware: the slices of mt_rl_judge.py. Tasks that improve slowly are drawn more often.
Prompts whose answers all earn the same reward are replaced by up to two further rollouts per step (--config.data.mt_grpo_rounds=1
turns this off). No numbers on these six tasks are published. On its own tasks the MT-GRPO paper reports a worst task 16 to 28
points above plain GRPO's. For comparison, MT-RL-Judge's worst of the six is ImageReward with 64.97.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import layout, read_argument
from mtjudge_jax.tasks.paper import TRAINED


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    size, place, _ = read_argument(argument, file="mt_grpo.py")
    cfg = Config()
    cfg.stage = "grpo"
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = TRAINED  # the paper's six tasks
    cfg.data.mixture = "mt_grpo"  # with config.py's lambda, beta, M and rounds
    cfg.data.prompt_tokens, cfg.data.patches = 2048, 4096
    cfg.rollout.prompts, cfg.rollout.group_size = 512, 20
    cfg.rollout.completion_tokens, cfg.rollout.temperature = 1024, 1.0
    cfg.update.prompts = 256  # two updates per rollout batch
    cfg.optim.lr, cfg.optim.weight_decay = 1e-6, 0.01  # EasyR1's, as is the next line
    cfg.loss.kl_coef = 0.01
    cfg.steps = 200  # 3 passes through the 33,553 training questions, rounded up
    cfg.eval.every_steps, cfg.eval.patience = 10, 5  # stops after 5 evaluations without a better one
    cfg.eval.limit, cfg.eval.samples = 256, 4  # validation questions per task, answers per question
    cfg.checkpoint.every_steps = 5
    layout(cfg, size, place)
    return cfg
