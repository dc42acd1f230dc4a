"""Several real processes on one machine, over gloo: they train as one, stop as one, and none waits for a dead one."""

import json
import os
import shutil
import signal
import socket
import time
from functools import cache
from pathlib import Path

import drills
import host_drills
import numpy as np
import pytest
from commands import Ended, Started, commands

from mtjudge_jax.cli import EXIT_CTRL_C
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.hosts import EXIT_RESTART, _from_environment


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(name: str, processes: int, **arguments) -> list[Started]:
    """Starts a drill in so many processes."""
    shared = {"port": free_port(), "processes": processes}
    return [commands().start_call(f"host_drills.{name}", process=i, **shared, **arguments) for i in range(processes)]


def facts(started: list[Started]) -> list[dict]:
    ended = [commands().wait(process) for process in started]
    for one in ended:
        assert one.status == 0, one.err[-3000:]
    return [json.loads(one.out.splitlines()[-1]) for one in ended]


def data() -> str:
    return str(commands().folder / "data")


def start_training(folder: Path, processes: int, devices: int = 0, **changes) -> list[Started]:
    devices = devices or host_drills.DEVICES // processes
    return together("train", processes, workdir=str(folder), data=data(), changes=changes, devices=devices)


ROLLOUTS = {"log__rollouts": 1, "log__rollouts_every": 1}
LARGE = {"data__prompt_tokens": 160, "data__patches": 160}  # limits above which prompts have rooms of their own


ADAPTIVE = {"steps": 3, "eval__every_steps": 3, "data__mixture": "mt_grpo"}


@cache
def trained() -> tuple[Path, dict[int, list[dict]]]:
    """The same three steps of MT-GRPO by 1 and 2 processes with 8 devices in all; prompts in rooms of their own."""
    folder = commands().folder / "hosts"
    folder.mkdir()
    # One number after the other: three processes would compile at once.
    return folder, {n: facts(start_training(folder / str(n), n, **ADAPTIVE, **ROLLOUTS, **LARGE)) for n in (1, 2)}


def batches(all_facts: list[dict]) -> list[list[str]]:
    """The ids of every step's global batches of 16: of each round the rows of process 0, then those of process 1, .."""
    each, steps = 16 // len(all_facts), zip(*(one["ids"] for one in all_facts), strict=True)
    return [[name for r in range(len(parts[0]) // each) for part in parts for name in part[each * r :][:each]] for parts in steps]


def parameters(folder: Path, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(folder / f"{name}.npz"))


def assert_near(got: dict[str, np.ndarray], want: dict[str, np.ndarray], most: float) -> None:
    for name in want:
        assert np.abs(got[name] - want[name]).max() <= most * np.abs(want[name]).max(), name


def test_two_processes_train_as_one():
    folder, runs = trained()
    assert [one["devices"] for one in runs[2]] == [8, 8]
    assert runs[2][0]["mesh"]["data"] == 8
    assert all(count == 1 for one in runs[2] for count in one["traces"].values())
    assert len(batches(runs[1])) == 3 and len(set(batches(runs[1])[0][:16])) == 16
    assert batches(runs[2]) == batches(runs[1])
    alone, first = parameters(folder, "1-0"), parameters(folder, "2-0")
    assert len(alone) > 30
    assert all(np.array_equal(first[name], x) for name, x in parameters(folder, "2-1").items())
    assert_near(first, alone, 1e-5)


def test_the_next_batch_follows_what_the_steps_measured_on_both_processes():
    folder, runs = trained()
    endings = {n: drills.ending(folder / str(n)) for n in (1, 2)}
    rounds = {n: [line["rounds"] for line in end["metrics"] if line["kind"] == "train"] for n, end in endings.items()}
    assert rounds[1] == rounds[2] == [len(ids) // 16 for ids in batches(runs[1])] and max(rounds[1]) > 1
    alone, two = (endings[n]["data"] for n in (1, 2))
    assert two["step"] == alone["step"] == 3
    assert sum(task["position"] for task in alone["tasks"].values()) == 16 * sum(rounds[1])
    for name, task in alone["tasks"].items():
        assert task["reward"] is not None and task["logit"] != 0
        assert two["tasks"][name] == pytest.approx(task, rel=1e-4, abs=1e-7), name


def test_the_rollouts_kept_are_those_of_one_process():
    """The same groups with the same pictures, wherever their rows were: process 0 wrote them all."""
    folder, _ = trained()
    for step in (1, 2, 3):
        one, several = ((folder / str(n) / "rollouts" / f"step_{step:06d}.jsonl").read_text() for n in (1, 2))
        lines = [[json.loads(line) for line in text.splitlines()] for text in (one, several)]
        advantages = [[a.pop("advantage") for line in each for a in line["answers"]] for each in lines]
        assert lines[0] == lines[1] and len({line["task"] for line in lines[0]}) > 1
        assert np.allclose(*advantages, atol=1e-5)
        for line in lines[0]:
            names = [folder / "2" / "rollouts" / "pictures" / name for name in line["pictures"]]
            assert names and all(name.is_file() for name in names)


def test_metrics_and_judgements_are_those_of_one_process():
    """Reduced over all rows, not over process 0's; every prediction is in the file."""
    folder, _ = trained()
    want, got = (drills.ending(folder / str(n))["metrics"] for n in (1, 2))
    assert [(line["kind"], line["step"]) for line in got] == [(line["kind"], line["step"]) for line in want]
    assert len(got) == 5
    for line, reference in zip(got, want, strict=True):
        if line["kind"] == "train":
            assert list(line["tasks"]) == list(reference["tasks"]) and set(line["tasks"]) == {"technical", "safety"}
            for name in ("reward", "accuracy", "format", "zero_variance", "completion_tokens"):
                assert line[name] == reference[name], name
            for name in ("loss", "grad_norm", "kl", "entropy"):
                assert line[name] == pytest.approx(reference[name], rel=1e-4, abs=1e-6), name
            assert line["grad_norm"] > 1e-3
    for name in ("val_000000", "val_000003"):
        lines = [(folder / str(n) / "eval" / f"{name}.predictions.jsonl").read_text() for n in (1, 2)]
        ids = [[json.loads(line)["example_id"] for line in text.splitlines()] for text in lines]
        assert ids[0] == ids[1] and len(ids[0]) == 4
    hosts = [json.loads(line).get("hosts") for line in (folder / "2" / "metrics.jsonl").read_text().splitlines()]
    for name in ("memory_mb", "data_seconds", "own_seconds"):
        assert len(hosts[1][name]) == 2 and all(value > 0 for value in hosts[1][name]), name
    assert min(hosts[1]["memory_mb"]) > 100


@pytest.mark.parametrize(("saved_by", "processes", "devices"), [(1, 1, 4), (1, 1, 2), (1, 1, 1), (2, 1, 8), (1, 2, 1)])
def test_any_mesh_and_any_number_of_hosts_takes_over(saved_by, processes, devices):
    """After the second step of 8 devices: the next step reads the same examples and has the same loss."""
    folder, runs = trained()
    workdir = folder / f"over-{saved_by}-{processes}-{devices}"
    shutil.copytree(folder / str(saved_by), workdir)
    shutil.rmtree(workdir / "checkpoints" / "3")
    got = facts(start_training(workdir, processes, devices, **ADAPTIVE, **LARGE))
    assert got[0]["devices"] == processes * devices
    assert batches(got) == [batches(runs[1])[2]]
    line, reference = ([m for m in drills.ending(w)["metrics"] if m["kind"] == "train"][-1] for w in (workdir, folder / "1"))
    assert line["step"] == reference["step"] == 3 and abs(reference["loss"]) > 1e-5
    assert line["loss"] == pytest.approx(reference["loss"], rel=1e-5, abs=1e-9)
    assert_near(parameters(folder, f"{workdir.name}-0"), parameters(folder, "1-0"), 1e-5)


STEPS = 7  # two stops, and steps after each


def arguments(workdir: Path, *flags: str) -> list[str]:
    small = (f"steps={STEPS}", f"eval.every_steps={STEPS}", "optim.schedule=constant", *flags)
    run = ["train", f"--config={commands().config}", f"--config.data.path={data()}", f"--workdir={workdir}"]
    return run + [f"--config.{flag}" for flag in small]


def start_command(workdir: Path, *flags: str, **more) -> list[Started]:
    return together("command", 2, argv=arguments(workdir, *flags), devices=1, **more)


def until_step(workdir: Path, step: int, process: Started) -> None:
    assert commands().until(lambda: host_drills.last_step(workdir) >= step, process), process.err.read_text()[-2000:]


def wait_all(started: list[Started]) -> list[Ended]:
    return [commands().wait(process) for process in started]


@cache
def undisturbed() -> Path:
    workdir = commands().folder / "undisturbed"
    assert [one.status for one in wait_all(start_command(workdir))] == [0, 0]
    return workdir


def test_a_sigterm_to_one_of_two_saves_the_same_step_on_both_and_the_run_goes_on():
    workdir = commands().folder / "preempted"
    run = start_command(workdir, "checkpoint.every_steps=100", slow=0.3)
    log = workdir / "metrics.jsonl"
    assert commands().until(lambda: log.exists() and log.read_text().count('"train"') >= 2, run[0])
    began = time.monotonic()
    os.kill(run[1].pid, signal.SIGTERM)
    ended = wait_all(run)
    assert time.monotonic() - began < 10
    assert [one.status for one in ended] == [EXIT_RESTART] * 2, ended[1].err[-2000:]
    step = host_drills.last_step(workdir)
    assert 2 <= step < STEPS
    assert ended[0].out.splitlines()[-1] == f"asked to stop: step {step} is saved, the same command continues from it"
    assert "asked to stop" not in ended[1].out
    run = start_command(workdir, "checkpoint.every_steps=100", slow=0.3)
    assert commands().until(lambda: f"resumed {workdir}" in run[0].out.read_text(), run[0])
    assert commands().until(lambda: f"\nstep {step + 1}/" in run[0].out.read_text(), run[0])
    os.kill(run[1].pid, signal.SIGINT)
    ended = wait_all(run)
    assert [one.status for one in ended] == [EXIT_CTRL_C] * 2, ended[1].err[-2000:]
    before, step = step, host_drills.last_step(workdir)
    assert before < step and f"asked to stop: step {step} is saved" in ended[0].out
    again = wait_all(start_command(workdir, "checkpoint.every_steps=1"))
    assert [one.status for one in again] == [0, 0], again[0].err[-2000:]
    assert f"resumed {workdir} after step {step}" in again[0].out
    got, want = drills.ending(workdir), drills.ending(undisturbed())
    for one in (got, want):  # the cadence of checkpoints was changed on purpose
        del one["meta"]["config"]["checkpoint"]
    assert got == want


def test_when_a_peer_is_killed_the_other_stops_within_the_heartbeat_with_its_stacks_on_disk():
    workdir = commands().folder / "bereaved"
    run = start_command(workdir, "hosts.heartbeat_seconds=5")
    until_step(workdir, 2, run[0])
    began = time.monotonic()
    os.kill(run[1].pid, signal.SIGKILL)
    ended = wait_all(run)
    assert time.monotonic() - began < 5 + 10
    assert ended[1].status == -signal.SIGKILL and ended[0].status not in (0, 2, EXIT_RESTART)
    left = (workdir / "hosts" / "0.txt").read_text()
    assert "reached: step" in left.splitlines()[0]
    assert "step_fn" in left  # by what the collective raised, or by the signal that the runtime ended it with


def test_a_step_without_progress_is_ended_by_the_watch():
    workdir = commands().folder / "stuck"
    run = start_command(workdir, "hosts.stuck_seconds=30", "hosts.heartbeat_seconds=60", stuck=True)
    ended = wait_all(run)
    assert 1 in [one.status for one in ended]
    errors = "\n".join(one.err for one in ended)
    assert f"error: no progress for 30 s after: step 3 rollout; the stacks are in {workdir / 'hosts'}" in errors
    stacks = [(workdir / "hosts" / f"{i}.txt").read_text() for i in (0, 1)]
    assert any("most recent call first" in text and "step_fn" in text for text in stacks)


def test_a_slow_host_is_named_within_five_steps():
    workdir = commands().folder / "slow"
    shared = {"processes": 2, "port": free_port(), "devices": 1, "argv": arguments(workdir, "steps=5")}
    ended = wait_all([commands().start_call("host_drills.command", process=i, slow=float(i), **shared) for i in (0, 1)])
    assert [one.status for one in ended] == [0, 0], ended[0].err[-2000:]
    lines = ended[0].out.splitlines()
    said = [i for i, line in enumerate(lines) if line.startswith("warning: host 1 keeps the others waiting: 1.")]
    assert len(said) == 1
    steps = [line for line in lines[: said[0]] if line.startswith("step ")]
    assert len(steps) <= 5


def test_processes_exchange_facts_and_rows():
    first, second = facts(together("exchange", 2))
    assert first["gathered"] == second["gathered"] == [{"é": [0]}, {"é": [1, 1]}]
    assert first["rows"] == second["rows"] == [[False], [False], [False], [True]]
    assert (first["part"], second["part"]) == ([0, 4], [4, 8])


def test_hosts_that_differ_are_named():
    same = {"jax": "1", "code": "a", "optim.lr": "1e-06"}
    other = same | {"jax": "2", "extra": "x"}
    said = facts(together("differ", 3, facts=[same, same, other]))
    name = socket.gethostname()
    want = (
        f"HostsDiffer: the hosts differ: jax 2 on process 2 ({name}), 1 on the others; extra x on process 2 ({name}), (none) on "
        "the others: give all hosts the same code, packages, data and flags"
    )
    assert said == [want] * 3
    assert facts(together("differ", 2, facts=[same, same])) == [""] * 2


def test_a_host_with_another_config_stops_all_before_the_first_step():
    workdir, port = commands().folder / "unequal", free_port()
    shared = {"processes": 2, "port": port, "devices": 1}
    run = [
        commands().start_call("host_drills.command", process=i, argv=arguments(workdir, f"optim.lr={lr}"), **shared)
        for i, lr in enumerate((1e-3, 2e-3))
    ]
    for ended in wait_all(run):
        assert ended.status == 2
        assert ended.err.splitlines()[-1].startswith("error: the hosts differ: optim.lr 0.002 on process 1 (")
    assert not (workdir / "config.json").exists() and not (workdir / "checkpoints").exists()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES without JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID: set all three"),
        ({"JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_PROCESS_ID without JAX_NUM_PROCESSES: set all three"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID = 2 of JAX_NUM_PROCESSES = 2: number the processes"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "JAX_PROCESS_ID = 0 of JAX_NUM_PROCESSES = two: number the"),
    ],
)
def test_variables_that_do_not_fit_together(variables, said):
    if "JAX_PROCESS_ID" in variables and "JAX_NUM_PROCESSES" in variables:
        variables = variables | {"JAX_COORDINATOR_ADDRESS": "a:1"}
    with pytest.raises(ConfigError) as error:
        _from_environment(variables)
    assert said in str(error.value)


def test_the_environment_names_the_processes():
    assert _from_environment({}) is None
    assert _from_environment({"JAX_COORDINATOR_ADDRESS": "a:1"}) is None  # jax reads it itself
    given = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "3", "JAX_PROCESS_ID": "2"}
    assert _from_environment(given) == ("a:1", 3, 2)
