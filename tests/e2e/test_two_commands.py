"""Two commands on one folder: the second is refused in one line that names the first, or both are right."""

import json
import os
import time
from pathlib import Path

import drills
import pytest
from commands import Ended, commands

from mtjudge_jax import locks
from mtjudge_jax.demo.arms import ARMS
from mtjudge_jax.locks import held
from mtjudge_jax.policy.model import DEMO_BASE

ROWS = [{"id": f"r{i}", "task": "technical", "images": ["a.png"], "label": i % 2} for i in range(12)]


def arguments(command: str, out: Path) -> list:
    data = commands().folder / "data"
    if command == "train":
        return ["train", f"--config={commands().config}", f"--config.data.path={data}", f"--workdir={out}"]
    if command == "demo":
        return ["demo", f"--workdir={out}"]
    if command == "demo arms":
        return ["demo", f"--workdir={out}", f"--arms={next(iter(ARMS))}", "--seeds=1"]
    if command == "eval":
        return ["eval", f"--model={DEMO_BASE}", f"--data={data}", f"--out={out}", "--tasks=technical", "--limit=1", "--samples=1"]
    if command == "sample":
        return ["sample", f"--model={DEMO_BASE}", f"--data={data}", f"--out={out}", "--tasks=technical", "--limit=1"]
    if command == "export":
        return ["export", f"--workdir={out.parent / 'run'}", f"--out={out}"]
    if command == "prepare":
        source = out.parent / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        return ["prepare", "--dataset=jsonl", f"--source={source}", f"--out={out}"]
    assert command == "prepare demo"
    return ["prepare", "--dataset=demo", f"--out={out}"]


def run_folder(folder: Path) -> None:
    """As much of a run as an export looks at before it writes."""
    from mtjudge_jax.config import to_dict

    (folder / "best").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(drills.config())))
    for path in DEMO_BASE.iterdir():
        (folder / "best" / path.name).write_bytes(path.read_bytes())
    (folder / "best" / "judge.json").write_text('{"step": 2}')


def refused(ended: Ended, folder: Path) -> None:
    assert ended.status == 2 and ended.out.count("\n") <= 1, (ended.out, ended.err[-2000:])
    lines = [line for line in ended.err.splitlines() if not line.startswith("compiled programs are kept")]
    assert len(lines) == 1, ended.err[-3000:]
    assert lines[0].startswith(f"error: {folder} is in use by `") and f"(process {os.getpid()} on " in lines[0], lines
    assert lines[0].endswith("wait until it ends, stop it, or choose another folder")


@pytest.mark.parametrize("command", ["train", "demo", "demo arms", "eval", "sample", "export", "prepare", "prepare demo"])
def test_a_folder_that_another_command_has_is_refused_by_every_command(tmp_path, command):
    run_folder(tmp_path / "run")
    out = tmp_path / "out"
    whole = command in ("sample", "export", "prepare", "prepare demo")
    with held(out, beside=whole, name="test" if command == "eval" else ""):
        refused(commands().run(*arguments(command, out)), out)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    if whole:  # nor may a command that writes it whole and one that writes into it meet
        with held(out, name="anything"):
            ended = commands().run(*arguments(command, out))
        assert ended.status == 2 and ended.err.count("\n") == 1 and ("is in use by" in ended.err or "is not empty" in ended.err)


def test_two_runs_in_one_workdir_at_once(tmp_path):
    """The first is not disturbed: it ends as a run that was alone."""
    workdir = tmp_path / "mine"
    flags = arguments("train", workdir)
    first = commands().start(*flags, "--config.steps=2")
    assert commands().until((workdir / ".mtjudge.lock").exists, first)
    second = commands().run(*flags, "--config.steps=2")
    assert second.status == 2 and second.err.startswith(f"error: {workdir} is in use by `mtjudge train --config="), second.err
    assert f"(process {first.pid} on " in second.err and second.err.count("\n") == 1, second.err
    ended = commands().wait(first)
    assert ended.status == 0, ended.err[-2000:]
    lines = drills.ending(workdir)["metrics"]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    assert not (workdir / ".mtjudge.lock").exists()


def test_a_lock_of_a_run_that_was_killed_is_taken_over_at_once(tmp_path):
    workdir = tmp_path / "mine"
    workdir.mkdir()
    dead = locks._this_process()._replace(pid=2**22 - 2)
    (workdir / ".mtjudge.lock").write_bytes(locks._text(dead))
    began = time.monotonic()
    ended = commands().run(*arguments("train", workdir), "--config.steps=0")
    assert time.monotonic() - began < 60 and "in use" not in ended.err
