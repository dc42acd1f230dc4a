"""What the readers of evaluation sets share: rows of parquet and JSON files, and fields with their checks.

A native file is taken as it was published. Its columns have had several names over the revisions, so a reader lists
for each field the names it may have (`Fields`). What is wrong with one row is a BadRecord, what is wrong with a file a
ValueError. Nothing is written and no address is fetched.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.paths import AnyPath, files_below
from mtjudge_jax.records import BadRecord, JudgeExample, check_example

REVISION = {"revision": "revision of the data set, kept in every record (default: none)"}
AGAIN = "download it again"  # what helps against a damaged file of a published set
BATCH_ROWS = 16  # rows of a parquet file in memory at once


class Field(NamedTuple):
    """The names that a column has had, the newest first."""

    names: tuple[str, ...]
    needed: bool = True


Fields = Mapping[str, Field]


class Row(NamedTuple):
    place: str  # "test-00000-of-00002.parquet row 17", for messages
    index: int  # from 0, over all files of one list, bad rows counted
    fields: dict[str, Any]  # None where an optional column is missing


def fields(**names: str) -> dict[str, Field]:
    """fields(label="human human_answer", models="models?") -> label by either name; models, which may be missing."""
    return {key: Field(tuple(text.rstrip("?").split()), not text.endswith("?")) for key, text in names.items()}


def take_options(given: Mapping[str, str], known: Mapping[str, str], **choices: Sequence[str]) -> dict[str, str]:
    """The options with their defaults, the first of `choices`; "" for what is free text.

    Raises ValueError for an unknown option and for a value outside the choices.
    """
    for name in given:
        if name not in known:
            raise UserError(unknown("option", name, known))
    taken = {name: given.get(name, choices[name][0] if name in choices else "") for name in known}
    for name, values in choices.items():
        if taken[name] not in values:
            raise UserError(f"option {name}: {unknown('choice', taken[name], values)}")
    return taken


def find_files(source: AnyPath, ending: str, how: str) -> list[AnyPath]:
    """The file itself, or all files below the folder that end so, sorted. Raises ValueError where there are none."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such folder or file. {how}")
    there = files_below(source)
    found = [source / name for name in there if name.endswith(ending)]
    if not found:
        shown = ", ".join(list(there)[:5]) or "nothing"
        raise UserError(f"{source}: no file that ends in {ending}, there is {shown}. {how}")
    return found


def parquet_rows(paths: Sequence[AnyPath], wanted: Fields, *, remedy: str = AGAIN) -> Iterator[Row | BadRecord]:
    """The wanted columns of parquet files. In memory is one page of each column (1 MB, or of large
    values up to 1,024 rows), at most a row group.

    A damaged row group gives a BadRecord `broken_row_group` for each row lost, and the next group follows. Raises ValueError
    for a file that is no parquet and for a missing column.
    """
    index = 0
    for path in paths:
        with path.open("rb") as file, _readable(path, remedy):
            table = _parquet(file)
            columns = columns_of(path, table.schema_arrow.names, wanted)
            start = 0
            for group in range(table.num_row_groups):
                stop = start + table.metadata.row_group(group).num_rows
                for number, row in enumerate(_group_rows(table, group, columns, stop - start), start):
                    place = f"{path.name} row {number}"
                    if isinstance(row, BadRecord):
                        yield BadRecord(row.reason, f"{place}: {str(row).removeprefix(f'{row.reason}: ')}")
                    else:
                        yield Row(place, index + number, row)
                start = stop
            index += start


def _group_rows(table: Any, group: int, columns: Mapping[str, str | None], count: int) -> Iterator[dict[str, Any] | BadRecord]:
    import pyarrow

    done = 0
    try:
        names = [name for name in columns.values() if name]
        for batch in table.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=names):
            for row in batch.to_pylist():
                yield {key: row[name] if name else None for key, name in columns.items()}
                done += 1
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
        lost = BadRecord("broken_row_group", f"row group {group} cannot be read ({' '.join(str(e).split())[:120]})")
        yield from [lost] * (count - done)


def column_names(path: AnyPath, *, remedy: str = AGAIN) -> list[str]:
    """Of a parquet file. Raises ValueError as `parquet_rows`."""
    with path.open("rb") as file, _readable(path, remedy):
        return _parquet(file).schema_arrow.names


def json_rows(path: AnyPath, wanted: Fields) -> Iterator[Row | BadRecord]:
    """The objects of a JSON list or of a file with one JSON object a line (which holds no image, so is read whole).

    Raises ValueError where nothing can be read and where no object has a needed field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: no UTF-8 text ({e}); download it again") from e
    objects = list(_json_objects(path, text))
    whole = [value for _, value in objects if isinstance(value, dict)]
    if not whole:
        raise UserError(f"{path}: holds no JSON object; download it again")
    columns_of(path, sorted({name for value in whole for name in value}), wanted)
    for index, (place, value) in enumerate(objects):
        if isinstance(value, BadRecord):
            yield value
        elif not isinstance(value, dict):
            yield BadRecord("bad_json", f"{place}: {str(value)[:40]!r} is no object")
        else:
            held = {key: next((name for name in field.names if name in value), None) for key, field in wanted.items()}
            lacking = [" or ".join(wanted[key].names) for key, name in held.items() if name is None and wanted[key].needed]
            if lacking:
                yield BadRecord("missing_field", f"{place}: no {', no '.join(lacking)}")
            else:
                yield Row(place, index, {key: value[name] if name else None for key, name in held.items()})


def records(
    rows: Iterable[Row | BadRecord],
    make: Callable[[Row], Iterable[JudgeExample]],
    check: Callable[[JudgeExample], None] = check_example,
) -> Iterator[JudgeExample | BadRecord]:
    """The checked examples of each row, and the rows that have none with the reason.

    An id that comes again gets "#2", "#3", so that no row is lost and ids stay unique and stable.
    """
    seen: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, BadRecord):
            yield row
            continue
        try:
            examples = list(make(row))
            for example in examples:
                check(example)
        except BadRecord as e:
            yield BadRecord(e.reason, f"{row.place}: {str(e).removeprefix(f'{e.reason}: ')}", e.example_id)
            continue
        for example in examples:
            seen[example.example_id] += 1
            again = seen[example.example_id]
            name = example.example_id if again == 1 else f"{example.example_id}#{again}"
            yield replace(example, example_id=name, place=row.place)


def text_of(value: Any, name: str, *, empty: bool = False) -> str:
    if isinstance(value, str) and (empty or value.strip()) and value.encode(errors="replace").decode() == value:
        return value  # a lone surrogate, which JSON can hold, would be no text to a tokenizer
    raise BadRecord("wrong_field", f"{name} is {shown(value)}, must be a text")


def name_of(value: Any) -> str:
    """What a model, a category or an id is called: a text or a number, "" where it is not given."""
    return str(value).encode(errors="replace").decode() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def list_of(value: Any, name: str, count: int | None = None) -> list:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise BadRecord("wrong_field", f"{name} is {shown(value)}, must be a list{f' of {count}' if count else ''}")
    return value


def number_of(value: Any, name: str, allowed: Sequence[float]) -> float:
    """One of the allowed numbers, given as a number or as its text."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or number not in allowed:
        raise BadRecord("label_outside", f"{name} is {shown(value)}, must be {' or '.join(f'{a:g}' for a in allowed)}")
    return number


def choice_of(value: Any, name: str, choices: Mapping[str, Any]) -> Any:
    """What a word stands for; case and spaces around it do not count."""
    word = value.strip().lower() if isinstance(value, str) else None
    for choice, meaning in choices.items():
        if word == choice.lower():
            return meaning
    raise BadRecord("label_outside", f"{name} is {shown(value)}, must be {' or '.join(choices)}")


def digest_of(value: str | bytes) -> str:
    """16 hex digits: names a group by its picture or its prompt."""
    return hashlib.sha256(value if isinstance(value, bytes) else value.encode()).hexdigest()[:16]


def raw_json(**values: Any) -> str:
    """What metrics need of a row's native fields; without those that it does not have."""
    held = {name: value for name, value in values.items() if value not in (None, "", [])}
    return json.dumps(held, sort_keys=True)


def shown(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}.."


@contextlib.contextmanager
def _readable(path: AnyPath, remedy: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not readable as parquet ({' '.join(str(e).split())[:200]}); {remedy}") from e


def _parquet(file: Any) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=4 << 20)  # else a whole row group of images


def columns_of(path: AnyPath, there: Sequence[str], wanted: Fields) -> dict[str, str | None]:
    """field -> its name in this file, None where it is optional and missing."""
    found = {key: next((name for name in field.names if name in there), None) for key, field in wanted.items()}
    lacking = [" or ".join(wanted[key].names) for key, name in found.items() if name is None and wanted[key].needed]
    if lacking:
        raise UserError(
            f"{path}: no column {', no column '.join(lacking)}; it has {', '.join(there) or 'none'}: "
            "give the data set's own file, or rename the column"
        )
    return found


def _json_objects(path: AnyPath, text: str) -> Iterator[tuple[str, Any]]:
    """(place, value) of each row; the value is a BadRecord where its line is no JSON."""
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise UserError(f"{path}: no JSON ({e}); download it again") from e
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
