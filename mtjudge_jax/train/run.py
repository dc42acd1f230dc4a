"""An open run and its progress, and what all training loops do with them: log, save, warn, close."""

from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from mtjudge_jax import checkpoint
from mtjudge_jax.config import Config, to_dict
from mtjudge_jax.data.bad_rows import BadRowCounter
from mtjudge_jax.hosts.watchdog import Watch
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.policy.model import Model
from mtjudge_jax.policy.trainable import join
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.rl.rooms import Rooms
from mtjudge_jax.train.monitor.health import Health
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.monitor.metrics_file import MetricsFile, append_metrics, flush_metrics
from mtjudge_jax.train.monitor.trackers import CLOSE_SECONDS, Trackers
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
    health: Health  # follows the steps on every process, warns on the first
    allowed: tuple[str, ...]  # names of what may differ from the run in the workdir, see workdir.py
    record_notes: list[str]  # from check_records, printed before the first step
    rooms: Rooms | None  # of the training prompts; None: all rows have the room of the config
    trackers: Trackers  # of process 0; without log.to it does nothing


KEPT = ("best", "since_best", "judged", "skipped")  # of Progress, in a checkpoint beside state, data position and step


class Unwritten(NamedTuple):
    """A best model that could not be written yet, see best_model.py."""

    step: int
    before: float  # mean validation macro-F1 of the best model on disk, -1 if there is none
    trained: Any  # its trained parameters, on the host


class Progress(NamedTuple):
    """What changes from step to step and goes into the checkpoint."""

    state: TrainState
    frozen: Params  # the weights that are not trained; they never change and are not in the checkpoint
    data: Any  # Grain iterator, or AdaptiveMixture
    step: int
    best: float  # mean validation macro-F1 so far, -1 before the first
    since_best: int  # validations since then
    judged: int  # step of the last validation, -1 before the first
    skipped: int  # how many steps in a row, up to this one, had an update that was not finite
    sources: dict[str, str]  # hashes of the data, the starting model and the wordings, see sources_of
    unwritten: Unwritten | None = None  # not in the checkpoint, which records the best model on disk

    @property
    def params(self) -> Params:
        """The whole model."""
        return join(self.frozen, self.state.params)


def log(run: Run, line: dict) -> None:
    if jax.process_index() == 0:
        append_metrics(run.metrics, line)
        run.trackers.scalars(line)


def save_progress(run: Run, progress: Progress, data_state: dict | None = None) -> None:
    """Starts to save a checkpoint. `data_state`: where the next step begins to read; by default the current position."""
    meta = {"config": to_dict(run.cfg), "sources": progress.sources} | {name: getattr(progress, name) for name in KEPT}
    if progress.unwritten is not None:
        meta |= {"best": progress.unwritten.before, "since_best": 0}
    data_state = progress.data.get_state() if data_state is None else data_state
    for text in checkpoint.save(run.checkpoints, progress.step, state=progress.state, data_state=data_state, meta=meta):
        warn(run, progress.step, text)
    flush_metrics(run.metrics)


def settle(run: Run, step: int) -> None:
    """Waits until the checkpoint is on disk, or warns why it could not be written."""
    for text in checkpoint.wait(run.checkpoints):
        warn(run, step, text)
    flush_metrics(run.metrics)


def warn(run: Run, step: int, text: str) -> None:
    """Warns on the terminal and in metrics.jsonl, and lets the run go on."""
    say(f"warning: {text}")
    log(run, {"kind": "warning", "step": step, "text": text})


def close_run(run: Run) -> None:
    checkpoint.close(run.checkpoints)
    flush_metrics(run.metrics)
    run.trackers.close(CLOSE_SECONDS)
    run.watch.close()
    run.bar.close()
