"""Checkpoints that say when they are damaged. The only file that imports Orbax.

On disk: `<folder>/<step>/`, written beside as `<step>.orbax-checkpoint-tmp` and renamed when complete, so that a kill at any
moment leaves the steps before as they were. Each holds the state's arrays and one record: step, data position, the caller's
meta, and for every leaf its dtype, shape and digest. Orbax has no checksum on array data (a flipped bit is restored silently)
and casts a leaf whose dtype differs without a word; the record is what lets `restore_latest` notice both, and the record
carries its own sha256.

Of Orbax the free functions of the v1 API are used (`save_async`, `load`, `metadata`), not its `Checkpointer` and not the older
`CheckpointManager`: all of them save and restore equally well on jax 0.10 and 0.12, but the two managers cache the list of
steps, have no way to set a damaged one aside, and report a failed asynchronous save without its step. What they add, the
steps in a folder and the newest to keep, is `saved_steps` and `_prune` here.

The folder is a local disk or a mounted file system that all processes share. Every function is called by all processes.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mtjudge_jax.config import CheckpointConfig
from mtjudge_jax.digest import digests
from mtjudge_jax.sharding import path_name
from mtjudge_jax.trainable import put

FORMAT = 1
SLACK_BYTES = 1 << 20  # beside the arrays: record, array metadata, manifests
UNFINISHED = (".orbax-checkpoint-tmp", ".deleted")  # leftovers of a killed save or a killed deletion


class CheckpointError(RuntimeError):
    """One line: the path or step, what is wrong, what is kept, the remedy."""


class Restored(NamedTuple):
    step: int
    state: Any
    data_state: dict
    meta: dict
    damaged: tuple[str, ...]  # newer steps that could not be used, "step 12: params/w_dd: digest ..."; they were set aside


class Saved(NamedTuple):
    """What a step on disk says of itself, before any of its arrays is read."""

    path: Path
    leaves: dict[str, dict]  # by path, "params/text/norm_d": dtype, shape and digest
    meta: dict


@dataclass
class Checkpoints:
    """An open folder; `pending` is the step being written in the background."""

    folder: Path
    keep: int
    pending: tuple[int, ocp.AsyncResponse] | None = None


def open_checkpoints(folder: str | Path, cfg: CheckpointConfig) -> Checkpoints:
    """Creates the folder if missing and clears what a killed save left behind."""
    folder = Path(folder).absolute()
    check_workdir(folder)
    if jax.process_index() == 0:
        for path in folder.iterdir():
            if any(mark in path.name for mark in UNFINISHED):
                shutil.rmtree(path, ignore_errors=True)
    return Checkpoints(folder, cfg.keep)


def saved_steps(checkpoints: Checkpoints) -> list[int]:
    """Complete steps on disk, oldest first."""
    return steps_in(checkpoints.folder)


def steps_in(folder: Path) -> list[int]:
    """The same of a folder that is only read, empty where there is none."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def save(checkpoints: Checkpoints, step: int, *, state: Any, data_state: dict, meta: dict) -> bool:
    """Starts writing `step` in the background; the arrays may be donated as soon as this returns.

    `data_state` and `meta` are JSON. Waits for the save before, whose failure is raised here. False when `step` is on disk
    already. Raises CheckpointError when the free space does not hold all of the state's bytes; nothing is written then.
    """
    wait(checkpoints)
    if step in saved_steps(checkpoints):
        return False
    _check_space(checkpoints, step, state)
    record = {"format": FORMAT, "step": step, "leaves": _leaves(state, digests(state)), "data_state": data_state, "meta": meta}
    text = json.dumps(record, sort_keys=True)
    sealed = {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    try:
        response = ocp.save_async(checkpoints.folder / str(step), state, custom_metadata=sealed)
    except Exception as error:
        raise _write_error(checkpoints, step, error) from error
    checkpoints.pending = (step, response)
    return True


def wait(checkpoints: Checkpoints) -> None:
    """Returns when nothing is being written and only the newest `keep` steps are left; raises what the write failed with."""
    if checkpoints.pending is None:
        return
    (step, response), checkpoints.pending = checkpoints.pending, None
    try:
        response.result()
    except Exception as error:
        raise _write_error(checkpoints, step, error) from error
    _prune(checkpoints)


def close(checkpoints: Checkpoints) -> None:
    wait(checkpoints)


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

    A step that cannot be read or whose digests differ is logged, and set aside as `<step>.damaged-<n>` once an older one was
    restored. Raises CheckpointError when all are damaged (then nothing is renamed) and when structure, shape or dtype differ.
    """
    wait(checkpoints)
    damaged: list[str] = []
    steps = saved_steps(checkpoints)
    for step in reversed(steps):
        record = state = None
        try:
            record = _read_record(checkpoints.folder / str(step), step)
            reason = ""
        except Exception as error:
            reason = _first_line(error)
        if not _on_any_process(bool(reason)):
            if check_meta is not None:
                check_meta(record["meta"])
            wanted = _with_saved_dtypes(abstract_state, record["leaves"]) if any_dtype else abstract_state
            _check_structure(checkpoints.folder / str(step), record["leaves"], wanted)
            state, reason = _load(checkpoints.folder / str(step), record["leaves"], wanted)
            if not _on_any_process(bool(reason)):
                _set_aside(checkpoints, [s for s in steps if s > step])
                return Restored(step, state, record["data_state"], record["meta"], tuple(damaged))
        damaged.append(f"step {step}: {reason or 'another process could not read it'}")
        logging.warning("%s: damaged checkpoint, trying the one before: %s", checkpoints.folder, damaged[-1])
    if damaged:
        raise CheckpointError(
            f"{checkpoints.folder}: all {len(damaged)} checkpoints are damaged ({'; '.join(damaged)}): "
            "put a copy of one back, or start again in an empty workdir"
        )
    return None


def read_saved(folder: Path, step: int) -> Saved:
    """The record of one step; nothing on disk is changed. Raises CheckpointError for a step that is not there or damaged."""
    steps = steps_in(folder)
    if step not in steps:
        there = f"there are {', '.join(map(str, steps))}" if steps else "no step is complete there"
        raise CheckpointError(f"{folder}: no checkpoint of step {step}: {there}")
    try:
        record, reason = _read_record(folder.absolute() / str(step), step), ""
    except Exception as error:
        record, reason = {}, _first_line(error)
    _refuse_damaged(folder, step, reason)
    return Saved(folder.absolute() / str(step), record["leaves"], record["meta"])


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


def _refuse_damaged(folder: Path, step: int, reason: str) -> None:
    if _on_any_process(bool(reason)):
        others = [str(other) for other in steps_in(folder) if other != step]
        remedy = f"take another, there are {', '.join(others)}" if others else "put a copy of it back"
        reason = reason or "another process could not read it"
        raise CheckpointError(f"{folder}: the checkpoint of step {step} is damaged ({reason}): {remedy}")


def _leaves(state: Any, sums: dict[str, int]) -> dict[str, dict]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        path_name(path): {"dtype": str(x.dtype), "shape": list(x.shape), "digest": sums[path_name(path)]} for path, x in leaves
    }


def _read_record(path: Path, step: int) -> dict:
    """The record of a step, or ValueError when it is not what was written."""
    sealed = ocp.metadata(path).custom_metadata or {}
    text = sealed.get("record", "")
    if hashlib.sha256(text.encode()).hexdigest() != sealed.get("sha256"):
        raise ValueError("its record is missing or does not match its sha256")
    record = json.loads(text)
    if record["format"] != FORMAT or record["step"] != step:
        raise ValueError(
            f"its record is of step {record['step']}, format {record['format']}; expected step {step}, format {FORMAT}"
        )
    return record


def _check_structure(path: Path, saved: dict[str, dict], abstract_state: Any) -> None:
    """Refuses what Orbax would cast or only half explain: every leaf that is missing, extra, or of another dtype or shape."""
    wanted = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(abstract_state)}
    faults = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    faults += [f"{name} is not in the state" for name in saved if name not in wanted]
    for name in wanted:
        if name in saved:
            have = f"{saved[name]['dtype']}{saved[name]['shape']}"
            want = f"{wanted[name].dtype}{list(wanted[name].shape)}"
            if have != want:
                faults.append(f"{name} is {have} in the checkpoint, {want} in the state")
    if faults:
        raise CheckpointError(
            f"{path} holds another state, {_some(faults)}: resume with the model, optimizer and dtype it was saved with"
        )


def _with_saved_dtypes(abstract_state: Any, saved: dict[str, dict]) -> Any:
    def one(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = saved.get(path_name(path), {"dtype": str(x.dtype)})["dtype"]
        return jax.ShapeDtypeStruct(x.shape, jax.numpy.dtype(dtype), sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(one, abstract_state)


def _load(path: Path, saved: dict[str, dict], abstract_state: Any) -> tuple[Any, str]:
    """(state, "") or (None, why not)."""
    try:
        state = ocp.load(path, abstract_state)
    except Exception as error:
        return None, _first_line(error)
    wrong = [
        f"{name}: digest {found:08x}, saved as {saved[name]['digest']:08x}"
        for name, found in digests(state).items()
        if found != saved[name]["digest"]
    ]
    return (None, _some(wrong)) if wrong else (state, "")


def _set_aside(checkpoints: Checkpoints, steps: list[int]) -> None:
    """Renames damaged steps, so that the same step can be saved again and somebody can still look at them."""
    if steps and jax.process_index() == 0:
        for step in steps:
            path = checkpoints.folder / str(step)
            number = 1
            while (aside := path.with_name(f"{step}.damaged-{number}")).exists():
                number += 1
            path.rename(aside)
            logging.warning("%s: set aside as %s; delete it when you have seen it", path, aside.name)
    if steps and jax.process_count() > 1:
        multihost_utils.sync_global_devices("damaged steps set aside")


def _prune(checkpoints: Checkpoints) -> None:
    """Deletes all but the newest `keep` steps; renamed first, so that a kill here leaves no half of a step."""
    if jax.process_index() == 0:
        for step in saved_steps(checkpoints)[: -checkpoints.keep]:
            old = (checkpoints.folder / str(step)).rename(checkpoints.folder / f"{step}.deleted")
            shutil.rmtree(old, ignore_errors=True)


def _check_space(checkpoints: Checkpoints, step: int, state: Any) -> None:
    need = sum(x.nbytes for x in jax.tree.leaves(state)) + SLACK_BYTES
    free = shutil.disk_usage(checkpoints.folder).free
    if _on_any_process(free < need):
        raise CheckpointError(
            f"{checkpoints.folder}: the checkpoint of step {step} needs {need:,} bytes and {free:,} are free; "
            f"{_kept(checkpoints)}: free some space, or lower checkpoint.keep ({checkpoints.keep})"
        )


def _write_error(checkpoints: Checkpoints, step: int, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{checkpoints.folder}: the checkpoint of step {step} was not written ({_first_line(error)}); "
        f"{_kept(checkpoints)}: mend the cause and start the same command again"
    )


def _kept(checkpoints: Checkpoints) -> str:
    steps = saved_steps(checkpoints)
    return f"kept and good: step {', '.join(map(str, steps))}" if steps else "nothing was saved before"


def _on_any_process(flag: bool) -> bool:
    """Processes go the same way: what one of them cannot read, none of them uses."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _some(items: list[str], most: int = 5) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")


def differences(old: dict, new: dict, where: str = "") -> list[str]:
    """Dotted fields that differ, `optim.lr: 1e-06 -> 1e-05`; both are compared as JSON, so a tuple equals its list."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    out = []
    for key in [*old, *[key for key in new if key not in old]]:
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{where}{key}.")
        elif a != b:
            out.append(f"{where}{key}: {a} -> {b}")
    return out


def check_workdir(path: str | Path) -> None:
    """Creates the folder if missing, writes and removes a probe file. Raises CheckpointError, one line."""
    path = Path(path)
    if "://" in str(path) or ":/" in str(path):
        raise CheckpointError(f"{path}: an address, not a folder: mount the bucket and give the folder it is mounted on")
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))
        probe.unlink(missing_ok=True)  # processes of several hosts may share the folder and the number
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: cannot be a folder, a part of this path is a file: choose another path") from error
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise CheckpointError(
            f"{path}: cannot be written to ({error.strerror}): free space, mend its rights or choose another path"
        ) from error
