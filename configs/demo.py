"""The demo: a tiny judge on a laptop, six tasks, about six minutes on two idle CPU cores.

    mtjudge prepare --dataset=demo --out=runs/data
    mtjudge train --config=configs/demo.py --config.data.path=runs/data --workdir=runs/demo

`mtjudge demo --workdir=runs/demo` runs the same training, with evaluations before and after it and a report. Expected numbers:
docs/results.md. The installed package has the same recipe in mtjudge_jax/demo/config.py; a test compares the two.
"""

from mtjudge_jax.config import Config


def get_config() -> Config:
    cfg = Config()
    cfg.stage, cfg.steps = "grpo", 160
    cfg.model.path = "demo"
    cfg.data.tasks = ("technical", "rationality", "naturalness", "alignment", "preference", "safety")
    cfg.data.mixture = "uniform"
    cfg.data.balance_labels = True  # without it so small a policy collapses to a constant answer
    cfg.data.prompt_tokens, cfg.data.patches = 44, 36
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 24
    cfg.rollout.group_size, cfg.rollout.completion_tokens = 8, 18
    # Muon, because AdamW moves every weight at the full rate, and so small a model forgets what its base can see.
    cfg.optim.name, cfg.optim.lr = "muon", 2e-3
    cfg.optim.warmup_steps, cfg.optim.schedule = 10, "cosine"
    cfg.optim.b2, cfg.optim.weight_decay = 0.99, 0.0
    cfg.loss.kl_coef = 0.1
    cfg.eval.every_steps, cfg.eval.limit, cfg.eval.samples = 40, 48, 8
    cfg.checkpoint.every_steps = 20
    return cfg
