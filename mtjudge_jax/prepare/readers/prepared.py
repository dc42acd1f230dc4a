"""What `mtjudge prepare` has written before, several folders joined into one: a run reads one folder.

Records keep their splits, labels and terms. What is a leak or a double over two sets is found as within one.
"""

from collections.abc import Iterator, Mapping

from mtjudge_jax.data.sources import open_split, read_manifest
from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import files
from mtjudge_jax.records import BadRecord, JudgeExample

TASKS: tuple[str, ...] = ()  # what the folders hold
LICENSE = "of each record"
TERMS = "open"  # here as a word for none of its own; each record has its terms
OPTIONS = {"folders": "names of folders in --source, with commas (default: all that are prepared)"}
HOW = "Give the folder in which the prepared ones are, as for data/agin and data/seetrue --source=data."


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    chosen = [name.strip() for name in files.take_options(options, OPTIONS)["folders"].split(",") if name.strip()]
    for folder in folders_of(source, chosen):
        for name in sorted(read_manifest(folder)["files"]):
            records = open_split(folder, *name.split("/"))
            yield from (records[index] for index in range(len(records)))


def folders_of(source: AnyPath, chosen: list[str]) -> list[AnyPath]:
    """Those in `source` that are prepared, or the chosen ones of them. Raises ValueError where there is none of a name."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder. {HOW}")
    if (source / "manifest.json").is_file():
        raise UserError(f"{source} is one prepared folder itself. {HOW}")
    known = sorted(path.name for path in source.iterdir() if path.is_dir() and (path / "manifest.json").is_file())
    if not known:
        raise UserError(f"{source}: no folder in it has a manifest.json. {HOW}")
    for name in chosen:
        if name not in known:
            raise UserError(f"option folders: {unknown('prepared folder', name, known)}")
    return [source / name for name in chosen or known]
