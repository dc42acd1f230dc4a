"""Restores the newest whole step, or one part of a given step, and proves that the bits are those that were saved."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from absl import logging
from flax.traverse_util import unflatten_dict
from orbax.checkpoint import v1 as ocp

from mtjudge_jax.checkpoint.digest import digests
from mtjudge_jax.checkpoint.folders import CheckpointError, complete_steps, listed_steps, set_aside
from mtjudge_jax.checkpoint.plain_name import plain
from mtjudge_jax.checkpoint.record import damage_in, read_record, refuse_other_format
from mtjudge_jax.checkpoint.saving import Checkpoints, wait
from mtjudge_jax.checkpoint.structure import check_structure, first_few, with_saved_dtypes
from mtjudge_jax.hosts.exchange import attempt, first_text, gather, on_any_process, together
from mtjudge_jax.paths import AnyPath, absolute, in_bucket


class Restored(NamedTuple):
    step: int
    state: Any
    data_state: dict
    meta: dict
    damaged: tuple[str, ...]  # newer steps that could not be used and were set aside, "step 12: params/w_dd: digest ..."


class Saved(NamedTuple):
    """The record of a step, read before any of its arrays."""

    path: AnyPath
    leaves: dict[str, dict]  # by path, "params/text/norm_d": dtype, shape and digest
    meta: dict


def restore_latest(
    checkpoints: Checkpoints, abstract_state: Any, *, check_meta: Callable[[dict], None] | None = None, any_dtype: bool = False
) -> Restored | None:
    """The newest undamaged step, or None if nothing was ever saved.

    abstract_state: ShapeDtypeStructs with shardings, of any mesh; the values are bit-equal on all meshes.
    check_meta: called with the step's meta before its arrays are read; raises to refuse another config or other data.
    any_dtype: leaves come in the dtype they were saved in, whatever abstract_state says; the caller casts them.

    A step that cannot be read, or whose checksums or digests differ, is logged. It is set aside as `<step>.damaged-<n>` (in a
    bucket: marked by a file) once an older step is restored. A step that one process cannot read is used by none. Raises
    CheckpointError if all steps are damaged (then none is set aside) and if format, structure, shape or dtype differ.
    """
    wait(checkpoints)
    damaged: dict[int, str] = {}
    for step in reversed(_listed(checkpoints.folder)):
        path = checkpoints.folder / str(step)
        record, reason = attempt(lambda path=path, step=step: read_record(path, step))
        if not (reason := first_text(reason)):
            refuse_other_format(path, record)
            if check_meta is not None:
                check_meta(record["meta"])
            wanted = with_saved_dtypes(abstract_state, record["leaves"]) if any_dtype else abstract_state
            check_structure(path, record["leaves"], wanted)
            found, reason = attempt(partial(damage_in, path, record["files"], jax.process_index(), jax.process_count()))
            reason = first_text(reason or found)
        if not reason:
            state, reason = _load(path, record["leaves"], wanted)
            if not (reason := first_text(reason)):
                with together():
                    for bad, why in damaged.items() if jax.process_index() == 0 else ():
                        set_aside(checkpoints.folder, bad, why)
                texts = tuple(f"step {step}: {reason}" for step, reason in damaged.items())
                return Restored(step, state, record["data_state"], record["meta"], texts)
        damaged[step] = reason
        logging.warning("%s: the checkpoint of step %d is damaged, trying the one before: %s", checkpoints.folder, step, reason)
    # In a bucket a killed first save looks like a step that has lost its record: then nothing was ever saved.
    if damaged and (not in_bucket(checkpoints.folder) or on_any_process(bool(complete_steps(checkpoints.folder)))):
        texts = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError(
            f"{checkpoints.folder}: all {len(damaged)} checkpoints are damaged ({texts}): "
            "put a copy of one back, or start again in an empty workdir"
        )
    return None


def _listed(folder: AnyPath) -> list[int]:
    """The steps that process 0 lists: on a network file system the hosts may see different ones for a while."""
    steps, problem = attempt(lambda: listed_steps(folder))
    if problem := first_text(problem):
        raise CheckpointError(f"{folder}: cannot be listed ({problem}): fix its permissions or the disk, and start again")
    return gather(steps)[0]


def read_saved(folder: AnyPath, step: int) -> Saved:
    """The record of one step; changes nothing on disk. Raises CheckpointError for a step that is missing, damaged or of
    another format.
    """
    steps = complete_steps(folder)
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "no step there is complete"
        raise CheckpointError(f"{folder}: no checkpoint of step {step}: {there}")
    path = absolute(folder) / str(step)
    record, reason = attempt(lambda: read_record(path, step))
    _refuse_damaged(folder, step, reason)
    refuse_other_format(path, record)
    return Saved(path, record["leaves"], record["meta"])


def restore_part(saved: Saved, part: str, sharding_of: Callable[[str, tuple[int, ...]], jax.sharding.Sharding]) -> Any:
    """One field of a saved state, such as `params`. The other fields are not read and take no memory.

    sharding_of(path, shape): where to put a leaf; the path is without the field's name. Dtypes are those saved, and digests
    prove the bits. Raises CheckpointError for a damaged step.
    """
    abstract = {}
    for name, leaf in saved.leaves.items():
        if name.startswith(f"{part}/"):
            path, shape = name.removeprefix(f"{part}/"), tuple(leaf["shape"])
            abstract[name] = jax.ShapeDtypeStruct(shape, jax.numpy.dtype(leaf["dtype"]), sharding=sharding_of(path, shape))
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        state, reason = _load(saved.path, saved.leaves, unflatten_dict(abstract, sep="/"))
    _refuse_damaged(saved.path.parent, int(saved.path.name), reason)
    return state[part]


def _refuse_damaged(folder: AnyPath, step: int, reason: str) -> None:
    if reason := first_text(reason):
        others = [str(other) for other in complete_steps(folder) if other != step]
        remedy = f"choose another step, there are {', '.join(others)}" if others else "put a copy of it back"
        raise CheckpointError(f"{folder}: the checkpoint of step {step} is damaged ({reason}): {remedy}")


def _load(path: AnyPath, saved: dict[str, dict], abstract_state: Any) -> tuple[Any, str]:
    """(state, ""), or (None, why it cannot be used)."""
    state, reason = attempt(lambda: ocp.load(plain(path), abstract_state))
    if reason := first_text(reason):
        return None, reason
    wrong = [
        f"{name}: digest {found:08x}, saved as {saved[name]['digest']:08x}"
        for name, found in digests(state).items()
        if found != saved[name]["digest"]
    ]
    return (None, first_few(wrong)) if wrong else (state, "")
