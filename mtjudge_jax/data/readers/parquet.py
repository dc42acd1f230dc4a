"""A user's own data as parquet, with the images' bytes in it. The columns: the fields of a row, see `own`."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.data.readers import common, files, own, pictures
from mtjudge_jax.data.records import BadRecord, JudgeExample
from mtjudge_jax.paths import AnyPath

TASKS: tuple[str, ...] = ()  # what the rows name
LICENSE = own.LICENSE
TERMS = own.TERMS
OPTIONS = own.OPTIONS
HOW = "Give a parquet file or a folder of such: a column a field, an image as bytes or as a struct of bytes and path."
WANTED = {name: files.Field((name,), needed=name == "label") for name in own.FIELDS}


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """Raises ValueError for a column that is no field: it would be lost without a word."""
    taken = own.take(options, OPTIONS, "parquet")
    found = files.find_files(source, ".parquet", HOW)
    for path in found:
        there = files.column_names(path, remedy=own.AGAIN)
        for name in there:
            if name not in own.FIELDS:
                raise ValueError(f"{path}: {own.unknown_field('column', name, there)}; rename it or leave it out")
    with pictures.image_reader(source, remedy=own.AGAIN) as images:
        rows = files.parquet_rows(found, WANTED, remedy=own.AGAIN)
        yield from files.records(rows, lambda row: [own.example_of(row, images, taken)], common.check_waiting)
