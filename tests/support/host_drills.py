"""What the tests of several processes do in each of them (see commands.py)."""

import os
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import drills
import numpy as np

from mtjudge_jax.config import Config
from mtjudge_jax.data.bad_rows import BadRowCounter

DEVICES = 8  # in all processes together


def config(data: str, **changes) -> Config:
    """Two steps of two tasks, 16 prompts of two answers a rollout batch, two updates of it."""
    sizes = {"rollout__prompts": 16, "update__prompts": 8, "update__micro_prompts": 8, "data__tasks": ("technical", "safety")}
    sizes |= {"optim__schedule": "constant", "loss__kl_coef": 0.1, "eval__every_steps": 2, "data__balance_labels": True}
    sizes |= {"optim__eps": 1e-6}  # Adam divides by |gradient| + eps: below it, a gradient's rounding would be all of an update
    return drills.config(**(sizes | {"data__path": data, "steps": 2} | changes))


def host(*, port: int, process: int, processes: int, devices: int) -> None:
    """Makes this process one of several, as a launcher does."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_default_matmul_precision", "highest")
    os.environ |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
    os.environ["JAX_PROCESS_ID"] = str(process)
    compile_once()


def compile_once() -> None:
    """Process 0 compiles for all and writes the cache, as jax can do on GPUs: on CPUs each process has keys of its own, which
    nobody writes.
    """
    import jax
    from jax._src import cache_key

    if hasattr(cache_key, "_hash_accelerator_config") and hasattr(cache_key, "_hash_devices"):
        cache_key._hash_accelerator_config = cache_key._hash_devices
        jax.config.update("jax_share_binary_between_hosts", True)


def train(*, workdir: str, data: str, changes: dict, **place) -> dict:
    """Trains as one of the processes; what it ended with, and the ids of its training rows, step by step."""
    host(**place)
    import jax
    from flax.traverse_util import flatten_dict

    from mtjudge_jax import hosts
    from mtjudge_jax.train.fit import fit

    ids, add = [], BadRowCounter.add

    def noted(counter, rows):
        ids.append(rows["example_id"].tolist())
        add(counter, rows)

    cfg = config(data, **changes)
    with hosts.joined(cfg.hosts), mock.patch.object(BadRowCounter, "add", noted):
        run, progress = fit(cfg, workdir)
        leaves = flatten_dict(progress.state.params, sep="/").items()
        params = {name: np.asarray(leaf.addressable_data(0)) for name, leaf in leaves}
        facts = {"devices": jax.device_count(), "mesh": dict(run.model.programs.mesh.shape), "ids": ids}
        facts["traces"] = dict(run.model.programs.traces)
    np.savez(f"{workdir}-{place['process']}.npz", **params)
    return facts


def command(*, argv: list[str], slow: float = 0, stuck: bool = False, **place) -> None:
    """A command as one of the processes. slow: seconds that its rewards take; stuck: its third rewards never come."""
    host(**place)
    from mtjudge_jax import cli
    from mtjudge_jax.train import grpo

    give, calls = grpo.score, iter(range(10**6))

    def slowly(*arguments, **named):
        if next(calls) == 2 and stuck:
            threading.Event().wait()
        time.sleep(slow)
        return give(*arguments, **named)

    sys.argv = ["mtjudge", *argv]
    with mock.patch.object(grpo, "score", slowly):
        cli.main()


def differ(*, facts: list[dict], port: int, process: int, processes: int) -> str:
    """What a process says of facts that differ."""
    host(port=port, process=process, processes=processes, devices=1)
    from mtjudge_jax import hosts
    from mtjudge_jax.config import HostsConfig
    from mtjudge_jax.hosts.differences import refuse_differences

    with hosts.joined(HostsConfig()):
        return drills.message(refuse_differences, facts[process])


def exchange(*, port: int, process: int, processes: int) -> dict:
    host(port=port, process=process, processes=processes, devices=1)
    from mtjudge_jax import hosts
    from mtjudge_jax.config import HostsConfig
    from mtjudge_jax.hosts import exchange

    with hosts.joined(HostsConfig()):
        rows = np.arange(2) + 10 * process
        return {
            "gathered": exchange.gather({"é": [process] * (process + 1)}),
            "rows": exchange.gather_rows({"a": rows, "b": rows[:, None] > 10})["b"].tolist(),
            "part": [exchange.my_rows(8).start, exchange.my_rows(8).stop],
        }


def last_step(workdir: str | Path) -> int:
    """The newest step in the checkpoints, or 0."""
    folder = Path(workdir) / "checkpoints"
    return max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0) if folder.is_dir() else 0
