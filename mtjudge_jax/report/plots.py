"""The plots of the pages, drawn by matplotlib as SVG elements: sharp at any size, in the page's colours by day and by night, the
same bytes for the same numbers."""

import io
import json
import math
import re
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

BASE_COLOR, TRAINED_COLOR, REFERENCE_COLOR, ALL_COLOR = "#8a9099", "#0b6e99", "#9a6700", "#1c2330"
# Okabe and Ito's colours, distinct for colour-blind readers, without their yellow (hard to see on white) and black (the mean).
TASK_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_DASHES = ("-", "--", ":", "-.")  # of the first six tasks, the next six ..
MARKERS = "os^Dvp"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "text.parse_math": False, "axes.edgecolor": "#c5cad1",
    "axes.labelcolor": "#4a5361", "xtick.color": "#4a5361", "ytick.color": "#4a5361", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e8ebef", "axes.axisbelow": True,
    "svg.hashsalt": "mtjudge", "svg.fonttype": "none", "path.simplify_threshold": 0.3,
}  # fmt: skip
# On a page every plot is at least as wide as its 324 points, so that no text is smaller than 11 pixels.
PAGE_STYLE = STYLE | {"font.size": 11.5}
WIDTH = 4.5  # inches of 72 points
_HOVER = 200  # points of a line whose values can be read
# The variables of style.css.jinja, by the colour that is drawn in their place.
_VARIABLES = {
    BASE_COLOR: "--base", TRAINED_COLOR: "--blue", REFERENCE_COLOR: "--amber", ALL_COLOR: "--ink", "#c5cad1": "--axis",
    "#4a5361": "--soft", "#e8ebef": "--grid", "#dde2e8": "--line", "#b3261e": "--bad", "#ffffff": "--paper",
    **{color: f"--series{i}" for i, color in enumerate(TASK_COLORS)},
}  # fmt: skip


class Plot(NamedTuple):
    """`svg` is an element of the page. `values` is JSON, what the page's script shows under the pointer, "" for nothing."""

    title: str
    note: str
    alt: str
    svg: Markup
    values: str = ""


class Series(NamedTuple):
    """One line of a plot; None values are left out. `wide` marks the line over all tasks, `band` its 95 % intervals."""

    name: str
    steps: list[int]
    values: list[float | None]
    color: str
    marker: str = ""
    wide: bool = False
    dash: str = "-"
    band: list[list[float] | None] | None = None


class Dumbbell(NamedTuple):
    """One row of the before-and-after plot. Every score may be None; an interval is (low, high)."""

    task: str
    base: float | None
    base_ci: tuple[float, float] | None
    trained: float | None
    trained_ci: tuple[float, float] | None
    constant: float | None
    reference: float | None


class Look(NamedTuple):
    """How a task looks in all plots of a page."""

    color: str
    dash: str
    marker: str


def looks_of(tasks: list[str]) -> dict[str, Look]:
    """A colour, dashes and marker for each; the first 24 differ."""
    count, found = len(TASK_COLORS), {}
    for i, task in enumerate(tasks):
        found[task] = Look(TASK_COLORS[i % count], _DASHES[i // count % len(_DASHES)], MARKERS[(i + i // count) % len(MARKERS)])
    return found


def page_color(color: str) -> str:
    """The style sheet's variable for a colour of a plot."""
    return f"var({_VARIABLES[color]})"


def draw_curves(title: str, series: list[Series], *, limits: tuple[float, float] | None = None, note: str = "") -> Plot | None:
    """A panel over training steps. Lines without markers are smoothed by a moving mean; the overall one also shows raw.

    None if there is nothing to draw (a run that has not begun, a metric that was not logged).
    """
    series = [s for s in map(_drop_missing, series) if s.values]
    if not series:
        return None
    with matplotlib.rc_context(PAGE_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
        axes = figure.subplots()
        for number, s in enumerate(series):
            _draw_series(axes, s, number)
        axes.set_xlabel("training step")
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if limits:
            axes.set_ylim(*limits)
        else:
            axes.set_ylim(bottom=min(0.0, min(min(s.values) for s in series)))
        svg = inline_svg(figure)
        return Plot(title, note, _describe(title, series), svg, _hover_values(figure, axes, series))


def _draw_series(axes, s: Series, number: int) -> None:
    width, order = (2.6, 4) if s.wide else (1.5, 3)
    shape = {"color": s.color, "lw": width, "ls": s.dash, "zorder": order, "gid": f"series-{number}"}
    if s.band:
        low, high = zip(*(pair or (math.nan, math.nan) for pair in s.band), strict=True)
        axes.fill_between(s.steps, low, high, color=s.color, alpha=0.14, lw=0, zorder=1, gid=f"series-{number}")
    if s.marker:
        axes.plot(s.steps, s.values, marker=s.marker, ms=5, **shape)
        return
    if s.wide:
        axes.plot(s.steps, s.values, color=s.color, lw=0.7, alpha=0.3, zorder=2)
    axes.plot(s.steps, smooth(s.values), **shape)


def smooth(values: list[float]) -> np.ndarray:
    """Centred moving mean over a window of a twelfth of the run; the window shrinks at both ends instead of padding."""
    half = len(values) // 24
    total = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _hover_values(figure: Figure, axes, series: list[Series]) -> str:
    """JSON for the page's script: where the axes are in the SVG, its limits, and the lines as drawn."""
    place, width, height = axes.get_position(), *(72 * figure.get_size_inches())
    lines = []
    for s in series:
        kept = np.unique(np.linspace(0, len(s.steps) - 1, min(_HOVER, len(s.steps)), dtype=int))
        values = s.values if s.marker else smooth(s.values)
        line = {"name": s.name, "color": page_color(s.color), "x": [s.steps[i] for i in kept]}
        line["y"] = [float(f"{values[i]:.4g}") for i in kept]
        if s.band:
            line["band"] = [s.band[i] and [round(x, 4) for x in s.band[i]] for i in kept]
        lines.append(line)
    box = [round(float(x), 2) for x in (place.x0 * width, place.x1 * width, (1 - place.y1) * height, (1 - place.y0) * height)]
    return json.dumps({"box": box, "limits": [float(x) for x in axes.get_xlim()], "lines": lines}, separators=(",", ":"))


def draw_dumbbells(rows: list[Dumbbell]) -> Plot | None:
    """One row per task: a grey dot for the base, a blue dot for the trained model, lines for their 95 % intervals, a tick for the
    constant answer."""
    if not any(row.base is not None or row.trained is not None for row in rows):
        return None
    with matplotlib.rc_context(PAGE_STYLE | {"svg.hashsalt": "dumbbells"}):
        figure = Figure(figsize=(WIDTH, 0.7 + 0.4 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(rows):
            _draw_dumbbell(axes, y, row)
        axes.set(xlim=(0, 1.02), ylim=(len(rows) - 0.4, -0.6), yticks=range(len(rows)), yticklabels=[r.task for r in rows])
        axes.set_xlabel("macro-F1")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        text = "; ".join(f"{r.task} {_number(r.base)} to {_number(r.trained)}" for r in rows)
        alt = f"Macro-F1 of the base and the trained model, by task: {text}."
        return Plot("Macro-F1 before and after", "", alt, inline_svg(figure))


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


def draw_reliability(title: str, bins: dict[str, np.ndarray], colors: dict[str, str]) -> Plot | None:
    """Accuracy over confidence, one line per model. bins: [B, 3] count, summed confidence, number right (metrics/calibration.py).

    The area of a dot grows with the answers in its bin. On the diagonal the confidence is the accuracy.
    """
    bins = {name: rows[rows[:, 0] > 0] for name, rows in bins.items()}
    bins = {name: rows for name, rows in bins.items() if len(rows)}
    if not bins:
        return None
    with matplotlib.rc_context(PAGE_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#c5cad1", lw=1.2, ls="--", zorder=2)
        for name, rows in bins.items():
            count, confidence, right = rows.T
            place = (confidence / count, right / count)
            axes.plot(*place, color=colors[name], lw=1.3, zorder=3)
            axes.scatter(*place, s=12 + 240 * count / count.sum(), color=colors[name], edgecolor="white", lw=0.8, zorder=4)
        axes.set(xlim=(-0.03, 1.06), ylim=(-0.04, 1.06), xlabel="probability of the verdict", ylabel="share right")
        parts = []
        for name, rows in bins.items():
            gap = np.abs(rows[:, 1] - rows[:, 2]).sum() / rows[:, 0].sum()
            parts.append(f"{name}: {int(rows[:, 0].sum())} answers, expected calibration error {gap:.3f}")
        return Plot(title, "; ".join(parts), f"{title}: {'; '.join(parts)}.", inline_svg(figure))


def _drop_missing(s: Series) -> Series:
    kept = [i for i, b in enumerate(s.values) if b is not None and math.isfinite(b)]
    band = s.band and [s.band[i] for i in kept]
    return s._replace(steps=[s.steps[i] for i in kept], values=[s.values[i] for i in kept], band=band)


def _describe(title: str, series: list[Series]) -> str:
    """Alternative text: the first and last value of each line as drawn."""
    parts = []
    for s in series:
        values = s.values if s.marker else smooth(s.values)
        parts.append(f"{s.name} {_number(values[0])} to {_number(values[-1])}")
    return f"{title}, steps {min(s.steps[0] for s in series)} to {max(s.steps[-1] for s in series)}: {'; '.join(parts)}."


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def inline_svg(figure: Figure) -> Markup:
    """The figure as an element of an HTML page: without namespaces, fixed size and ids, its colours as variables of the style
    sheet. A part with the gid "series-3" becomes a group with data-series="3".
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", text, flags=re.S)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg class="plot" aria-hidden="true" \1>', text, count=1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r'<g id="series-(\d+)"', r'<g data-series="\1"', text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(f": {color}", f": var({variable})")
    text = text.replace(" font-family: 'DejaVu Sans';", "")  # the page has its own
    return Markup(re.sub(r"\s*\n\s*", "\n", text))
