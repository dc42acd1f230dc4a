"""A pod of folders: what the scripts do on the hosts, with real processes. See launching.py."""

import os
import re
import shlex
import time
from pathlib import Path

import pytest
from launching import RECORD, Cloud

WHERE = ["--zone=us-east5-a"]
SETUP = ["judge", *WHERE, "--jax=0.10.2"]
# Says its number, then works until SIGTERM, on which it takes a moment to save and ends with 75.
WORK = """import os, signal, sys, time
def save(*_):
    time.sleep(0.3)
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print("working in", os.getcwd(), flush=True)
time.sleep(100)
"""


@pytest.fixture
def pod(tmp_path):
    """Three hosts, set up."""
    cloud = Cloud(tmp_path, hosts=3)
    cloud.copy_of_repository()
    assert cloud.run("tpu_setup.sh", *SETUP).status == 0
    (tmp_path / "work.py").write_text(WORK)
    cloud.calls()
    yield cloud
    cloud.write("dead", "")
    cloud.run("tpu_stop.sh", "judge", *WHERE, "--grace=0")


def facts(ended) -> list[str]:
    return [line for line in ended.out.splitlines() if line.startswith("host ")]


def until(condition, *, seconds: float = 30):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def running(pid: str) -> bool:
    """Whether a process is there; one that ended and that nobody waited for is not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def start(cloud, *command: object, flags=()) -> object:
    return cloud.run("tpu_run.sh", "judge", *WHERE, *flags, "--", *command)


def installs(calls) -> list[list[str]]:
    return [call for call in calls if call[:3] == ["uv", "pip", "install"]]


def test_set_up_makes_all_hosts_the_same_and_installs_once(tmp_path):
    cloud = Cloud(tmp_path, hosts=3)
    cloud.copy_of_repository()
    first = cloud.run("tpu_setup.sh", *SETUP)
    assert first.status == 0, first.err
    said = [re.fullmatch(r"host host-(\d) code=(\w{12}) packages=(\w{12}) (.*)", line).groups() for line in facts(first)]
    assert [host for host, *_ in said] == ["0", "1", "2"]
    assert len({rest for _, *rest in said for rest in [tuple(rest)]}) == 1
    assert re.fullmatch(r"python=3\.\d+\.\d+ jax=0\.10\.2 libtpu=0\.0\.42", said[0][3])
    want = ["uv", "pip", "install", "--quiet", "--python", "venv/bin/python", "-e", "./code[tpu,gcs]", "jax==0.10.2"]
    assert installs(cloud.calls()) == [want] * 3
    assert (cloud.host(2) / "mtjudge/code/launch/host.sh").exists()
    again = cloud.run("tpu_setup.sh", *SETUP)
    assert (again.status, facts(again), installs(cloud.calls())) == (0, facts(first), [])
    other = cloud.run("tpu_setup.sh", *SETUP[:-1], "--jax=0.10.3")
    assert (other.status, len(installs(cloud.calls()))) == (0, 3)


def test_set_up_says_which_host_differs(tmp_path):
    cloud = Cloud(tmp_path, hosts=3)
    cloud.copy_of_repository()
    cloud.write("packages.host-1", "jax==0.10.1\nlibtpu==0.0.42\n")
    ended = cloud.run("tpu_setup.sh", *SETUP, f"--lock={tmp_path / 'lock'}")
    lines = ended.err.splitlines()
    assert (ended.status, (tmp_path / "lock").exists()) == (1, False)
    assert lines[-2].startswith("error: hosts differ from the 2 that have code=") and lines[-2].endswith("libtpu=0.0.42:")
    assert re.fullmatch(r"  host-1 code=\w+ packages=\w+ python=\S+ jax=0.10.1 libtpu=0.0.42", lines[-1])


def test_set_up_misses_a_host(tmp_path):
    cloud = Cloud(tmp_path, hosts=3)
    cloud.copy_of_repository()
    cloud.write("dead", "1\n")
    ended = cloud.run("tpu_setup.sh", *SETUP)
    assert ended.status == 255  # of the copying, as gcloud ends
    assert ended.err.splitlines()[-1] == "ssh: connect to host 1"


def test_the_lock_gives_a_later_pod_the_same_packages(tmp_path):
    cloud = Cloud(tmp_path, hosts=2)
    cloud.copy_of_repository()
    lock = tmp_path / "pod.lock"
    assert cloud.run("tpu_setup.sh", *SETUP, f"--lock={lock}").status == 0
    assert lock.read_text() == (tmp_path / "packages").read_text()
    cloud.calls()
    assert cloud.run("tpu_setup.sh", *SETUP, f"--lock={lock}").status == 0
    given = sorted(call[6:8] for call in installs(cloud.calls()))
    assert given == [["--constraint", str(cloud.host(w) / "pod.lock")] for w in (0, 1)]


def test_the_folder_of_the_lock_is_made_and_one_that_cannot_be_is_said_first(tmp_path):
    cloud = Cloud(tmp_path, hosts=1)
    cloud.copy_of_repository()
    (tmp_path / "file").touch()
    wrong = cloud.run("tpu_setup.sh", *SETUP, "--lock=file/pod.lock")
    assert (wrong.status, wrong.err) == (2, "error: --lock=file/pod.lock: cannot be written\n")
    assert (cloud.calls(), cloud.host(0).exists()) == ([], False)
    ended = cloud.run("tpu_setup.sh", *SETUP, "--lock=runs/pod.lock")
    assert (ended.status, ended.err.splitlines()[-2]) == (0, "runs/pod.lock: written, the packages of all hosts")
    assert (tmp_path / "runs/pod.lock").read_text() == (tmp_path / "packages").read_text()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pod.lock"]


def test_set_up_sends_commits_only(tmp_path):
    cloud = Cloud(tmp_path, hosts=1)
    cloud.copy_of_repository()
    (cloud.launch.parent / "pyproject.toml").write_text("[project]\nname='changed'\n")
    (cloud.launch.parent / "new.py").touch()
    ended = cloud.run("tpu_setup.sh", *SETUP)
    line = "uncommitted changes (2, first pyproject.toml): hosts get the last commit; commit them, or leave them out with"
    assert (ended.status, ended.err) == (2, f"error: {line} --committed\n")
    assert cloud.run("tpu_setup.sh", *SETUP, "--committed").status == 0
    assert (cloud.host(0) / "mtjudge/code/pyproject.toml").read_text() == "[project]\n"


def test_a_run_goes_on_without_the_terminal_and_is_stopped_with_its_save(pod):
    (pod.host(1) / "lockfile").write_text("left by a dead process")
    ended = start(pod, "python", pod.folder / "work.py")
    assert ended.status == 0, ended.err
    assert [re.sub(r"pid=\d+", "pid=N", line) for line in facts(ended)] == [
        f"host host-{w} started run=train pid=N log={pod.host(w)}/mtjudge/runs/train/log" for w in range(3)
    ]
    assert not (pod.host(1) / "lockfile").exists()
    logs = [pod.host(w) / "mtjudge/runs/train/log" for w in range(3)]
    until(lambda: all("working in" in log.read_text() for log in logs))
    assert f"working in {pod.host(2)}/mtjudge/code" in logs[2].read_text()

    status = pod.run("tpu_status.sh", "judge", *WHERE)
    assert (status.status, facts(status)[0]) == (0, f"host host-0 running restarts=0 working in {pod.host(0)}/mtjudge/code")
    other = pod.run("tpu_status.sh", "judge", *WHERE, "--run=export")
    said = [f"host host-{w} ended status=2 restarts=0 seconds=0 no run export was started here" for w in range(3)]
    assert (other.status, other.out.splitlines(), other.err) == (2, said, "")
    shown = pod.run("tpu_logs.sh", "judge", *WHERE, "--worker=all", "--lines=1").out
    assert [line.split(":")[0] for line in shown.splitlines()] == ["host-0", "host-1", "host-2"]

    second = start(pod, "true")
    assert second.status == 2
    assert "error: host-0: a run is already alive: run launch/tpu_stop.sh first" in second.err.splitlines()
    again = pod.run("tpu_setup.sh", *SETUP)
    assert again.status == 2
    assert "error: host-0: a run is alive and its code must not change: run launch/tpu_stop.sh first" in again.err

    stopped = pod.run("tpu_stop.sh", "judge", *WHERE)
    assert (stopped.status, facts(stopped)) == (0, [f"host host-{w} stopped after 0 s, status=75" for w in range(3)])
    assert all("saved" in log.read_text() and log.read_text().count(": start ") == 1 for log in logs)
    status = pod.run("tpu_status.sh", "judge", *WHERE)
    assert status.status == 75
    assert re.fullmatch(r"host host-0 ended status=75 restarts=0 seconds=\d+ saved", facts(status)[0])


def test_restarts_are_those_of_the_last_start(tmp_path):
    """The log of a run of the same name goes on where the earlier one ended."""
    cloud = Cloud(tmp_path, hosts=1)
    cloud.copy_of_repository()
    assert cloud.run("tpu_setup.sh", *SETUP).status == 0
    log = cloud.host(0) / "mtjudge/runs/train/log"
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"2026-01-01T00:00:00Z host-0: start {i}: mtjudge train\nold\n" for i in range(4)))
    assert start(cloud, "bash", "-c", "echo fresh; sleep 100").status == 0
    until(lambda: "\nfresh" in log.read_text())
    assert facts(cloud.run("tpu_status.sh", "judge", *WHERE)) == ["host host-0 running restarts=0 fresh"]
    with log.open("a") as file:  # as restart.sh writes it, after a bar of progress
        file.write("50%\r2026-01-02T00:00:00Z host-0: start 1: mtjudge train\nagain\n")
    assert facts(cloud.run("tpu_status.sh", "judge", *WHERE)) == ["host host-0 running restarts=1 again"]
    assert cloud.run("tpu_stop.sh", "judge", *WHERE, "--grace=1").status == 0


def test_a_run_that_does_not_save_in_time_is_killed_with_all_that_it_started(pod):
    script = "trap '' TERM; sleep 1000 & echo $! >child; wait; wait"
    assert start(pod, "bash", "-c", script).status == 0
    children = [until(lambda w=w: (pod.host(w) / "mtjudge/code/child").read_text().strip()) for w in range(3)]
    stopped = pod.run("tpu_stop.sh", "judge", *WHERE, "--grace=1")
    assert (stopped.status, facts(stopped)) == (0, [f"host host-{w} killed: not saved within 1 s" for w in range(3)])
    until(lambda: not [child for child in children if running(child)])
    status = pod.run("tpu_status.sh", "judge", *WHERE)
    assert (status.status, facts(status)[0][:59]) == (137, "host host-0 ended status=137 restarts=? seconds=? killed wi")


def test_hosts_that_do_not_start_are_counted(pod):
    pod.write("dead", "2\n")
    ended = start(pod, "sleep", "100")
    stop = "run launch/tpu_stop.sh judge --zone=us-east5-a, then this command again"
    line = f"error: started on 2 of 3 hosts, which wait for the others: {stop}"
    assert (ended.status, ended.err.splitlines()[-1]) == (1, line)
    stopped = pod.run("tpu_stop.sh", "judge", *WHERE)
    assert (stopped.status, len(facts(stopped))) == (1, 2)


def test_a_tpu_that_another_process_holds(pod):
    pod.write("holders.host-1", "p4000000\ncjupyter\nf8\n")  # as lsof -F pc writes it
    ended = start(pod, "sleep", "100")
    assert (ended.status, len(facts(ended))) == (2, 2)
    assert "error: host-1: the TPU is held by 4000000 jupyter: end it with launch/tpu_stop.sh --force" in ended.err.splitlines()
    stopped = pod.run("tpu_stop.sh", "judge", *WHERE)
    assert stopped.status == 1
    assert "error: host-1: the TPU is still held by 4000000 jupyter: --force ends it" in stopped.err.splitlines()


@pytest.mark.parametrize("command, status", [("false", 1), ("bash -c 'exit 2'", 2), ("true", 0), ("no_such_command", 127)])
def test_how_a_run_ended(command, status, pod):
    assert start(pod, *shlex.split(command), flags=["--restarts=0"]).status == 0
    ended = pod.run("tpu_status.sh", "judge", *WHERE, "--wait", "--poll=0")
    assert ended.status == status
    assert [line.split()[2:5] for line in facts(ended)][-3:] == [["ended", f"status={status}", "restarts=0"]] * 3


def test_status_of_a_slice_that_is_gone(pod):
    pod.write("dead", "0\n1\n2\n")
    pod.write("states", "SUSPENDED\n")
    ended = pod.run("tpu_status.sh", "judge", *WHERE, "--wait", "--poll=0")
    line = "judge: SUSPENDED: preempted or deleted; launch/tpu_create.sh requests it again"
    assert (ended.status, ended.err.splitlines()[-1]) == (75, line)


def test_the_model_comes_by_one_host(pod):
    ended = pod.run("tpu_model.sh", "judge", *WHERE, "--model=Qwen/Q-8B", "--to=gs://bucket/Q-8B", "--revision=abc")
    folder = f"{pod.host(0)}/mtjudge/Q-8B"
    assert ended.out.splitlines() == ["host host-0 Qwen/Q-8B is in gs://bucket/Q-8B"], ended.err
    assert pod.calls()[1:] == [
        ["hf", "download", "Qwen/Q-8B", "--revision", "abc", "--local-dir", folder],
        ["gcloud", "storage", "rsync", "--recursive", folder, "gs://bucket/Q-8B"],
    ]
    assert not os.path.exists(folder)


def test_keep_takes_another_slice_when_the_first_is_gone(tmp_path):
    cloud = Cloud(tmp_path, hosts=2)
    cloud.copy_of_repository()
    flag, lock = tmp_path / "second", tmp_path / "pod.lock"
    # The first time it runs until the slice is taken away; the second time it ends well.
    script = f"[ -e {flag} ] && exit 0; echo working; sleep 100"
    given = ["judge", *WHERE, "--topology=v6e:2x4", "--spot", "--jax=0.10.2", f"--lock={lock}", "--poll=1"]
    keep = cloud.start("tpu_keep.sh", *given, "--", "bash", "-c", script)
    logs = [cloud.host(w) / "mtjudge/runs/train/log" for w in range(2)]
    until(lambda: all(log.exists() and "\nworking" in log.read_text() for log in logs))
    until(lambda: " running " in keep.stdout.readline())
    cloud.write("states", "SUSPENDED\nSUSPENDED\nACTIVE\n")
    cloud.write("dead", "0\n1\n")
    for w in range(2):  # the machines are gone with all that they ran
        os.killpg(int((cloud.host(w) / "mtjudge/pid").read_text()), 9)
    flag.touch()
    until(lambda: len(creates(cloud.calls(keep=True))) == 1)
    cloud.write("dead", "")
    out, err = keep.communicate(timeout=60)
    assert keep.returncode == 0, err
    assert err.splitlines()[0] == "to stop: Ctrl-C here first, then tpu_stop.sh"
    assert "judge: SUSPENDED: preempted or deleted; launch/tpu_create.sh requests it again" in err
    assert "judge: SUSPENDED, requesting it again" in err
    assert out.splitlines()[-1].startswith("host host-1 ended status=0 restarts=0")
    assert [("--spot" in call, "--accelerator-type=v6e-8" in call) for call in creates(cloud.calls())] == [(True, True)]


def test_keep_gives_up_after_equal_failures(tmp_path):
    cloud = Cloud(tmp_path)
    cloud.copy_of_repository()
    (cloud.bin / "gcloud").write_text(RECORD + 'echo "ERROR: PERMISSION_DENIED" >&2; exit 1\n')
    given = ["judge", *WHERE, "--topology=v6e:2x4", "--jax=0.10.2", f"--lock={tmp_path / 'lock'}", "--poll=0", "--tries=3"]
    ended = cloud.run("tpu_keep.sh", *given, "--", "true")
    line = "error: tpu_create.sh failed 3 times in a row with status 1, see above; the slice, if any, still costs"
    assert (ended.status, ended.err.splitlines()[-1], len(cloud.calls())) == (1, line, 3)


def test_keep_hands_on_the_flags_of_the_others_and_no_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("subnetwork", "of the user's shell")
    cloud = Cloud(tmp_path)
    cloud.copy_of_repository()
    create = ["--spot", "--service-account=s@m", "--network=n", "--internal-ips", "--valid-until=6h"]
    setup = ["--python=3.11", "--extras=tpu", "--internal-ip", "--committed"]
    given = ["judge", *WHERE, "--topology=v6e:2x4", "--jax=0.10.2", f"--lock={tmp_path / 'lock'}", "--runtime=my-image"]
    ended = cloud.run("tpu_keep.sh", *given, *create, *setup, "--dry-run", "--", "true")
    lines = [shlex.split(line) for line in ended.out.splitlines()]
    (made,) = creates(lines)
    assert (ended.status, cloud.calls()) == (0, [])
    assert made[6:] == [
        *["--node-id=judge", *WHERE, "--accelerator-type=v6e-8", "--runtime-version=my-image"],
        *[*create[:4], "--valid-until-duration=6h"],
    ]
    (line,) = [word for words in lines for word in words if "host.sh setup" in word]
    assert "--jax=0.10.2 --python=3.11 --extras=tpu --commit=" in line
    assert all("--internal-ip" in words for words in lines if "ssh" in words)


def creates(calls: list[list[str]]) -> list[list[str]]:
    return [call for call in calls if call[3:5] == ["queued-resources", "create"]]
