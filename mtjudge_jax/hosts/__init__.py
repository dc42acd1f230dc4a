"""The process group: how the processes of a run, one a host, find each other, and how they stop together.

Every process runs the same program (JAX's multi-controller runtime).
"""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterator

import jax
from jax._src.lib import utils  # the level of the runtime's log has no public name in JAX
from jax.experimental import multihost_utils

from mtjudge_jax.config import HostsConfig
from mtjudge_jax.errors import ConfigError, leave

EXIT_RESTART = 75  # everything is saved, run the same command again: EX_TEMPFAIL of sysexits.h; launch/ acts on it
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SHUTDOWN_SECONDS = 60
_POINTS = itertools.count()  # the runtime needs a number that grows over the whole program
_LAST_SECONDS = 3  # process 0 runs the service that the others depend on: it gives them time to print their errors


class Preempted(Exception):
    """A host got a SIGTERM or a Ctrl-C and everything is saved. Carries the line to print and the exit status."""

    def __init__(self, line: str, status: int = EXIT_RESTART):
        super().__init__(line)
        self.status = status


def start(cfg: HostsConfig) -> None:
    """Joins the other processes. A single process calls it too, because only then can a SIGTERM end in a saved checkpoint.

    JAX itself finds a Cloud TPU pod, Kubernetes, Slurm and MPI. Elsewhere the environment gives the group:
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID. Must be called before any device is
    used; a second call does nothing. Raises ConfigError for variables that contradict each other.
    """
    if jax.distributed.is_initialized():
        return
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "1" and "JAX_LOGGING_LEVEL" not in os.environ:  # jax's own default
        utils.absl_set_min_log_level(2)  # errors: on a SIGTERM the runtime warns of it in its own words, beside our line
    times = {"initialization_timeout": cfg.start_seconds, "heartbeat_timeout_seconds": cfg.heartbeat_seconds}
    times |= {"shutdown_timeout_seconds": _SHUTDOWN_SECONDS}
    if given := _from_environment(os.environ):
        address, processes, process = given
        if processes > 1:  # the runtime aborts when a host is missing: these lines show which hosts came
            here = f"process {process} of {processes} on {socket.gethostname()}"
            print(f"{here}: connecting to {address}, at most {cfg.start_seconds} s", flush=True)
        jax.distributed.initialize(address, processes, process, **times)
        return
    try:
        jax.distributed.initialize(**times)
    except ValueError as error:
        if "should be defined" not in str(error) and "must be defined" not in str(error):
            raise
        with socket.socket() as free:  # JAX found no cluster: a group of one process
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        jax.distributed.initialize(address, 1, 0, coordinator_bind_address=address, **times)


def _from_environment(env) -> tuple[str, int, int] | None:
    """(address, number of processes, number of this process), or None where JAX should look for a cluster."""
    given = [name for name in _VARIABLES if env.get(name)]
    if not {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} & set(given):
        return None
    if missing := [name for name in _VARIABLES if name not in given]:
        raise ConfigError(
            f"{', '.join(given)} without {', '.join(missing)}: set all three, or none on a cluster that JAX recognises"
        )
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


@contextlib.contextmanager
def joined(cfg: HostsConfig) -> Iterator[None]:
    """`start`, and an orderly shutdown at the end, so that no process takes the end of another for a crash. When the block
    raises Preempted, every process exits with its status.
    """
    start(cfg)
    try:
        yield
    except Preempted as preempted:
        if jax.process_index() == 0:
            print(preempted, flush=True)
        jax.distributed.shutdown()
        leave(preempted.status)
    except Exception:
        if jax.process_index() == 0 and jax.process_count() > 1:
            time.sleep(_LAST_SECONDS)
        raise
    jax.distributed.shutdown()


def stop_if_asked() -> None:
    """Raises Preempted if any process got a SIGTERM. Every process must call this at the same points of the program: soon after
    the signal, all raise at the same point. Does nothing where `start` was not called.
    """
    if jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(next(_POINTS)):
        raise Preempted("asked to stop: the same command continues")


def resident_bytes() -> int:
    """Resident memory of this process, or 0 if the system does not report it."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
