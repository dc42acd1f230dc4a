"""Checkpoints that say when they are damaged. The only file that imports Orbax.

What a step is on a disk or in a bucket: step_folders.py. Each holds the state's arrays and one record: step, data position,
the caller's meta, for every leaf its dtype, shape and digest, and for every file its checksum. Orbax has no checksum on array
data (a flipped bit is restored silently) and casts a leaf whose dtype differs without a word; the record is what lets
`restore_latest` notice both. The checksums prove the files, bytes that nothing reads included; the digests prove what came out
of them, on whatever mesh.

A save blocks for what it takes to ask the devices: digests, arrays and checksums are fetched, written and made in the
background. What goes wrong there is told by the next call. A save that fails costs the run nothing but that save, and a step
is deleted only after a newer one has been written and read back, so the last good one stays.

Of Orbax the free functions of the v1 API are used (`save_async`, `load`), not its `Checkpointer` and not the older
`CheckpointManager`: all of them save and restore equally well on jax 0.10 and 0.12, but the two managers cache the list of
steps, have no way to set a damaged one aside, and report a failed asynchronous save without its step. What they add, the
steps in a folder and the newest to keep, is `saved_steps` and `_prune` here.

The folder is in a bucket or on a file system that all processes share. Every function is called by all processes.
"""

import json
import logging as std_logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from absl import logging
from orbax.checkpoint import multihost as orbax_processes
from orbax.checkpoint import v1 as ocp

from mtjudge_jax.checkpoint.digest import digests
from mtjudge_jax.checkpoint.folders import (
    FORMAT,
    CheckpointError,
    amend_record,
    check_workdir,
    clear_failed,
    clear_unfinished,
    complete,
    damage_in,
    delete_steps,
    files_of,
    part_name,
    read_record,
    room_problem,
    set_aside,
    step_names,
    steps_in,
    writing_path,
)
from mtjudge_jax.checkpoint.snapshot import Digest, held
from mtjudge_jax.checkpoint.structure import check_structure, describe, some, with_saved_dtypes
from mtjudge_jax.config import CheckpointConfig
from mtjudge_jax.hosts.exchange import attempt, first_text, gather, on_any_process, error_text, post, together, posted_by_others
from mtjudge_jax.paths import AnyPath, absolute, as_path, checksums, in_bucket, write_whole
from mtjudge_jax.policy.trainable import put

SLACK_BYTES = 1 << 20  # beside the arrays: record, array metadata, manifests
BARRIER_MS = 30 * 60 * 1000  # for processes to wait for each other's writing
POLL_SECONDS = 1  # between two looks whether another process has failed


class Restored(NamedTuple):
    step: int
    state: Any
    data_state: dict
    meta: dict
    damaged: tuple[str, ...]  # newer steps that could not be used, "step 12: params/w_dd: digest ..."; they were set aside


class Saved(NamedTuple):
    """What a step on disk says of itself, before any of its arrays is read."""

    path: AnyPath
    leaves: dict[str, dict]  # by path, "params/text/norm_d": dtype, shape and digest
    meta: dict


class Pending(NamedTuple):
    """A step that is being written in the background."""

    step: int
    job: Future


@dataclass
class Checkpoints:
    """An open folder."""

    folder: AnyPath
    keep: int
    max_failed: int
    pending: Pending | None = None
    copies: Any = None  # of the save before, see held.py
    saves: int = 0  # begun since it was opened, on every process the same
    failed: int = 0  # in a row
    problem: str = ""  # of the last that failed


def open_checkpoints(folder: Any, cfg: CheckpointConfig) -> Checkpoints:
    """Creates the folder if missing and clears what a killed save left behind."""
    folder = absolute(as_path(folder))
    check_workdir(folder)
    logging.get_absl_logger().addFilter(_told_by_us)
    if jax.process_index() == 0:
        clear_unfinished(folder)
    return Checkpoints(folder, cfg.keep, cfg.max_failed_saves)


def _told_by_us(record: std_logging.LogRecord) -> bool:
    """False for the traceback that Orbax writes for each of a failed save's threads."""
    return "_SignalingThread.run() raised an exception" not in str(record.msg)


def saved_steps(checkpoints: Checkpoints) -> list[int]:
    """Complete steps, oldest first."""
    return steps_in(checkpoints.folder)


def save(checkpoints: Checkpoints, step: int, *, state: Any, data_state: dict, meta: dict) -> list[str]:
    """Starts writing `step` in the background; the arrays may be donated as soon as this returns.

    `data_state` and `meta` are JSON. Waits for the save before. Returns what must be said loudly: saves that failed, this one
    where there is no room for it or no right to write it. The run goes on to its next save; raises CheckpointError when
    `max_failed_saves` in a row have failed. Where `step` is complete already, its record gets this meta.
    """
    said = wait(checkpoints)
    steps, problem = attempt(lambda: saved_steps(checkpoints))
    if on_any_process(step in (steps or ())):
        with together():
            if jax.process_index() == 0:
                amend_record(checkpoints.folder / str(step), step, meta)
        return said
    need = sum(x.nbytes for x in jax.tree.leaves(state)) + SLACK_BYTES
    if problem := first_text(problem or _obstacle(checkpoints, step, need)):
        return [*said, _failed(checkpoints, step, problem)]
    record = {"format": FORMAT, "step": step, "leaves": describe(state), "data_state": data_state, "meta": meta}
    json.dumps(record)  # what is not JSON is a mistake of the caller and said at once
    state, digest, checkpoints.copies = held(state, checkpoints.copies)
    path, problem = writing_path(checkpoints.folder, step), ""
    try:
        response = ocp.save_async(path, state)
    except Exception as error:
        problem = error_text(error)
    if problem := first_text(problem):
        return [*said, _failed(checkpoints, step, problem)]
    checkpoints.saves += 1
    pool = ThreadPoolExecutor(1, "checkpoint")
    job = pool.submit(_finish, path, record, response, digest, f"mtjudge {checkpoints.saves}")
    pool.shutdown(wait=False)
    checkpoints.pending = Pending(step, job)
    return said


def _obstacle(checkpoints: Checkpoints, step: int, need: int) -> str:
    """Why a step cannot be written, "" where nothing is known to be in its way any more."""

    def clear() -> str:
        if jax.process_index() == 0:
            clear_failed(checkpoints.folder, step)
        return room_problem(checkpoints.folder, need)

    found, problem = attempt(clear)
    return problem or found


def _finish(path: AnyPath, record: dict, response: ocp.AsyncResponse, digest: Digest, name: str) -> None:
    """In the background of every process: waits for the arrays, checks what was written, and makes the step complete.

    Whatever happens a process comes to every barrier, so that none waits for one that failed.
    """
    process, processes = jax.process_index(), jax.process_count()
    barrier = orbax_processes.get_barrier_sync_fn()
    part: dict = {}

    def written() -> None:
        try:
            _await_arrays(response, name)
        except Exception as error:
            post(f"{name} failed", error_text(error))
            raise
        part["digests"] = digest()

    def checked() -> None:
        part["files"] = checksums(path, files_of(path, process))
        write_whole(path / part_name(process), json.dumps(part).encode())

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
        barrier(key=f"{name} {stage.__name__}", timeout_ms=BARRIER_MS)
    if error is not None:
        raise error


def _await_arrays(response: ocp.AsyncResponse, name: str) -> None:
    """Returns when this process's arrays are written. Raises what went wrong, OSError where that was on another process: Orbax
    would wait for that one until its own time is over (1,200 s), and is left to do so.
    """
    while True:
        began = time.monotonic()
        try:
            return response.result(timeout=POLL_SECONDS)
        except TimeoutError:
            if time.monotonic() - began < POLL_SECONDS:  # not this one's, but one that the writing met
                raise
        if posted := posted_by_others(f"{name} failed"):
            raise OSError(posted)


def wait(checkpoints: Checkpoints) -> list[str]:
    """Returns when nothing is being written and only the newest `keep` steps are left, with what must be said loudly.

    Raises CheckpointError as `save` does.
    """
    if checkpoints.pending is None:
        return []
    (step, job), checkpoints.pending = checkpoints.pending, None
    error = job.exception()
    if problem := first_text(error_text(error) if error else ""):
        if jax.process_index() == 0:
            attempt(lambda: clear_failed(checkpoints.folder, step))
        return [_failed(checkpoints, step, problem)]
    checkpoints.failed = 0
    return _prune(checkpoints)


def close(checkpoints: Checkpoints) -> None:
    """Waits for what is being written. Raises CheckpointError where the last save failed, since no other will come."""
    wait(checkpoints)
    if checkpoints.failed:
        raise CheckpointError(f"{checkpoints.problem}: mend the cause and start the same command again")


def _failed(checkpoints: Checkpoints, step: int, problem: str) -> str:
    """The text of a save that failed. Raises CheckpointError where too many in a row have."""
    checkpoints.failed += 1
    steps, _ = attempt(lambda: saved_steps(checkpoints))
    kept = f"kept and good: step {', '.join(map(str, steps))}" if steps else "nothing was saved before"
    checkpoints.problem = f"{checkpoints.folder}: the checkpoint of step {step} was not written ({problem}); {kept}"
    logging.error("%s", checkpoints.problem)
    remedy = f"free some space, mend the folder's rights, or lower checkpoint.keep ({checkpoints.keep})"
    if checkpoints.failed >= checkpoints.max_failed:
        raise CheckpointError(
            f"{checkpoints.problem}; {checkpoints.failed} saves in a row failed, as many as checkpoint.max_failed_saves allows: "
            f"{remedy}, and start the same command again"
        )
    return (
        f"{checkpoints.problem}: the run goes on to its next save and stops after {checkpoints.max_failed} failed ones in a row "
        f"(this was number {checkpoints.failed}): {remedy}"
    )


def restore_latest(
    checkpoints: Checkpoints,
    abstract_state: Any,
    *,
    check_meta: Callable[[dict], None] | None = None,
    any_dtype: bool = False,
) -> Restored | None:
    """The newest step that is whole, or None where nothing was ever saved.

    abstract_state: ShapeDtypeStructs with shardings, of any mesh; the values are bit-equal on all.
    check_meta: called with the step's meta before its arrays are read; raises to refuse another config or other data.
    any_dtype: leaves come in the dtype they were saved in, whatever the abstract state says; the caller casts them.

    A step that cannot be read or whose checksums or digests differ is logged, and set aside as `<step>.damaged-<n>` once an
    older one was restored (in a bucket: by a file in it). What one process cannot read, none uses: each tells the others before
    all go on together. Raises CheckpointError when all are damaged (then nothing is set aside) and when structure, shape or
    dtype differ.
    """
    wait(checkpoints)
    damaged: dict[int, str] = {}
    for step in reversed(_listed(checkpoints.folder)):
        path = checkpoints.folder / str(step)
        record, reason = attempt(lambda path=path, step=step: read_record(path, step))
        if not (reason := first_text(reason)):
            if check_meta is not None:
                check_meta(record["meta"])
            wanted = with_saved_dtypes(abstract_state, record["leaves"]) if any_dtype else abstract_state
            check_structure(path, record["leaves"], wanted)
            reason = first_text(_damage(path, record["files"]))
        if not reason:
            state, reason = _load(path, record["leaves"], wanted)
            if not (reason := first_text(reason)):
                _set_all_aside(checkpoints, damaged)
                texts = tuple(f"step {step}: {reason}" for step, reason in damaged.items())
                return Restored(step, state, record["data_state"], record["meta"], texts)
        damaged[step] = reason
        logging.warning("%s: damaged checkpoint, trying the one before: step %d: %s", checkpoints.folder, step, reason)
    # In a bucket a first save that was killed looks like a step that has lost its record: then nothing was ever saved.
    if damaged and (not in_bucket(checkpoints.folder) or on_any_process(bool(steps_in(checkpoints.folder)))):
        texts = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError(
            f"{checkpoints.folder}: all {len(damaged)} checkpoints are damaged ({texts}): "
            "put a copy of one back, or start again in an empty workdir"
        )
    return None


def _listed(folder: AnyPath) -> list[int]:
    """Steps that are there, by process 0's listing: hosts of a network's disk may see different ones for a while."""
    names, problem = attempt(lambda: step_names(folder))
    if problem := first_text(problem):
        raise CheckpointError(f"{folder}: cannot be listed ({problem}): mend its rights or the disk, and start again")
    return gather(names)[0]


def _damage(path: AnyPath, files: dict[str, str]) -> str:
    found, reason = attempt(lambda: damage_in(path, files, jax.process_index(), jax.process_count()))
    return reason or found


def read_saved(folder: AnyPath, step: int) -> Saved:
    """The record of one step; nothing on disk is changed. Raises CheckpointError for a step that is not there or damaged."""
    steps = steps_in(folder)
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "no step is complete there"
        raise CheckpointError(f"{folder}: no checkpoint of step {step}: {there}")
    path = absolute(folder) / str(step)
    record, reason = attempt(lambda: read_record(path, step))
    _refuse_damaged(folder, step, reason)
    return Saved(path, record["leaves"], record["meta"])


def restore_part(saved: Saved, part: str, sharding_of: Callable[[str, tuple[int, ...]], jax.sharding.Sharding]) -> Any:
    """One field of a saved state, such as `params`, alone: the others are not read and take no memory.

    sharding_of(path, shape): where a leaf is put, its path without the field's name. Dtypes are those saved; bits too, which
    the digests prove. Raises CheckpointError where that fails.
    """
    abstract: dict = {}
    for name, leaf in saved.leaves.items():
        if name.startswith(f"{part}/"):
            path, shape = name.removeprefix(f"{part}/"), tuple(leaf["shape"])
            struct = jax.ShapeDtypeStruct(shape, jax.numpy.dtype(leaf["dtype"]), sharding=sharding_of(path, shape))
            put(abstract, name, struct)
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        state, reason = _load(saved.path, saved.leaves, abstract)
    _refuse_damaged(saved.path.parent, int(saved.path.name), reason)
    return state[part]


def _refuse_damaged(folder: AnyPath, step: int, reason: str) -> None:
    if reason := first_text(reason):
        others = [str(other) for other in steps_in(folder) if other != step]
        remedy = f"take another, there are {', '.join(others)}" if others else "put a copy of it back"
        raise CheckpointError(f"{folder}: the checkpoint of step {step} is damaged ({reason}): {remedy}")


def _load(path: AnyPath, saved: dict[str, dict], abstract_state: Any) -> tuple[Any, str]:
    """(state, "") or (None, why not)."""
    state, reason = attempt(lambda: ocp.load(path, abstract_state))
    if reason := first_text(reason):
        return None, reason
    wrong = [
        f"{name}: digest {found:08x}, saved as {saved[name]['digest']:08x}"
        for name, found in digests(state).items()
        if found != saved[name]["digest"]
    ]
    return (None, some(wrong)) if wrong else (state, "")


def _set_all_aside(checkpoints: Checkpoints, damaged: dict[int, str]) -> None:
    with together():
        for step, reason in damaged.items() if jax.process_index() == 0 else ():
            set_aside(checkpoints.folder, step, reason)


def _prune(checkpoints: Checkpoints) -> list[str]:
    """Deletes all but the newest `keep` steps, after the newest has been written and read back. What failed, to be said."""
    if jax.process_index() > 0:
        return []
    _, problem = attempt(lambda: delete_steps(checkpoints.folder, saved_steps(checkpoints)[: -checkpoints.keep]))
    return [f"{checkpoints.folder}: steps that are not to be kept could not be deleted ({problem})"] if problem else []
