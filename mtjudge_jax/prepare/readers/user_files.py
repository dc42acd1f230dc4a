"""A user's own data: JSONL with images in the same folder (or in zips there), or parquet with the images' bytes in it.

See `user_rows` for the form of a row; in parquet each field is a column.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files, user_rows
from mtjudge_jax.records import BadRecord, JudgeExample

_AGAIN = "write it again"  # the remedy for a damaged file of the user's own


class UserFiles(NamedTuple):
    """The same names as a reader's module has, for one kind of file."""

    read: Callable[[AnyPath, Mapping[str, str]], Iterator[JudgeExample | BadRecord]]
    OPTIONS: Mapping[str, str]
    HOW: str
    TASKS: tuple[str, ...] = ()  # the rows name their tasks
    LICENSE: str = user_rows.LICENSE
    TERMS: str = user_rows.TERMS


def _read_jsonl(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    taken = user_rows.take(options, JSONL.OPTIONS, "jsonl")
    name = taken.options["file"]
    if name and ("/" in name or "\\" in name or not (source / name).is_file()):
        raise UserError(f"option file: {name!r} is not a file in {source}. {JSONL.HOW}")
    found = [source / name] if name else downloads.find_files(source, ".jsonl", JSONL.HOW)
    if len(found) > 1:
        remedy = "name one with --option=file=NAME, or give the file itself"
        raise UserError(f"{source}: several JSONL files ({downloads.first_names(found)}); {remedy}")
    with image_files.image_reader(found[0], remedy=_AGAIN) as images:
        yield from files.records(_json_lines(found[0]), lambda row: [user_rows.example_of_row(row, images, taken)])


def _json_lines(path: AnyPath) -> Iterator[files.NativeRow | BadRecord]:
    """The rows, one line in memory at a time. Messages count lines from 1; empty lines are not rows."""
    index = 0
    downloads.check_downloaded(path)
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
                    yield files.NativeRow(place, index, value)
                else:
                    yield BadRecord("bad_json", f"{place}: {fields.quoted(value)} is not an object")
            index += 1


def _read_parquet(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """Raises UserError for a column that is not a field: its content would be lost silently."""
    taken = user_rows.take(options, PARQUET.OPTIONS, "parquet")
    found = downloads.find_files(source, ".parquet", PARQUET.HOW)
    for path in found:
        there = files.column_names(path, remedy=_AGAIN)
        for name in there:
            if name not in user_rows.FIELDS and not name.startswith("__index_level_"):  # pandas writes it
                raise UserError(f"{path}: {user_rows.not_a_field('column', name, there)}; rename it or leave it out")
    wanted = {name: files.Column((name,), needed=name == "label") for name in user_rows.FIELDS}
    with image_files.image_reader(source, remedy=_AGAIN) as images:
        rows = files.parquet_rows(found, wanted, remedy=_AGAIN)
        yield from files.records(rows, lambda row: [user_rows.example_of_row(row, images, taken)])


JSONL = UserFiles(
    _read_jsonl,
    {"file": "name of the JSONL file in the folder (default: the only one there)", **user_rows.OPTIONS},
    "Give a JSONL file, one row a line, or its folder; image paths start at that folder.",
)
PARQUET = UserFiles(
    _read_parquet,
    user_rows.OPTIONS,
    "Give a parquet file or a folder of them: one column per field, an image as bytes or as a struct of bytes and path.",
)
