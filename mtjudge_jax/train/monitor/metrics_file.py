"""metrics.jsonl, which survives a kill line by line, and other JSON files, which are written whole.

An object in a bucket cannot be appended to. There the lines are also kept in memory, and the object is written again at most
every REWRITE_SECONDS and by `flush_metrics`, which a run calls at every checkpoint. A kill loses the lines after the last
checkpoint, whose steps are repeated anyway.
"""

import contextlib
import json
import logging
import math
import os
import time
from dataclasses import dataclass

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, in_bucket, size_of, write_whole

REWRITE_SECONDS = 30


@dataclass
class MetricsFile:
    """The open metrics.jsonl of a run."""

    path: AnyPath
    written: bytes = b""  # the whole object, in a bucket
    waiting: bytes = b""  # lines that are not in the file yet
    at: float = 0.0  # the time of the last write
    failing: bool = False  # whether the last write failed


def write_json_atomic(path: str | os.PathLike, obj) -> None:
    """The file is the old one or the new one, never half of one. numpy and JAX scalars become numbers; NaN and infinity, null."""
    text = json.dumps(as_plain(obj), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(as_path(path), text.encode())


def open_metrics(path: str | os.PathLike) -> MetricsFile:
    path = as_path(path)
    return MetricsFile(path, path.read_bytes() if in_bucket(path) and path.exists() else b"")


def append_metrics(metrics: MetricsFile, record: dict) -> None:
    """Adds one line. On a disk it is in the file before this returns; on a full disk it is kept and written with a later line."""
    metrics.waiting += json.dumps(as_plain(record), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    if not in_bucket(metrics.path) or time.monotonic() - metrics.at > REWRITE_SECONDS:
        flush_metrics(metrics)


def flush_metrics(metrics: MetricsFile) -> None:
    """Writes the waiting lines. A failure is logged once and retried with the next line."""
    if not metrics.waiting:
        return
    metrics.at = time.monotonic()
    try:
        _write_waiting(metrics)
    except Exception as error:
        if not metrics.failing:
            logging.getLogger(__name__).error("%s: %s: lines are kept in memory and written later", metrics.path, error)
        metrics.failing = True
        return
    metrics.waiting, metrics.failing = b"", False


def _write_waiting(metrics: MetricsFile) -> None:
    if in_bucket(metrics.path):
        write_whole(metrics.path, metrics.written + metrics.waiting)
        metrics.written += metrics.waiting
        return
    before = size_of(metrics.path) if metrics.path.exists() else 0
    try:
        with metrics.path.open("ab") as file:
            file.write(metrics.waiting)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(metrics.path, before)  # half a line would damage the next one
        raise


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """All lines, without a last line that a kill cut short. Raises UserError naming any other line that is not JSON."""
    path = as_path(path)
    return _parse(path, path.read_bytes()) if path.exists() else []


def _parse(path: AnyPath, text: bytes) -> list[dict]:
    lines = text.split(b"\n")
    out = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                out.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not a line of JSON: fix or remove the line") from error
    return out


def truncate_metrics(metrics: MetricsFile, step: int, judged: int) -> int:
    """Before a run resumes: drops the train and eval lines that it will write again, and a last line cut short. Returns how many.

    step: the restored step, or -1 if nothing was restored, which drops all. judged: the last step whose validation is in the
    checkpoint; later validations are repeated.
    """
    if not metrics.path.exists():
        return 0
    text = metrics.path.read_bytes()
    last = {"train": step, "eval": judged}
    kept = [r for r in _parse(metrics.path, text) if r["step"] <= last.get(r["kind"], r["step"])]
    before = sum(bool(line) for line in text.split(b"\n"))
    metrics.written = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept).encode()
    write_whole(metrics.path, metrics.written)
    return before - len(kept)


def as_plain(x):
    """The same value in types that JSON has."""
    if isinstance(x, dict):
        return {str(k): as_plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [as_plain(v) for v in x]
    if x is None or isinstance(x, (str, bool, int)):
        return x
    if isinstance(x, os.PathLike):
        return str(x)
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    value = np.asarray(x)
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{type(x).__name__} {x!r} has no form in JSON: convert it to numbers or text")
    return as_plain(value.tolist())
