"""The folder that `mtjudge prepare` writes: whether it is complete, where it is built, how it is published."""

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from mtjudge_jax.data.bucket_cache import cache_folder
from mtjudge_jax.data.pipeline import read_manifest
from mtjudge_jax.errors import UserError
from mtjudge_jax.locks import held
from mtjudge_jax.paths import AnyPath, copy_file, files_below, in_bucket, size_of
from mtjudge_jax.prepare.readers.downloads import data_files


def source_hash(source: AnyPath) -> str:
    """A hash of the names and sizes of the source's files, to recognise the same source."""
    files = data_files(source) if source.is_dir() else {source.name: size_of(source)}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def is_done(out: AnyPath, given: dict) -> bool:
    """Whether `out` is complete and was made with these arguments. Raises UserError if it holds anything else."""
    remedy = "choose another folder or remove this one"
    if not out.exists() or not any(out.iterdir()):
        return False
    if not (out / "manifest.json").exists():
        if in_bucket(out) and all(name.startswith(("judge_examples/", "report.", "contact_")) for name in files_below(out)):
            return False  # stopped while being copied
        raise UserError(f"{out} is not empty and has no manifest.json: {remedy}")
    found = read_manifest(out).get("arguments") or {}
    changed = [name for name in given if found.get(name) != given[name]]
    if changed:
        text = "; ".join(f"{name} {found.get(name)!r}, asked for {given[name]!r}" for name in changed)
        raise UserError(f"{out} holds data made with {text}: {remedy}")
    return True


def work_path(out: AnyPath) -> Path:
    """Beside `out`, or in the cache if `out` is in a bucket."""
    if in_bucket(out):
        return cache_folder() / f"prepare-{hashlib.sha256(str(out).encode()).hexdigest()[:16]}"
    return out.with_name(f".{out.name}.partial")


@contextlib.contextmanager
def work_folder(out: AnyPath) -> Iterator[Path]:
    """Where `out` is built, by one command at a time. If the command fails after checking records, the folder stays."""
    work = work_path(out)
    with held(out, beside=True):
        work.mkdir(parents=True, exist_ok=True)
        try:
            yield work
            shutil.rmtree(work, ignore_errors=True)
        finally:
            journal = work / "journal.jsonl"
            if not (journal.exists() and journal.stat().st_size):
                shutil.rmtree(work, ignore_errors=True)


def start_or_resume_check(work: Path, reading: dict) -> None:
    """Keeps what an earlier command checked, if it read the same source in the same way."""
    path = work / "reading.json"
    text = json.dumps(reading, indent=1)
    if path.exists() and path.read_text() == text:
        print(f"resuming the check of an earlier command, in {work}")
    else:
        for name in ("spool.bin", "journal.jsonl"):
            (work / name).unlink(missing_ok=True)
        path.write_text(text)
    shutil.rmtree(work / "files", ignore_errors=True)


def publish(folder: Path, out: AnyPath) -> None:
    """Moves the finished folder to `out`; copies it to a bucket, the manifest last."""
    if not in_bucket(out):
        try:
            folder.replace(out)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            remedy = "empty it or choose another folder; what was checked is kept"
            raise UserError(f"{out} was empty and is no longer, another command has written into it: {remedy}") from error
        return
    names = [name for name in files_below(folder) if name != "manifest.json"]
    for name in (*names, "manifest.json"):
        copy_file(folder / name, out / name)
