"""Copies of files in buckets on this machine, for libraries that read from a disk only.

fsspec's `filecache` would not do: it does not check a copy against its sha256, has no limit of size, and two processes may
write the same copy at a time.
"""

import hashlib
import os
import re
import tempfile
from pathlib import Path

from filelock import FileLock

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, copy_file, in_bucket, size_of

_CACHE_BYTES = 100 << 30


def cache_folder() -> Path:
    """The folder on this machine for copies from buckets: $MTJUDGE_CACHE, else in the user's cache."""
    given = os.environ.get("MTJUDGE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mtjudge_jax"


def local_copy(path: AnyPath, sha256: str, *, max_bytes: int = _CACHE_BYTES) -> Path:
    """The file itself if it is on a disk. For a bucket, a copy named by its sha256, made and checked once per machine.

    When all copies together exceed `max_bytes`, the least recently used ones are removed. Raises UserError where the bytes do
    not have the digest `sha256`.
    """
    if not in_bucket(path):
        return path
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise UserError(f"{path}: the manifest has {sha256!r} in place of a sha256: prepare the data again")
    folder = cache_folder()
    copy = folder / f"{sha256}{path.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{sha256}.lock"):  # other processes of this machine wait here
        need = size_of(path)
        if copy.is_file() and copy.stat().st_size == need:
            os.utime(copy)
            return copy
        _make_room(folder, need, max_bytes)
        part = Path(tempfile.mkstemp(dir=folder, prefix=f"{sha256}.part-")[1])
        try:
            copy_file(path, part)
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise UserError(f"{path}: its sha256 is {found}, the manifest says {sha256}: prepare the data again")
            part.replace(copy)
        finally:
            part.unlink(missing_ok=True)
    print(f"copied {path} to {copy} ({need:,} bytes); every run on this machine reads that copy", flush=True)
    return copy


def _make_room(folder: Path, need: int, max_bytes: int) -> None:
    copies = sorted((p for p in folder.iterdir() if p.suffix not in (".lock", "")), key=lambda p: p.stat().st_mtime)
    total = need + sum(p.stat().st_size for p in copies)
    for old in copies:
        if total <= max_bytes:
            return
        total -= old.stat().st_size
        old.unlink(missing_ok=True)
