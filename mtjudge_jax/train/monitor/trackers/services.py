"""The trackers, each behind three calls: scalars, rollouts, close. A package is imported where its tracker is opened.

A server keeps what it was sent, so it is asked what it has. Files on this machine are made anew at each start.

What is not set here is the package's own: its environment variables (WANDB_MODE, MLFLOW_TRACKING_URI, SWANLAB_MODE, TRACKIO_DIR)
name modes, servers and keys.
"""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mtjudge_jax.train.monitor.shown import Shown
from mtjudge_jax.train.monitor.trackers.tables import COLUMNS, answer_rows, markdown_of, tag_of

_MLFLOW_PARAMS, _MLFLOW_METRICS = 100, 1000  # of one request
_MLFLOW_NAME = re.compile(r"[^\w\-./ ]")
KINDS_SENT = ("train", "validation", "rollouts")


class TrackedRun(NamedTuple):
    """Where a run is shown."""

    folder: Path  # on this machine, for the files that trackers write
    project: str
    name: str
    config: dict[str, object]  # the run's fields by dotted name


class Tracker(Protocol):
    """An open run of a tracker. Its class is called with a TrackedRun and the id of the run to go on with, "" for a new one."""

    id: str
    reached: dict[str, int] | None  # the last step that it has by kind, where it can be asked; None: it cannot

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None: ...

    def rollouts(self, step: int, shown: list[Shown]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """Event files, written anew at each start: what was written before a kill may end in steps that are done again."""

    def __init__(self, place: TrackedRun, known: str):
        import tensorboardX

        folder = place.folder / "tensorboard"
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=0)  # a viewer that has the old files forgets them
        self._writer.add_text("config", "\n".join(f"    {name} = {value}" for name, value in place.config.items()), 0)
        self.id, self.reached = known or str(folder), {}

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def rollouts(self, step: int, shown: list[Shown]) -> None:
        for number, one in enumerate(shown):
            self._writer.add_text(tag_of(shown, number), markdown_of(one.line), step)
            if one.picture is not None:
                self._writer.add_image(tag_of(shown, number), np.asarray(one.picture), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases. The axis of each chart is our step: wandb's own counts calls."""

    def __init__(self, place: TrackedRun, known: str):
        import wandb

        self._wandb, self.id = wandb, known or uuid.uuid4().hex[:8]
        before = list((_made(place.folder) / "wandb").glob(f"offline-run-*-{self.id}"))
        where = {"project": place.project, "name": place.name, "dir": str(place.folder)}
        self._run = wandb.init(**where, id=self.id, resume="allow", config=place.config)
        for kind in KINDS_SENT:
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/step")
        self._run.define_metric("tasks/*", step_metric="train/step")
        if self._run.offline:
            _remove(before)
        self.reached = {} if self._run.offline else _markers(dict(self._run.summary))

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._run.log(values | {f"{kind}/step": step})

    def rollouts(self, step: int, shown: list[Shown]) -> None:
        rows = [[*cells, one.picture and self._wandb.Image(one.picture)] for one in shown for cells in answer_rows(one.line)]
        table = self._wandb.Table(columns=[*COLUMNS, "pictures"], data=rows)
        self._run.log({"rollouts/answers": table, "rollouts/step": step})

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """An MLflow run, on the server of MLFLOW_TRACKING_URI, else in a database in the folder."""

    def __init__(self, place: TrackedRun, known: str):
        import mlflow

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(uri or f"sqlite:///{_made(place.folder)}/mlflow.db")
        self._metric = mlflow.entities.Metric
        self.id = known if known and self._goes_on(known) else self._begin(place, local=not uri)
        self.reached = _markers(self._client.get_run(self.id).data.metrics)

    def _goes_on(self, known: str) -> bool:
        import mlflow

        try:
            self._client.update_run(known, status="RUNNING")
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _begin(self, place: TrackedRun, *, local: bool) -> str:
        import mlflow

        found = self._client.get_experiment_by_name(place.project)
        files = (place.folder / "mlflow").as_uri() if local else None
        experiment = found.experiment_id if found else self._client.create_experiment(place.project, artifact_location=files)
        made = self._client.create_run(experiment, run_name=place.name).info.run_id
        params = [mlflow.entities.Param(name, str(value)[:6000]) for name, value in place.config.items()]
        for start in range(0, len(params), _MLFLOW_PARAMS):
            self._client.log_batch(made, params=params[start : start + _MLFLOW_PARAMS])
        return made

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        named = {_MLFLOW_NAME.sub("_", name): value for name, value in values.items()} | {f"{kind}/step": float(step)}
        metrics = [self._metric(name, value, now, step) for name, value in named.items()]  # the marker comes last
        for start in range(0, len(metrics), _MLFLOW_METRICS):
            self._client.log_batch(self.id, metrics=metrics[start : start + _MLFLOW_METRICS])

    def rollouts(self, step: int, shown: list[Shown]) -> None:
        for number, one in enumerate(shown):
            if one.picture is not None:
                self._client.log_image(self.id, one.picture, key=tag_of(shown, number), step=step)
        cells = [row for one in shown for row in answer_rows(one.line)]
        table = {name: [row[place] for row in cells] for place, name in enumerate(COLUMNS)}
        self._client.log_table(self.id, table, f"rollouts/step_{step:06d}.json")
        self._client.log_batch(self.id, metrics=[self._metric("rollouts/step", float(step), int(time.time() * 1000), step)])

    def close(self) -> None:
        self._client.set_terminated(self.id)


class _SwanLab:
    """A SwanLab run. It is sent everything at each start: of a step that its server has, the package itself sends nothing."""

    def __init__(self, place: TrackedRun, known: str):
        import swanlab

        self._swanlab, self.id, self.reached = swanlab, known or uuid.uuid4().hex[:21], {}
        folder = _made(place.folder / "swanlab")
        before = list(folder.glob(f"run-*-{self.id}"))
        where = {"project": place.project, "name": place.name, "log_dir": str(folder)}
        self._run = swanlab.init(**where, id=self.id, resume="allow", config=json.loads(json.dumps(place.config)))
        if self._run.mode != "online":
            _remove(before)

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def rollouts(self, step: int, shown: list[Shown]) -> None:
        values = {}
        for number, one in enumerate(shown):
            tag = tag_of(shown, number)
            values[f"{tag}/answers"] = self._swanlab.Text(markdown_of(one.line))
            if one.picture is not None:
                values[f"{tag}/pictures"] = self._swanlab.Image(one.picture, caption=one.line["example_id"])
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A Trackio run. It goes on by its name, which therefore has an id of our own."""

    def __init__(self, place: TrackedRun, known: str):
        import trackio

        self._trackio, self.id = trackio, known or f"{place.name}-{uuid.uuid4().hex[:6]}"
        here = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._run = trackio.init(project=place.project, name=self.id, resume="allow", config=place.config, **here)
        self.reached = None if {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & set(os.environ) else self._on_disk(place.project)

    def _on_disk(self, project: str) -> dict[str, int]:
        """It writes half a second late, so its own database says what a kill has left."""
        from trackio.sqlite_storage import SQLiteStorage

        found = {kind: SQLiteStorage.get_metric_values(project, self.id, f"{kind}/step") for kind in KINDS_SENT}
        return {kind: max(int(point["value"]) for point in points) for kind, points in found.items() if points}

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._run.log(values | {f"{kind}/step": step}, step=step)

    def rollouts(self, step: int, shown: list[Shown]) -> None:
        rows = [[*cells, one.picture and self._trackio.Image(one.picture)] for one in shown for cells in answer_rows(one.line)]
        table = self._trackio.Table(columns=[*COLUMNS, "pictures"], data=rows)
        self._run.log({"rollouts/answers": table, "rollouts/step": step}, step=step)

    def close(self) -> None:
        self._run.finish()


def _markers(values: dict) -> dict[str, int]:
    """The last steps that a tracker has, from the last value of `train/step` and the like."""
    return {kind: int(values[f"{kind}/step"]) for kind in KINDS_SENT if f"{kind}/step" in values}


def _remove(folders: list[Path]) -> None:
    """The files of earlier starts of the run, which no server has read: a kill may have cut their last steps. The new ones hold
    every step.
    """
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


TRACKERS: dict[str, Callable[[TrackedRun, str], Tracker]] = {
    "tensorboard": _TensorBoard, "wandb": _Wandb, "mlflow": _MLflow, "swanlab": _SwanLab, "trackio": _Trackio,
}  # fmt: skip
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow", "swanlab": "swanlab", "trackio": "trackio"}
