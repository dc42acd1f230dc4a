"""Saves a step in the background, reports what failed, and deletes the steps that are no longer kept.

Of Orbax this uses the free functions of the v1 API (`save_async`, `load`), not its `Checkpointer` and not the older
`CheckpointManager`. All of them save and restore equally well on jax 0.10 and 0.12, but the two managers cache the list of
steps, cannot set a damaged step aside, and report a failed asynchronous save without its step. What they add, the list of steps
and the number to keep, is `saved_steps` and `_prune` here.
"""

import json
import logging as std_logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from absl import logging
from orbax.checkpoint import multihost as orbax_processes
from orbax.checkpoint import v1 as ocp

from mtjudge_jax.checkpoint import folders
from mtjudge_jax.checkpoint.folders import CheckpointError
from mtjudge_jax.checkpoint.plain_name import plain
from mtjudge_jax.checkpoint.record import FORMAT, NOT_RESTORABLE, amend_record, complete, files_of, write_part
from mtjudge_jax.checkpoint.snapshot import Digest, snapshot
from mtjudge_jax.checkpoint.structure import describe_leaves
from mtjudge_jax.config import CheckpointConfig
from mtjudge_jax.hosts.exchange import attempt, error_text, first_text, on_any_process, post, posted_by_others, together
from mtjudge_jax.paths import AnyPath, absolute, as_path, checksums

RECORD_BYTES = 1 << 20  # room beside the arrays: record, array metadata, manifests
_BARRIER_MS = 30 * 60 * 1000  # how long processes wait for each other's writing
_POLL_SECONDS = 1  # between two looks whether another process has failed


class Pending(NamedTuple):
    """A step that is being written in the background."""

    step: int
    job: Future


@dataclass
class Checkpoints:
    """An open folder of checkpoints."""

    folder: AnyPath
    keep: int
    max_failed: int
    pending: Pending | None = None
    buffers: Any = None  # of the last snapshot, see snapshot.py
    saves: int = 0  # begun since the folder was opened; the same on every process
    failed: int = 0  # saves in a row
    problem: str = ""  # of the last save that failed


def open_checkpoints(folder: Any, cfg: CheckpointConfig) -> Checkpoints:
    """Creates the folder if missing and removes what a killed save left behind."""
    folder = absolute(as_path(folder))
    folders.check_workdir(folder)
    plain(folder / "0")  # raises before the first step for a name that no checkpoint can have
    logging.get_absl_logger().addFilter(_is_no_orbax_traceback)
    if jax.process_index() == 0:
        folders.clear_unfinished(folder)
    return Checkpoints(folder, cfg.keep, cfg.max_failed_saves)


def _is_no_orbax_traceback(record: std_logging.LogRecord) -> bool:
    """False for the traceback that Orbax logs for each thread of a failed save: `_failed` logs one line instead."""
    return "_SignalingThread.run() raised an exception" not in str(record.msg)


def saved_steps(checkpoints: Checkpoints) -> list[int]:
    """Complete steps, oldest first."""
    return folders.complete_steps(checkpoints.folder)


def save(checkpoints: Checkpoints, step: int, *, state: Any, data_state: dict, meta: dict) -> list[str]:
    """Starts to write `step` in the background; the caller may donate the arrays as soon as this returns.

    `data_state` and `meta` are JSON. Waits for the previous save. Returns warnings for the user: the saves that failed, including
    this one if it has no room or no permission. Raises CheckpointError after `max_failed_saves` failures in a row. If `step` is
    complete already, only the meta of its record is replaced.
    """
    warnings = wait(checkpoints)
    steps, problem = attempt(lambda: saved_steps(checkpoints))
    if on_any_process(step in (steps or ())):
        with together():
            if jax.process_index() == 0:
                amend_record(checkpoints.folder / str(step), step, meta)
        return warnings
    need = sum(x.nbytes for x in jax.tree.leaves(state)) + RECORD_BYTES
    if problem := first_text(problem or _obstacle(checkpoints, step, need)):
        return [*warnings, _failed(checkpoints, step, problem)]
    record = {"format": FORMAT, "step": step, "leaves": describe_leaves(state), "data_state": data_state, "meta": meta}
    json.dumps(record)  # raises at once, in the caller's thread, for a value that is not JSON
    arrays, digest, checkpoints.buffers = snapshot(state, checkpoints.buffers)
    path, problem = folders.writing_path(checkpoints.folder, step), ""
    try:
        response = ocp.save_async(plain(path), arrays)
    except Exception as error:
        problem = error_text(error)
    if problem := first_text(problem):
        return [*warnings, _failed(checkpoints, step, problem)]
    checkpoints.saves += 1
    pool = ThreadPoolExecutor(1, "checkpoint")
    job = pool.submit(_finish, path, record, response, digest, f"mtjudge {checkpoints.saves}")
    pool.shutdown(wait=False)
    checkpoints.pending = Pending(step, job)
    return warnings


def _obstacle(checkpoints: Checkpoints, step: int, need: int) -> str:
    """Removes what an earlier save of the step left, and returns why `step` cannot be written, or "" if nothing is known."""

    def clear() -> str:
        if jax.process_index() == 0:
            folders.clear_failed(checkpoints.folder, step)
        return folders.room_problem(checkpoints.folder, need)

    found, problem = attempt(clear)
    return problem or found


def _finish(path: AnyPath, record: dict, response: ocp.AsyncResponse, digest: Digest, name: str) -> None:
    """In the background of every process: waits for the arrays, checks what was written, and makes the step complete.

    A process comes to every barrier even after an error, so that no other process waits for it in vain.
    """
    process, processes = jax.process_index(), jax.process_count()
    barrier = orbax_processes.get_barrier_sync_fn()
    digests: dict[str, int] = {}

    def written() -> None:
        try:
            _await_arrays(response, name)
        except Exception as error:
            post(f"{name} failed", error_text(error))
            raise
        digests.update(digest())

    def checked() -> None:
        write_part(path, process, digests=digests, files=checksums(path, files_of(path, process)))

    def completed() -> None:
        if process == 0:
            complete(path, record, processes)

    error: Exception | None = None
    for stage in (written, checked, completed):
        try:
            if error is None:
                stage()
        except Exception as caught:
            error = caught
        barrier(key=f"{name} {stage.__name__}", timeout_ms=_BARRIER_MS)
    if error is not None:
        raise error


def _await_arrays(response: ocp.AsyncResponse, name: str) -> None:
    """Returns when this process's arrays are written. Raises its error, or OSError for the error of another process: Orbax alone
    would wait for that process until its own timeout of 1,200 s.
    """
    while True:
        began = time.monotonic()
        try:
            return response.result(timeout=_POLL_SECONDS)
        except TimeoutError:
            if time.monotonic() - began < _POLL_SECONDS:  # not the timeout of this call, but an error of the writing
                raise
        if posted := posted_by_others(f"{name} failed"):
            raise OSError(posted)


def wait(checkpoints: Checkpoints) -> list[str]:
    """Returns when nothing is being written and only the newest `keep` steps are left. Returns warnings and raises as `save`."""
    if checkpoints.pending is None:
        return []
    (step, job), checkpoints.pending = checkpoints.pending, None
    error = job.exception()
    if problem := first_text(error_text(error) if error else ""):
        if jax.process_index() == 0:
            attempt(lambda: folders.clear_failed(checkpoints.folder, step))
        return [_failed(checkpoints, step, problem)]
    checkpoints.failed = 0
    return _prune(checkpoints)


def close(checkpoints: Checkpoints) -> None:
    """Waits for what is being written. Raises CheckpointError if the last save failed, because no later save follows."""
    wait(checkpoints)
    if checkpoints.failed:
        raise CheckpointError(f"{checkpoints.problem}: fix the cause and start the same command again")


def _failed(checkpoints: Checkpoints, step: int, problem: str) -> str:
    """The warning for a save that failed. Raises CheckpointError after too many failures in a row."""
    checkpoints.failed += 1
    steps, _ = attempt(lambda: saved_steps(checkpoints))
    kept = f"good checkpoints kept: step {', '.join(map(str, steps))}" if steps else "there is no earlier checkpoint"
    checkpoints.problem = f"{checkpoints.folder}: the checkpoint of step {step} was not written ({problem}); {kept}"
    logging.error("%s", checkpoints.problem)
    remedy = f"free some space, fix the folder's permissions, or lower checkpoint.keep ({checkpoints.keep})"
    if NOT_RESTORABLE in problem:
        remedy = "try another disk, or other versions of orbax-checkpoint and tensorstore"
    if checkpoints.failed >= checkpoints.max_failed:
        raise CheckpointError(
            f"{checkpoints.problem}; {checkpoints.failed} saves in a row failed, the limit of checkpoint.max_failed_saves: "
            f"{remedy}, and start the same command again"
        )
    return (
        f"{checkpoints.problem}: training continues and stops after {checkpoints.max_failed} failed saves in a row "
        f"(this was number {checkpoints.failed}): {remedy}"
    )


def _prune(checkpoints: Checkpoints) -> list[str]:
    """Deletes all but the newest `keep` steps, after the newest was written and read back. Returns a warning if that fails."""
    if jax.process_index() > 0:
        return []
    _, problem = attempt(lambda: folders.delete_steps(checkpoints.folder, saved_steps(checkpoints)[: -checkpoints.keep]))
    return [f"{checkpoints.folder}: could not delete old steps ({problem})"] if problem else []
