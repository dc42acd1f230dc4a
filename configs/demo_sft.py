"""The demo's reference: SFT on gold reasoning and true verdicts, from the same base and on the same images as demo.py.

    mtjudge train --config=configs/demo_sft.py --config.data.path=runs/data --workdir=runs/demo_sft

It sees the whole answer where RL sees one bit, and as many questions. Expected numbers: docs/results.md.
"""

from mtjudge_jax.config import Config


def get_config() -> Config:
    cfg = Config()
    cfg.stage, cfg.steps, cfg.sft.target = "sft", 96, "rationale"
    cfg.model.path = "demo"
    cfg.model.freeze = ("vision", "mergers")
    cfg.data.tasks = ("technical", "rationality", "naturalness", "alignment", "preference", "safety")
    cfg.data.tasks += ("pairwise_looks", "pairwise_things")
    cfg.data.mixture = "uniform"
    cfg.data.balance_labels = True
    cfg.data.prompt_tokens, cfg.data.patches = 54, 72
    cfg.update.prompts = cfg.update.micro_prompts = 48
    cfg.rollout.prompts, cfg.rollout.completion_tokens = 48, 28  # of evaluations and of the answers that are taught
    cfg.rollout.group_size, cfg.loss.kl_coef = 8, 0.3  # demo.py's; SFT does not use them
    cfg.optim.name, cfg.optim.lr = "muon", 0.002
    cfg.optim.warmup_steps, cfg.optim.schedule = 24, "cosine"
    cfg.optim.b2, cfg.optim.weight_decay = 0.99, 0.0
    cfg.eval.every_steps, cfg.eval.limit, cfg.eval.samples = 24, 48, 2
    cfg.checkpoint.every_steps = 24
    return cfg
