"""The learning curves of a run: each number of metrics.jsonl over the steps, validations with their intervals."""

import math

import numpy as np

from mtjudge_jax.report import plots
from mtjudge_jax.report.intervals import mean_interval
from mtjudge_jax.report.plots import ALL_COLOR, Look, Plot, Series, looks_of
from mtjudge_jax.report.read import RunFolder, read_lines
from mtjudge_jax.report.views import mean_of_tasks

SHARE = (-0.02, 1.02)  # the limits of a plot of shares
_BANDS = 40  # validations whose predictions are read for an interval, spread evenly; each may be large


def learning_curves(run: RunFolder, tasks: list[str], looks: dict[str, Look]) -> list[Plot]:
    """The plots that have data, in reading order."""
    drawn = [
        validation_plot(run, tasks, looks, key="macro_f1", title="Macro-F1 on validation"),
        validation_plot(run, tasks, looks, key="sampled_accuracy", title="Sampled accuracy on validation"),
        _by_task(run, looks, key="reward", title="Reward", note="sampled answers of each training step"),
        _overall(run, {"reward_chosen": "chosen", "reward_rejected": "rejected"}, title="Implicit rewards of the answers",
                 note="beta times the log-ratio to the reference"),
        _overall(run, {"pair_accuracy": "in order"}, title="Pairs in the right order",
                 note="share of pairs whose chosen answer has the larger implicit reward", limits=SHARE),
        _overall(run, {"accuracy": "right", "format": "in the required form"}, title="Verdicts and form",
                 note="shares of all answers", limits=SHARE),
        _by_task(run, looks, key="zero_variance", title="Groups without a signal",
                 note="share of prompts whose answers all got the same reward: they teach nothing"),
        mixture_plot(run, looks),
        _overall(run, {"loss": "loss"}, title="Loss", note="mean over the updates of a step"),
        _overall(run, {"lr": "learning rate"}, title="Learning rate", note="of the last update of a step"),
        _overall(run, {"grad_norm": "gradient norm"}, title="Gradient norm", note=_clipping(run)),
        _overall(run, {"moved": "share moved"}, title="Weights that moved",
                 note="share of the trained numbers that the updates of a step changed"),
        _overall(run, {"kl": "KL"}, title="KL to the starting model", note="nats per token"),
        _overall(run, {"entropy": "entropy"}, title="Entropy of the policy", note="nats per token"),
    ]  # fmt: skip
    return [plot for plot in drawn if plot is not None]


def compared_curves(runs: dict[str, RunFolder], tasks: list[str]) -> list[Plot]:
    """A line per run: validations over `tasks` with their intervals, and what training logged over all its tasks."""
    looks, drawn = looks_of(list(runs)), []
    note = f"mean over {', '.join(tasks)}; bands are 95 % intervals"
    for key, title in (("macro_f1", "Macro-F1 on validation"), ("sampled_accuracy", "Sampled accuracy on validation")):
        lines = [validation_means(run, tasks, key=key, name=name, color=looks[name].color) for name, run in runs.items()]
        lines = [line._replace(wide=False, marker=looks[line.name].marker, dash=looks[line.name].dash) for line in lines]
        drawn.append(plots.draw_curves(title, lines, limits=SHARE, note=note))
    for key, title in (("reward", "Reward"), ("loss", "Loss"), ("lr", "Learning rate"), ("grad_norm", "Gradient norm")):
        lines = [
            Series(name, [line["step"] for line in run.train], [line.get(key) for line in run.train], look.color, dash=look.dash)
            for (name, run), look in zip(runs.items(), looks.values(), strict=True)
        ]
        drawn.append(plots.draw_curves(title, lines, note="moving average"))
    return [plot for plot in drawn if plot is not None]


def _clipping(run: RunFolder) -> str:
    limit = (run.config.get("optim") or {}).get("max_grad_norm")
    return "before clipping" + (f" at {limit:g}" if isinstance(limit, int | float) else "")


def _by_task(run: RunFolder, looks: dict[str, Look], *, key: str, title: str, note: str) -> Plot | None:
    """A share or a reward of each task and over all tasks."""
    steps = [line["step"] for line in run.train]
    series = []
    for task, look in looks.items():
        values = [line.get("tasks", {}).get(task, {}).get(key) for line in run.train]
        series.append(Series(task, steps, values, look.color, dash=look.dash))
    series.append(Series("all tasks", steps, [line.get(key) for line in run.train], ALL_COLOR, wide=True))
    shares = all(0 <= value <= 1 for s in series for value in s.values if value is not None and math.isfinite(value))
    return plots.draw_curves(title, series, limits=SHARE if shares else None, note=note)


def _overall(
    run: RunFolder, names: dict[str, str], *, title: str, note: str, limits: tuple[float, float] | None = None
) -> Plot | None:
    """names: the words for each number of a line of metrics.jsonl that is drawn."""
    steps, colors = [line["step"] for line in run.train], (ALL_COLOR, plots.TASK_COLORS[1])
    series = [
        Series(words, steps, [line.get(key) for line in run.train], color, wide=color == ALL_COLOR)
        for (key, words), color in zip(names.items(), colors, strict=False)
    ]
    if len(names) > 1:
        note += f": thick {', thin '.join(names.values())}"
    return plots.draw_curves(title, series, limits=limits, note=note)


def mixture_plot(run: RunFolder, looks: dict[str, Look]) -> Plot | None:
    """The shares that MT-GRPO draws with; None for another mixture."""
    lines = [line for line in run.train if line.get("mixture")]
    steps = [line["step"] for line in lines]
    series = [
        Series(task, steps, [line["mixture"].get(task, {}).get("weight") for line in lines], look.color, dash=look.dash)
        for task, look in looks.items()
    ]
    note = "target share of each task in the next prompts"
    return plots.draw_curves("Weights of the tasks", series, limits=SHARE, note=note)


def validation_plot(run: RunFolder, tasks: list[str], looks: dict[str, Look], *, key: str, title: str) -> Plot | None:
    """A line per task, and the mean of all with its intervals."""
    mean = validation_means(run, tasks, key=key, name="mean", color=ALL_COLOR)
    series = []
    for task in tasks:
        values = [line.get("tasks", {}).get(task, {}).get(key) for line in run.validation]
        look = looks[task]
        series.append(Series(task, mean.steps, values, look.color, marker=look.marker, dash=look.dash))
    series = [series[0]._replace(band=mean.band, wide=True)] if len(tasks) == 1 else [*series, mean]
    limit = (run.config.get("eval") or {}).get("limit")
    note = f"validation, at most {limit} questions per task" if limit else "the whole validation split"
    note += "; the band is the 95 % interval of the mean" if any(mean.band) and len(tasks) > 1 else ""
    note += "; the band is its 95 % interval" if any(mean.band) and len(tasks) == 1 else ""
    return plots.draw_curves(title, series, limits=SHARE, note=note)


def validation_means(run: RunFolder, tasks: list[str], *, key: str, name: str, color: str) -> Series:
    """The mean over the tasks of each validation, with its interval where the predictions are there."""
    judged = [[line["tasks"][task] for task in tasks if task in line.get("tasks", {})] for line in run.validation]
    bands = _bands(run, tasks, key)
    steps = [line["step"] for line in run.validation]
    return Series(name, steps, [mean_of_tasks(scores, key) for scores in judged], color, marker="o", wide=True, band=bands)


def _bands(run: RunFolder, tasks: list[str], key: str) -> list[list[float] | None]:
    """The interval of the mean of each validation."""
    count, bands = len(run.validation), []
    read = set(np.linspace(0, count - 1, min(_BANDS, count), dtype=int).tolist())
    for number, line in enumerate(run.validation):
        name = f"val_{line['step']:06d}"
        known = run.evaluations.get(name)
        path = run.workdir / "eval" / f"{name}.predictions.jsonl"
        rows = known.predictions if known else read_lines(path, []) if number in read and path.exists() else []
        bands.append(mean_interval(rows, tasks, score=key))
    return bands
