"""Reads images by their native name from a data set's folder or the zips in it. No name leads out of the folder."""

import contextlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import ADDRESS, AnyPath, in_bucket, size_of
from mtjudge_jax.prepare.checking import NOT_DOWNLOADED
from mtjudge_jax.prepare.readers.downloads import check_downloaded, is_hidden, is_pointer, to_unpack
from mtjudge_jax.prepare.readers.fields import quoted
from mtjudge_jax.prepare.readers.files import AGAIN
from mtjudge_jax.records import BadRecord

_MAX_IMAGE_BYTES = 200_000_000  # of an encoded image; no photograph is larger
IMAGE_FOLDERS = ("", "image", "images")
ReadImage = Callable[[str], bytes]


@contextlib.contextmanager
def image_reader(source: AnyPath, *, folders: Sequence[str] = IMAGE_FOLDERS, remedy: str = AGAIN) -> Iterator[ReadImage]:
    """A function from an image's native name to its bytes, from the source folder or the zips in it.

    It looks for a name below each of `folders`, with and without one of them in front: "7.jpg", "image/7.jpg". It raises
    BadRecord: `image_path` for a name that leads out of the folder or is an address, `missing_image`, `unreadable_image`,
    `image_bytes` for more than _MAX_IMAGE_BYTES, `broken_zip`.
    """
    folder = source.parent if source.is_file() else source
    names = sorted(path.name for path in folder.iterdir() if not is_hidden(path.name))
    remarks = to_unpack(names)
    with contextlib.ExitStack() as stack:
        members = {}
        for path in (folder / name for name in names if name.endswith(".zip")):
            if is_pointer(path):
                remarks += f"; {path.name} there is {NOT_DOWNLOADED}"
                continue
            archive = stack.enter_context(opened_zip(path, remedy=remedy))
            members |= {info.filename: (archive, info) for info in archive.infolist() if not info.is_dir()}

        def read(name: str) -> bytes:
            for place in _places(name, folders):
                if place in members:
                    return zip_member(*members[place])
                try:
                    if (folder / place).is_file():
                        return _file(folder, place)
                except OSError as e:  # no permission, or a broken disk
                    raise BadRecord("unreadable_image", f"{place}: {e.strerror or e}") from e
            raise BadRecord("missing_image", f"{name} is not in {folder}{remarks}")

        yield read


def image_of(value: Any, read: ReadImage, name: str) -> bytes:
    """Encoded bytes of an image column: bytes, the name of a file, or {"bytes": .., "path": ..} with either."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str) and value:
        return read(value)
    raise BadRecord("missing_image", f"{name} holds no image")


@contextlib.contextmanager
def opened_zip(path: AnyPath, *, remedy: str = AGAIN) -> Iterator[zipfile.ZipFile]:
    """Raises UserError if the file is not a zip."""
    check_downloaded(path)
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OSError) as e:
            raise UserError(f"{path}: not readable as zip ({e}); {remedy}") from e
        yield archive


def _places(name: str, folders: Sequence[str]) -> list[str]:
    """The paths in the folder where an image may be, each once."""
    path = PurePosixPath(name.replace("\\", "/"))
    if ADDRESS.match(name) or path.is_absolute() or not path.parts or ".." in path.parts or ":" in path.parts[0]:
        raise BadRecord("image_path", f"{quoted(name)} leads out of the data set's folder: names are relative and inside it")
    if max(len(part.encode(errors="replace")) for part in path.parts) > 255 or len(name) > 2000 or "\0" in name:
        raise BadRecord("image_path", f"{quoted(name)} is not a file name")
    bare = PurePosixPath(*path.parts[1:]) if path.parts[0] in folders and len(path.parts) > 1 else path
    return list(dict.fromkeys(str(PurePosixPath(folder) / form) for form in (path, bare) for folder in folders))


def _file(folder: AnyPath, place: str) -> bytes:
    path = folder / place
    if not in_bucket(folder) and not _is_inside(path.resolve(), folder.resolve()):
        raise BadRecord("image_path", f"{place} is a link that leads out of {folder}")
    _check_size(place, size_of(path))
    return path.read_bytes()


def _is_inside(real: Path, folder: Path) -> bool:
    """Whether the file is in the folder, or in the `blobs` to which the links of a snapshot in Hugging Face's cache lead."""
    blobs = next((path.parent / "blobs" for path in folder.parents if path.name == "snapshots"), folder)
    return real.is_relative_to(folder) or real.is_relative_to(blobs)


def zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Raises BadRecord `image_bytes` and `broken_zip`."""
    _check_size(info.filename, info.file_size)
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as e:  # damaged or encrypted
        raise BadRecord("broken_zip", f"{info.filename}: {e}") from e


def _check_size(name: str, size: int) -> None:
    if size > _MAX_IMAGE_BYTES:
        raise BadRecord("image_bytes", f"{name} has {size:,} bytes, more than {_MAX_IMAGE_BYTES:,}: too large for an image")
