"""JSON files that survive a kill: whole files by rename, metrics.jsonl a line at a time."""

import json
import math
import os
from pathlib import Path

import numpy as np


def write_json_atomic(path: str | Path, obj) -> None:
    """The file is the old one or the new one, never half. numpy and jax scalars become numbers, NaN and infinity null."""
    _replace(Path(path), json.dumps(_plain(obj), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def append_metrics(path: str | Path, record: dict) -> None:
    """Adds one line, on disk before this returns to the loop's next step."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n")


def read_metrics(path: str | Path) -> list[dict]:
    """All lines; a last line that a kill cut short is left out. Raises ValueError naming any other line that is not JSON."""
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    out = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                out.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}:{number}: not a line of JSON: mend or remove the line") from error
    return out


def truncate_metrics(path: str | Path, step: int) -> int:
    """Before going on from `step`: drops train and eval lines of later steps and a cut last line; how many lines were dropped.

    step: the restored one; -1 when nothing was restored, so that the run starts with none.
    """
    path = Path(path)
    if not path.exists():
        return 0
    kept = [r for r in read_metrics(path) if not (r["kind"] in ("train", "eval") and r["step"] > step)]
    before = sum(bool(line) for line in path.read_bytes().split(b"\n"))
    _replace(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))
    return before - len(kept)


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _plain(x):
    """What JSON can hold."""
    if isinstance(x, dict):
        return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [_plain(v) for v in x]
    if x is None or isinstance(x, (str, bool, int)):
        return x
    if isinstance(x, Path):
        return str(x)
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    value = np.asarray(x)
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{type(x).__name__} {x!r} has no place in JSON: convert it to numbers or text")
    return _plain(value.tolist())
