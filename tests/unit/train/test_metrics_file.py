"""metrics.jsonl across kills, and whole-file writes."""

import json
import os
from unittest import mock

import numpy as np
import pytest

from mtjudge_jax.train.monitor import metrics_file
from mtjudge_jax.train.monitor.metrics_file import append_metrics, open_metrics, read_metrics, truncate_metrics, write_json_atomic


def steps(path):
    return [(r["kind"], r["step"]) for r in read_metrics(path)]


def test_three_kills_leave_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    at = 0
    for restored, last in ((-1, 7), (5, 9), (5, 12), (10, 15)):
        metrics = open_metrics(path)
        truncate_metrics(metrics, restored, restored)
        at = max(restored, 0)
        for step in range(at + 1, last + 1):
            append_metrics(metrics, {"kind": "train", "step": step, "reward": np.float32(0.5)})
            if step % 5 == 0:
                append_metrics(metrics, {"kind": "eval", "step": step})
        with open(path, "a") as file:
            file.write('{"kind": "train", "st')  # killed in the middle of a line
    truncate_metrics(open_metrics(path), 15, 15)
    train = [s for kind, s in steps(path) if kind == "train"]
    evals = [s for kind, s in steps(path) if kind == "eval"]
    assert train == list(range(1, 16)) and evals == [5, 10, 15]


def test_truncate_keeps_other_kinds_and_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = open_metrics(path)
    assert truncate_metrics(metrics, 3, 3) == 0 and not path.exists()
    for record in ({"kind": "note", "step": 9}, {"kind": "train", "step": 3}, {"kind": "eval", "step": 4}):
        append_metrics(metrics, record)
    path.write_bytes(path.read_bytes()[:-1])  # a whole last line without its newline is whole
    assert truncate_metrics(metrics, 3, 3) == 1
    assert steps(path) == [("note", 9), ("train", 3)]
    append_metrics(metrics, {"kind": "train", "step": 4})
    assert steps(path)[-1] == ("train", 4)


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind":"train","step":1}\n{"ki\n{"kind":"train","step":2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a line of JSON"):
        truncate_metrics(open_metrics(path), 9, 9)
    assert path.read_text().count("\n") == 3


def test_values_become_json(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(
        path, {"f": np.float32(1.5), "i": np.int64(2), "a": np.arange(3), "nan": float("nan"), "t": (1, None), "p": tmp_path}
    )
    assert json.loads(path.read_text()) == {"f": 1.5, "i": 2, "a": [0, 1, 2], "nan": None, "t": [1, None], "p": str(tmp_path)}
    with pytest.raises(TypeError, match=r"set .* has no form in JSON"):
        write_json_atomic(path, {"s": {1}})


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"old": 1})

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json_atomic(path, {"new": 1})
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["a.json"]


def test_a_full_disk_costs_no_line(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    metrics = open_metrics(path)
    append_metrics(metrics, {"kind": "train", "step": 1})
    whole = path.read_bytes()
    real = metrics_file._write_waiting

    def full(metrics):
        with mock.patch.object(type(path), "open", half_open):
            real(metrics)

    class Half:
        """Writes the first half of what it is given, then the disk is full."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, data):
            with open(path, "ab") as file:
                file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")

    half_open = lambda self, mode: Half()  # noqa: E731
    monkeypatch.setattr(metrics_file, "_write_waiting", full)
    for step in (2, 3):
        append_metrics(metrics, {"kind": "train", "step": step})
        assert path.read_bytes() == whole
    assert caplog.text.count("No space left on device: lines are kept in memory and written later") == 1
    monkeypatch.undo()
    append_metrics(metrics, {"kind": "train", "step": 4})
    assert steps(path) == [("train", step) for step in (1, 2, 3, 4)] and metrics.waiting == b""
