"""The demo's reference: SFT on gold reasoning with true verdicts, from the same base, on the same pictures.

    mtjudge train --config=configs/demo_sft.py --config.data.path=runs/data --workdir=runs/demo_sft

At this size it beats RL: it is shown the whole answer where RL sees one bit. What to expect: README.
"""

from mtjudge_jax.config import Config
from mtjudge_jax.demo.config import get_config as demo


def get_config() -> Config:
    cfg = demo()
    cfg.stage, cfg.steps = "sft", 160
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 48
    cfg.optim.name, cfg.optim.lr = "muon", 0.002
    return cfg
