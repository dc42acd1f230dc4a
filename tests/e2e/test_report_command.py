"""`mtjudge report` as a process, and the commands that take no arguments without a flag."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from commands import commands
from report_folder import make_workdir, result, save


def test_several_runs(tmp_path):
    save(tmp_path / "a" / "test.json", result(technical=0.5))
    save(tmp_path / "b" / "test.json", result(technical=0.75))
    ended = commands().run("report", tmp_path / "a", f"rl={tmp_path / 'b'}", f"--out={tmp_path / 'out'}")
    assert ended.status == 0, ended.err
    assert "| a | 50.0 | 50.0 | 50.0 |" in ended.out and "| rl | 75.0 | 75.0 | 75.0 |" in ended.out
    assert ended.out.strip().endswith(f"{tmp_path / 'out' / 'comparison.png'}")
    which = "give --workdir=DIR for the report of one run, or the runs to compare: mtjudge report A B NAME=C"
    for argv, said in (
        ((), which),
        ((tmp_path / "a", "--workdir=x"), which),
        ((tmp_path / "c",), "no such file or folder"),
        ((tmp_path / "a", "--bse=x"), "Unknown command line flag 'bse'"),
        (("--workdir=nowhere",), "is not a folder"),
    ):
        ended = commands().run("report", *argv)
        assert ended.status == 2 and said in ended.err and ended.err.count("\n") == 1, ended.err
    ended = commands().run("judge", "a.png", "--model=x", "--image=x", "--task=safety")  # the others refuse it
    assert ended.status == 2 and "unexpected argument 'a.png'" in ended.err


def test_one_run(tmp_path):
    workdir = make_workdir(tmp_path / "run")
    command = [sys.executable, "-m", "mtjudge_jax.report", f"--workdir={workdir}", f"--out={tmp_path / 'r.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("report: file:///") and (tmp_path / "r.html").stat().st_size > 100_000
    failed = subprocess.run([*command[:3], f"--workdir={tmp_path / 'no'}"], capture_output=True, text=True)
    assert failed.returncode == 2 and "is not a folder" in failed.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_page_that_follows_a_run(tmp_path, number):
    workdir = make_workdir(tmp_path / "run", per_task=2)
    started = commands().start("report", f"--workdir={workdir}", "--watch", "--port=0")
    assert commands().until(lambda: "until Ctrl-C\n" in started.out.read_text(), started)
    url = started.out.read_text().split(" at ")[1].split()[0]
    before = urllib.request.urlopen(url).read()
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 13, "loss": 0.5, "tasks": {}, "seconds": {"rollout": 1.0}}) + "\n")
    assert urllib.request.urlopen(url).read() != before
    os.kill(started.pid, number)
    ended = commands().wait(started)
    assert (ended.status, ended.err) == (0, "") and ended.out.splitlines() == [
        f"watching {workdir} at {url} until Ctrl-C",
        "stopped",
    ]
    assert not (workdir / "report.html").exists()


def test_what_watch_does_not_take(tmp_path):
    for argv, said in (
        (("--watch", "--workdir=x", f"--out={tmp_path}"), "leave --out out"),
        (("--watch", "a", "b"), "--watch serves the page of one run"),
        (("--watch", "--workdir=nowhere"), "is not a folder"),
    ):
        ended = commands().run("report", *argv)
        assert ended.status == 2 and said in ended.err and ended.err.count("\n") == 1, ended.err
