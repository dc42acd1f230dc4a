"""What the readers of training sets share: rows of a CSV, and labels that wait for the median of train."""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers.files import Fields, Row, columns_of, shown
from mtjudge_jax.records import BadRecord, JudgeExample, check_example

MEDIAN = "train_median"  # as a label rule: prepare makes the binary label of the score, once it knows what is in train
MARGIN = {"margin": "with train_median: train records this near to the median are left out (default: 0)"}


class Threshold(NamedTuple):
    """A score of the good class is above `value`, or equals it where `equal`; without a value prepare finds the median."""

    value: float | None
    equal: bool = False
    how: str = ""  # where the value comes from


def binary_of(score: float, threshold: Threshold) -> int | None:
    if threshold.value is None:
        return None
    return int(score >= threshold.value if threshold.equal else score > threshold.value)


def rule_of(field: str, threshold: Threshold) -> str:
    """Threshold(3.0, how="scale_midpoint"), field "MOS_nat" -> "MOS_nat > 3 (scale_midpoint)"."""
    if threshold.value is None:
        return MEDIAN
    how = f" ({threshold.how})" if threshold.how else ""
    return f"{field} {'>=' if threshold.equal else '>'} {threshold.value:g}{how}"


def number_option(options: Mapping[str, str], name: str) -> float:
    """Raises ValueError where the option is no finite number."""
    try:
        number = float(options[name])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"option {name}: {options[name]!r} is no number")
    return number


def check_waiting(example: JudgeExample) -> None:
    """check_example of a record whose split, and whose binary label, may be left to prepare."""
    waits = example.label_rule == MEDIAN and example.label.binary is None and example.label.score is not None
    label = example.label._replace(binary=0) if waits else example.label
    check_example(replace(example, split=example.split or "train", label=label))


def finite(value: str | float | None, name: str) -> float:
    """A number, also as text. Raises BadRecord `label_outside`: an empty cell, a word, nan."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRecord("label_outside", f"{name} is {shown(value)}, must be a number")
    return number


def csv_rows(path: AnyPath, wanted: Fields) -> Iterator[Row | BadRecord]:
    """The wanted columns of a CSV with a line of column names, one row in memory at a time.

    Raises ValueError for a missing column and for a file that is no UTF-8 text.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
        try:
            names = next(lines, [])
            columns = columns_of(path, names, wanted)
            yield from _cells(path, lines, names, columns)
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: no UTF-8 text ({e}): save it as UTF-8") from e


def _cells(path: AnyPath, lines: Iterator[list[str]], names: list[str], columns: dict[str, str | None]) -> Iterator:
    at = {key: names.index(name) for key, name in columns.items() if name}
    index = 0
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as e:  # a field longer than csv allows: a quote that is never closed
            cells = e
        place = f"{path.name} row {index}"
        if cells is None:
            return
        if cells == []:
            continue  # an empty line
        if isinstance(cells, csv.Error):
            yield BadRecord("bad_csv", f"{place}: {cells}")
        elif len(cells) != len(names):
            yield BadRecord("bad_csv", f"{place}: {len(cells)} cells, the file has {len(names)} columns")
        else:
            yield Row(place, index, {key: cells[at[key]] if key in at else None for key in columns})
        index += 1
