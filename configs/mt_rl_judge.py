"""The paper's run, MT-RL-Judge (arXiv 2603.11665): multi-task GRPO on six tasks, 20 answers per prompt, on a slice of TPUs.

    mtjudge plan  --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --topology=v5p:4x4x4
    mtjudge train --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --workdir=gs://BUCKET/runs/judge \\
        --config.model.path=gs://BUCKET/Qwen3-VL-30B-A3B-Instruct --config.data.path=gs://BUCKET/six

The argument is a size and a slice, as `mtjudge plan` writes it or by Google Cloud's name (`v5p-128`, which counts two cores per
chip). Hardware: exactly the devices of that slice, one process per host. `mtjudge plan` gave these rooflines, which are not
measurements (2026-11-25 to 2026-11-30, jax 0.10.2, libtpu 0.0.42.1; docs/plan.md has the tables):

    argument              GB per device, of    seconds per step, at least
    30b-a3b,v5p:4x4x4     57.5     102.8        40 s
    30b-a3b,v5p:2x4x4     59.8     102.8        81 s
    30b-a3b,v6e:8x8       33.0      33.6       195 s
    8b,v5e:4x4            15.2      16.9       596 s    (adapters of rank 32; the others train all weights)

The paper's numbers (macro-F1, test): AGIN-Nat 81.63, AGIN-Tech 81.37, AGIN-Rat 81.58, SeeTRUE 83.67, ImageReward 64.97,
UnsafeBench 85.22; pairs, which are not trained on: MJ-Bench alignment 60.59, safety 82.23.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.plan.layouts import layout, read_argument
from mtjudge_jax.tasks.paper import TRAINED


def get_config(argument: str = "30b-a3b,v5p:4x4x4") -> Config:
    size, place, _ = read_argument(argument, file="mt_rl_judge.py")
    cfg = Config()
    cfg.stage = "grpo"
    cfg.model.dtype, cfg.model.remat = "bfloat16", "full"
    cfg.data.tasks = TRAINED  # the paper's six tasks
    cfg.data.mixture = "proportional"  # the plain union of the tasks
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
