"""Writes the report of a run, one self-contained page: `write_report(workdir)`."""

import os

from mtjudge_jax.paths import AnyPath, as_path, write_whole
from mtjudge_jax.report import details, views
from mtjudge_jax.report.compare.compare import compare
from mtjudge_jax.report.compare.measures import measure_tables
from mtjudge_jax.report.curves import learning_curves
from mtjudge_jax.report.examples import TEST_QUOTA, VAL_QUOTA, build_cards, strip_of
from mtjudge_jax.report.page import render_page
from mtjudge_jax.report.plots import BASE_COLOR, TRAINED_COLOR, looks_of, page_color
from mtjudge_jax.report.read import BASE_TEST, REFERENCE_TEST, TRAINED_TEST, RunFolder, best_validation, read_run
from mtjudge_jax.report.rollouts import rollout_groups
from mtjudge_jax.report.tables import Table
from mtjudge_jax.tasks.demo import NEUTRAL


def write_report(workdir: str | os.PathLike, *, out: str | os.PathLike | None = None) -> AnyPath:
    """Writes `out` (default `<workdir>/report.html`) from what the run has written so far, and returns its path.

    The page is written to a temporary file and renamed, so that a reader never sees a part of it. Raises FileNotFoundError if
    `workdir` is no run, OSError if `out` cannot be written.
    """
    run = read_run(workdir)
    path = as_path(out) if out is not None else run.workdir / "report.html"
    write_whole(path, render_report(run).encode(errors="replace"))
    return path


def render_report(run: RunFolder, *, version: str = "") -> str:
    """The page. With a version, one that is served: it is loaded again when its server names another."""
    config, stage = views.config_rows(run.config), run.config.get("stage", "grpo")
    tasks, rows, in_mean = views.run_tasks(run), views.task_rows(run), views.mean_tasks(run)
    names = (BASE_TEST, TRAINED_TEST, REFERENCE_TEST)
    before, after, reference = (views.means_of(run.evaluations.get(name), in_mean) for name in names)
    constant = views.constant_mean(rows, in_mean)
    cards = build_cards(run)  # before the page is filled: it adds to run.problems
    rollouts = rollout_groups(run)
    looks, work, pairs = looks_of(tasks), views.summarise_work(run), views.pair_rows(run)
    return render_page(
        "report.html.jinja", scripts=("page", "watch") if version else ("page",), version=version, run=run,
        rollouts=rollouts, unfinished=views.is_unfinished(run, work), strip=strip_of(cards),
        before=before, after=after, reference=reference, in_mean=in_mean, rows=rows, pairs=pairs,
        failures={name: details.pair_failures(run.evaluations.get(f"{name}_test")) for name in ("base", "trained")},
        measured=_measured(run), matrices=details.confusion_matrices(run), reliability=details.reliability_plot(run, tasks),
        reliability_colors=[(name, page_color(color)) for name, color in (("base", BASE_COLOR), ("trained", TRAINED_COLOR))],
        validated=views.validation_table(run, tasks),
        dumbbells=views.dumbbell_plot(rows, pairs, constant, before, after, reference),
        constant=constant, constant_words=views.constant_words(run, rows, in_mean),
        curves=learning_curves(run, tasks, looks), looks=looks, work=work, best=best_validation(run.validation),
        config=config, highlights=views.highlight(config, stage), counts=views.split_counts(run.manifest),
        stage=stage, is_demo=run.manifest.get("dataset") == "demo", neutral=bool(NEUTRAL.keys() & set(tasks)),
        cards=cards, quota=TEST_QUOTA + VAL_QUOTA, splits=list(dict.fromkeys(card.split for card in cards)),
        card_tasks=list(dict.fromkeys(card.task for card in cards)),
    )  # fmt: skip


def _measured(run: RunFolder) -> list[Table]:
    """All scores of the two evaluations on the test split, none before the first."""
    both = {"base": run.evaluations.get(BASE_TEST), "trained": run.evaluations.get(TRAINED_TEST)}
    judged = {name: {"tasks": found.tasks} for name, found in both.items() if found and found.tasks}
    return measure_tables(compare(judged)) if judged else []
