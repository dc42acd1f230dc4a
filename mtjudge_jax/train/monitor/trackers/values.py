"""The numbers of a line of metrics.jsonl by the name that they have in a tracker."""

import math
from collections.abc import Iterator
from typing import Any


def scalars_of(line: dict) -> dict[str, float]:
    """All finite numbers of a line. Of a training step `train/loss`, `train/seconds/rollout`, `tasks/technical/reward`, and by
    host `train/hosts/memory_mb/0`; of a validation `validation/technical/macro_f1`, `validation/mean/macro_f1`.

    Of a validated task's score only what is one number: its tables and intervals are in eval/.
    """
    rest = {name: value for name, value in line.items() if name not in ("kind", "step", "tasks", "mean")}
    if line["kind"] == "train":
        return dict([*_numbers("train", rest), *_numbers("tasks", line.get("tasks", {}))])
    scores = line["tasks"] | {"mean": line["mean"]}
    plain = {name: {key: value for key, value in score.items() if not _nested(value)} for name, score in scores.items()}
    return dict([*_numbers("validation", rest), *_numbers("validation", plain)])


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _numbers(where: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(f"{where}/{name}", inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _numbers(f"{where}/{place}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield where, float(value)
