"""The two tables of the arms: in distribution, and on the unseen pairwise form. Mean and lowest to highest over the seeds."""

import html
import json
from collections.abc import Sequence
from typing import NamedTuple

from mtjudge_jax.demo.config import TASKS, UNSEEN
from mtjudge_jax.paths import AnyPath, write_whole

BASE = "off_the_shelf"


class Spread(NamedTuple):
    """A number over seeds, and the 95 % intervals (bootstrap by photograph) of its first seed where there are some."""

    mean: float
    low: float
    high: float
    seeds: int
    ci: tuple[float, float] | None = None


class Table(NamedTuple):
    title: str
    note: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, Spread | None]]  # by arm, by column


def spread(values: Sequence[float], ci: Sequence[float] | None = None) -> Spread | None:
    """(0.4, 0.6, 0.8) -> mean 0.6, low 0.4, high 0.8 of 3 seeds; None where there is no value."""
    if not values:
        return None
    return Spread(sum(values) / len(values), min(values), max(values), len(values), tuple(ci) if ci else None)


def scores_by_seed(results: Sequence[dict], arm: str) -> dict[int, dict[str, dict]]:
    """{seed: {task: score}} of an arm, its single models put together."""
    merged: dict[int, dict[str, dict]] = {}
    for result in results:
        if result["arm"] == arm:
            merged.setdefault(result["seed"], {}).update(result["tasks"])
    return merged


def row(seeds: dict[int, dict[str, dict]], tasks: Sequence[str], key: str) -> dict[str, Spread | None]:
    """A number a task, and over the seeds that have all tasks the mean and the worst of them."""
    order = [seeds[seed] for seed in sorted(seeds)]
    cells = {}
    for task in tasks:
        have = [scores[task] for scores in order if task in scores]
        cells[task] = spread([score[key] for score in have], have[0].get(f"{key}_ci") if have else None)
    whole = [[scores[task][key] for task in tasks] for scores in order if all(task in scores for task in tasks)]
    cells["mean"] = spread([sum(values) / len(values) for values in whole])
    cells["worst"] = spread([min(values) for values in whole])
    return cells


def in_distribution(results: Sequence[dict], arms: Sequence[str]) -> Table:
    rows = {arm: row(scores_by_seed(results, arm), TASKS, "macro_f1") for arm in arms}
    note = "Macro-F1, test split, greedy answers, an invalid one counts as wrong; a constant answer has 0.33."
    return Table("In distribution", note, (*TASKS, "mean", "worst"), rows)


def pairwise(results: Sequence[dict], arms: Sequence[str]) -> Table:
    """Macro-F1 a task and in the mean; the mean minus that of the base; and what both orders and probabilities say."""
    rows = {}
    for arm in arms:
        seeds = scores_by_seed(results, arm)
        cells = row(seeds, UNSEEN, "macro_f1")
        cells["transfer"] = None
        for name, key in OTHERS.items():
            cells[name] = row(seeds, UNSEEN, key)["mean"]
        rows[arm] = cells
    base = rows[BASE]["mean"] if BASE in rows else None
    for cells in rows.values():
        if base and cells["mean"]:
            mean = cells["mean"]
            cells["transfer"] = Spread(mean.mean - base.mean, mean.low - base.mean, mean.high - base.mean, mean.seeds)
    note = (
        "Two pictures at once, never trained on. Macro-F1 over both orders of every pair; a constant answer has 0.33. transfer: "
        "the mean minus the base's. In the mean of the three tasks: accuracy, same winner in both orders, accuracy by the "
        "answers' probabilities, of each picture judged alone, and answers without a verdict."
    )
    return Table("On the unseen pairwise form", note, (*UNSEEN, "mean", "transfer", *OTHERS), rows)


OTHERS = {
    "accuracy": "accuracy",
    "same winner": "consistency",
    "by probability": "probability_accuracy",
    "each alone": "single_accuracy",
    "invalid": "invalid_rate",
}


def shown(cell: Spread | None) -> str:
    """`0.62 (0.58-0.66)` over seeds, `0.62 [0.55-0.70]` with the interval of a single one, or `0.62`."""
    if cell is None:
        return ""
    if cell.seeds > 1:
        return f"{cell.mean:.2f} ({cell.low:.2f}-{cell.high:.2f})"
    return f"{cell.mean:.2f}" + (f" [{cell.ci[0]:.2f}-{cell.ci[1]:.2f}]" if cell.ci else "")


def as_markdown(table: Table, titles: dict[str, str]) -> str:
    lines = [f"## {table.title}", "", table.note, "", f"| arm | seeds | {' | '.join(table.columns)} |"]
    lines.append("|---" * (2 + len(table.columns)) + "|")
    for arm, cells in table.rows.items():
        lines.append(f"| {titles[arm]} | {seeds_of(cells)} | {' | '.join(shown(cells[name]) for name in table.columns)} |")
    return "\n".join(lines) + "\n"


def as_html(table: Table, titles: dict[str, str]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("arm", "seeds", *table.columns))
    body = ""
    for arm, cells in table.rows.items():
        texts = [titles[arm], str(seeds_of(cells)), *(shown(cells[name]) for name in table.columns)]
        body += "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in texts) + "</tr>\n"
    return f"<h2>{html.escape(table.title)}</h2>\n<p>{html.escape(table.note)}</p>\n<table><tr>{head}</tr>\n{body}</table>\n"


def seeds_of(cells: dict[str, Spread | None]) -> int:
    return max((cell.seeds for cell in cells.values() if cell), default=0)


STYLE = "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em .6em}"


def write_tables(workdir: AnyPath, names: Sequence[str], titles: dict[str, str]) -> AnyPath:
    """`arms.md`, `arms.html` and `arms.json` from the evaluations of those names that are there; the path of the page."""
    paths = [workdir / "eval" / f"{name}.json" for name in names]
    results = [json.loads(path.read_text()) for path in paths if path.exists()]
    arms = [arm for arm in titles if any(result["arm"] == arm for result in results)]
    tables = [in_distribution(results, arms), pairwise(results, arms)]
    note = (
        f"The demo's arms, {len(results)} of {len(paths)} models judged. Over seeds: mean (lowest-highest); of one seed: "
        "[95 % interval, by photograph]."
    )
    text = "\n".join([f"{note}\n", *(as_markdown(table, titles) for table in tables)])
    page = "".join(as_html(table, titles) for table in tables)
    page = f"<!doctype html><meta charset='utf-8'><title>Arms</title><style>{STYLE}</style><p>{html.escape(note)}</p>{page}"
    data = {"note": note} | {table.title: {arm: as_dict(cells) for arm, cells in table.rows.items()} for table in tables}
    for ending, content in (("md", text), ("html", page), ("json", json.dumps(data, indent=1))):
        write_whole(workdir / f"arms.{ending}", content.encode())
    return workdir / "arms.html"


def as_dict(cells: dict[str, Spread | None]) -> dict[str, dict | None]:
    return {name: None if cell is None else cell._asdict() for name, cell in cells.items()}
