"""Writes a comparison as Markdown, as one self-contained page, as JSON and as plots."""

import base64
import io
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mtjudge_jax.paths import AnyPath, write_whole
from mtjudge_jax.report.compare.compare import BESIDE, ArmRow, Cell, Comparison
from mtjudge_jax.report.compare.paper import paper_arm
from mtjudge_jax.report.plots import MARKERS, STYLE, TASK_COLORS

_FOLDER = pathlib.Path(__file__).parents[1] / "templates"
# The columns of the last table, by the key of a score. A column is shown if a score has it.
_DETAILS = {
    "count": "answers", "macro_f1": "macro-F1", "constant_macro_f1": "constant answer", "accuracy": "accuracy",
    "sampled_accuracy": "sampled accuracy", "kappa": "kappa", "quadratic_kappa": "quadratic kappa", "mae": "MAE",
    "auroc": "AUROC", "spearman": "Spearman", "pearson": "Pearson", "kendall": "Kendall tau-b", "tau_b": "tau-b of lists",
    "levenshtein": "Levenshtein", "accuracy_with_ties": "with ties", "accuracy_without_ties": "without ties",
    "consistency": "consistency", "consistent_accuracy": "both orders right",
    "flip_rate": "flips", "first_share": "first wins", "position_bias": "position bias", "ece": "ECE", "brier": "Brier",
    "confidence_auroc": "confidence AUROC", "risk_coverage": "risk-coverage", "majority_accuracy": "majority",
    "self_agreement": "self-agreement", "invalid_rate": "invalid", "mean_tokens": "tokens",
}  # fmt: skip
# Explained in the note of a table that has the column.
_MEANINGS = {
    "constant answer": "Constant answer: the macro-F1 of the best judge that always gives the same verdict.",
    "position bias": "Position bias: the share of choices (ties left out) for the first picture, minus the share of pairs "
    "where it is better; 0 means none.",
    "official": "Official: the data set's own metric by its own rules.",
}


class Table(NamedTuple):
    """A table of text cells; `head` has the names of the columns."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def write_comparison(comparison: Comparison, out: AnyPath, *, note: str = "") -> list[AnyPath]:
    """comparison.md, .html and .json and the plots comparison.png and transfer.png in `out`; returns their paths.

    note: a paragraph above the tables.
    """
    out.mkdir(parents=True, exist_ok=True)
    plots = _draw_plots(comparison)
    files = {f"{name}.png": data for name, (_, data) in plots.items()}
    files["comparison.md"] = comparison_markdown(comparison, list(plots), note=note).encode()
    files["comparison.html"] = _page(comparison, plots, note=note).encode()
    files["comparison.json"] = json.dumps({"note": note} | _as_dict(comparison), indent=1).encode()
    for name, data in files.items():
        write_whole(out / name, data)
    return [out / name for name in sorted(files)]


def _tables(comparison: Comparison) -> list[Table]:
    """The scores in distribution, in the unseen format, its differences from the base, and all other measures."""
    c, interval = comparison, "[95 % interval, bootstrap by group]"
    if _has_seeds(c):
        interval = f"mean over seeds (lowest to highest seed); for a single seed {interval}"
    note = f"Percent, {interval}." + (" “paper” marks the number that the paper reports." if c.paper else "")
    first, unseen = (["arm", "seeds"] if _has_seeds(c) else ["arm"]), [_heading(c, task) for task in c.unseen]
    found = []
    if c.tasks:
        head = [*first, *(_heading(c, task) for task in c.tasks), "mean", "worst"]
        found.append(Table("In distribution", note, head, _score_rows(c, c.tasks, ("mean", "worst"))))
    if c.unseen:
        own = {c.metrics[task] for task in c.unseen}
        given = {column for row in c.scores.values() for column in row}
        more = [name for name, key in BESIDE.items() if f"unseen {name}" in given and {key} != own]
        beside = f" {', '.join(more)}: means over the tasks." if more else ""
        rows = _score_rows(c, c.unseen, ("unseen mean", *(f"unseen {name}" for name in more)))
        found.append(Table("Unseen format", note + beside, [*first, *unseen, "mean", *more], rows))
    if c.transfer:
        rows = [[*_first_cells(c, arm), *(_difference(c, arm, column) for column in (*c.unseen, "mean"))] for arm in c.transfer]
        note = f"Percentage points on the unseen format, each arm minus {c.base}; {interval}."
        found.append(Table(f"Format transfer: pairwise minus {c.base}", note, [*first, *unseen, "mean"], rows))
    return [*found, detail_table(c)]


def _has_seeds(c: Comparison) -> bool:
    """Whether an arm has more than one seed, so that the tables show how many."""
    return any(len(results) > 1 for results in c.runs.values())


def _first_cells(c: Comparison, arm: str) -> list[str]:
    """The first cells of an arm's row."""
    return [arm, str(len(c.runs[arm]))] if _has_seeds(c) else [arm]


def _heading(c: Comparison, task: str) -> str:
    return task if c.metrics[task] == "macro_f1" else f"{task} ({c.metrics[task].replace('_', ' ')})"


def _score_rows(c: Comparison, tasks: Sequence[str], more: Sequence[str]) -> list[list[str]]:
    """The runs, then those arms of the paper that are not among the runs."""
    rows = [[*_first_cells(c, name), *(_with_paper(c, name, column) for column in (*tasks, *more))] for name in c.arms]
    known = {paper_arm(name) for name in c.arms}
    for arm, numbers in c.paper.items():
        if arm not in known and any(task in numbers for task in tasks):
            first = [f"paper: {arm}", *([""] if _has_seeds(c) else [])]
            found = (numbers.get(column) for column in (*tasks, *more))
            rows.append([*first, *("" if number is None else f"{number:.2f}" for number in found)])
    return rows


def _with_paper(c: Comparison, name: str, column: str) -> str:
    number = c.paper.get(paper_arm(name), {}).get(column)
    return cell_text(c.scores[name].get(column)) + ("" if number is None else f" paper {number:.2f}")


def _difference(c: Comparison, name: str, column: str) -> str:
    text = cell_text(c.transfer[name].get(column), sign=True)
    numbers, base = (c.paper.get(paper_arm(arm), {}).get(column) for arm in (name, c.base))
    return text if numbers is None or base is None else f"{text} paper {numbers - base:+.2f}"


def cell_text(cell: Cell | None, *, sign: bool = False) -> str:
    """Cell(0.8163, 0.79, 0.84) -> "81.6 [79.0, 84.0]", for several seeds "81.6 (79.0 to 84.0)"; a difference has a sign."""
    if cell is None:
        return "–"
    form = "+.1f" if sign else ".1f"
    text, low, high = ("" if number is None else format(100 * number, form) for number in (cell.value, cell.low, cell.high))
    if cell.low is None:
        return text
    return f"{text} ({low} to {high})" if cell.seeds > 1 else f"{text} [{low}, {high}]"


def detail_table(c: Comparison) -> Table:
    """Every measure that a score has, one row per task and arm, means over seeds; and the data sets' official numbers."""
    rows, tasks = [], (*c.tasks, *c.unseen)
    every = [result["tasks"].get(task, {}) for arm in c.arms for result in c.runs[arm] for task in tasks]
    keys = [key for key in _DETAILS if any(score.get(key) is not None for score in every)]
    for task in tasks:
        for arm in c.arms:
            scores = [result["tasks"][task] for result in c.runs[arm] if task in result["tasks"]]
            if scores:
                official = ", ".join(f"{key} {value:.3f}" for key, value in (scores[0].get("official") or {}).items())
                rows.append([task, arm, *(_mean_text(scores, key) for key in keys), official])
    head = ["task", "arm", *(_DETAILS[key] for key in keys), "official"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    first = ["Means over seeds; official numbers are those of the first seed."] if _has_seeds(c) else []
    note = " ".join([*first, *(words for name, words in _MEANINGS.items() if name in head)])
    return Table("All measures", note, head, rows)


def _mean_text(scores: list[dict], key: str) -> str:
    values = [score[key] for score in scores if score.get(key) is not None]
    if not values:
        return ""
    return f"{np.mean(values):.0f}" if key in ("count", "mean_tokens") else f"{np.mean(values):.3f}"


def _as_dict(comparison: Comparison) -> dict:
    """The numbers behind the tables, for JSON."""
    by_arm = {
        name: {arm: {column: cell._asdict() for column, cell in row.items()} for arm, row in rows.items()}
        for name, rows in (("scores", comparison.scores), ("transfer", comparison.transfer))
    }
    return {"base": comparison.base, "metrics": comparison.metrics} | by_arm


def comparison_markdown(comparison: Comparison, plots: Sequence[str] = (), *, note: str = "") -> str:
    parts = ["# Comparison of runs", *([note] if note else [])]
    for table in _tables(comparison):
        rule = ["---", *["---:"] * (len(table.head) - 1)]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (table.head, rule, *table.rows)]
        parts += [f"## {table.title}", table.note, "\n".join(lines)]
    parts += [f"![{name}]({name}.png)" for name in plots]
    return "\n\n".join(parts) + "\n"


def _page(comparison: Comparison, plots: dict[str, tuple[str, bytes]], *, note: str = "") -> str:
    """The comparison as one HTML file, without scripts, with the plots inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    images = [(alt, "data:image/png;base64," + base64.b64encode(data).decode()) for alt, data in plots.values()]
    template = environment.get_template("compare.html.jinja")
    return template.render(tables=_tables(comparison), images=images, arms=comparison.arms, note=note)


def _draw_plots(comparison: Comparison) -> dict[str, tuple[str, bytes]]:
    """Name -> (alternative text, PNG)."""
    c = comparison
    columns = [*c.tasks, *(["mean"] if c.tasks else []), *c.unseen]
    plots = {"comparison": _draw_rows(c.scores, c.arms, columns, "percent", f"Scores of {', '.join(c.arms)} by task")}
    if c.transfer:
        text = f"Pairwise scores minus those of {c.base}"
        plots["transfer"] = _draw_rows(c.transfer, c.arms, [*c.unseen, "mean"], f"percentage points above {c.base}", text)
    return plots


def arm_style(number: int) -> tuple[str, str]:
    """Colour and marker of an arm; the first 36 arms differ."""
    return TASK_COLORS[number % len(TASK_COLORS)], MARKERS[(number + number // len(TASK_COLORS)) % len(MARKERS)]


def _draw_rows(rows: dict[str, ArmRow], arms: list[str], columns: list[str], unit: str, alt: str) -> tuple[str, bytes]:
    """One line of the plot per column, one marker with its interval per arm. An arm looks the same in all plots of `arms`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.1 + (0.16 * len(rows) + 0.25) * len(columns)), dpi=150, layout="constrained")
        axes, step = figure.subplots(), 0.7 / max(len(rows), 1)
        for i, (name, row) in enumerate(rows.items()):
            color, marker = arm_style(arms.index(name))
            at = [(column, row[column]) for column in columns if column in row]
            heights = [columns.index(column) + (i - (len(rows) - 1) / 2) * step for column, _ in at]
            axes.plot([100 * cell.value for _, cell in at], heights, marker, color=color, ms=5, label=name, zorder=4)
            for height, (_, cell) in zip(heights, at, strict=True):
                if cell.low is not None:
                    axes.plot([100 * cell.low, 100 * cell.high], [height] * 2, color=color, lw=1.3, zorder=3)
        axes.set(ylim=(len(columns) - 0.4, -0.6), yticks=range(len(columns)), yticklabels=columns, xlabel=unit)
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return alt, file.getvalue()
