"""Joins several folders that `mtjudge prepare` wrote into one, because a run reads one folder.

Records keep their splits, labels and terms. Leaks and duplicates between two sets are found like those within one.
"""

from collections.abc import Iterator, Mapping

from mtjudge_jax.data.pipeline import open_split, read_manifest
from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import fields
from mtjudge_jax.records import BadRecord, JudgeExample

TASKS: tuple[str, ...] = ()  # the folders name their tasks
LICENSE = "of each record"
TERMS = "open"  # each record keeps its own terms
OPTIONS = {"folders": "names of folders in --source, separated by commas (default: all prepared ones)"}
HOW = "Give the folder that holds the prepared folders: --source=data for data/agin and data/seetrue."


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    chosen = [name.strip() for name in fields.take_options(options, OPTIONS)["folders"].split(",") if name.strip()]
    for folder in _folders_of(source, chosen):
        for name in sorted(read_manifest(folder)["files"]):
            records = open_split(folder, *name.split("/"))
            yield from (records[index] for index in range(len(records)))


def _folders_of(source: AnyPath, chosen: list[str]) -> list[AnyPath]:
    """The prepared folders in `source`, or the chosen ones. Raises UserError if one does not exist."""
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
