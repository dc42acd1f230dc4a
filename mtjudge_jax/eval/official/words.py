"""Reads the words of a label or a verdict as numbers, winners, orders and ranks, and groups predictions."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mtjudge_jax.records import TIE

Predictions = Sequence[dict[str, Any]]

# 1 is the good class in every task: safe, matching, natural.
BINARY = {"no": 0, "yes": 1, "unsafe": 0, "safe": 1, "bad": 0, "good": 1, "false": 0, "true": 1}
WINNER = {
    "a": 0, "left": 0, "first": 0, "no": 0, "b": 1, "right": 1, "second": 1, "yes": 1,
    "tie": TIE, "c": TIE, "both": TIE, "equal": TIE, "draw": TIE, "both_good": TIE, "both_bad": TIE,
}  # fmt: skip
TIE_OF_VOTE = {"tievote": "both_good", "bothbad_vote": "both_bad"}


def index_of(value: Any, words: Mapping[str, int]) -> int | None:
    """The number of a label or verdict, None for None. Raises ValueError for an unknown word or number."""
    if value is None:
        return None
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if not isinstance(value, str) and value in words.values():
        return int(value)
    raise ValueError(f"{value!r} is not a label: known are {sorted(set(words.values()))} and {', '.join(words)}")


def places_of(value: Any) -> list[int]:
    """Places of the candidates, the best first: "CDAB", "C > D > A > B" and the ranks (3, 4, 1, 2) -> [2, 3, 0, 1]."""
    if isinstance(value, str):
        return [ord(letter) - ord("A") for letter in value.upper() if letter.isalpha()]
    return sorted(range(len(value)), key=lambda place: value[place])


def rank_list(value: Any) -> list[float]:
    """The ranks of A, B, C, ..: "B > A = C" and the ranks (2, 1, 2) -> [2, 1, 2]; a letter string without ">" has no ties."""
    if not isinstance(value, str):
        return list(value)
    tiers = value.split(">") if ">" in value else [value] if "=" in value else list(value.replace(" ", "").replace(",", ""))
    placed = {letter: rank for rank, tier in enumerate(tiers, 1) for letter in tier.upper() if letter.isalpha()}
    return [placed[letter] for letter in sorted(placed)]


def defined(found: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in found.items() if value is not None}


def groups_of(predictions: Predictions, key: Callable[[dict], Any]) -> dict[Any, list[dict]]:
    groups = defaultdict(list)
    for p in predictions:
        groups[key(p)].append(p)
    return groups


def by_field(predictions: Predictions, *names: str) -> dict[str, list[dict]]:
    """Groups by the first of these native fields that a row has, "" if it has none."""
    return groups_of(predictions, lambda p: field_of(p, *names))


def field_of(prediction: dict, *names: str) -> str:
    """The first of these native fields that the prediction has, as text, else ""."""
    return next((str(prediction["raw"][name]) for name in names if prediction["raw"].get(name) not in (None, "")), "")


def samples_of(predictions: Predictions) -> Iterable[list[dict]]:
    """The rows of one example in one order."""
    return groups_of(predictions, lambda p: (p["example_id"], p["order"])).values()


def vote(agrees: bool, prediction: dict) -> int:
    return 0 if prediction["verdict"] is None else 1 if agrees else -1
