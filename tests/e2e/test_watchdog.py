"""The watchdog of a process whose step stands still."""

import subprocess
import sys

import pytest

from mtjudge_jax.hosts.watchdog import BEAT_BYTES

WATCHED = """
import sys, threading, time
from pathlib import Path
from mtjudge_jax.hosts.watchdog import Watch
watch = Watch(Path(sys.argv[1]), float(sys.argv[2]))
watch.beat("step 1 rollout")
def stands_still():
    threading.Event().wait()
if sys.argv[3] == "dies":
    import ctypes
    ctypes.string_at(0)
stands_still()
"""


@pytest.mark.parametrize(("how", "status"), [("stands", 1), ("dies", -11)])
def test_stacks_and_the_last_sign_of_life_are_on_disk(tmp_path, how, status):
    path = tmp_path / "hosts" / "0.txt"
    path.parent.mkdir()
    path.write_text("of the last start")
    done = subprocess.run([sys.executable, "-c", WATCHED, str(path), "0.5", how], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    first, _, stacks = path.read_text().partition("\n")
    assert len(first) == BEAT_BYTES - 1 and first.rstrip().endswith("reached: step 1 rollout")
    assert "most recent call first" in stacks and ("stands_still" if how == "stands" else "string_at") in stacks
    assert (tmp_path / "hosts" / "0.before.txt").read_text() == "of the last start"
    if how == "stands":
        assert f"error: no progress for 0 s after: step 1 rollout; the stacks are in {path}" in done.stderr
