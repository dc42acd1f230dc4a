"""A folder of checkpoints as it lies on a disk or in a bucket: which steps are complete, what each says of itself.

A step is `<folder>/<step>/`: what Orbax wrote, and `record.json`. The record is written last and holds the checksum of every
other file, and its own. On a disk all is written as `<step>.unfinished` and renamed when the record is in, so a step without
one has lost it. In a bucket, where nothing is renamed, a step is complete when its record is there.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable

import jax
from absl import logging

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import (
    AnyPath,
    as_path,
    checksums,
    clean_failure,
    explain,
    files_below,
    in_bucket,
    remove_tree,
    write_whole,
)

FORMAT = 2
RECORD = "record.json"
DAMAGED = "damaged.txt"  # in a bucket, in a step that was set aside
UNFINISHED = (".orbax-checkpoint-tmp", ".unfinished", ".deleted")  # leftovers of a killed save or a killed deletion


class CheckpointError(UserError):
    """One line: the path or step, what is wrong, what is kept, the remedy."""


def step_names(folder: AnyPath) -> list[int]:
    """Steps that are there and not set aside, oldest first, complete or not; [] where there is no folder."""
    if not folder.is_dir():
        return []
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    return [step for step in steps if not (in_bucket(folder) and (folder / str(step) / DAMAGED).exists())]


def steps_in(folder: AnyPath) -> list[int]:
    """Complete steps, oldest first."""
    return [step for step in step_names(folder) if not in_bucket(folder) or (folder / str(step) / RECORD).exists()]


def writing_path(folder: AnyPath, step: int) -> AnyPath:
    """Where a step is written."""
    return folder / (str(step) if in_bucket(folder) else f"{step}.unfinished")


def part_name(process: int) -> str:
    """What a process knows of a step it wrote, until the record is made of all of them."""
    return f"part-{process}.json"


def files_of(path: AnyPath, process: int) -> list[str]:
    """The files of a step that a process wrote; process 0 answers for those that no one's name is on."""
    own = f"ocdbt.process_{process}/"
    names = [name for name in files_below(path) if not name.startswith(("part-", RECORD))]
    return [name for name in names if own in name or (process == 0 and "ocdbt.process_" not in name)]


def complete(path: AnyPath, record: dict, processes: int) -> None:
    """Makes a written step a complete one: process 0, when every process has left its part. Raises OSError or ValueError."""
    absent = [str(process) for process in range(processes) if not (path / part_name(process)).exists()]
    if absent:
        raise OSError(f"process {', '.join(absent)} could not write or check its part, and tells why")
    parts = [json.loads((path / part_name(process)).read_text()) for process in range(processes)]
    for name, leaf in record["leaves"].items():
        leaf["digest"] = sum(part["digests"][name] for part in parts) % 2**32
    record["files"] = {name: checksum for part in parts for name, checksum in part["files"].items()}
    if missing := [name for name, checksum in record["files"].items() if not checksum]:
        raise OSError(f"{', '.join(missing)} cannot be read back")
    for process in range(processes):
        (path / part_name(process)).unlink()
    _write_record(path, record)
    if not in_bucket(path):
        path.rename(path.with_name(str(record["step"])))


def _write_record(path: AnyPath, record: dict) -> None:
    text = json.dumps(record, sort_keys=True)
    sealed = {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_whole(path / RECORD, json.dumps(sealed).encode())


def amend_record(path: AnyPath, step: int, meta: dict) -> None:
    """Gives a complete step another meta, where it differs: what became known of it after it was saved."""
    record = read_record(path, step)
    if record["meta"] != json.loads(json.dumps(meta)):
        _write_record(path, record | {"meta": meta})


def read_record(path: AnyPath, step: int) -> dict:
    """The record of a step, or ValueError when it is not what was written."""
    try:
        text = (path / RECORD).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"its {RECORD} is missing: it was deleted, or the step was never finished") from error
    try:
        sealed = json.loads(text)
        whole = hashlib.sha256(sealed["record"].encode()).hexdigest() == sealed["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole or json.dumps(sealed).encode() != text:
        raise UserError(f"its {RECORD} does not match its sha256")
    record = json.loads(sealed["record"])
    if record["format"] != FORMAT or record["step"] != step:
        raise UserError(
            f"its record is of step {record['step']}, format {record['format']}; expected step {step}, format {FORMAT}"
        )
    return record


def damage_in(path: AnyPath, files: dict[str, str], process: int, processes: int) -> str:
    """What is wrong with the files of a step, "" where nothing is. Processes share the reading; each looks at every size."""
    found = files_below(path)
    for name, checksum in files.items():
        size = int(checksum.partition(":")[0])
        if found.get(name) != size:
            return f"{name} is missing" if name not in found else f"{name} has {found[name]} bytes, it was written with {size}"
        if not in_bucket(path):
            with (path / name).open("rb"):
                pass  # a host that has no right to read it says so here
    mine = sorted(files)[process::processes]
    wrong = [name for name, checksum in checksums(path, mine).items() if checksum != files[name]]
    return f"{', '.join(wrong[:5])}: not the bytes that were written" if wrong else ""


def set_aside(folder: AnyPath, step: int, reason: str) -> None:
    """So that the same step can be saved again and somebody can still look at it. Of an unfinished step nothing is kept."""
    path = folder / str(step)
    if in_bucket(folder):
        if not (path / RECORD).exists():
            remove_tree(path)
            logging.warning("%s: removed", path)
            return
        write_whole(path / DAMAGED, reason.encode())
        logging.warning("%s: set aside by %s in it; delete it when you have seen it", path, DAMAGED)
        return
    number = 1
    while (aside := path.with_name(f"{step}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    logging.warning("%s: set aside as %s; delete it when you have seen it", path, aside.name)


def clear_unfinished(folder: AnyPath) -> None:
    """Removes what a killed save left on a disk. In a bucket that looks like a step which lost its record; it is named first."""
    for path in [] if in_bucket(folder) else folder.iterdir():
        if any(mark in path.name for mark in UNFINISHED):
            remove_tree(path)


def clear_failed(folder: AnyPath, step: int) -> None:
    """Removes what a failed save left, since it takes room; and in a bucket a step of that number that was set aside."""
    if not in_bucket(folder):
        clear_unfinished(folder)
    elif step not in steps_in(folder):
        remove_tree(folder / str(step))


def delete_steps(folder: AnyPath, steps: Iterable[int]) -> None:
    """A kill leaves no half of a step: on a disk it is renamed first, in a bucket its record goes first."""
    for step in steps:
        path = folder / str(step)
        if in_bucket(folder):
            (path / RECORD).unlink(missing_ok=True)
            remove_tree(path)
        else:
            remove_tree(path.rename(folder / f"{step}.deleted"))


def room_problem(folder: AnyPath, need: int) -> str:
    """Why `need` bytes cannot be written, "" where nothing speaks against it. A bucket does not tell before."""
    if in_bucket(folder):
        return ""
    free = shutil.disk_usage(folder).free
    if free < need:
        return f"it needs {need:,} bytes and {free:,} are free"
    return "" if os.access(folder, os.W_OK) else "the folder cannot be written to"


def check_workdir(path: str | os.PathLike) -> None:
    """Creates the folder if missing, writes and removes a probe file. Raises CheckpointError, one line."""
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
            f"{path}: cannot be written to ({error.strerror}): free space, mend its rights or choose another path"
        ) from error
