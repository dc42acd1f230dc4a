"""A user's own data as JSONL, with images in the same folder (or in zips there). The form of a row: see `own`."""

import json
from collections.abc import Iterator, Mapping

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import files, image_files, tables, user_rows
from mtjudge_jax.records import BadRecord, JudgeExample

TASKS: tuple[str, ...] = ()  # what the rows name
LICENSE = user_rows.LICENSE
TERMS = user_rows.TERMS
OPTIONS = {"file": "name of the JSONL file in the folder (default: the only one there)", **user_rows.OPTIONS}
HOW = "Give a JSONL file, one row a line, or the folder with it; images are paths from that folder on."


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    taken = user_rows.take(options, OPTIONS, "jsonl")
    name = taken.options["file"]
    if name and ("/" in name or "\\" in name or not (source / name).is_file()):
        raise UserError(f"option file: {name!r} is no file in {source}. {HOW}")
    found = [source / name] if name else files.find_files(source, ".jsonl", HOW)
    if len(found) > 1:
        shown = ", ".join(path.name for path in found[:5])
        raise UserError(f"{source}: several JSONL files ({shown}); name one with --option=file=NAME, or give the file itself")
    with image_files.image_reader(found[0], remedy=user_rows.AGAIN) as images:
        yield from files.records(_rows(found[0]), lambda row: [user_rows.example_of(row, images, taken)], tables.check_waiting)


def _rows(path: AnyPath) -> Iterator[files.Row | BadRecord]:
    """One line in memory at a time. Lines count from 1 in messages, empty ones are no rows."""
    index = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path.name} line {number}"
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as e:
                yield BadRecord("bad_json", f"{place}: {e}")
            else:
                if isinstance(value, dict):
                    yield files.Row(place, index, value)
                else:
                    yield BadRecord("bad_json", f"{place}: {files.shown(value)} is no object")
            index += 1
