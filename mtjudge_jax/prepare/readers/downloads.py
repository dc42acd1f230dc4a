"""What the readers share about a download: which files are the data, and what was not downloaded or unpacked."""

from collections.abc import Iterable, Sequence

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, files_below, in_bucket
from mtjudge_jax.prepare.checking import LFS_POINTER, NOT_DOWNLOADED

_PACKED = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


def is_hidden(name: str) -> bool:
    """What git, `hf download` and macOS put beside the data: .git/config, .cache/huggingface/.., ._a.parquet, __MACOSX/.."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def to_unpack(names: Iterable[str]) -> str:
    """["test.json", "test.tar.gz"] -> "; unpack test.tar.gz there first", "" without such an archive."""
    packed = [name for name in names if name.endswith(_PACKED)]
    return f"; unpack {', '.join(packed[:3])} there first" if packed else ""


def snapshot_of(source: AnyPath) -> AnyPath:
    """The folder itself; of a repository in Hugging Face's cache (datasets--org--name) the snapshot that its refs/main names, or
    the only one. Raises UserError if there are others only.
    """
    if not ((source / "snapshots").is_dir() and (source / "blobs").is_dir()):
        return source
    there = sorted(path.name for path in (source / "snapshots").iterdir() if path.is_dir())
    main = source / "refs" / "main"
    chosen = main.read_text().strip() if main.is_file() else there[0] if len(there) == 1 else ""
    if chosen not in there:
        raise UserError(f"{source / 'snapshots'}: holds {', '.join(there) or 'no revision'}: give the folder of one revision")
    return source / "snapshots" / chosen


def data_files(source: AnyPath) -> dict[str, int]:
    """{name: bytes} of the files below a folder, and behind links in it to folders elsewhere, each once, without hidden ones."""
    found = files_below(source)
    links = () if in_bucket(source) else sorted(path for path in source.iterdir() if path.is_symlink() and path.is_dir())
    seen = [source.resolve()] if links else []
    for link in links:
        real = link.resolve()
        if not any(real.is_relative_to(other) or other.is_relative_to(real) for other in seen):
            seen.append(real)
            found |= {f"{link.name}/{name}": size for name, size in files_below(link).items()}
    return {name: size for name, size in sorted(found.items()) if not is_hidden(name)}


def find_files(source: AnyPath, name: str, how: str) -> list[AnyPath]:
    """The file itself, or all files below the folder with this name, or with this ending (".csv"), sorted.

    Raises UserError if there are none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such folder or file. {how}")
    there = list(data_files(source))
    found = [source / path for path in there if (path.endswith(name) if name[0] == "." else path.split("/")[-1] == name)]
    if not found:
        shown = f"{', '.join(there[:5]) or 'nothing'}{to_unpack(there)}"
        raise UserError(f"{source}: no file that ends in {name}, there is {shown}. {how}")
    return found


def split_of(path: AnyPath, splits: Sequence[str]) -> str:
    """The split that a file's name begins with, or else its folder's name, "" for none of the splits.

    test-00000-of-00002.parquet, test.parquet, test/0000.parquet -> test
    """
    names = (path.name.split("-")[0].removesuffix(".parquet"), path.parent.name)
    return next((name for name in names if name in splits), "")


def is_pointer(path: AnyPath) -> bool:
    """Whether git has not downloaded the file itself."""
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def check_downloaded(path: AnyPath) -> None:
    """Raises UserError for a file that git has not downloaded."""
    if is_pointer(path):
        raise UserError(f"{path}: {NOT_DOWNLOADED}")


def first_names(paths: Sequence[AnyPath]) -> str:
    return ", ".join(path.name for path in paths[:5])
