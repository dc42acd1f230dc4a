"""The plots of the page, drawn by matplotlib as SVG data URIs: sharp at any size, the same bytes for the same numbers."""

import base64
import io
import math
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

BASE_COLOR, TRAINED_COLOR, REFERENCE_COLOR, ALL_COLOR = "#8a9099", "#0b6e99", "#9a6700", "#1c2330"
# Okabe and Ito's colours, distinct for colour-blind readers, without their yellow (hard to see on white) and black (the mean).
TASK_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
MARKERS = "os^Dvp"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.parse_math": False, "axes.edgecolor": "#c5cad1",
    "axes.labelcolor": "#4a5361", "xtick.color": "#4a5361", "ytick.color": "#4a5361", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e8ebef", "axes.axisbelow": True,
    "svg.hashsalt": "mtjudge", "svg.fonttype": "path", "path.simplify_threshold": 0.3,
}  # fmt: skip


class Plot(NamedTuple):
    title: str
    note: str
    alt: str
    uri: str


class Series(NamedTuple):
    """One line of a plot; None values are left out. `wide` marks the line over all tasks."""

    name: str
    steps: list[int]
    values: list[float | None]
    color: str
    marker: str = ""
    wide: bool = False


class Dumbbell(NamedTuple):
    """One row of the before-and-after plot. Every score may be None; an interval is (low, high)."""

    task: str
    base: float | None
    base_ci: tuple[float, float] | None
    trained: float | None
    trained_ci: tuple[float, float] | None
    constant: float | None
    reference: float | None


def draw_curves(title: str, series: list[Series], *, limits: tuple[float, float] | None = None, note: str = "") -> Plot | None:
    """A panel over training steps. Lines without markers are smoothed by a moving mean; the overall one also shows raw.

    None if there is nothing to draw (a run that has not begun, a metric that was not logged).
    """
    series = [s for s in map(_drop_missing, series) if s.values]
    if not series:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.75), layout="constrained")
        axes = figure.subplots()
        for s in series:
            _draw_series(axes, s)
        axes.set_xlabel("training step")
        axes.margins(x=0.02)
        if limits:
            axes.set_ylim(*limits)
        else:
            axes.set_ylim(bottom=min(0.0, min(min(s.values) for s in series)))
        return Plot(title, note, _describe(title, series), _svg_uri(figure))


def _draw_series(axes, s: Series) -> None:
    width, order = (2.4, 4) if s.wide else (1.3, 3)
    if s.marker:
        axes.plot(s.steps, s.values, color=s.color, lw=width, marker=s.marker, ms=4, zorder=order)
        return
    if s.wide:
        axes.plot(s.steps, s.values, color=s.color, lw=0.7, alpha=0.3, zorder=2)
    axes.plot(s.steps, smooth(s.values), color=s.color, lw=width, zorder=order)


def smooth(values: list[float]) -> np.ndarray:
    """Centred moving mean over a window of a twelfth of the run; the window shrinks at both ends instead of padding."""
    half = len(values) // 24
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def draw_dumbbells(rows: list[Dumbbell]) -> Plot | None:
    """One row per task: a grey dot for the base, a blue dot for the trained model, lines for their 95 % intervals, a tick for the
    constant answer."""
    if not any(row.base is not None or row.trained is not None for row in rows):
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.5, 0.7 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(rows):
            _draw_dumbbell(axes, y, row)
        axes.set(xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)), yticklabels=[r.task for r in rows])
        axes.set_xlabel("macro-F1")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        text = "; ".join(f"{r.task} {_number(r.base)} to {_number(r.trained)}" for r in rows)
        return Plot(
            "Macro-F1 before and after", "", f"Macro-F1 of the base and the trained model, by task: {text}.", _svg_uri(figure)
        )


def _draw_dumbbell(axes, y: int, row: Dumbbell) -> None:
    """Trained a little above the row's middle and base a little below, so that overlapping intervals stay readable."""
    low, high = y + 0.13, y - 0.13
    if row.base is not None and row.trained is not None:
        axes.plot([row.base, row.trained], [low, high], color="#dde2e8", lw=3, solid_capstyle="round", zorder=2)
    lanes = ((row.base, row.base_ci, BASE_COLOR, low), (row.trained, row.trained_ci, TRAINED_COLOR, high))
    for x, ci, color, height in lanes:
        if ci is not None:
            axes.plot(ci, [height] * 2, color=color, lw=1.4, zorder=3)
        if x is not None:
            axes.plot(x, height, "o", color=color, ms=6.5, mec="white", zorder=4)
    if row.constant is not None:
        axes.plot([row.constant] * 2, [y - 0.26, y + 0.26], color="#b3261e", lw=1.4, zorder=3)
    if row.reference is not None:
        axes.plot(row.reference, y, "D", color=REFERENCE_COLOR, ms=5, mfc="white", zorder=4)


def _drop_missing(s: Series) -> Series:
    kept = [(a, b) for a, b in zip(s.steps, s.values, strict=True) if b is not None and math.isfinite(b)]
    return s._replace(steps=[a for a, _ in kept], values=[b for _, b in kept])


def _describe(title: str, series: list[Series]) -> str:
    """Alternative text: the first and last value of each line as drawn."""
    parts = []
    for s in series:
        values = s.values if s.marker else smooth(s.values)
        parts.append(f"{s.name} {_number(values[0])} to {_number(values[-1])}")
    return f"{title}, steps {min(s.steps[0] for s in series)} to {max(s.steps[-1] for s in series)}: {'; '.join(parts)}."


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _svg_uri(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
