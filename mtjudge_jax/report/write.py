"""Writes the report of a run, one self-contained page: `write_report(workdir)`."""

import base64
import hashlib
import math
import os
import pathlib

import jinja2
from markupsafe import Markup

from mtjudge_jax.paths import AnyPath, as_path, write_whole
from mtjudge_jax.report import views
from mtjudge_jax.report.compare.compare import compare
from mtjudge_jax.report.compare.pages import Table, detail_table
from mtjudge_jax.report.examples import TEST_QUOTA, VAL_QUOTA, build_cards
from mtjudge_jax.report.read import BASE_TEST, REFERENCE_TEST, TRAINED_TEST, RunFolder, read_run

_FOLDER = pathlib.Path(__file__).parent / "templates"


def write_report(workdir: str | os.PathLike, *, out: str | os.PathLike | None = None) -> AnyPath:
    """Writes `out` (default `<workdir>/report.html`) from what the run has written so far, and returns its path.

    The page is written to a temporary file and renamed, so that a reader never sees a part of it. Raises FileNotFoundError if
    `workdir` is no run, OSError if `out` cannot be written.
    """
    run = read_run(workdir)
    path = as_path(out) if out is not None else run.workdir / "report.html"
    write_whole(path, _render(run).encode(errors="replace"))
    return path


def _render(run: RunFolder) -> str:
    """The page. Its content security policy allows only the page's own script, by hash, so no text in it can start another."""
    config, stage = views.config_rows(run.config), run.config.get("stage", "grpo")
    tasks, rows, in_mean = views.trained_tasks(run), views.task_rows(run), views.mean_tasks(run)
    names = (BASE_TEST, TRAINED_TEST, REFERENCE_TEST)
    before, after, reference = (views.means_of(run.evaluations.get(name), in_mean) for name in names)
    constant = views.constant_mean(rows, in_mean)
    cards = build_cards(run)  # before the page is filled: it adds to run.problems
    script = (_FOLDER / "filter.js.jinja").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"score": _format_score, "percent": _format_percent, "ci": format_ci, "duration": format_duration}
    return environment.get_template("report.html.jinja").render(
        run=run, before=before, after=after, reference=reference, in_mean=in_mean, rows=rows, pairs=views.pair_rows(run),
        measured=_measured(run), dumbbells=views.dumbbell_plot(rows, constant, before, after, reference),
        constant=constant, constant_words=views.constant_words(run, rows, in_mean),
        curves=views.learning_curves(run, tasks), colors=views.task_colors(tasks), work=views.summarise_work(run),
        best=views.best_validation(run),
        config=config, highlights=views.highlight(config, stage), counts=views.split_counts(run.manifest),
        stage=stage, is_demo=run.manifest.get("dataset") == "demo",
        cards=cards, quota=TEST_QUOTA + VAL_QUOTA, splits=list(dict.fromkeys(card.split for card in cards)),
        card_tasks=list(dict.fromkeys(card.task for card in cards)), script=Markup(script), script_hash=digest,
    )  # fmt: skip


def _measured(run: RunFolder) -> Table | None:
    """All scores of the two evaluations on the test split, None before the first."""
    both = {"base": run.evaluations.get(BASE_TEST), "trained": run.evaluations.get(TRAINED_TEST)}
    judged = {name: {"tasks": found.tasks} for name, found in both.items() if found and found.tasks}
    return detail_table(compare(judged)) if judged else None


def _format_score(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _format_percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.0f}\u00a0%"


def format_ci(interval: tuple[float, float] | None, scale: int = 1) -> str:
    """(0.78, 0.84) -> "0.78 to 0.84"; with scale=100 "78 to 84 %"."""
    if interval is None or not all(map(math.isfinite, interval)):
        return "unknown"
    low, high = interval
    return f"{low:.2f} to {high:.2f}" if scale == 1 else f"{scale * low:.0f} to {scale * high:.0f}\u00a0%"


def format_duration(seconds: float | None) -> str:
    """75 -> "1 min 15 s"; 4.2 -> "4.2 s"; 7260 -> "2 h 1 min"."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    text = f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    return text.replace(" ", "\u00a0")
