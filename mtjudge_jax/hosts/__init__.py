"""Several processes, one a host: how they find each other, and when they stop together.

Every process runs the same program (JAX's multi-controller runtime).
"""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from mtjudge_jax.config import HostsConfig
from mtjudge_jax.errors import ConfigError, leave

EXIT_RESTART = 75  # saved, start the same command again: EX_TEMPFAIL of sysexits.h; launch/ acts on it
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SHUTDOWN_SECONDS = 60
_POINTS = itertools.count()  # the runtime wants a number that grows over the whole program
LAST_SECONDS = 3  # process 0 holds the service that the others end with: they say first what is wrong


class Preempted(Exception):
    """A host was told to stop (SIGTERM); everything is saved. Carries the line to print."""


def start(cfg: HostsConfig) -> None:
    """Joins the other processes; also where there is none, since only then does a SIGTERM become a saved checkpoint.

    A Cloud TPU pod, Kubernetes, Slurm and MPI are found by jax; else the environment says it: JAX_COORDINATOR_ADDRESS
    (host:port of process 0), JAX_NUM_PROCESSES, JAX_PROCESS_ID. Called before any device is used; a second call does nothing.
    Raises ConfigError for variables that do not fit together.
    """
    if jax.distributed.is_initialized():
        return
    times = {"initialization_timeout": cfg.start_seconds, "heartbeat_timeout_seconds": cfg.heartbeat_seconds}
    times |= {"shutdown_timeout_seconds": SHUTDOWN_SECONDS}
    if given := _from_environment(os.environ):
        address, processes, process = given
        if processes > 1:  # where a host is missing the runtime aborts: the logs of the others then say who came
            here = f"process {process} of {processes} on {socket.gethostname()}"
            print(f"{here}: connecting to {address}, at most {cfg.start_seconds} s", flush=True)
        jax.distributed.initialize(address, processes, process, **times)
        return
    try:
        jax.distributed.initialize(**times)
    except ValueError as error:
        if "should be defined" not in str(error) and "must be defined" not in str(error):
            raise
        address = f"127.0.0.1:{_free_port()}"  # no cluster was found: one process
        jax.distributed.initialize(address, 1, 0, coordinator_bind_address=address, **times)


def _from_environment(env) -> tuple[str, int, int] | None:
    """(address, number of processes, number of this one), or None where jax is to look for a cluster."""
    given = [name for name in VARIABLES if env.get(name)]
    if not {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} & set(given):
        return None
    if missing := [name for name in VARIABLES if name not in given]:
        raise ConfigError(f"{', '.join(given)} without {', '.join(missing)}: set all three, or none on a pod that jax knows")
    try:
        processes, process = int(env["JAX_NUM_PROCESSES"]), int(env["JAX_PROCESS_ID"])
    except ValueError:
        processes, process = 0, 0
    if not 0 <= process < processes:
        raise ConfigError(
            f"JAX_PROCESS_ID = {env['JAX_PROCESS_ID']} of JAX_NUM_PROCESSES = {env['JAX_NUM_PROCESSES']}: "
            "number the processes from 0"
        )
    return env["JAX_COORDINATOR_ADDRESS"], processes, process


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def joined(cfg: HostsConfig) -> Iterator[None]:
    """`start`, and at the end an orderly leave: none takes the end of another for a crash. After a SIGTERM, when all is saved,
    every process ends with EXIT_RESTART.
    """
    start(cfg)
    try:
        yield
    except Preempted as preempted:
        if jax.process_index() == 0:
            print(preempted, flush=True)
        jax.distributed.shutdown()
        leave(EXIT_RESTART)
    except Exception:
        if jax.process_index() == 0 and jax.process_count() > 1:
            time.sleep(LAST_SECONDS)
        raise
    jax.distributed.shutdown()


def stop_if_asked(what: str) -> None:
    """A point of the program that all processes come to in the same order: soon after any of them got a SIGTERM, all raise
    Preempted at the same one. Does nothing where `start` was not called. what: the line to print.
    """
    if jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(next(_POINTS)):
        raise Preempted(what)


def memory_bytes() -> int:
    """Resident memory of this process, 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
