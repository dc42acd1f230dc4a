"""What the readers share about the rows of files.

A native file is read as it was published. Its columns have had several names over the revisions, so a reader lists for each
field the names that its column may have (`Columns`). A broken row is a BadRecord, a broken file a UserError. The readers
write nothing and open no connection.
"""

import contextlib
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers.downloads import check_downloaded
from mtjudge_jax.records import BadRecord, JudgeExample

AGAIN = "download it again"  # the remedy for a damaged file of a published set
_BATCH_ROWS = 16  # rows of a parquet file in memory at once


class Column(NamedTuple):
    """The names that a column has had, the newest first."""

    names: tuple[str, ...]
    needed: bool = True


Columns = Mapping[str, Column]


class NativeRow(NamedTuple):
    place: str  # "test-00000-of-00002.parquet row 17", for messages
    index: int  # from 0, over all files of one list, bad rows counted
    fields: dict[str, Any]  # None where an optional column is missing


def columns(**names: str) -> dict[str, Column]:
    """columns(label="human human_answer", models="models?"): label by either name, and the optional models."""
    return {key: Column(tuple(text.rstrip("?").split()), not text.endswith("?")) for key, text in names.items()}


def parquet_rows(paths: Sequence[AnyPath], wanted: Columns, *, remedy: str = AGAIN) -> Iterator[NativeRow | BadRecord]:
    """The wanted columns of parquet files. Memory holds one page of each column (1 MB, or up to 1,024 rows of large values),
    at most a row group.

    A damaged row group gives a BadRecord `broken_row_group` for each lost row, and reading continues with the next group.
    Raises UserError for a file that is no parquet and for a missing column.
    """
    index = 0
    for path in paths:
        with path.open("rb") as file, _readable(path, remedy):
            table = _parquet(file)
            names = _names_of(path, table.schema_arrow.names, wanted)
            start = 0
            for group in range(table.num_row_groups):
                stop = start + table.metadata.row_group(group).num_rows
                for number, row in enumerate(_group_rows(table, group, names, stop - start), start):
                    place = f"{path.name} row {number}"
                    if isinstance(row, BadRecord):
                        yield BadRecord(row.reason, f"{place}: {str(row).removeprefix(f'{row.reason}: ')}")
                    else:
                        yield NativeRow(place, index + number, row)
                start = stop
            index += start


def _group_rows(table: Any, group: int, names: Mapping[str, str | None], count: int) -> Iterator[dict[str, Any] | BadRecord]:
    import pyarrow

    done = 0
    try:
        present = [name for name in names.values() if name]
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=present):
            for row in batch.to_pylist():
                yield {key: row[name] if name else None for key, name in names.items()}
                done += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
        lost = BadRecord("broken_row_group", f"row group {group} cannot be read ({' '.join(str(e).split())[:120]})")
        yield from [lost] * (count - done)


def column_names(path: AnyPath, *, remedy: str = AGAIN) -> list[str]:
    """The column names of a parquet file. Raises UserError as `parquet_rows`."""
    with path.open("rb") as file, _readable(path, remedy):
        return _parquet(file).schema_arrow.names


def csv_rows(path: AnyPath, wanted: Columns) -> Iterator[NativeRow | BadRecord]:
    """The wanted columns of a CSV whose first line names the columns, one row in memory at a time.

    Raises UserError for a missing column and for a file that is not UTF-8 text.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    check_downloaded(path)
    with path.open("rb") as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
        try:
            header = next(lines, [])
            yield from _cells(path, lines, header, _names_of(path, header, wanted))
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: not UTF-8 text ({e}): save it as UTF-8") from e


def json_rows(path: AnyPath, wanted: Columns) -> Iterator[NativeRow | BadRecord]:
    """The objects of a JSON list, or of a file with one JSON object per line. It holds no images, so it is read whole.

    Raises UserError if nothing can be read, or if no object has a needed field.
    """
    check_downloaded(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text ({e}); {AGAIN}") from e
    objects = list(_json_objects(path, text))
    whole = [value for _, value in objects if isinstance(value, dict)]
    if not whole:
        raise UserError(f"{path}: holds no JSON object; {AGAIN}")
    _names_of(path, sorted({name for value in whole for name in value}), wanted)
    for index, (place, value) in enumerate(objects):
        if isinstance(value, BadRecord):
            yield value
        elif not isinstance(value, dict):
            yield BadRecord("bad_json", f"{place}: {str(value)[:40]!r} is not an object")
        else:
            held = {key: next((name for name in field.names if name in value), None) for key, field in wanted.items()}
            lacking = [" or ".join(wanted[key].names) for key, name in held.items() if name is None and wanted[key].needed]
            if lacking:
                yield BadRecord("missing_field", f"{place}: no {', no '.join(lacking)}")
            else:
                yield NativeRow(place, index, {key: value[name] if name else None for key, name in held.items()})


def records(
    rows: Iterable[NativeRow | BadRecord], make: Callable[[NativeRow], Iterable[JudgeExample]]
) -> Iterator[JudgeExample | BadRecord]:
    """The examples that `make` builds from each row, or the reason why a row has none.

    A repeated id gets "#2", "#3", so that no row is lost and ids stay unique and stable.
    """
    seen: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, BadRecord):
            yield row
            continue
        try:
            examples = list(make(row))
        except BadRecord as e:
            yield BadRecord(e.reason, f"{row.place}: {str(e).removeprefix(f'{e.reason}: ')}", e.example_id)
            continue
        for example in examples:
            seen[example.example_id] += 1
            again = seen[example.example_id]
            name = example.example_id if again == 1 else f"{example.example_id}#{again}"
            yield replace(example, example_id=name, place=row.place)


@contextlib.contextmanager
def _readable(path: AnyPath, remedy: str) -> Iterator[None]:
    import pyarrow

    check_downloaded(path)
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not readable as parquet ({' '.join(str(e).split())[:200]}); {remedy}") from e


def _parquet(file: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=4 << 20)  # else a whole row group of images


def _names_of(path: AnyPath, there: Sequence[str], wanted: Columns) -> dict[str, str | None]:
    """{field: its name in this file, or None if it is optional and missing}"""
    found = {key: next((name for name in field.names if name in there), None) for key, field in wanted.items()}
    lacking = [" or ".join(wanted[key].names) for key, name in found.items() if name is None and wanted[key].needed]
    if lacking:
        raise UserError(
            f"{path}: no column {', no column '.join(lacking)}; it has {', '.join(there) or 'none'}: "
            "give the data set's own file, or rename the column"
        )
    return found


def _json_objects(path: AnyPath, text: str) -> Iterator[tuple[str, Any]]:
    """(place, value) of each row; the value is a BadRecord if its line is not JSON."""
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}: not JSON ({e}); {AGAIN}") from e
        yield from ((f"{path.name} row {index}", value) for index, value in enumerate(values))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path.name} line {number}"
        try:
            yield place, json.loads(line)
        except (ValueError, RecursionError) as e:
            yield place, BadRecord("bad_json", f"{place}: {e}")


def _cells(path: AnyPath, lines: Iterator[list[str]], header: list[str], names: Mapping[str, str | None]) -> Iterator:
    at = {key: header.index(name) for key, name in names.items() if name}
    index = 0
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as e:  # a field longer than csv allows, from a quote that is never closed
            cells = e
        place = f"{path.name} row {index}"
        if cells is None:
            return
        if cells == []:
            continue  # an empty line
        if isinstance(cells, csv.Error):
            yield BadRecord("bad_csv", f"{place}: {cells}")
        elif len(cells) != len(header):
            yield BadRecord("bad_csv", f"{place}: {len(cells)} cells, the file has {len(header)} columns")
        else:
            yield NativeRow(place, index, {key: cells[at[key]] if key in at else None for key in names})
        index += 1
