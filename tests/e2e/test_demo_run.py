"""`mtjudge demo` from end to end, in little: three steps on a hundredth of the pictures."""

import json
from functools import cache
from pathlib import Path

from commands import Ended, commands


@cache
def demo() -> tuple[Path, Ended]:
    workdir = commands().folder / "demo"
    return workdir, commands().wait(commands().start_call("command_drills.demo", workdir=str(workdir)))


def test_the_demo_leaves_every_file_of_a_run():
    workdir, ended = demo()
    assert ended.status == 0, ended.err[-3000:]
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "checkpoints", "data", "best", "eval", "report.html"}
    page = (workdir / "report.html").read_text()
    assert page.lower().startswith("<!doctype html") and "pairwise_technical" in page
    for name in ("base_test", "trained_test"):
        scores = json.loads((workdir / "eval" / f"{name}.json").read_text())
        assert len(scores["tasks"]) == 13 and scores["split"] == "test" and scores["unusable"] == {}
    assert (workdir / "report.html").resolve().as_uri() in ended.out
    assert f"mtjudge judge --model={workdir / 'best'}" in ended.out


def test_the_demo_again_computes_nothing_again():
    workdir, _ = demo()
    before = {path: path.stat().st_mtime_ns for path in (workdir / "eval").iterdir()}
    ended = commands().wait(commands().start_call("command_drills.demo", workdir=str(workdir)))
    assert ended.status == 0, ended.err[-3000:]
    assert "resumed" in ended.out and "\nstep " not in ended.out
    assert before == {path: path.stat().st_mtime_ns for path in (workdir / "eval").iterdir()}
