"""The steps of a run as a table on the terminal: a head every twenty steps, one row of at most 120 columns a step."""

import math
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

from mtjudge_jax.config import Config

_HEAD_EVERY = 20  # rows
_DIM, _YELLOW, _RED, _PLAIN = "\033[2m", "\033[33m", "\033[31m", "\033[0m"
_BLOCKS = " ▏▎▍▌▋▊▉█"  # eighths of a cell
_BAR = 6  # cells
_MOST = 120  # columns
_LEFT = 8  # of the last column, the time left


class _Column(NamedTuple):
    key: str  # of a line of metrics.jsonl
    title: str
    width: int
    show: Callable[[float], str]


def _three(value: float) -> str:
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"
    return text.removeprefix("-") if text == "-0.000" else text


_COLUMNS = (
    _Column("reward", "reward", 6, _three),
    _Column("accuracy", "acc", 5, _three),
    _Column("format", "format", 6, _three),
    _Column("loss", "loss", 6, _three),
    _Column("margin", "margin", 6, _three),
    _Column("pair_accuracy", "acc", 5, _three),
    _Column("kl", "kl", 5, _three),
    _Column("entropy", "entropy", 7, _three),
    _Column("grad_norm", "grad", 5, _three),
    _Column("zero_variance", "flat", 4, lambda share: f"{share:.0%}"),
    _Column("wanted_met", "met", 4, lambda share: f"{share:.0%}"),
    _Column("completion_tokens", "len", 5, lambda count: f"{count:.0f}"),
    _Column("lr", "lr", 8, lambda rate: f"{rate:.3g}"),
    _Column("tokens_per_s", "tok/s", 6, lambda rate: f"{rate:.0f}"),
)
_MEANINGS = {
    "accuracy": "acc, format: share of answers with the right verdict, with the form that is asked for",
    "zero_variance": "flat: share of prompts whose answers all got one reward and teach nothing",
    "completion_tokens": "len: tokens of an answer, the mean",
    "wanted_met": "met: share of the wanted prompts that teach",
}


class StepTable:
    """The rows of a run. It has a column for each number that the first line holds, and a new head where that changes.

    colour: whether it is shown on a terminal, which takes colours and a bar beside the reward.
    """

    def __init__(self, cfg: Config, *, colour: bool):
        self._steps, self._colour = cfg.steps, colour
        self._keys: list[str] = []
        self._since_head = 0

    def lines(self, step: int, line: dict, seconds_left: float | None) -> list[str]:
        """The row of a step, below a head if one is due. `line` is that of metrics.jsonl with `lr`."""
        keys = [column.key for column in _COLUMNS if line.get(column.key) is not None or self._kept(column.key, line)]
        new, explained = keys != self._keys, not self._keys
        self._since_head = 1 if new or self._since_head == _HEAD_EVERY else self._since_head + 1
        self._keys = keys
        row = self._row(step, line, seconds_left)
        if self._since_head > 1:
            return [row]
        meanings = [text for key, text in _MEANINGS.items() if key in keys] if explained else []
        return [*map(self._dimmed, [*meanings, self._head()]), row]

    def _kept(self, key: str, line: dict) -> bool:
        """Whether a column stays although this step, whose update was skipped, has no number for it."""
        return key in self._keys and bool(line.get("skipped")) and key in line

    def _columns(self) -> list[_Column]:
        return [column for column in _COLUMNS if column.key in self._keys]

    def _head(self) -> str:
        titles = [f"{c.title:>{c.width}}" + " " * self._bar_width(c) for c in self._columns()]
        return "  ".join([" " * len(self._number(0)), *titles, f"{'left':>{_LEFT}}"])

    def _row(self, step: int, line: dict, seconds_left: float | None) -> str:
        cells = [self._cell(c, line.get(c.key)) for c in self._columns()]
        return "  ".join([self._number(step), *cells, f"{_duration(seconds_left):>{_LEFT}}"]).rstrip()

    def _number(self, step: int) -> str:
        return f"step {step:{len(str(self._steps))}d}/{self._steps}"

    def _bar_width(self, column: _Column) -> int:
        """Of the bar beside a column, with its space: that of the reward, on a terminal, if the row holds it."""
        if not self._colour or column.key != "reward":
            return 0
        plain = len(self._number(0)) + sum(2 + c.width for c in self._columns()) + 2 + _LEFT
        return _BAR + 1 if plain + _BAR + 1 <= _MOST else 0

    def _cell(self, column: _Column, value: float | None) -> str:
        text = "–" if value is None else column.show(value) if math.isfinite(value) else str(value)
        text = f"{text:>{column.width}}"
        if not self._colour:
            return text
        bad = value is None or not math.isfinite(value)
        colour = _RED if bad else _YELLOW if column.key == "zero_variance" and value > 0.9 else ""
        text = f"{colour}{text}{_PLAIN}" if colour else text
        return f"{text} {self._dimmed(_bar(0.0 if bad else value))}" if self._bar_width(column) else text

    def _dimmed(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._colour else text


def on_terminal() -> bool:
    """Whether the lines go to a terminal that shows colours; NO_COLOR turns them off (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _bar(share: float) -> str:
    """A share between 0 and 1 as a bar of _BAR cells."""
    eighths = round(min(1.0, max(0.0, share)) * _BAR * 8)
    return "".join(_BLOCKS[min(8, max(0, eighths - 8 * cell))] for cell in range(_BAR))


def _duration(seconds: float | None) -> str:
    """75 -> "1:15", 7265 -> "2:01:05"; "" for None."""
    if seconds is None:
        return ""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
