"""Another name for a folder whose own name Orbax and TensorStore misread.

Orbax looks for what its processes wrote by a pattern joined to the folder's path, in which `[`, `*` and `?` are patterns too.
For `run[1]` it finds nothing, writes no index and only logs that. For `a*b` it finds the files of `axb` as well. TensorStore
reads a backslash as a slash. So both are given a symbolic link with a plain name in the temporary folder of this machine.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

from mtjudge_jax.checkpoint.folders import CheckpointError
from mtjudge_jax.paths import AnyPath, in_bucket

_MISREAD = re.compile(r"[\[\]*?\\\ud800-\udfff]")
_SPARE = ("/tmp", "/var/tmp", "/dev/shm")  # where the temporary folder's own name is misread, or cannot be written to


def plain(path: AnyPath) -> AnyPath:
    """The path by which Orbax and TensorStore read and write it: the path itself unless a part of it would be misread.

    Raises CheckpointError where there is no such name: in a bucket, which has no links, or without a temporary folder.
    """
    if not _MISREAD.search(os.fspath(path)):
        return path
    if in_bucket(path):
        raise CheckpointError(f"{path}: a checkpoint in a bucket needs a name without [ ] * ? and \\: choose another folder")
    return _link_to(path.parent) / path.name


def _link_to(folder: Path) -> Path:
    """A link to the folder. Every process and every later start on this machine has the same one."""
    name = hashlib.sha256(os.fspath(folder).encode(errors="surrogateescape")).hexdigest()[:24]
    for base in dict.fromkeys((tempfile.gettempdir(), *_SPARE)):
        own = Path(base) / f"mtjudge-names-{os.getuid()}"
        link, made = own / name, own / f"{name}.{os.getpid()}"
        if _MISREAD.search(base):
            continue
        with contextlib.suppress(OSError):
            own.mkdir(mode=0o700, exist_ok=True)
            facts = own.lstat()
            if facts.st_uid != os.getuid() or own.is_symlink() or facts.st_mode & 0o022:
                continue  # somebody else could turn the link to another folder
            if not link.is_symlink() or os.readlink(link) != os.fspath(folder):
                made.symlink_to(folder)
                made.replace(link)
            return link
    raise CheckpointError(
        f"{folder}: Orbax cannot write below a name with [ ] * ? or \\, and no link to it could be made in "
        f"{', '.join(dict.fromkeys((tempfile.gettempdir(), *_SPARE)))}: choose a folder with a plain name"
    )
