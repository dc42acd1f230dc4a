"""Folders and files by name, on a disk or in a bucket: `gs://bucket/run` is taken wherever `runs/mine` is.

A disk has `pathlib.Path`, a bucket `etils.epath.Path`, which has the same methods over gcsfs. What differs is in the functions
here. A bucket has no folders (a name that begins with `run/` makes one), no appending and no renaming: an object appears whole
or not at all, is replaced at once, and a listing sees it at once. So a folder there is complete when its last file is, and who
replaces a folder removes that file first. gcsfs comes with `pip install 'mtjudge_jax[gcs]'`.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
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

from etils import epath

from mtjudge_jax.errors import UserError

AnyPath = Path | epath.Path
SCHEME = "gs://"
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
ANSWER_SECONDS = 20  # for a bucket to answer the first time
READ_BYTES = 4 << 20  # that one request for a range asks for; several run at a time
BLOCK_BYTES = 1 << 20
CACHE_BYTES = 100 << 30
os.environ.setdefault("EPATH_USE_TF", "false")  # else a TensorFlow that happens to be there would read and write
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks another service about every bucket


def as_path(text: str | os.PathLike) -> AnyPath:
    """Raises ValueError, one line, for an address of another kind and for a bucket that cannot be used."""
    name = os.fspath(text)
    if name.startswith(SCHEME):
        bucket = name.removeprefix(SCHEME).split("/")[0]
        if not bucket:
            raise UserError(f"{name}: names no bucket: write {SCHEME}bucket/folder")
        reach(bucket)
        return epath.Path(name.rstrip("/"))
    if ADDRESS.match(name):
        raise UserError(f"{name}: neither a folder of this machine nor {SCHEME}bucket/folder: give one of the two")
    return Path(name)


def in_bucket(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith(SCHEME)


def absolute(path: AnyPath) -> AnyPath:
    return path if in_bucket(path) else path.absolute()


def address(path: AnyPath) -> str:
    """To click on or to copy."""
    return os.fspath(path) if in_bucket(path) else path.resolve().as_uri()


@functools.cache
def bucket_files() -> Any:
    """gcsfs, without a memory of listings: other processes and libraries write into the same bucket."""
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{SCHEME} paths need gcsfs, which is not installed: pip install 'mtjudge_jax[gcs]'")
    import fsspec.config

    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs", finalize_on_close=True)  # with these arguments it is the one that epath uses


@functools.cache
def reach(bucket: str) -> None:
    """Asks a bucket for one name. Raises ValueError saying what is wrong: its name, credentials, rights, the network."""
    files = bucket_files()
    import fsspec.asyn

    try:
        fsspec.asyn.sync(files.loop, files._call, "GET", "b/{}/o", bucket, json_out=True, maxResults=1, timeout=ANSWER_SECONDS)
    except Exception as error:
        raise UserError(f"{SCHEME}{bucket}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """What an error of gcsfs, TensorStore or the operating system means for the user, one line."""
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
    """Around what sends to a bucket. The frames of a failed sending hold views of gcsfs's buffer: Python 3.12 crashes when it
    finds both among its garbage, so the frames are emptied at once.
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
    """Bytes from start to stop of one file; of a bucket by several requests at a time."""
    if not in_bucket(path):
        with path.open("rb") as file:
            return [os.pread(file.fileno(), stop - start, start) for start, stop in ranges]
    cuts = [[(at, min(at + READ_BYTES, stop)) for at in range(start, stop, READ_BYTES)] for start, stop in ranges]
    flat = [cut for part in cuts for cut in part]
    starts, stops = zip(*flat, strict=True) if flat else ((), ())
    got = iter(bucket_files().cat_ranges([os.fspath(path)] * len(flat), list(starts), list(stops), on_error="raise"))
    return [b"".join(next(got) for _ in part) for part in cuts]


def write_whole(path: AnyPath, data: bytes) -> None:
    """The file is the old one or the new one, never half: on a disk written beside and renamed, an object always is so."""
    if in_bucket(path):
        try:
            with clean_failure():
                path.write_bytes(data)
        except OSError:
            raise
        except Exception as error:  # some of gcsfs's are of a kind of their own
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


def remove_tree(path: AnyPath) -> None:
    """A folder with all that is in it, as far as that can be removed; no error where there is none."""
    if in_bucket(path):
        with contextlib.suppress(FileNotFoundError):
            bucket_files().rm(os.fspath(path), recursive=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def files_below(folder: AnyPath) -> dict[str, int]:
    """Size of every file by its name from the folder on, sorted. A file that goes while they are listed is left out."""
    if in_bucket(folder):
        start = os.fspath(folder).removeprefix(SCHEME) + "/"
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
    """Size and CRC of files by name, "1024:9ab0cdef"; "" where a file is missing or cannot be read.

    On a disk every byte is read. A bucket keeps the CRC-32C of each object, made as it was written and checked whenever it is
    sent: asking for that reads nothing.
    """
    if in_bucket(folder):
        start = os.fspath(folder).removeprefix(SCHEME) + "/"
        found = bucket_files().find(os.fspath(folder), detail=True) if names else {}
        kept = {name.removeprefix(start): entry for name, entry in found.items()}
        return {name: f"{kept[name]['size']}:{kept[name]['crc32c']}" if name in kept else "" for name in names}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: _crc(folder / name), names), strict=True))


def _crc(path: Path) -> str:
    size = crc = 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                size, crc = size + len(block), zlib.crc32(block, crc)
    except OSError:
        return ""
    return f"{size}:{crc:08x}"


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Within a bucket by the bucket itself; to and from one in blocks."""
    if in_bucket(source) and in_bucket(target):
        bucket_files().cp_file(os.fspath(source), os.fspath(target))
        return
    with clean_failure(), source.open("rb") as file, target.open("wb") as copy:
        shutil.copyfileobj(file, copy, BLOCK_BYTES)


@contextlib.contextmanager
def nearby(folder: AnyPath, endings: tuple[str, ...]) -> Iterator[Path]:
    """The folder itself on a disk; of a bucket a copy of its files with these endings, removed afterwards."""
    if not in_bucket(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mtjudge-") as made:
        for path in folder.iterdir():
            if path.name.endswith(endings) and path.is_file():
                copy_file(path, Path(made) / path.name)
        yield Path(made)


def cache_folder() -> Path:
    """Where copies of files of buckets are kept on this machine."""
    given = os.environ.get("MTJUDGE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mtjudge_jax"


def local_copy(path: AnyPath, sha256: str, *, most_bytes: int = CACHE_BYTES) -> Path:
    """The file itself on a disk; of a bucket a copy that is named by its sha256, made once a machine and checked.

    Copies not used for longest are removed when they are more than `most_bytes` together. Raises ValueError where the bytes
    are not those of `sha256`.
    """
    if not in_bucket(path):
        return path
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UserError(f"{path}: the manifest says {sha256!r} where its sha256 belongs: prepare the data again")
    folder = cache_folder()
    copy = folder / f"{sha256}{path.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f"{sha256}.lock"):
        if copy.is_file() and copy.stat().st_size == size_of(path):
            os.utime(copy)
            return copy
        need = size_of(path)
        _make_room(folder, need, most_bytes)
        part = Path(tempfile.mkstemp(dir=folder, prefix=f"{sha256}.part-")[1])
        try:
            copy_file(path, part)
            found = _sha256(part)
            if found != sha256:
                raise UserError(f"{path}: its sha256 is {found}, the manifest says {sha256}: prepare the data again")
            part.replace(copy)
        finally:
            part.unlink(missing_ok=True)
    print(f"copied {path} to {copy} ({need:,} bytes), where every run on this machine reads it", flush=True)
    return copy


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Other processes of this machine wait here."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_room(folder: Path, need: int, most_bytes: int) -> None:
    copies = sorted((p for p in folder.iterdir() if p.suffix not in (".lock", "")), key=lambda p: p.stat().st_mtime)
    total = need + sum(p.stat().st_size for p in copies)
    for old in copies:
        if total <= most_bytes:
            return
        total -= old.stat().st_size
        old.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
