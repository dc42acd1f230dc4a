"""Checkpoints of several processes: written by two and read by one, and what only one of them cannot read or write."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import saving
from places import ROOT, SUPPORT

from mtjudge_jax import checkpoint as ck
from mtjudge_jax.checkpoint.record import read_record
from mtjudge_jax.config import CheckpointConfig, MeshConfig
from mtjudge_jax.sharding import make_mesh

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")


def run(what: str, folder: Path, processes: int = 2) -> list[dict]:
    """Facts of every process of `saving.py`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = ROOT
    env = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    script = [sys.executable, "-W", "ignore", str(SUPPORT / "saving.py"), what, str(folder)]
    started = [
        subprocess.Popen(
            [*script, str(number), str(processes), str(port)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in range(processes)
    ]
    try:
        ended = [process.communicate(timeout=180) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, ended[0][1][-3000:] + ended[1][1][-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list[dict]]:
    """Two steps written by two processes of four devices each, below a name that Orbax would misread."""
    folder = tmp_path_factory.mktemp("two") / "both[1]"
    return folder, run("save", folder / "c")


def restore(folder: Path, devices: int) -> ck.Restored:
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices), jax.devices()[:devices])
    return ck.restore_latest(ck.open_checkpoints(folder, CheckpointConfig()), saving.abstract(mesh))


@pytest.mark.parametrize("devices", [8, 4, 2, 1])
def test_written_by_two_processes_and_read_by_one(written, devices):
    folder, facts = written
    got = restore(folder / "c", devices)
    assert (got.step, got.data_state, got.meta, got.damaged) == (2, {"global_next_index": 16}, {"best": 0.5}, ())
    want = saving.numbers(2)
    assert all(np.array_equal(np.asarray(got.state[name]), want[name]) for name in want)
    assert [one["said"] for one in facts] == [[], []] and facts[0]["devices"] == 8
    assert sorted(p.name for p in (folder / "c").iterdir()) == ["1", "2"]
    files = read_record(folder / "c" / "2", 2)["files"]
    assert any("ocdbt.process_1/" in name for name in files)  # both wrote


def test_two_processes_read_what_one_wrote(tmp_path):
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    opened = ck.open_checkpoints(tmp_path / "c", CheckpointConfig())
    ck.save(opened, 5, state=saving.placed(5, mesh), data_state={"global_next_index": 40}, meta={"best": 0.5})
    ck.close(opened)
    assert [fact["restored"] for fact in run("restore", tmp_path / "c")] == [[5, True, []]] * 2


@pytest.mark.parametrize("what", ["unreadable", "undecodable"])
def test_what_one_of_two_processes_cannot_read_neither_uses(written, what):
    """Both take the step before, and neither waits for the other."""
    facts = run(what, written[0] / "c", 2)
    for process, fact in enumerate(facts):
        step, equal, damaged = fact["restored"]
        assert (step, equal, len(damaged)) == (1, True, 1)
        assert damaged[0].startswith("step 2: " + ("" if process else "process 1: ")) and "PermissionError" in damaged[0]
        assert fact["seconds"] < 60


def test_a_save_that_one_of_two_processes_cannot_write_is_reported_by_both(tmp_path):
    first, second = run("failing", tmp_path / "c")
    assert first["said"][0].startswith(f"{tmp_path / 'c'}: the checkpoint of step 2 was not written (OSError: process 1 could")
    assert "No space left" in second["said"][0] and "good checkpoints kept: step 1" in second["said"][0]
    assert first["steps"] == second["steps"] == [1, 3]
    # And a save whose index has the arrays of process 0 alone: restored, it would have zeros in the others' place.
    for said in (first["unjoined"]["said"][0], second["unjoined"]["said"][0]):
        assert "the checkpoint of step 4 was not written (" in said and "Orbax has not joined what its processes wrote" in said
    assert first["unjoined"]["steps"] == [3, 5]


def test_a_disk_that_fills_up_while_one_of_two_writes_holds_up_neither(tmp_path):
    """Orbax alone lets the other wait for 1,200 s."""
    first, second = run("filling", tmp_path / "c")
    for said in (first["said"], second["said"]):
        assert len(said) == 1 and "the checkpoint of step 2 was not written (" in said[0] and "File too large" in said[0]
    assert "(OSError: process 1: ValueError: OUT_OF_RANGE" in first["said"][0] and first["steps"] == second["steps"] == [1, 3]
    assert max(first["seconds"], second["seconds"]) < 60


def test_a_block_is_left_together(tmp_path):
    assert [fact["error"] for fact in run("together", tmp_path)] == [
        "AnotherProcess: process 1: ValueError: my file is damaged: fix it on that host and start again",
        "ValueError: my file is damaged",
    ]


def test_together_in_one_process():
    from mtjudge_jax.hosts.exchange import first_text, on_any_process, together

    with pytest.raises(ValueError, match=r"^mine$"), together():
        raise ValueError("mine")
    assert first_text("x") == "x" and first_text("") == "" and on_any_process(True) and not on_any_process(False)
