"""Figures of `mtjudge plan` by hand: the share of the products that a model requires, what the steps of a gather read."""

from types import SimpleNamespace

import tiny
from places import GOLDENS

from mtjudge_jax.config import Config
from mtjudge_jax.plan import analytic
from mtjudge_jax.plan.roofline import StepPhase
from mtjudge_jax.plan.slices import Slice
from mtjudge_jax.plan.table import costs_table
from mtjudge_jax.plan.xla import costs, parse

TPU_TEXT = (GOLDENS / "tpu_program.txt").read_text()


def test_the_share_of_the_products_that_the_model_requires():
    """Three rollouts, two passes of log-probabilities and four updates a step, on two devices that compute twice as much."""
    cfg, model = Config(), tiny.config()
    cfg.model.path, cfg.data.tasks, cfg.data.mixture, cfg.data.mt_grpo_rounds = "tiny", ("technical",), "mt_grpo", 3
    cfg.rollout.prompts, cfg.update.prompts, cfg.loss.kl_coef = 32, 8, 0.0
    required, calls = analytic.flops(model, cfg), {"prefill": 3, "decode": 3, "logp": 2, "update": 4}
    phases = [
        StepPhase(name, dict.fromkeys(("flops", "hbm", *costs.COLLECTIVES), 0.0) | {"flops": 2 * required[name] * n / 2}, 0, 0, 0)
        for name, n in calls.items()
    ]
    table = costs_table(SimpleNamespace(cfg=cfg, model_cfg=model), phases, Slice("test", None, (2,)))
    (shares,) = [line.split()[-4:] for line in table.splitlines() if "share that the model requires" in line]
    assert shares == ["50%"] * 4


def test_the_steps_of_a_gather_do_not_read_the_shard_again():
    """With the shard in the device's memory rather than in fast memory, its copy is written there: 2 x 64 numbers of 2 bytes."""
    in_memory = TPU_TEXT.replace("bf16[2,64]{1,0:S(1)}", "bf16[2,64]{1,0}")
    fast, slow = (
        costs.count(parse.parse_program(text), kernel_work=lambda kernel: None, taken=1.0).fixed["hbm"]
        for text in (TPU_TEXT, in_memory)
    )
    assert slow - fast == 2 * 64 * 2
