"""A stand-in of mlflow with the signatures of 3.17: a database that has what a call has written."""

from types import SimpleNamespace

from _stub_store import Store

from . import entities as entities
from . import exceptions


class MlflowClient:
    def __init__(self, tracking_uri=None, registry_uri=None):
        assert tracking_uri.startswith("sqlite:///")
        self._runs = Store("mlflow/runs.jsonl")

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name, artifact_location=None, tags=None):
        assert artifact_location.startswith("file:///")
        return "1"

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        made = f"run{len(self._runs.read())}"
        self._runs.add({"run": made, "name": run_name})
        return SimpleNamespace(info=SimpleNamespace(run_id=made))

    def update_run(self, run_id, status=None, name=None):
        if run_id not in [run["run"] for run in self._runs.read()]:
            raise exceptions.MlflowException("no such run", "RESOURCE_DOES_NOT_EXIST")

    def get_run(self, run_id):
        last = {}
        for record in Store(f"mlflow/{run_id}.jsonl").read():
            last[record["key"]] = max(last.get(record["key"], -1), record["step"])
        return SimpleNamespace(data=SimpleNamespace(metrics=last))

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        assert len(metrics) <= 1000 and len(params) <= 100
        Store(f"mlflow/{run_id}.jsonl").add(
            *({"key": metric.key, "value": metric.value, "step": metric.step} for metric in metrics)
        )

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None, timestamp=None, synchronous=None):
        Store(f"mlflow/{run_id}.images.jsonl").add({"key": key, "step": step, "size": image.size})

    def log_table(self, run_id, data, artifact_file):
        assert len({len(column) for column in data.values()}) == 1
        Store(f"mlflow/{run_id}.tables.jsonl").add({"file": artifact_file, "rows": len(data["answer"])})

    def set_terminated(self, run_id, status=None, end_time=None):
        Store("mlflow/ended.jsonl").add({"run": run_id})
