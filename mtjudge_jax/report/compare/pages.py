"""Writes a comparison as Markdown, as one self-contained page, as JSON and as plots."""

import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.figure import Figure

from mtjudge_jax.locks import held
from mtjudge_jax.paths import AnyPath, write_whole
from mtjudge_jax.report.compare.compare import BESIDE, ArmRow, Cell, Comparison
from mtjudge_jax.report.compare.measures import measure_tables
from mtjudge_jax.report.compare.paired import Paired, disagreements
from mtjudge_jax.report.compare.paper import paper_arm
from mtjudge_jax.report.curves import compared_curves
from mtjudge_jax.report.examples import Card, make_cards, seeds_of
from mtjudge_jax.report.page import render_page
from mtjudge_jax.report.plots import MARKERS, PAGE_STYLE, STYLE, TASK_COLORS, WIDTH, Plot, inline_svg, page_color
from mtjudge_jax.report.read import read_json, read_run
from mtjudge_jax.report.tables import Table

_CARDS = 24  # questions of an arm and the base that are shown


def write_comparison(comparison: Comparison, out: AnyPath, *, note: str = "") -> list[AnyPath]:
    """comparison.md, .html and .json and the plots comparison.png and transfer.png in `out`; returns their paths.

    note: a paragraph above the tables.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = _plots_of(comparison)
    files = {f"{name}.png": _png(plot, comparison.arms) for name, plot in drawn.items()}
    files["comparison.md"] = comparison_markdown(comparison, list(drawn), note=note).encode()
    files["comparison.html"] = _page(comparison, drawn, note=note).encode(errors="replace")
    files["comparison.json"] = json.dumps({"note": note} | _as_dict(comparison), indent=1).encode()
    with held(out, name="comparison"):
        for name, data in files.items():
            write_whole(out / name, data)
    return [out / name for name in sorted(files)]


def _tables(comparison: Comparison) -> list[Table]:
    """The scores in distribution, in the unseen format, its differences from the base, and every measure."""
    c, interval = comparison, "[95 % interval, bootstrap by group]"
    if _has_seeds(c):
        interval = f"mean over seeds (lowest to highest seed); for a single seed {interval}"
    note = f"Percent, {interval}." + (" “paper” marks the number that the paper reports." if c.paper else "")
    first, unseen = (["arm", "seeds"] if _has_seeds(c) else ["arm"]), [_heading(c, task) for task in c.unseen]
    found = []
    named = " A column that names no other measure is macro-F1." if "macro_f1" in c.metrics.values() else ""
    if c.tasks:
        head = [*first, *(_heading(c, task) for task in c.tasks), "mean", "worst"]
        found.append(Table("In distribution", note + named, head, _score_rows(c, c.tasks, ("mean", "worst"))))
    if c.unseen:
        own = {c.metrics[task] for task in c.unseen}
        given = {column for row in c.scores.values() for column in row}
        more = [name for name, key in BESIDE.items() if f"unseen {name}" in given and {key} != own]
        beside = f" {', '.join(more)}: means over the tasks." if more else ""
        rows = _score_rows(c, c.unseen, ("unseen mean", *(f"unseen {name}" for name in more)))
        found.append(Table("Unseen format", note + named + beside, [*first, *unseen, "mean", *more], rows))
    if c.transfer:
        rows = [[*_first_cells(c, arm), *(_difference(c, arm, column) for column in (*c.unseen, "mean"))] for arm in c.transfer]
        note = f"Percentage points on the unseen format, each arm minus {c.base}; {interval}."
        found.append(Table(f"Format transfer: pairwise minus {c.base}", note, [*first, *unseen, "mean"], rows))
    if c.paired:
        found.insert(0, _paired_table(c))
    return [*found, *measure_tables(c)]


def _paired_table(c: Comparison) -> Table:
    note = (
        f"Each arm against {c.base} on the questions that both were asked. Accuracy in percent, differences in percentage points "
        "[95 % interval, paired bootstrap by group]. Only right: questions that one of the two has right and the other wrong. "
        "p: McNemar's exact test of these two numbers, two-sided; it takes the questions as independent, the intervals do not. "
        "The two orders of a pair are two questions."
    )
    head = ["task", "arm", "questions", f"accuracy of {c.base}", "accuracy", "difference", "macro-F1 difference"]
    head += [f"only {c.base} right", "only the arm right", "p"]
    cells = [_paired_cells(arm, row) for arm, rows in c.paired.items() for row in rows]
    return Table(f"Paired differences from {c.base}", note, head, cells)


def _paired_cells(arm: str, row: Paired) -> list[str]:
    accuracies = [f"{100 * row.base:.1f}", f"{100 * row.arm:.1f}", cell_text(Cell(*row.difference), sign=True)]
    f1 = cell_text(row.macro_f1 and Cell(*row.macro_f1), sign=True)
    return [row.task, arm, str(row.questions), *accuracies, f1, str(row.only_base), str(row.only_arm), p_text(row.p)]


def p_text(p: float) -> str:
    """0.0312 -> "0.031", 0.00004 -> "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


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


def _as_dict(comparison: Comparison) -> dict:
    """The numbers behind the tables, for JSON."""
    by_arm = {
        name: {arm: {column: cell._asdict() for column, cell in row.items()} for arm, row in rows.items()}
        for name, rows in (("scores", comparison.scores), ("transfer", comparison.transfer))
    }
    paired = {arm: [row._asdict() for row in rows] for arm, rows in comparison.paired.items()}
    return {"base": comparison.base, "metrics": comparison.metrics} | by_arm | {"paired": paired}


def comparison_markdown(comparison: Comparison, plots: Sequence[str] = (), *, note: str = "") -> str:
    parts = ["# Comparison of runs", *([note] if note else [])]
    for table in _tables(comparison):
        rule = ["---", *["---:"] * (len(table.head) - 1)]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (table.head, rule, *table.rows)]
        parts += [f"## {table.title}", table.note, "\n".join(lines)]
    parts += [f"![{name}]({name}.png)" for name in plots]
    return "\n\n".join(parts) + "\n"


def _page(c: Comparison, drawn: dict[str, "_Rows"], *, note: str = "") -> str:
    """The comparison as one HTML file."""
    problems: list[str] = []
    cards = {arm: found for arm in c.paired if (found := _cards(c, arm, problems))}
    with matplotlib.rc_context(PAGE_STYLE):
        plots = [Plot("", "", plot.text, inline_svg(_draw_rows(plot, c.arms, WIDTH))) for plot in drawn.values()]
    looks = {arm: page_color(arm_style(number)[0]) for number, arm in enumerate(c.arms)}
    return render_page(
        "compare.html.jinja", comparison=c, tables=_tables(c), note=note, problems=problems, plots=plots, cards=cards,
        curves=_curves(c), looks=looks, most=_CARDS,
    )  # fmt: skip


def _cards(c: Comparison, arm: str, problems: list[str]) -> list[Card]:
    """The questions on which the arm and the base disagree."""
    base, other = c.runs[c.base][0], c.runs[arm][0]
    judged = disagreements(base["predictions"], other["predictions"], (*c.tasks, *c.unseen), _CARDS)
    config = read_json(other["workdir"] / "config.json", []) if other.get("workdir") else {}
    return make_cards(judged, other.get("data") or base.get("data"), problems, seeds=seeds_of(config))


def _curves(c: Comparison) -> list[Plot]:
    """Of the arms that are runs, each with one seed and a workdir of its own; none of a single one."""
    places = {arm: results[0].get("workdir") for arm, results in c.runs.items() if len(results) == 1}
    runs = {arm: read_run(place) for arm, place in places.items() if place and list(places.values()).count(place) == 1}
    if len(runs) < 2:
        return []
    last = [(run.validation or [{}])[-1].get("tasks", {}) for run in runs.values()]
    return compared_curves(runs, [task for task in (*c.tasks, *c.unseen) if all(task in tasks for tasks in last)])


class _Rows(NamedTuple):
    """A plot of the cells of `columns`; `text` describes it."""

    text: str
    rows: dict[str, ArmRow]
    columns: list[str]
    unit: str


def _plots_of(c: Comparison) -> dict[str, _Rows]:
    columns = [*c.tasks, *(["mean"] if c.tasks else []), *c.unseen]
    plots = {"comparison": _Rows(f"Scores of {', '.join(c.arms)} by task", c.scores, columns, "percent")}
    if c.transfer:
        text, unit = f"Pairwise scores minus those of {c.base}", f"percentage points above {c.base}"
        plots["transfer"] = _Rows(text, c.transfer, [*c.unseen, "mean"], unit)
    return plots


def _png(plot: _Rows, arms: list[str]) -> bytes:
    with matplotlib.rc_context(STYLE):
        file = io.BytesIO()
        _draw_rows(plot, arms, 7.2).savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def arm_style(number: int) -> tuple[str, str]:
    """Colour and marker of an arm; the first 36 arms differ."""
    return TASK_COLORS[number % len(TASK_COLORS)], MARKERS[(number + number // len(TASK_COLORS)) % len(MARKERS)]


def _draw_rows(plot: _Rows, arms: list[str], width: float) -> Figure:
    """One line of the plot per column, one marker with its interval per arm. An arm looks the same in all plots of `arms`."""
    rows, columns = plot.rows, plot.columns
    high = 1.1 + (0.16 * len(rows) + 0.25) * len(columns)
    figure = Figure(figsize=(width, high), dpi=150, layout="constrained")
    axes, step = figure.subplots(), 0.7 / max(len(rows), 1)
    for i, (name, row) in enumerate(rows.items()):
        color, marker = arm_style(arms.index(name))
        at = [(column, row[column]) for column in columns if column in row]
        heights = [columns.index(column) + (i - (len(rows) - 1) / 2) * step for column, _ in at]
        axes.plot([100 * cell.value for _, cell in at], heights, marker, color=color, ms=5, label=name, zorder=4)
        for height, (_, cell) in zip(heights, at, strict=True):
            if cell.low is not None:
                axes.plot([100 * cell.low, 100 * cell.high], [height] * 2, color=color, lw=1.3, zorder=3)
    axes.set(ylim=(len(columns) - 0.4, -0.6), yticks=range(len(columns)), yticklabels=columns, xlabel=plot.unit)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper left", ncols=3 if width > WIDTH else 1, frameon=False)
    return figure
