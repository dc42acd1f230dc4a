"""What both training loops share: opening a workdir, starting or resuming, saving, logging."""

from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from mtjudge_jax import checkpoint
from mtjudge_jax.config import Config, to_dict
from mtjudge_jax.data.pipeline import BadRowCounter
from mtjudge_jax.hosts.watchdog import Watch
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.policy.model import Model
from mtjudge_jax.policy.trainable import join
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.train.monitor.health import Health
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.monitor.metrics_file import (
    MetricsFile,
    append_metrics,
    flush_metrics,
)
from mtjudge_jax.types import Params, TrainState


class Run(NamedTuple):
    """An open workdir: what stays the same from the first step to the last."""

    cfg: Config
    workdir: AnyPath
    model: Model
    optimizer: Any
    validation: dict[str, list[JudgeExample]]
    checkpoints: Any
    metrics: MetricsFile
    bad_rows: BadRowCounter  # of this process's rows
    bar: tqdm
    watch: Watch
    health: Health  # follows the steps on every process, speaks on the first
    allowed: tuple[str, ...]  # what may differ from the run in the workdir, see workdir.py
    told: list[str]  # of the training records, before the first step


STOP = "asked to stop"
KEPT = ("best", "since_best", "judged", "skipped")  # of Progress, in a checkpoint beside state, data position and step


class Unwritten(NamedTuple):
    """The best model while there is no room for it, see best_model.py."""

    step: int
    before: float  # the mean validation macro-F1 of the one that is written, -1 where none is
    trained: Any  # its trained parameters, on the host


class Progress(NamedTuple):
    """What changes from step to step and goes into the checkpoint."""

    state: TrainState
    frozen: Params  # what is not trained; never changes and is not in the checkpoint
    data: Any  # Grain iterator, or AdaptiveMixture
    step: int
    best: float  # mean validation macro-F1 so far, -1 before the first
    since_best: int  # evaluations since
    judged: int  # the step of the last evaluation, -1 before the first
    skipped: int  # steps in a row, up to this one, whose update was not finite
    sources: dict[str, str]  # what the run is made of, see sources_of
    unwritten: Unwritten | None = None  # not in the checkpoint, which tells of the best model that is written

    @property
    def params(self) -> Params:
        """The whole model."""
        return join(self.frozen, self.state.params)


def log(run: Run, line: dict) -> None:
    if jax.process_index() == 0:
        append_metrics(run.metrics, line)


def save(run: Run, progress: Progress, data_state: dict | None = None) -> None:
    """`data_state`: where the step that follows begins to read; by default where the data stands."""
    meta = {"config": to_dict(run.cfg), "sources": progress.sources} | {name: getattr(progress, name) for name in KEPT}
    if progress.unwritten is not None:
        meta |= {"best": progress.unwritten.before, "since_best": 0}
    data_state = progress.data.get_state() if data_state is None else data_state
    for text in checkpoint.save(run.checkpoints, progress.step, state=progress.state, data_state=data_state, meta=meta):
        warn(run, progress.step, text)
    flush_metrics(run.metrics)


def settle(run: Run, step: int) -> None:
    """Returns when what was saved is on disk, or it was said why it is not."""
    for text in checkpoint.wait(run.checkpoints):
        warn(run, step, text)
    flush_metrics(run.metrics)


def warn(run: Run, step: int, text: str) -> None:
    """What must not be overlooked and does not end the run: on the terminal and among the metrics."""
    say(f"warning: {text}")
    log(run, {"kind": "warning", "step": step, "text": text})


def close_run(run: Run) -> None:
    checkpoint.close(run.checkpoints)
    flush_metrics(run.metrics)
    run.watch.close()
    run.bar.close()
