"""The learning rate of a step, in its line of metrics.jsonl and in the line that is printed."""

import jax
import pytest

from mtjudge_jax.config import Config
from mtjudge_jax.train.monitor.batch_metrics import learning_rate, updates_of
from mtjudge_jax.train.monitor.messages import opening_lines, say, step_line


def config(**optim) -> Config:
    cfg = Config(steps=10)
    cfg.rollout.prompts, cfg.update.prompts = 24, 12
    for name, value in optim.items():
        setattr(cfg.optim, name, value)
    return cfg


def test_the_rate_is_that_of_the_last_update_that_was_applied():
    """Two updates a step, four of warm-up: 1/4, 2/4 .. of the rate, then it is whole; a skipped update does not count."""
    cfg = config(lr=1e-3, warmup_steps=4, schedule="constant")
    assert updates_of(cfg) == 20
    rates = [learning_rate(cfg, applied) for applied in (0, 1, 2, 4, 5, 6, 20)]
    assert rates == pytest.approx([2.5e-4, 2.5e-4, 4.375e-4, 8.125e-4, 1e-3, 1e-3, 1e-3])
    cfg = config(lr=1e-3, warmup_steps=0, schedule="cosine", final_lr_ratio=0.1)
    assert [learning_rate(cfg, applied) for applied in (1, 11, 21)] == pytest.approx([1e-3, 5.5e-4, 1e-4])
    cfg.stage = "sft"
    assert updates_of(cfg) == 10 and learning_rate(cfg, 11) == pytest.approx(1e-4)


def test_the_line_of_a_step_has_the_rate():
    tasks = {"a": {"zero_variance": 0.5}, "b": {"zero_variance": 1.0}}
    line = {"reward": 0.5, "zero_variance": 0.75, "tasks": tasks, "lr": 1e-6, "tokens_per_s": 100.0}
    assert step_line(config(), 3, line, 61) == (
        "step  3/10 reward 0.500 zero_variance 0.750 (b 1.00) lr 1e-06 100 tokens/s 1:01 left"
    )
    assert "lr 0.00325 " in step_line(config(), 3, line | {"lr": 0.00325}, None)


def test_the_line_of_a_dpo_step_has_the_margin():
    cfg = config()
    cfg.stage = "dpo"
    line = {"loss": 0.5, "margin": 0.25, "pair_accuracy": 0.75, "kl": None, "lr": 1e-6, "tokens_per_s": 100.0}
    assert step_line(cfg, 3, line, None) == "step  3/10 loss 0.500 margin 0.250 pair_accuracy 0.750 lr 1e-06 100 tokens/s"
    assert updates_of(cfg) == 10
    (told,) = [line for line in opening_lines(cfg, {}) if line.startswith("a step: ")]
    assert told.startswith("a step: an update of 12 prompts of up to ") and told.endswith("two answers of up to 2,048;")
    assert any("no rollout, a reference policy; an evaluation samples" in line for line in opening_lines(cfg, {}))


def test_what_zero_variance_is_is_said_once_before_the_first_step():
    told = [line for line in opening_lines(config(), {}) if "zero_variance" in line]
    assert len(told) == 1 and "share of prompts whose answers all got the same reward" in told[0]
    cfg = config()
    cfg.stage = "sft"
    assert not [line for line in opening_lines(cfg, {}) if "zero_variance" in line]


def test_process_0_alone_prints(monkeypatch, capsys):
    for process, printed in ((0, "step 1\n"), (1, ""), (3, "")):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        say("step 1")
        assert capsys.readouterr().out == printed, process
