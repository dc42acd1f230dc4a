"""One command writes a folder at a time; what a dead owner left is taken over, on a disk and in a bucket."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bucket import Bucket

from mtjudge_jax import locks
from mtjudge_jax.errors import UserError
from mtjudge_jax.locks import InUse, held
from mtjudge_jax.paths import as_path, write_whole

COMMAND = "mtjudge train --workdir=runs/mine"


@pytest.fixture(scope="module")
def bucket():
    with Bucket() as made:
        before = dict(os.environ)
        os.environ.update(made.env)
        from mtjudge_jax import paths

        paths.bucket_files.cache_clear()
        paths.reach.cache_clear()
        yield made
        paths.bucket_files.cache_clear()
        paths.reach.cache_clear()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "mine"
    made = request.getfixturevalue("bucket")
    return as_path(f"gs://{made.name}/{tmp_path.name}/mine")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mtjudge train", "--workdir=runs/mine"])
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(locks, "_STALE_SECONDS", 0.3)
    for name in locks._JOBS:
        monkeypatch.delenv(name, raising=False)


def owner(**changes) -> locks.Owner:
    return locks._this_process()._replace(**changes)


def leave_behind(folder, left: locks.Owner, name: str = ".mtjudge.lock") -> None:
    """As a process that ended without a word."""
    if isinstance(folder, Path):
        folder.mkdir(exist_ok=True)
    write_whole(folder / name, locks._text(left))


ELSEWHERE = {"system": "another-boot", "host": "host-b", "pid": 7, "id": "b"}


def test_the_second_is_refused_in_one_line_that_names_the_first(folder):
    with held(folder):
        with pytest.raises(InUse) as error, held(folder):
            raise AssertionError("both have it")
        line = str(error.value)
        assert line.startswith(f"{folder} is in use by `mtjudge train --workdir=runs/mine` (process ")
        assert f"(process {os.getpid()} on {locks.platform.node()}, since 20" in line and "\n" not in line
        assert line.endswith("): wait until it ends, stop it, or choose another folder") and isinstance(error.value, UserError)
        with held(folder, again=True), held(folder, holds=False), held(folder, name="test"), held(folder.parent / "eval"):
            pass
        with pytest.raises(InUse), held(folder):  # the inner context has not given it away
            pass
    with held(folder):
        pass
    assert not folder.exists() or list(folder.iterdir()) == []  # nothing is left


@pytest.mark.parametrize("whole_first", [True, False])
def test_a_command_that_replaces_the_folder_and_one_that_writes_into_it_exclude_each_other(folder, whole_first):
    for inner in ({}, {"name": "test"}):
        first, second = ({"beside": True}, inner) if whole_first else (inner, {"beside": True})
        with held(folder, **first), pytest.raises(InUse), held(folder, **second):
            pass
    with held(folder, name="val"), held(folder, name="test"), held(folder):
        pass
    assert not (folder.parent / ".mine.lock").exists()


def test_what_a_dead_process_of_this_system_left_is_taken_over_at_once(folder, monkeypatch, capsys):
    monkeypatch.setattr(locks, "_STALE_SECONDS", 100)
    for left in (owner(pid=2**22 - 3), owner(began="another")):  # none has the number; another process has it now
        leave_behind(folder, left)
        with held(folder):
            pass
    leave_behind(folder, owner(**ELSEWHERE))
    text = json.loads((folder / ".mtjudge.lock").read_text())
    write_whole(folder / ".mtjudge.lock", json.dumps(text | {"at": time.time() - 4000}).encode())
    if isinstance(folder, Path):
        os.utime(folder / ".mtjudge.lock", (0, time.time() - 4000))
    with held(folder):  # silent for an hour
        pass
    assert capsys.readouterr().err == ""


def test_an_owner_elsewhere_without_a_sign_of_life_is_waited_for_and_then_taken_over(folder, capsys):
    leave_behind(folder, owner(**ELSEWHERE))
    began = time.monotonic()
    with held(folder):
        assert locks._parse((folder / ".mtjudge.lock").read_bytes()).pid == os.getpid()
    assert 0.3 <= time.monotonic() - began < 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("waiting up to 0 s for ") and "(process 7 on host-b, since" in line
    assert line.endswith("had it and may still run on that machine")


def signs(folder, left: locks.Owner, ended: threading.Event) -> threading.Thread:
    """Another machine's process, whose `flock` does not reach here."""

    def live():
        while not ended.wait(0.05):
            with contextlib.suppress(OSError):
                leave_behind(folder, left)

    thread = threading.Thread(target=live)
    thread.start()
    return thread


def test_an_owner_elsewhere_that_gives_signs_is_left_alone(folder):
    ended, left = threading.Event(), owner(**ELSEWHERE)
    leave_behind(folder, left)
    thread = signs(folder, left, ended)
    try:
        with pytest.raises(InUse, match="process 7 on host-b"), held(folder):
            pass
        assert locks._parse((folder / ".mtjudge.lock").read_bytes()).id == "b"
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("variables", [{"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}, {"JOBSET_NAME": "mine"}])
def test_a_job_that_was_started_again_waits_for_its_earlier_start(folder, monkeypatch, capsys, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    first = owner(**ELSEWHERE, job=locks._this_process().job.partition(" ")[0])
    ended = threading.Event()
    leave_behind(folder, first)
    thread = signs(folder, first, ended)
    threading.Timer(0.6, ended.set).start()
    try:
        with held(folder):
            assert ended.is_set()
    finally:
        ended.set()
        thread.join()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and ("may still run on that machine" in lines[0] or "earlier start has it" in lines[0])
    monkeypatch.setattr(locks, "_RESTART_SECONDS", 0.2)
    with held(folder):
        monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
        monkeypatch.setenv("SLURM_JOB_ID", "13")  # another job
        monkeypatch.delenv("JOBSET_NAME", raising=False)
        began = time.monotonic()
        with pytest.raises(InUse), held(folder):
            pass
        assert time.monotonic() - began < 0.2


def test_the_owner_gives_signs_and_ends_when_it_lost_the_lock(folder, monkeypatch, capsys):
    left = threading.Event()
    monkeypatch.setattr(locks, "leave", lambda status: left.set() if status == 2 else None)
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.02)
    with held(folder):
        mark = locks._Object(folder / ".mtjudge.lock") if not isinstance(folder, Path) else locks._File(folder / ".mtjudge.lock")
        before = mark.read()[1]
        end = time.monotonic() + 5
        while mark.read()[1] == before:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert not left.is_set()
        leave_behind(folder, owner(**ELSEWHERE))
        assert left.wait(5)
    assert "was taken over by `" in capsys.readouterr().err
    assert locks._parse((folder / ".mtjudge.lock").read_bytes()).id == "b"  # and is not removed


def test_a_folder_that_disappears_is_not_a_lost_lock(folder, monkeypatch):
    monkeypatch.setattr(locks, "leave", lambda status: pytest.fail("ended"))
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.02)
    with held(folder):
        (folder / ".mtjudge.lock").unlink()
        time.sleep(0.2)


def test_without_flock_the_signs_of_life_decide(tmp_path, monkeypatch):
    """As on a network file system that is mounted without locks."""

    def unsupported(fd, how):
        raise OSError(locks.errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    folder = tmp_path / "mine"
    with held(folder), pytest.raises(InUse, match=f"process {os.getpid()} on "), held(folder):
        pass
    assert list(folder.iterdir()) == []
    leave_behind(folder, owner(pid=2**22 - 3))
    with held(folder):
        pass


KILLED = """
import sys, time
from pathlib import Path
from mtjudge_jax.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "mine")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {process.pid} on "), held(tmp_path / "mine"):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with held(tmp_path / "mine"):
        pass


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    said = r"cannot be written to \(Not a directory\): give another folder"
    with pytest.raises(UserError, match=said), held(tmp_path / "file" / "out"):
        pass
    with pytest.raises(UserError, match=r"/proc/nowhere: cannot be written to \("), held(Path("/proc/nowhere")):
        pass
