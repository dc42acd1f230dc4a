"""The folder of checkpoints on a disk or in a bucket: which steps are complete, being written, or set aside.

A step is `<folder>/<step>/`: what Orbax wrote, and `record.json`, which is written last. On a disk a step is written as
`<step>.unfinished` and renamed when its record is in, so a step without a record has lost it. In a bucket nothing can be renamed:
there a step is complete when its record exists.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterable

import jax
from absl import logging

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, clean_failure, explain, in_bucket, remove_tree, write_whole

RECORD = "record.json"
UNFINISHED = (".orbax-checkpoint-tmp", ".unfinished", ".deleted")  # leftovers of a killed save or a killed deletion
_LATE_SECONDS = 5  # how long files of a failed save are expected
_DAMAGED = "damaged.txt"  # in a bucket, in a step that was set aside


class CheckpointError(UserError):
    """One line: the path or step, what is wrong, what is kept, the remedy."""


def listed_steps(folder: AnyPath) -> list[int]:
    """Steps that are not set aside, complete or not, oldest first; [] if there is no folder."""
    if not folder.is_dir():
        return []
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    return [step for step in steps if not (in_bucket(folder) and (folder / str(step) / _DAMAGED).exists())]


def complete_steps(folder: AnyPath) -> list[int]:
    """Complete steps, oldest first."""
    return [step for step in listed_steps(folder) if not in_bucket(folder) or (folder / str(step) / RECORD).exists()]


def writing_path(folder: AnyPath, step: int) -> AnyPath:
    """Where a step is written."""
    return folder / (str(step) if in_bucket(folder) else f"{step}.unfinished")


def set_aside(folder: AnyPath, step: int, reason: str) -> None:
    """Keeps a damaged step for a person to look at, in a way that the same step can be saved again. Removes an unfinished one."""
    path = folder / str(step)
    if in_bucket(folder):
        if not (path / RECORD).exists():
            remove_tree(path)
            logging.warning("%s: removed, it was never finished", path)
            return
        write_whole(path / _DAMAGED, reason.encode())
        logging.warning("%s: set aside by the file %s in it; delete the folder when you no longer need it", path, _DAMAGED)
        return
    number = 1
    while (aside := path.with_name(f"{step}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    logging.warning("%s: set aside as %s; delete it when you no longer need it", path, aside.name)


def clear_unfinished(folder: AnyPath) -> bool:
    """Removes what a killed save left on a disk, and tells whether there was any. In a bucket that looks like a step without a
    record, which `restore_latest` reports before it is removed.
    """
    found = [] if in_bucket(folder) else [path for path in folder.iterdir() if any(mark in path.name for mark in UNFINISHED)]
    for path in found:
        remove_tree(path)
    return bool(found)


def clear_failed(folder: AnyPath, step: int) -> None:
    """Removes what a failed save left, because it takes room. In a bucket it also removes a step of that number set aside.

    A save fails with its first file; its other files may still be on their way. So on a disk it removes until nothing comes back.
    """
    if not in_bucket(folder):
        deadline = time.monotonic() + _LATE_SECONDS
        while clear_unfinished(folder) and time.monotonic() < deadline:
            time.sleep(_LATE_SECONDS / 20)
    elif step not in complete_steps(folder):
        remove_tree(folder / str(step))


def delete_steps(folder: AnyPath, steps: Iterable[int]) -> None:
    """Deletes steps so that a kill leaves no half of one: on a disk it is renamed first, in a bucket its record goes first."""
    for step in steps:
        path = folder / str(step)
        if in_bucket(folder):
            (path / RECORD).unlink(missing_ok=True)
            remove_tree(path)
        else:
            remove_tree(path.rename(folder / f"{step}.deleted"))


def room_problem(folder: AnyPath, need: int) -> str:
    """The reason that `need` bytes cannot be written, or "" if none is known. A bucket gives no answer in advance."""
    if in_bucket(folder):
        return ""
    free = shutil.disk_usage(folder).free
    if free < need:
        return f"it needs {need:,} bytes and {free:,} are free"
    return "" if os.access(folder, os.W_OK) else "the folder cannot be written to"


def check_workdir(path: str | os.PathLike) -> None:
    """Creates the folder if missing, writes and removes a probe file. Raises CheckpointError if that fails."""
    path = as_path(path)
    probe = path / f".probe-{jax.process_index()}-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with clean_failure():
            probe.write_bytes(bytes(4096))
        probe.unlink(missing_ok=True)  # processes of several hosts may share the folder and the number
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(f"{path}: cannot be a folder, a part of this path is a file: choose another path") from error
    except Exception as error:
        if in_bucket(path):
            raise CheckpointError(f"{path}: cannot be written to: {explain(error)}") from error
        if not isinstance(error, OSError):
            raise
        with contextlib.suppress(OSError):
            probe.unlink()
        raise CheckpointError(
            f"{path}: cannot be written to ({error.strerror}): free space, fix its permissions or choose another path"
        ) from error
