"""A user's own data as parquet, with the images' bytes in it. The columns: the fields of a row, see `own`."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import files, image_files, tables, user_rows
from mtjudge_jax.records import BadRecord, JudgeExample

TASKS: tuple[str, ...] = ()  # what the rows name
LICENSE = user_rows.LICENSE
TERMS = user_rows.TERMS
OPTIONS = user_rows.OPTIONS
HOW = "Give a parquet file or a folder of such: a column a field, an image as bytes or as a struct of bytes and path."
WANTED = {name: files.Field((name,), needed=name == "label") for name in user_rows.FIELDS}


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """Raises ValueError for a column that is no field: it would be lost without a word."""
    taken = user_rows.take(options, OPTIONS, "parquet")
    found = files.find_files(source, ".parquet", HOW)
    for path in found:
        there = files.column_names(path, remedy=user_rows.AGAIN)
        for name in there:
            if name not in user_rows.FIELDS:
                raise UserError(f"{path}: {user_rows.unknown_field('column', name, there)}; rename it or leave it out")
    with image_files.image_reader(source, remedy=user_rows.AGAIN) as images:
        rows = files.parquet_rows(found, WANTED, remedy=user_rows.AGAIN)
        yield from files.records(rows, lambda row: [user_rows.example_of(row, images, taken)], tables.check_waiting)
