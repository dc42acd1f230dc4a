"""metrics.jsonl across kills, and whole-file writes."""

import json
import os

import numpy as np
import pytest

from mtjudge_jax.metrics_log import append_metrics, read_metrics, truncate_metrics, write_json_atomic


def steps(path):
    return [(r["kind"], r["step"]) for r in read_metrics(path)]


def test_three_kills_leave_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    at = 0
    for restored, last in ((-1, 7), (5, 9), (5, 12), (10, 15)):
        truncate_metrics(path, restored)
        at = max(restored, 0)
        for step in range(at + 1, last + 1):
            append_metrics(path, {"kind": "train", "step": step, "reward": np.float32(0.5)})
            if step % 5 == 0:
                append_metrics(path, {"kind": "eval", "step": step})
        with open(path, "a") as file:
            file.write('{"kind": "train", "st')  # killed in the middle of a line
    truncate_metrics(path, 15)
    train = [s for kind, s in steps(path) if kind == "train"]
    evals = [s for kind, s in steps(path) if kind == "eval"]
    assert train == list(range(1, 16)) and evals == [5, 10, 15]


def test_truncate_keeps_other_kinds_and_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert truncate_metrics(path, 3) == 0 and not path.exists()
    for record in ({"kind": "note", "step": 9}, {"kind": "train", "step": 3}, {"kind": "eval", "step": 4}):
        append_metrics(path, record)
    path.write_bytes(path.read_bytes()[:-1])  # a whole last line without its newline is whole
    assert truncate_metrics(path, 3) == 1
    assert steps(path) == [("note", 9), ("train", 3)]
    append_metrics(path, {"kind": "train", "step": 4})
    assert steps(path)[-1] == ("train", 4)


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind":"train","step":1}\n{"ki\n{"kind":"train","step":2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: not a line of JSON"):
        truncate_metrics(path, 9)
    assert path.read_text().count("\n") == 3


def test_values_become_json(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(
        path, {"f": np.float32(1.5), "i": np.int64(2), "a": np.arange(3), "nan": float("nan"), "t": (1, None), "p": tmp_path}
    )
    assert json.loads(path.read_text()) == {"f": 1.5, "i": 2, "a": [0, 1, 2], "nan": None, "t": [1, None], "p": str(tmp_path)}
    with pytest.raises(TypeError, match=r"set .* has no place in JSON"):
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
