"""The demo's config, an ordinary one: `configs/demo.py` gives it to `mtjudge train`."""

from mtjudge_jax.config import Config
from mtjudge_jax.demo.cases import TRAINED_TASKS


def get_config() -> Config:
    """Six tasks of one picture and two of neutral pairs, balanced, 16 prompts of 8 answers a step; minutes on two cores."""
    cfg = Config(steps=288)
    cfg.model.path = "demo"
    cfg.model.freeze = ("vision", "mergers")  # the base sees well, and what is not trained cannot be spoiled
    cfg.data.tasks = TRAINED_TASKS  # those of the six criteria about single pictures, and neutral pairs, which keep the form
    cfg.data.mixture = "uniform"
    cfg.data.balance_labels = True  # without it a tiny policy collapses to a constant answer
    cfg.data.prompt_tokens, cfg.data.patches = 54, 72
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 16
    cfg.rollout.group_size, cfg.eval.samples = 8, 2
    cfg.rollout.completion_tokens = 28
    # Muon: AdamW moves every weight of so small a model at its full rate, and the model forgets what its base knows. The first
    # steps follow noise, and they are as long as the later ones: with a warm-up of 10 in 160 one of two seeds lost the pairs.
    # With 2e-3 three seeds of five lost a criterion of the pairs, with this none.
    cfg.optim.name, cfg.optim.lr = "muon", 1.2e-3
    cfg.optim.warmup_steps, cfg.optim.schedule = 72, "cosine"
    cfg.optim.b2, cfg.optim.weight_decay = 0.99, 0.0
    cfg.loss.kl_coef = 0.3  # keeps the coins of the base alive: with 0.1 two seeds of three had 0.70 and 0.72 on pairs of safety
    cfg.eval.every_steps, cfg.eval.limit = 72, 48
    cfg.checkpoint.every_steps = 24
    return cfg
