"""Folders and files by name, on a disk or in a bucket: `gs://bucket/run` may be given wherever `runs/mine` may.

A path on a disk is a `pathlib.Path`, a path in a bucket is an `etils.epath.Path`, which has the same methods over gcsfs. The
functions here cover the differences. A bucket has no folders (a name that begins with `run/` makes one), no appending and no
renaming. An object appears whole or not at all, is replaced in one step, and is in the next listing. So a folder in a bucket
is complete when its last file is there, and code that replaces a folder removes that file first.

Copying, removing and listing are not etils's own: it would send a copy within a bucket through this machine and ask for the
size of every file by a request. gcsfs comes with `pip install -e '.[gcs]'`.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import stat
import tempfile
import traceback
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from etils import epath

from mtjudge_jax.errors import UserError

AnyPath = Path | epath.Path
_SCHEME = "gs://"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_ANSWER_SECONDS = 20  # for the first answer of a bucket
_READ_BYTES = 4 << 20  # of one request for a range; several run at a time
_BLOCK_BYTES = 1 << 20
os.environ.setdefault("EPATH_USE_TF", "false")  # otherwise an installed TensorFlow would read and write
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks another service about every bucket


def as_path(text: str | os.PathLike) -> AnyPath:
    """The path that a user gave. Raises UserError for an address of another kind and for a bucket that cannot be used."""
    name = os.fspath(text)
    if name.startswith(_SCHEME):
        bucket = name.removeprefix(_SCHEME).split("/")[0]
        if not bucket:
            raise UserError(f"{name}: names no bucket: write {_SCHEME}bucket/folder")
        reach(bucket)
        return epath.Path(name.rstrip("/"))
    if ADDRESS.match(name):
        raise UserError(f"{name}: neither a folder on this machine nor {_SCHEME}bucket/folder: give one of the two")
    return Path(name)


def in_bucket(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith(_SCHEME)


def absolute(path: AnyPath) -> AnyPath:
    return path if in_bucket(path) else path.absolute()


def address(path: AnyPath) -> str:
    """The path as a link for the terminal."""
    return os.fspath(path) if in_bucket(path) else path.resolve().as_uri()


@functools.cache
def bucket_files() -> Any:
    """gcsfs without its cache of listings, because other processes and libraries write into the same bucket."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{_SCHEME} paths need gcsfs, which is not installed: pip install -e '.[gcs]'")
    import fsspec.config

    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)  # these arguments give the instance that epath uses


@functools.cache
def reach(bucket: str) -> None:
    """Asks a bucket for one name. Raises UserError for a wrong name, credentials, permissions or network."""
    files = bucket_files()
    import fsspec.asyn

    try:
        fsspec.asyn.sync(files.loop, files._call, "GET", "b/{}/o", bucket, json_out=True, maxResults=1, timeout=_ANSWER_SECONDS)
    except Exception as error:
        raise UserError(f"{_SCHEME}{bucket}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """One line for the user: what an error of gcsfs, TensorStore or the operating system means."""
    text = " ".join(str(error).split())[:300]
    for pattern, meaning in (
        (r"bucket does not exist|^b/[^/]+/o$", "there is no such bucket: check the name"),
        (r"quota|RESOURCE_EXHAUSTED", f"it is full ({text}): make room or raise the quota"),
        (r"does not have|Forbidden|PERMISSION_DENIED|403",
         f"no permission ({text}): give the account the role roles/storage.objectAdmin"),
        (r"401|[Aa]nonymous|[Cc]redentials|UNAUTHENTICATED",
         f"no credentials ({text}): run `gcloud auth application-default login`, or give the machine a service account"),
    ):  # fmt: skip
        if re.search(pattern, text):
            return meaning
    return f"no answer ({type(error).__name__}: {text}): check the network and try again"


@contextlib.contextmanager
def clean_failure() -> Iterator[None]:
    """A context for sending to a bucket. The frames of a failed upload hold views of gcsfs's buffer, and Python 3.12 crashes
    when it collects both as garbage. So the frames are cleared at once.
    """
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise


def size_of(path: AnyPath) -> int:
    return path.stat().length if in_bucket(path) else path.stat().st_size


def read_ranges(path: AnyPath, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes from start to stop, for each range of one file. A bucket gets several requests at a time."""
    if not in_bucket(path):
        with path.open("rb") as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]
    cuts = [[(at, min(at + _READ_BYTES, stop)) for at in range(start, stop, _READ_BYTES)] for start, stop in ranges]
    flat = [cut for part in cuts for cut in part]
    starts, stops = zip(*flat, strict=True) if flat else ((), ())
    got = iter(bucket_files().cat_ranges([os.fspath(path)] * len(flat), list(starts), list(stops), on_error="raise"))
    return [b"".join(next(got) for _ in part) for part in cuts]


def read_object(path: AnyPath, remedy: str = "copy it again") -> dict[str, Any]:
    """The JSON object in a file. Raises UserError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__} instead of an object; {remedy}")
    return found


def write_whole(path: AnyPath, data: bytes) -> None:
    """Writes a file so that it is always the old one or the new one. On a disk it is written beside and renamed."""
    if in_bucket(path):
        try:
            with clean_failure():
                path.write_bytes(data)
        except OSError:
            raise
        except Exception as error:  # some errors of gcsfs are not OSErrors
            raise OSError(explain(error)) from error
        return
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_generation(path: AnyPath) -> tuple[bytes, int]:
    """(content, generation) of an object in a bucket, (b"", 0) if there is none."""
    bucket, _, name = os.fspath(path).removeprefix(_SCHEME).partition("/")
    try:
        headers, content = bucket_files().call("GET", "b/{}/o/{}", bucket, name, alt="media")
    except FileNotFoundError:
        return b"", 0
    return content, int({key.lower(): value for key, value in headers.items()}["x-goog-generation"])


def write_generation(path: AnyPath, data: bytes, seen: int) -> int:
    """Writes an object in a bucket if its generation is still `seen` (0: if there is none). Returns the new one, or 0 if not."""
    bucket, _, name = os.fspath(path).removeprefix(_SCHEME).partition("/")
    files = bucket_files()
    target = f"{files._location}/upload/storage/v1/b/{quote(bucket)}/o"
    with clean_failure(), contextlib.suppress(FileExistsError):  # so gcsfs reports a condition that does not hold
        how = {"uploadType": "media", "name": name, "ifGenerationMatch": str(seen)}
        return int(files.call("POST", target, data=data, json_out=True, **how)["generation"])
    return 0


def delete_generation(path: AnyPath, seen: int) -> None:
    """Deletes an object in a bucket if its generation is still `seen`."""
    bucket, _, name = os.fspath(path).removeprefix(_SCHEME).partition("/")
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        bucket_files().call("DELETE", "b/{}/o/{}", bucket, name, ifGenerationMatch=str(seen))


def remove_tree(path: AnyPath) -> None:
    """Removes a folder and everything in it. A missing folder is no error, nor, on a disk, a file that cannot be removed."""
    if in_bucket(path):
        path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def files_below(folder: AnyPath) -> dict[str, int]:
    """{name relative to the folder: size} of every file below it, sorted. A file that disappears meanwhile is left out."""
    if in_bucket(folder):
        start = os.fspath(folder).removeprefix(_SCHEME) + "/"
        found = bucket_files().find(os.fspath(folder), detail=True)
        return {name.removeprefix(start): entry["size"] for name, entry in sorted(found.items()) if not name.endswith("/")}
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            facts = path.stat()
            if stat.S_ISREG(facts.st_mode):
                found[path.relative_to(folder).as_posix()] = facts.st_size
    return dict(sorted(found.items()))


def checksums(folder: AnyPath, names: Sequence[str]) -> dict[str, str]:
    """{name: size and CRC, "1024:9ab0cdef"}, with "" for a file that is missing or cannot be read.

    On a disk every byte is read. A bucket computes the CRC-32C of each object when it is written and checks it whenever it is
    sent, so asking for it reads nothing.
    """
    if in_bucket(folder):
        start = os.fspath(folder).removeprefix(_SCHEME) + "/"
        found = bucket_files().find(os.fspath(folder), detail=True) if names else {}
        kept = {name.removeprefix(start): entry for name, entry in found.items()}
        return {name: f"{kept[name]['size']}:{kept[name]['crc32c']}" if name in kept else "" for name in names}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: _crc(folder / name), names), strict=True))


def _crc(path: Path) -> str:
    size = crc = 0
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                size, crc = size + len(block), zlib.crc32(block, crc)
    except OSError:
        return ""
    return f"{size}:{crc:08x}"


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copies a file. A copy within a bucket is made by the bucket itself, any other one is sent in blocks."""
    if in_bucket(source) and in_bucket(target):
        bucket_files().cp_file(os.fspath(source), os.fspath(target))
        return
    with clean_failure(), source.open("rb") as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, _BLOCK_BYTES)


@contextlib.contextmanager
def nearby(folder: AnyPath, endings: tuple[str, ...]) -> Iterator[Path]:
    """A context: the folder itself on a disk; for a bucket, a temporary copy of its files with these endings."""
    if not in_bucket(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mtjudge-") as made:
        for path in folder.iterdir():
            if path.name.endswith(endings) and path.is_file():
                copy_file(path, Path(made) / path.name)
        yield Path(made)
