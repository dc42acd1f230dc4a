"""What the readers share about a row's fields and their own options: checked values, thresholds for labels, ids.

A value that cannot be used raises BadRecord, which costs one row; an option that cannot be used raises UserError.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.prepare.checking import TRAIN_MEDIAN
from mtjudge_jax.records import BadRecord

REVISION = {"revision": "revision of the data set, kept in every record (default: none)"}
MARGIN = {"margin": "with train_median: skip train records whose score is this close to the median (default: 0)"}


def take_options(given: Mapping[str, str], known: Mapping[str, str], **choices: Sequence[str]) -> dict[str, str]:
    """The options with their defaults: the first of their `choices`, or "" for free text.

    Raises UserError for an unknown option and for a value outside the choices.
    """
    for name in given:
        if name not in known:
            raise UserError(unknown("option", name, known))
    taken = {name: given.get(name, choices[name][0] if name in choices else "") for name in known}
    for name, values in choices.items():
        if taken[name] not in values:
            raise UserError(f"option {name}: {unknown('choice', taken[name], values)}")
    return taken


class Threshold(NamedTuple):
    """Scores above `value` get label 1, with `equal` also `value` itself; without a value prepare uses the median of train."""

    value: float | None
    equal: bool = False
    how: str = ""  # where the value comes from


def binary_of(score: float, threshold: Threshold) -> int | None:
    if threshold.value is None:
        return None
    return int(score >= threshold.value if threshold.equal else score > threshold.value)


def label_rule(field: str, threshold: Threshold) -> str:
    """Threshold(3.0, how="scale_midpoint"), field "MOS_nat" -> "MOS_nat > 3 (scale_midpoint)"."""
    if threshold.value is None:
        return TRAIN_MEDIAN
    how = f" ({threshold.how})" if threshold.how else ""
    return f"{field} {'>=' if threshold.equal else '>'} {threshold.value:g}{how}"


def as_number(value: Any) -> float:
    """The number, also one given as text, or nan for anything else."""
    try:
        return math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def number_option(options: Mapping[str, str], name: str) -> float:
    """Raises UserError if the option is not a finite number."""
    number = as_number(options[name])
    if not math.isfinite(number):
        raise UserError(f"option {name}: {options[name]!r} must be a finite number")
    return number


def scale_of(text: str) -> tuple[float, float] | None:
    """ "1-5" -> (1.0, 5.0). Raises UserError."""
    if not text:
        return None
    low, _, high = text.replace(",", "-").partition("-")
    scale = as_number(low), as_number(high)
    if not scale[0] < scale[1]:
        raise UserError(f"option scale: {text!r} must be the lowest and the highest score, as 1-5")
    return scale


def text_of(value: Any, name: str, *, empty: bool = False) -> str:
    if isinstance(value, str) and (empty or value.strip()) and value.encode(errors="replace").decode() == value:
        return value  # JSON can hold a lone surrogate, which a tokenizer cannot take
    raise BadRecord("wrong_field", f"{name} is {quoted(value)}, must be a text")


def name_of(value: Any) -> str:
    """The name of a model or a category, or an id: a text or a number, "" if it is absent."""
    return str(value).encode(errors="replace").decode() if isinstance(value, str | int) and not isinstance(value, bool) else ""


def list_of(value: Any, name: str, count: int | None = None) -> list:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        raise BadRecord("wrong_field", f"{name} is {quoted(value)}, must be a list{f' of {count}' if count else ''}")
    return value


def number_of(value: Any, name: str, allowed: Sequence[float]) -> float:
    """One of the allowed numbers, given as a number or as its text."""
    number = as_number(value) if isinstance(value, str | int | float) else math.nan
    if number not in allowed:
        raise BadRecord("label_outside", f"{name} is {quoted(value)}, must be {' or '.join(f'{a:g}' for a in allowed)}")
    return number


def choice_of(value: Any, name: str, choices: Mapping[str, Any]) -> Any:
    """The meaning of a word; case and surrounding spaces are ignored."""
    word = value.strip().lower() if isinstance(value, str) else None
    for choice, meaning in choices.items():
        if word == choice.lower():
            return meaning
    raise BadRecord("label_outside", f"{name} is {quoted(value)}, must be {' or '.join(choices)}")


def digest_of(value: str | bytes) -> str:
    """16 hex digits that name a group by its picture or its prompt."""
    return hashlib.sha256(value if isinstance(value, bytes) else value.encode()).hexdigest()[:16]


def raw_json(**values: Any) -> str:
    """JSON of the native fields that metrics need, without absent ones."""
    held = {name: value for name, value in values.items() if value not in (None, "", [])}
    return json.dumps(held, sort_keys=True)


def quoted(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}.."


def finite_number(value: str | float | None, name: str) -> float:
    """A number, also given as text. Raises BadRecord `label_outside` for an empty cell, a word or nan."""
    number = as_number(value)
    if not math.isfinite(number):
        raise BadRecord("label_outside", f"{name} is {quoted(value)}, must be a number")
    return number
