"""The sentences, table rows and plots of the page, from a run's files; no HTML here."""

import math
import statistics
from typing import NamedTuple

from mtjudge_jax.report import plots
from mtjudge_jax.report.intervals import mean_interval
from mtjudge_jax.report.plots import Dumbbell, Plot
from mtjudge_jax.report.read import BASE_TEST, REFERENCE_TEST, TRAINED_TEST, Evaluation, RunFolder, best_validation
from mtjudge_jax.report.tables import Table
from mtjudge_jax.tasks import TASKS


class Score(NamedTuple):
    """A share in 0..1 and its 95 % interval; either may be unknown."""

    value: float | None
    ci: tuple[float, float] | None


class Means(NamedTuple):
    """Means over the trained tasks of one evaluation."""

    macro_f1: Score
    sampled: Score


class TaskRow(NamedTuple):
    task: str
    count: int | None
    before: dict  # TaskScore, {} where not evaluated
    after: dict
    constant: float | None
    reference: float | None


class PairRow(NamedTuple):
    """One pairwise task: the TaskScore dicts of base and trained, {} where not evaluated."""

    task: str
    trained: bool  # False: the run never trained it, so its scores show transfer
    before: dict
    after: dict


class PhaseTime(NamedTuple):
    name: str
    total_seconds: float
    mean_seconds: float
    share: float


class TrainingWork(NamedTuple):
    """The training steps of a run. `wall_seconds` sums the phases of all steps: with compilation, without evaluation."""

    steps: int
    wall_seconds: float | None
    tokens_per_s: float | None
    phases: list[PhaseTime]


def _is_pairwise(score: dict) -> bool:
    return "consistency" in score


def run_tasks(run: RunFolder) -> list[str]:
    """The tasks that the config names. Without a config: the pointwise tasks that the files name, first those of the test
    scores, then of the validations, then of the training steps.
    """
    if named := (run.config.get("data") or {}).get("tasks"):
        return list(named)
    sources = [e.tasks for e in run.evaluations.values()] + [line.get("tasks", {}) for line in run.validation[:1] + run.train[:1]]
    names = dict.fromkeys(name for tasks in sources for name, score in tasks.items() if not _is_pairwise(score))
    return list(names)


def mean_tasks(run: RunFolder) -> list[str]:
    """The trained tasks that both base and trained model were judged on, so that their means are over the same tasks."""
    judged = [run.evaluations[name].tasks for name in (BASE_TEST, TRAINED_TEST) if name in run.evaluations]
    return [task for task in run_tasks(run) if all(task in tasks for tasks in judged if tasks)]


def means_of(evaluation: Evaluation | None, tasks: list[str]) -> Means:
    """The means over `tasks`, unknown if one was not judged, with intervals: the evaluation's own if it has one for this mean,
    otherwise a bootstrap over its predictions.
    """
    if evaluation is None or not tasks or any(task not in evaluation.tasks for task in tasks):
        return Means(Score(None, None), Score(None, None))
    scores = []
    for name in Means._fields:
        key = {"sampled": "sampled_accuracy"}.get(name, name)
        value, own = mean_of_tasks([evaluation.tasks[task] for task in tasks], key), evaluation.mean.get(key)
        same = value is not None and own is not None and math.isclose(value, own)
        ci = evaluation.mean.get(f"{key}_ci") if same else None
        scores.append(Score(value, ci or mean_interval(evaluation.predictions, tasks, score=key)))
    return Means(*scores)


def mean_of_tasks(scores: list[dict], key: str) -> float | None:
    """As eval.scores.mean_score: a list task has no macro-F1, so its accuracy counts. None unless all have a value."""
    values = [score.get("accuracy") if key == "macro_f1" and score.get(key) is None else score.get(key) for score in scores]
    return statistics.fmean(values) if values and None not in values else None


def task_rows(run: RunFolder) -> list[TaskRow]:
    before, after, reference = (run.evaluations.get(name) for name in (BASE_TEST, TRAINED_TEST, REFERENCE_TEST))
    rows = []
    for task in run_tasks(run):
        old, new, ref = (e.tasks.get(task, {}) if e else {} for e in (before, after, reference))
        either = new or old
        if either:
            rows.append(TaskRow(task, either.get("count"), old, new, either.get("constant_macro_f1"), ref.get("macro_f1")))
    return rows


def pair_rows(run: RunFolder) -> list[PairRow]:
    before, after = (run.evaluations[name].tasks if name in run.evaluations else {} for name in (BASE_TEST, TRAINED_TEST))
    names = dict.fromkeys(name for tasks in (after, before) for name, score in tasks.items() if _is_pairwise(score))
    trained = run_tasks(run)
    return [PairRow(name, name in trained, before.get(name, {}), after.get(name, {})) for name in names]


def validation_table(run: RunFolder, tasks: list[str]) -> Table | None:
    """The first and the best validation of each task, None before the first."""
    best = best_validation(run.validation)
    if best is None:
        return None
    first, chosen = run.validation[0], next(line for line in run.validation if line["step"] == best[0])
    head = ["task", "questions"]
    for words in ("macro-F1", "accuracy", "sampled accuracy"):
        head += [f"{words}, step {line['step']}" for line in (first, chosen)]
    rows = []
    for task in tasks:
        scores = [line.get("tasks", {}).get(task, {}) for line in (first, chosen)]
        cells = [_number_text(score.get(key)) for key in ("macro_f1", "accuracy", "sampled_accuracy") for score in scores]
        rows.append([task, str(scores[1].get("count", "")), *cells])
    return Table("Validations", "", head, rows)


def _number_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def constant_mean(rows: list[TaskRow], tasks: list[str]) -> float | None:
    """Mean macro-F1 of the tasks' best constant answers, None unless all have one."""
    found = {row.task: row.constant for row in rows if row.constant is not None}
    return statistics.fmean(found[task] for task in tasks) if tasks and found.keys() >= set(tasks) else None


def constant_words(run: RunFolder, rows: list[TaskRow], tasks: list[str]) -> str:
    """What a judge that ignores the picture scores; "" if unknown."""
    if tasks and all(_label_count(run, task) == 2 for task in tasks):
        return "with balanced labels, always the same verdict scores about 0.33 and a coin flip 0.50"
    constant = constant_mean(rows, tasks)
    return "" if constant is None else f"the best constant answer scores {constant:.2f}"


def _label_count(run: RunFolder, task: str) -> int | None:
    """From the scores, otherwise from the package's tasks; None for a task of the run's own that was not judged yet."""
    judged = [e.tasks for e in run.evaluations.values()] + [line.get("tasks", {}) for line in run.validation[:1]]
    shares = [shares for tasks in judged if (shares := tasks.get(task, {}).get("label_share"))]
    return len(shares[0]) if shares else len(TASKS[task].labels) if task in TASKS else None


def dumbbell_plot(
    rows: list[TaskRow], pairs: list[PairRow], constant: float | None, before: Means, after: Means, reference: Means
) -> Plot | None:
    """The tasks, their mean, and the pairs that were never trained. constant: the mean of the tasks' constant answers."""

    def one(row: TaskRow | PairRow, reference: float | None = None) -> Dumbbell:
        old, new = row.before, row.after
        return Dumbbell(
            row.task, old.get("macro_f1"), old.get("macro_f1_ci"), new.get("macro_f1"), new.get("macro_f1_ci"),
            (new or old).get("constant_macro_f1"), reference,
        )  # fmt: skip

    mean = Dumbbell("mean", *before.macro_f1, *after.macro_f1, constant, reference.macro_f1.value)
    unseen = [one(pair) for pair in pairs if not pair.trained]
    return plots.draw_dumbbells([*(one(row, row.reference) for row in rows), mean, *unseen])


def summarise_work(run: RunFolder) -> TrainingWork:
    totals: dict[str, float] = {}
    for line in run.train:
        for phase, seconds in (line.get("seconds") or {}).items():
            totals[phase] = totals.get(phase, 0.0) + seconds
    wall, steps = sum(totals.values()), len(run.train)
    phases = [PhaseTime(name, total, total / steps, total / wall if wall else 0.0) for name, total in totals.items()]
    speeds = [line["tokens_per_s"] for line in run.train if line.get("tokens_per_s") is not None]
    done = max(steps, run.train[-1]["step"]) if run.train else 0  # steps may be counted from 0 or from 1
    return TrainingWork(done, wall if totals else None, statistics.median(speeds) if speeds else None, phases)


def is_unfinished(run: RunFolder, work: TrainingWork) -> bool:
    """Whether steps of the config are still to come. A run that its patience ended looks like one that was stopped."""
    return bool(run.config.get("steps")) and work.steps < run.config["steps"]


def split_counts(manifest: dict) -> dict[str, int]:
    """{"files": {"train/a": {"count": 3}, "train/b": {"count": 4}}} -> {"train": 7}."""
    counts: dict[str, int] = {}
    for name, file in manifest.get("files", {}).items():
        split = name.split("/")[0]
        counts[split] = counts.get(split, 0) + file.get("count", 0)
    return counts


_HIGHLIGHTS = {
    "stage": "stage", "model.path": "base model", "rollout.prompts": "prompts per step",
    "rollout.group_size": "answers per prompt",
    "rollout.temperature": "temperature", "reward.alpha": "weight of the format reward", "loss.kl_coef": "weight of the KL",
    "optim.name": "optimiser", "optim.lr": "learning rate", "seed": "seed",
}  # fmt: skip
_SFT_HIGHLIGHTS = {
    "stage": "stage", "model.path": "base model", "update.prompts": "prompts per step", "sft.target": "target",
    "optim.name": "optimiser", "optim.lr": "learning rate", "seed": "seed",
}  # fmt: skip
_DPO_HIGHLIGHTS = {
    "stage": "stage", "model.path": "base model", "update.prompts": "prompts per step", "dpo.beta": "beta",
    "dpo.sft_coef": "weight of the SFT term",
    "optim.name": "optimiser", "optim.lr": "learning rate", "seed": "seed",
}  # fmt: skip


def highlight(config: list[tuple[str, str]], stage: str) -> list[tuple[str, str]]:
    """The fields of the flat configuration that a reader looks for first, in words; only those that the stage reads."""
    values, wanted = dict(config), {"sft": _SFT_HIGHLIGHTS, "dpo": _DPO_HIGHLIGHTS}.get(stage, _HIGHLIGHTS)
    return [(words, values[name]) for name, words in wanted.items() if name in values]


def config_rows(config: dict, prefix: str = "") -> list[tuple[str, str]]:
    """{"optim": {"lr": 1e-4}} -> [("optim.lr", "0.0001")]."""
    rows = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            rows += config_rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
