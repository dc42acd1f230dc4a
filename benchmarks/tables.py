"""Tables of a study that is made in parts: CSV files whose lines say with which base and settings of the demo they were made."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mtjudge_jax import demo
from mtjudge_jax.config import to_dict
from mtjudge_jax.demo.config import get_config


@cache
def made_with() -> str:
    """Eight digits that tell the demo's base and settings from others."""
    weights = (Path(demo.__file__).parent / "base" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights + json.dumps(to_dict(get_config()), sort_keys=True).encode()).hexdigest()[:8]


def written(scores: Mapping[str, float | None], names: Sequence[str]) -> dict[str, str]:
    """The named scores as they stand in a table; one that is missing is empty."""
    return {name: "" if (value := scores.get(name)) is None else f"{value:.4g}" for name in names}


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a table that were made with the base and the settings of now; none if there is no table."""
    lines = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
    return [line for line in lines if line.get("made_with") == made_with()]


def write(path: Path, names: Sequence[str], lines: Sequence[Mapping[str, str]]) -> None:
    """Writes the lines with the columns `names` and, last, what they were made with."""
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, (*names, "made_with"))
        table.writeheader()
        table.writerows({**line, "made_with": made_with()} for line in lines)
