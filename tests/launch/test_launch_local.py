"""Several processes on one machine, and what restarts: launch/local_multiprocess.sh and launch/restart.sh."""

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import Cloud

# Its number, the number of its start in this folder, and what the two make it do: "0:75 1:sleep" .. a start.
PROCESS = """import os, signal, sys, time
from pathlib import Path
me, log = os.environ.get("JAX_PROCESS_ID", "0"), Path(sys.argv[1])
starts = log / f"starts.{me}"
start = len(starts.read_text().split()) if starts.exists() else 0
address = os.environ.get("JAX_COORDINATOR_ADDRESS", "-")
with starts.open("a") as file:
    print(os.getpid(), file=file)
count, flags, platforms = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "XLA_FLAGS", "JAX_PLATFORMS"))
print(f"process {me} start {start} at {address} of {count} {flags} {platforms}", flush=True)
plan = dict(part.split(":") for part in sys.argv[2 + min(start, len(sys.argv) - 3)].split())
what = plan.get(me, "0")
if what == "work":
    def save(*_):
        print(f"process {me} saves", flush=True)
        time.sleep(0.2)
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    (log / f"ready.{me}").touch()
    time.sleep(100)
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (log / f"ready.{me}").touch()
    time.sleep(100)
if what.startswith("after"):
    time.sleep(0.7)
    what = what.removeprefix("after")
if what.startswith("-"):
    os.kill(os.getpid(), int(what[1:]))
    time.sleep(100)
sys.exit(int(what))
"""


@pytest.fixture
def program(tmp_path) -> list[str]:
    (tmp_path / "process.py").write_text(PROCESS)
    return [sys.executable, str(tmp_path / "process.py"), str(tmp_path)]


def starts(folder: Path, process: int = 0) -> int:
    return len((folder / f"starts.{process}").read_text().split())


def local(tmp_path, program, *plans: str, flags=(), processes: int = 2):
    return Cloud(tmp_path).run(
        "local_multiprocess.sh", "-n", processes, f"--logs={tmp_path / 'logs'}", *flags, "--", *program, *plans
    )


def test_what_each_process_is_told_and_where_it_writes(tmp_path, program, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    ended = local(tmp_path, program, "0:0 1:0", flags=["--devices=4"])
    assert ended.status == 0
    logs = [(tmp_path / f"logs/{i}.log").read_text() for i in (0, 1)]
    line = re.fullmatch(
        r"process 0 start 0 at 127\.0\.0\.1:(\d+) of 2 "
        r"--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=4 cpu\n",
        ended.out,
    )
    assert 20000 <= int(line[1]) < 32000
    assert logs == [ended.out, ended.out.replace("process 0", "process 1")]
    assert ended.err == f"2 processes, logs in {tmp_path / 'logs'}\n"


@pytest.mark.parametrize("flags, given, told", [(["--devices=4"], "tpu", "tpu"), (["--devices=4"], "", ""), ([], None, "None")])
def test_jax_platforms_is_left_as_it_is(flags, given, told, tmp_path, program, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if given is not None:
        monkeypatch.setenv("JAX_PLATFORMS", given)
    assert local(tmp_path, program, "0:0", flags=flags, processes=1).out.endswith(f" {told}\n")


def test_dry_run_prints_the_commands(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    flags = ["--port=4321", "--heartbeat=7", "--devices=2", "--dry-run", "--", "mtjudge", "train", "--x=a b"]
    ended = Cloud(tmp_path).run("local_multiprocess.sh", "--processes=2", *flags)
    told = ["env", "JAX_COORDINATOR_ADDRESS=127.0.0.1:4321", "JAX_NUM_PROCESSES=2"]
    command = ["mtjudge", "train", "--x=a b", "--config.hosts.heartbeat_seconds=7"]
    lines = [shlex.split(line) for line in ended.out.splitlines()]
    assert [line[:3] for line in lines] == [told, told]
    assert [line[3] for line in lines] == ["JAX_PROCESS_ID=0", "JAX_PROCESS_ID=1"]
    assert [line[4].endswith("--xla_force_host_platform_device_count=2") for line in lines] == [True, True]
    assert [line[5:] for line in lines] == [["JAX_PLATFORMS=cpu", *command]] * 2


# What the processes end with, in which order, and what the script then ends with.
ENDS = [
    ("0:0 1:0", 0),
    ("0:0 1:1", 1),
    ("0:2 1:after1", 2),
    ("0:1 1:after2", 2),  # the other's crash came first
    ("0:after-6 1:75", 75),  # the peer of one that saved and left aborts
    ("0:-6 1:after75", 75),
    ("0:-6 1:after-9", 134),
    ("0:-9 1:after-6", 137),
    ("0:130 1:130", 130),
]


@pytest.mark.parametrize("plan, status", ENDS)
def test_exit_status_is_that_of_the_one_that_failed_by_itself(plan, status, tmp_path, program):
    assert local(tmp_path, program, plan, flags=["--grace=20"]).status == status


def test_the_others_get_a_time_to_end_and_are_then_killed(tmp_path, program):
    start = time.monotonic()
    ended = local(tmp_path, program, "0:work 1:1 2:deaf", flags=["--grace=1"], processes=3)
    assert (ended.status, 0.9 < time.monotonic() - start < 10) == (1, True)
    said = "process 1 ended with status 1; the others have up to 1 s to end"
    assert ended.err.splitlines()[1:] == [said, "local_multiprocess.sh: 2 processes left after 1 s: sending SIGKILL"]
    assert not alive(tmp_path, 3)


def test_a_process_that_a_signal_ended_is_said_at_once_and_by_this_script_only(tmp_path, program):
    flags = ["-n", 2, f"--logs={tmp_path / 'logs'}", "--", *program, "0:work 1:after-9"]
    process = Cloud(tmp_path).start("local_multiprocess.sh", *flags)
    said = "process 1 ended with status 137; the others have up to 120 s to end\n"
    assert [process.stderr.readline() for _ in range(2)][1] == said
    assert process.poll() is None
    ready(tmp_path, 1)
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (75, "SIGTERM: passed on; each process saves after its step\n")


def alive(folder: Path, processes: int) -> list[str]:
    pids = [(folder / f"starts.{i}").read_text().split()[-1] for i in range(processes)]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    "plans, restarts, status, times",
    [
        (["0:75 1:75", "0:0 1:0"], 3, 0, 2),
        (["0:-9 1:after-6", "0:1 1:0", "0:0 1:-6", "0:0 1:0"], 3, 0, 4),
        (["0:1 1:0"], 2, 1, 3),
        (["0:75 1:75"], 0, 75, 1),
        (["0:2 1:after-6"], 3, 2, 1),
        (["0:130 1:130"], 3, 130, 1),
        (["0:3 1:0"], 3, 3, 1),
    ],
)
def test_restarts(plans, restarts, status, times, tmp_path, program):
    ended = local(tmp_path, program, *plans, flags=[f"--restarts={restarts}", "--grace=20"])
    assert (ended.status, starts(tmp_path, 0), starts(tmp_path, 1)) == (status, times, times)
    ports = re.findall(r"at 127.0.0.1:(\d+)", (tmp_path / "logs/0.log").read_text())
    assert len(ports) == times and len(set(ports)) == times  # the old one may still be taken
    assert ended.err.count(f" of at most {restarts}\n") == times - 1


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_reach_all_and_nothing_is_restarted(number, status, tmp_path, program):
    flags = ["-n", 2, "--restarts=3", f"--logs={tmp_path / 'logs'}"]
    process = Cloud(tmp_path).start("local_multiprocess.sh", *flags, "--", *program, "0:work 1:work")
    ready(tmp_path, 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, starts(tmp_path, 1), alive(tmp_path, 2)) == (status, 1, [])
    passed = ["SIGTERM: passed on; each process saves after its step"]
    assert err.splitlines()[1:] == (passed if number == signal.SIGTERM else [])
    if number == signal.SIGTERM:
        assert "process 0 saves" in out and "process 1 saves" in (tmp_path / "logs/1.log").read_text()


def ready(folder: Path, processes: int) -> None:
    end = time.monotonic() + 20
    while not all((folder / f"ready.{i}").exists() for i in range(processes)):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_sigterm_to_one_process_restarts_all(tmp_path, program):
    """What a preemption of one host is: it saves, the other aborts, and both start again."""
    flags = ["-n", 2, "--restarts=1", f"--logs={tmp_path / 'logs'}", "--grace=1"]
    process = Cloud(tmp_path).start("local_multiprocess.sh", *flags, "--", *program, "0:work 1:work", "0:0 1:0")
    ready(tmp_path, 2)
    subprocess.run(["kill", "-TERM", (tmp_path / "starts.1").read_text().split()[0]], check=True)
    assert process.wait(timeout=20) == 0
    assert (starts(tmp_path, 0), starts(tmp_path, 1)) == (2, 2)


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_time(tmp_path, program):
    flags = ["-n", 2, f"--logs={tmp_path / 'logs'}", "--grace=1"]
    process = Cloud(tmp_path).start("local_multiprocess.sh", *flags, "--", *program, "0:deaf 1:work")
    ready(tmp_path, 2)
    process.terminate()
    assert (process.wait(timeout=20), alive(tmp_path, 2)) == (75, [])


SUM = """import os
import jax
of, me = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], of, me)
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((jax.device_count(),), ("d",))
mine = np.full(jax.local_device_count(), 10.0 ** jax.process_index())
x = jax.make_array_from_process_local_data(NamedSharding(mesh, P("d")), mine)
print("sum", int(jax.jit(jnp.sum)(x)), "of", jax.device_count(), jax.process_index())
"""


def test_two_processes_of_jax_sum_over_their_devices(tmp_path):
    """10 ** process on each of three devices of two processes: 3 * (1 + 10)."""
    (tmp_path / "sum.py").write_text(SUM)
    flags = ["-n", 2, "--devices=3", f"--logs={tmp_path / 'logs'}", "--", sys.executable, tmp_path / "sum.py"]
    cloud = Cloud(tmp_path)
    ended = cloud.run("local_multiprocess.sh", *flags, seconds=120)
    logs = [(tmp_path / f"logs/{i}.log").read_text() for i in (0, 1)]
    assert ended.status == 0, logs
    assert ["sum 33 of 6 0" in logs[0], "sum 33 of 6 1" in logs[1], "sum 33 of 6 0" in ended.out] == [True] * 3


def restart(tmp_path, program, *plans: str, flags=()):
    given = [f"--status={tmp_path / 'status'}", "--pause=0", *flags]
    return Cloud(tmp_path).run("restart.sh", *given, "--", *program, *plans)


@pytest.mark.parametrize(
    "plans, status, times",
    [
        (["0:0"], 0, 1),
        (["0:75", "0:1", "0:-9", "0:-6", "0:-11", "0:-15", "0:0"], 0, 7),
        (["0:75", "0:2"], 2, 2),
        (["0:130"], 130, 1),
        (["0:3"], 3, 1),
    ],
)
def test_restart_by_status(plans, status, times, tmp_path, program):
    ended = restart(tmp_path, program, *plans)
    assert (ended.status, starts(tmp_path)) == (status, times)
    assert (tmp_path / "status").read_text().split()[:2] == [str(status), str(times - 1)]
    assert len(re.findall(r"^\S+Z \S+: start \d+: ", ended.err, re.M)) == times


def test_restart_counts(tmp_path, program):
    ended = restart(tmp_path, program, "0:1", flags=["--restarts=2"])
    assert (ended.status, starts(tmp_path)) == (1, 3)
    assert ended.err.splitlines()[-1] == "all --restarts=2 are used: the reason is above"


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_goes_to_the_command_which_is_not_restarted(number, status, tmp_path, program):
    process = Cloud(tmp_path).start("restart.sh", "--pause=0", "--", *program, "0:work")
    ready(tmp_path, 1)
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, starts(tmp_path), alive(tmp_path, 1)) == (status, 1, [])
    assert ("process 0 saves" in out) == (number == signal.SIGTERM)


def test_a_signal_does_not_wait_for_the_pause(tmp_path, program):
    process = Cloud(tmp_path).start("restart.sh", "--pause=60", "--", *program, "0:75")
    while "status 75" not in process.stderr.readline():
        pass
    time.sleep(0.3)
    process.terminate()
    assert process.wait(timeout=10) == 75


def test_the_workers_of_a_command_that_was_killed_end_too(tmp_path):
    script = f"sleep 1000 & echo $! >{tmp_path / 'worker'}; kill -9 $$"
    ended = Cloud(tmp_path).run("restart.sh", "--restarts=0", "--", "bash", "-c", script)
    assert ended.status == 137
    worker = Path(f"/proc/{(tmp_path / 'worker').read_text().strip()}/stat")
    assert not worker.exists() or " Z " in worker.read_text()
