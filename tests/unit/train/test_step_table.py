"""The learning rate of a step, and the row that is printed."""

import math
import re

import jax
import pytest

from mtjudge_jax.config import Config
from mtjudge_jax.train.monitor.batch_metrics import learning_rate, updates_of
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.monitor.step_table import StepTable


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


LINE = {
    "reward": 0.5, "accuracy": 0.25, "format": 1.0, "loss": -0.0001, "kl": 0.01, "entropy": 0.07, "grad_norm": 123.0,
    "zero_variance": 0.75, "completion_tokens": 11.4, "lr": 1e-6, "tokens_per_s": 100.0, "skipped": 0,
}  # fmt: skip
PLAIN = re.compile("\033\\[\\d+m")


def test_a_step_is_a_row_below_its_head():
    table = StepTable(config(), colour=False)
    *said, head, row = table.lines(3, LINE, 61)
    assert [text.partition(":")[0] for text in said] == ["acc, format", "flat", "len"]
    assert head.split() == ["reward", "acc", "format", "loss", "kl", "entropy", "grad", "flat", "len", "lr", "tok/s", "left"]
    assert row == (
        "step  3/10   0.500  0.250   1.000   0.000  0.010    0.070    123   75%     11     1e-06     100      1:01"
    )
    assert [text.rindex(word) + len(word) for text, word in ((head, "kl"), (row, "0.010"), (head, "left"), (row, "1:01"))] == [
        48, 48, len(head), len(head)
    ]  # fmt: skip


def test_a_head_comes_every_twenty_rows_and_where_the_columns_change():
    table = StepTable(config(), colour=False)
    counts = [len(table.lines(step, LINE, None)) for step in range(1, 42)]
    assert counts == [5] + 19 * [1] + [2] + 19 * [1] + [2]  # its words are explained once
    assert len(table.lines(42, LINE | {"kl": None, "skipped": 1}, None)) == 1  # a skipped update has no divergence
    assert "–" in table.lines(43, LINE | {"kl": None, "skipped": 1}, None)[0]
    assert len(table.lines(44, LINE | {"kl": None}, None)) == 2
    (row,) = table.lines(45, LINE | {"kl": None, "loss": math.nan}, None)
    assert " nan " in row


@pytest.mark.parametrize("steps", [10, 1000, 10**5])
@pytest.mark.parametrize("more", [{}, {"wanted_met": 1.0}, {"lr": 1.23456e-6, "tokens_per_s": 123456.0}])
def test_a_row_on_a_terminal_fits_120_columns(steps, more):
    cfg = config()
    cfg.steps = steps
    *_, head, row = StepTable(cfg, colour=True).lines(steps, LINE | more, 35999)
    head, row = PLAIN.sub("", head), PLAIN.sub("", row)
    assert len(head) == len(row) <= 120 and row.endswith(" 9:59:59")
    assert ("███" in row) == (steps == 10 or "wanted_met" not in more)  # half of six cells, where they fit
    assert "\033[33m" not in "".join(StepTable(cfg, colour=True).lines(1, LINE, None))
    assert "\033[33m" in "".join(StepTable(cfg, colour=True).lines(1, LINE | {"zero_variance": 1.0}, None))


def test_process_0_alone_prints(monkeypatch, capsys):
    for process, printed in ((0, "step 1\n"), (1, ""), (3, "")):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        say("step 1")
        assert capsys.readouterr().out == printed, process
