"""The record of a step, `record.json`: step, data position, meta, each leaf's dtype, shape and digest, each file's checksum.

Every process leaves a part, with its share of the digests and the checksums of its files. Process 0 joins the parts. The record
is written last. It cannot hold its own checksum, so its text is sealed with a sha256.
"""

import hashlib
import json

from mtjudge_jax.checkpoint.folders import RECORD, CheckpointError
from mtjudge_jax.checkpoint.plain_name import plain
from mtjudge_jax.checkpoint.read_back import restore_problem
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, checksums, files_below, in_bucket, write_whole

FORMAT = 2
NOT_RESTORABLE = "it was written but cannot be restored"


def _part_path(path: AnyPath, process: int) -> AnyPath:
    return path / f"part-{process}.json"


def files_of(path: AnyPath, process: int) -> list[str]:
    """The files of a step that a process wrote. Process 0 also takes those whose name has no process number."""
    own = f"ocdbt.process_{process}/"
    names = [name for name in files_below(path) if not name.startswith(("part-", RECORD))]
    return [name for name in names if own in name or (process == 0 and "ocdbt.process_" not in name)]


def write_part(path: AnyPath, process: int, *, digests: dict[str, int], files: dict[str, str]) -> None:
    """Leaves what a process knows of the step it wrote: its share of the digests, and the checksums of its files."""
    write_whole(_part_path(path, process), json.dumps({"digests": digests, "files": files}).encode())


def complete(path: AnyPath, record: dict, processes: int) -> None:
    """Makes a written step complete: process 0 calls it, after every process left its part. Raises OSError or ValueError, where
    a part is missing and where the step could not be restored.
    """
    absent = [str(process) for process in range(processes) if not _part_path(path, process).exists()]
    if absent:
        raise OSError(f"process {', '.join(absent)} could not write or check its part and reports why")
    parts = [json.loads(_part_path(path, process).read_text()) for process in range(processes)]
    for name, leaf in record["leaves"].items():
        leaf["digest"] = sum(part["digests"][name] for part in parts) % 2**32
    record["files"] = {name: checksum for part in parts for name, checksum in part["files"].items()}
    if missing := [name for name, checksum in record["files"].items() if not checksum]:
        raise OSError(f"{', '.join(missing)} cannot be read back")
    if problem := restore_problem(plain(path), record):
        raise OSError(f"{NOT_RESTORABLE}: {problem}")
    for process in range(processes):
        _part_path(path, process).unlink()
    _write_record(path, record)
    if not in_bucket(path):
        path.rename(path.with_name(str(record["step"])))


def _write_record(path: AnyPath, record: dict) -> None:
    text = json.dumps(record, sort_keys=True)
    sealed = {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    write_whole(path / RECORD, json.dumps(sealed).encode())


def amend_record(path: AnyPath, step: int, meta: dict) -> None:
    """Replaces the meta of a complete step if it differs: what became known after the step was saved."""
    record = read_record(path, step)
    if record["meta"] != json.loads(json.dumps(meta)):
        _write_record(path, record | {"meta": meta})


def read_record(path: AnyPath, step: int) -> dict:
    """The record of a step, of any format. Raises UserError if it is missing, damaged, or of another step."""
    try:
        text = (path / RECORD).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{RECORD} is missing: it was deleted, or the step was never finished") from error
    try:
        sealed = json.loads(text)
        whole = hashlib.sha256(sealed["record"].encode()).hexdigest() == sealed["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole or json.dumps(sealed).encode() != text:
        raise UserError(f"{RECORD} does not match its sha256")
    record = json.loads(sealed["record"])
    if record["format"] == FORMAT and record["step"] != step:
        raise UserError(f"{RECORD} is of step {record['step']}")
    return record


def refuse_other_format(path: AnyPath, record: dict) -> None:
    """Raises CheckpointError for an undamaged record that another version of this package wrote in another format."""
    if record["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {record['format']}, this version of mtjudge_jax reads format {FORMAT}: "
            "use the version that wrote it"
        )


def damage_in(path: AnyPath, files: dict[str, str], process: int, processes: int) -> str:
    """Describes the first damage to the files of a step, or returns "". Each process checks every size and its share of the
    checksums.
    """
    found = files_below(path)
    for name, checksum in files.items():
        size = int(checksum.partition(":")[0])
        if found.get(name) != size:
            return f"{name} is missing" if name not in found else f"{name} has {found[name]} bytes instead of {size}"
        if not in_bucket(path):
            with (path / name).open("rb"):
                pass  # raises on a host that has no permission to read it
    mine = sorted(files)[process::processes]
    wrong = [name for name, checksum in checksums(path, mine).items() if checksum != files[name]]
    return f"wrong checksum: {', '.join(wrong[:5])}" if wrong else ""
