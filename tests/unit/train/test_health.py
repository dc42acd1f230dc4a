"""Warnings about a run that collapses or waits, the watch, and what a skipped batch is written down as."""

import json
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mtjudge_jax.hosts import watchdog
from mtjudge_jax.hosts.watchdog import Watch, watch_path
from mtjudge_jax.tasks.reward import Scores
from mtjudge_jax.train.monitor.health import COLLAPSE, WINDOW, Health
from mtjudge_jax.train.monitor.nonfinite import MOST_FILES, dump_batch, skipped_line, suspects

WELL = {"entropy": 1.0, "format": 0.9, "completion_tokens": 100.0}


def said(lines: list[dict]) -> list[tuple[int, str]]:
    """(number of the line, warning)."""
    health = Health()
    return [(i, text) for i, line in enumerate(lines) for text in health.add(line)]


@pytest.mark.parametrize("name", list(COLLAPSE))
def test_a_task_that_collapses_is_named_once_and_again_after_it_recovered(name):
    low = COLLAPSE[name][0] * WELL[name] * 0.9
    values = [WELL[name]] * WINDOW * 2 + [low] * WINDOW * 2 + [WELL[name]] * WINDOW + [low] * WINDOW
    lines = [{"tasks": {"safety": WELL | {name: value}, "technical": WELL}} for value in values]
    got = said(lines)
    assert [i for i, _ in got] == [WINDOW * 3 - 1, WINDOW * 6 - 1]  # when the last WINDOW are all low
    assert got[0][1].startswith(f"warning: safety: {name} fell from {WELL[name]:.3g} to {low:.3g}: ")
    slow = [{"tasks": {"safety": WELL | {name: value}}} for value in [WELL[name]] * 30 + [low * 1.2] * 30]
    assert said(slow) == []


def test_a_short_run_and_a_task_seen_seldom_say_nothing():
    ones, zeros = ({"tasks": {"safety": dict.fromkeys(WELL, value)}} for value in (1.0, 0.0))
    assert said([ones] * WINDOW + [zeros] * (WINDOW - 1)) == []
    assert said([{}] * 50) == []


def test_a_sampler_that_drifts_from_the_update_is_named_once():
    def lines(*parts: tuple[float, int]) -> list[dict]:
        return [{"sampler_gap": gap} for gap, count in parts for _ in range(count)]

    got = said(lines((1e-3, WINDOW), (0.02, 3 * WINDOW), (1e-3, WINDOW), (0.02, WINDOW)))
    assert [i for i, _ in got] == [2 * WINDOW - 1, 6 * WINDOW - 6]  # the mean of the last ten; then 5 of 0.02 beside 5 of 0.001
    assert "differ by 0.02 in the mean of the last 10 steps, at the start by 0.001: set loss.sampler_weight" in got[0][1]
    assert said(lines((0.02, WINDOW), (0.05, 2 * WINDOW))) == []  # a bfloat16 model has been so from the start
    assert said(lines((1e-6, WINDOW), (5e-3, 2 * WINDOW))) == []  # much more than before, and nothing to mind


def test_a_slow_host_is_named_after_three_steps_in_a_row():
    def line(*own: float) -> dict:
        return {"hosts": {"own_seconds": list(own)}, "seconds": {"data": own[0], "update": 5.0}}

    late, fine = line(0.5, 0.5, 2.0, 0.4), line(0.5, 0.5, 0.6, 0.4)
    assert said([late, late, fine, late, late]) == []
    got = said([fine, late, late, late, late])
    assert [i for i, _ in got] == [3]
    assert got[0][1].startswith("warning: host 2 keeps the others waiting: 2.00 s of its own work (data, rewards) per step")
    assert "others is 0.50 s" in got[0][1]
    assert said([line(0.01, 0.01, 0.04)] * 9) == []  # four times as long, but nothing beside the step
    assert said([line(9.0)] * 9) == []


NAMES, TASKS = np.array(["a", "b", "c"]), np.array(["technical", "safety", "safety"])
ROWS = {"example_id": NAMES, "task": TASKS, "label": np.array([0, 1, 1])}


def batch() -> tuple[Scores, dict[str, np.ndarray], np.ndarray]:
    ones = np.ones((3, 2), np.float32)
    mask = np.ones((3, 2, 4), bool)
    mask[:, :, 3] = False
    return Scores(ones.copy(), ones, ones, np.zeros((3, 2), np.int32)), {"old_logp": np.full((3, 2, 4), -0.5)}, mask


def test_who_is_suspected():
    scores, logps, mask = batch()
    assert suspects(ROWS, scores, logps, mask) == ["a (technical)", "b (safety)", "c (safety)"]  # nobody, so any
    logps["old_logp"][0, 0, 3] = np.nan  # behind the answer's end
    assert len(suspects(ROWS, scores, logps, mask)) == 3
    logps["old_logp"][2, 1, 0] = -np.inf
    assert suspects(ROWS, scores, logps, mask) == ["c (safety)"]
    scores.total[1, 0] = np.inf
    assert suspects(ROWS, scores, logps, mask) == ["b (safety)", "c (safety)"]


def test_a_batch_is_written_as_lines_and_the_folder_stays_small(tmp_path):
    scores, logps, mask = batch()
    scores.total[1, 0] = np.nan
    texts = [["x", "y"], ["<script>", "é\n"], ["", "z"]]
    assert dump_batch(tmp_path / "skipped" / "1.jsonl", ROWS, texts, scores, logps, mask)
    lines = [json.loads(line) for line in (tmp_path / "skipped" / "1.jsonl").read_text().splitlines()]
    assert [line["example_id"] for line in lines] == ["a", "b", "c"] and lines[1]["label"] == 1
    assert lines[1]["answers"][0] == {"text": "<script>", "reward": "nan", "accuracy": 1.0, "tokens": 3, "old_logp": -1.5}
    for number in range(2, MOST_FILES + 1):
        assert dump_batch(tmp_path / "skipped" / f"{number}.jsonl", ROWS, texts, scores, logps, mask)
    assert not dump_batch(tmp_path / "skipped" / "one_more.jsonl", ROWS, texts, scores, logps, mask)
    assert len(list((tmp_path / "skipped").iterdir())) == MOST_FILES


def test_the_line_of_a_skipped_step():
    names = [f"e{i} (safety)" for i in range(7)]
    assert skipped_line(3, names, 2, 4, None).endswith(
        "(2 in a row, the run stops at 4); examples: e0 (safety), e1 (safety), e2 (safety), e3 (safety), e4 (safety) and 2 more"
    )


def test_a_watch_that_is_closed_ends_nothing(tmp_path):
    watch = Watch(tmp_path / "a" / "0.txt", 0.2)
    watch.note("too early: there is no file yet")
    watch.beat("step 1")
    watch.note("the end")
    assert (tmp_path / "a" / "0.txt").read_text().endswith("\nthe end")
    watch.close()
    os.stat(tmp_path)
    assert watch_path("gs://bucket/run", 3).name == "3.txt" and "gs:" not in str(watch_path("gs://bucket/run", 3))
    assert str(watch_path("runs/a", 3)) == "runs/a/hosts/3.txt"


def test_a_watch_ends_a_process_at_the_first_look_after_its_seconds(tmp_path, monkeypatch, capsys):
    """Beats at 5000 and 5010 s, a watch of 20 s that looks every second: the process ends at 5031 s, with status 1."""
    now, ended = [5000.0], []

    class Closed:
        def wait(self, seconds: float) -> bool:
            now[0] += seconds
            if now[0] == 5010:
                watch.beat("step 2")
            return bool(ended) or now[0] > 5100

        def set(self) -> None:
            pass

    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now[0], strftime=time.strftime))
    monkeypatch.setattr(watchdog, "threading", SimpleNamespace(Event=Closed, Thread=lambda **_: threading.Thread()))
    monkeypatch.setattr(watchdog.os, "_exit", lambda status: ended.append((now[0], status)))
    watch = Watch(tmp_path / "0.txt", 20)
    watch.beat("step 1")
    watch._look()
    watch.close()
    assert ended == [(5031.0, 1)]
    assert "no progress for 20 s after: step 2" in capsys.readouterr().err
