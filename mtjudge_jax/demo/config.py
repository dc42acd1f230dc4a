"""The demo's config, an ordinary one: `configs/demo.py` gives it to `mtjudge train`."""

from mtjudge_jax.config import Config
from mtjudge_jax.demo.cases import POINTWISE


def get_config() -> Config:
    """Six pointwise tasks, balanced, 24 prompts of 8 answers a step; minutes on a CPU with two cores."""
    cfg = Config(steps=160)
    cfg.model.path = "demo"
    cfg.data.tasks = POINTWISE
    cfg.data.mixture = "uniform"
    cfg.data.balance_labels = True  # without it a tiny policy collapses to a constant answer
    cfg.data.prompt_tokens, cfg.data.patches = 44, 36
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 24
    cfg.rollout.group_size = cfg.eval.samples = 8
    cfg.rollout.completion_tokens = 18
    # Muon: AdamW moves every weight of so small a model at its full rate, and the model forgets how to see before it judges.
    cfg.optim.name, cfg.optim.lr = "muon", 2e-3
    cfg.optim.warmup_steps, cfg.optim.schedule = 10, "cosine"
    cfg.optim.b2, cfg.optim.weight_decay = 0.99, 0.0
    cfg.loss.kl_coef = 0.1
    cfg.eval.every_steps, cfg.eval.limit = 40, 48
    cfg.checkpoint.every_steps = 20
    return cfg
