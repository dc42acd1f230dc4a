"""`mtjudge judge --data`: judges a file of questions that have no labels, of any size, and writes a verdict per row.

The verdicts of a chunk are appended when it is done, so the same command continues a stopped one.
"""

import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.judge.judge import Judge
from mtjudge_jax.locks import held
from mtjudge_jax.policy.judge_file import best_of
from mtjudge_jax.tasks.verdicts import Verdict

_CHUNK_BATCHES = 4  # judged between two writes
_IMAGE_FIELDS = ("image", "images", "candidates", "context")


class FileRequest(NamedTuple):
    """What the flags ask for."""

    model: str
    data: str
    images: str | None  # the folder that paths in the rows start from; None: that of the file
    out: str
    task: str | None
    batch: int
    samples: int
    both_orders: bool
    dtype: str | None
    mesh: list[str]


def judge_rows(ask: FileRequest) -> None:
    """Judges every row and writes --out, one JSON line per row in their order. Raises UserError for a file that cannot be read
    and for an --out that holds other verdicts.
    """
    data, out = Path(ask.data), Path(ask.out)
    if data.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--data={ask.data}: give a .jsonl or a .parquet file of rows")
    if not data.is_file():
        raise UserError(f"--data={ask.data}: no such file")
    if out.suffix != ".jsonl":
        raise UserError(f"--out={ask.out}: give a file that ends in .jsonl, e.g. --out=verdicts.jsonl")
    total = _count(data)
    if ask.task is None and (without := _without_task(data)) is not None:
        raise UserError(f"--task is missing and {without} names none: give --task, or each row a task")
    with held(out.parent, name=out.name):
        done = _done(out, _facts(ask, data))
        if done == total:
            print(f"{total} rows were judged before, in {out}{_not_judged(out)}")
            return
        if done:
            print(f"{done} of {total} rows were judged before; the rest follows")
        judge = Judge.from_pretrained(ask.model, batch=ask.batch, dtype=ask.dtype, mesh=ask.mesh or None)
        _judge_rest(ask, judge, islice(_rows(data, Path(ask.images or data.parent)), done, None), done, total, out)


def _judge_rest(ask: FileRequest, judge: Judge, rows: Iterator[Any], done: int, total: int, out: Path) -> None:
    began, first, failed, unread, reason = time.perf_counter(), done, 0, 0, ""
    settings = {"task": ask.task, "samples": ask.samples, "both_orders": ask.both_orders}
    bar = tqdm(total=total, initial=done, unit="row", disable=not sys.stderr.isatty())
    with open(out, "a", encoding="utf-8") as file, bar:
        while chunk := list(islice(rows, _CHUNK_BATCHES * ask.batch)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                verdicts = judge.judge_all([row if isinstance(row, UserError) else row[1] for row in chunk], **settings)
            if done == first:
                for warning in caught:
                    if "were not judged" not in str(warning.message):
                        print(f"warning: {warning.message}", file=sys.stderr)
            for place, (row, verdict) in enumerate(zip(chunk, verdicts, strict=True)):
                line = _line(done + place, row, verdict, place)
                asked = not line["error"] or bool(line["text"])
                failed, unread = failed + (not asked), unread + (asked and line["verdict"] is None)
                reason = reason or ("" if asked else f"row {line['row']}: {line['error']}")
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done += len(chunk)
            bar.update(len(chunk))
    seconds = time.perf_counter() - began
    print(f"{done - first} rows judged in {seconds:.1f} s ({(done - first) / seconds:.1f} rows/s), written to {out}")
    if unread:
        print(f"{unread} answers could not be read: their verdict is null")
    if failed:
        said = f"{failed} rows could not be judged: their verdict is null, the reason is in error, as {reason}"
        if failed == done - first == total:
            out.unlink()  # nothing to keep, and the same command then asks again
            raise UserError(said)
        print(said)


def _not_judged(out: Path) -> str:
    with open(out, encoding="utf-8") as lines:
        failed = sum(bool(row["error"]) and not row["text"] for row in map(json.loads, lines))
    return f"; {failed} of them could not be, and are not tried again: name another --out, or remove it" if failed else ""


def _line(number: int, row: Any, verdict: Verdict, place: int) -> dict:
    """One line of the output: the row's number and own `id`, and the verdict."""
    own = {} if isinstance(row, UserError) else row[0]
    error = verdict.error.removeprefix(f"question {place}: ")
    if isinstance(row, UserError):
        error = str(row)
    named = {name: own[name] for name in ("id", "task") if isinstance(own.get(name), (str, int))}
    return {"row": number} | named | verdict._asdict() | {"error": error}


def _rows(data: Path, images: Path) -> Iterator[Any]:
    """(the row as it stands, the question) of each row; a UserError for one that is no row."""
    for place, raw in _raw_rows(data):
        try:
            row = json.loads(raw) if isinstance(raw, str) else raw
            if not isinstance(row, Mapping):
                raise ValueError(f"it is {type(row).__name__}")
        except ValueError as error:
            yield UserError(f"{place} is no JSON object: {error}")
            continue
        placed = {name: _placed(row[name], images) for name in _IMAGE_FIELDS if name in row}
        yield row, _question({**row, **placed})


def _question(row: dict) -> dict:
    """A row of `mtjudge prepare --dataset=jsonl` as a question: its candidates are pictures, or texts about `context`."""
    candidates, context = row.pop("candidates", None), row.pop("context", None) or []
    if candidates is None:
        return row
    texts = [one["text"] for one in candidates if isinstance(one, Mapping) and "text" in one]
    return row | ({"texts": texts, "images": context} if texts else {"images": [*context, *candidates]})


def _raw_rows(data: Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, the row): "line 1" of a text, counted as editors do; "row 0" of a table."""
    if data.suffix == ".jsonl":
        with open(data, encoding="utf-8", errors="surrogateescape") as lines:
            yield from ((f"line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
        return
    import pyarrow.parquet

    batches = pyarrow.parquet.ParquetFile(data).iter_batches(batch_size=64)
    yield from ((f"row {number}", row) for number, row in enumerate(row for batch in batches for row in batch.to_pylist()))


def _without_task(data: Path) -> str | None:
    """Where the first row stands that names no task of its own, among the first thousand; unreadable rows are told of later."""
    for place, raw in islice(_raw_rows(data), 1000):
        with contextlib.suppress(ValueError):
            row = json.loads(raw) if isinstance(raw, str) else raw
            if isinstance(row, Mapping) and not row.get("task"):
                return place
    return None


def _count(data: Path) -> int:
    if data.suffix == ".jsonl":
        with open(data, "rb") as lines:
            return sum(bool(line.strip()) for line in lines)
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(data).metadata.num_rows


def _placed(value: Any, images: Path) -> Any:
    """A path below the folder of images; bytes, also in the form {"bytes": .., "path": ..}, as they are."""
    if isinstance(value, list):
        return [_placed(one, images) for one in value]
    if isinstance(value, Mapping):
        bare = value.get("bytes") or value.get("path") or value.get("image")
        return value if bare is None else _placed(bare, images)
    return images / value if isinstance(value, str) and "://" not in value else value


def _facts(ask: FileRequest, data: Path) -> dict:
    """What must be the same where a stopped command goes on."""
    stat = data.stat()
    facts = ask._replace(out="", batch=0)._asdict() | {"model": os.fspath(best_of(ask.model)), "data": str(data.resolve())}
    return facts | {"bytes": stat.st_size, "changed": stat.st_mtime_ns}


def _done(out: Path, facts: dict) -> int:
    """How many rows `out` holds; begins it where it is not there. A line that was not finished is cut off."""
    beside = out.parent / f".{out.name}.settings.json"
    if not out.exists() or not out.stat().st_size:  # a command that failed at once has left nothing to lose
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(facts))
        out.touch()
        return 0
    try:
        before = json.loads(beside.read_text())
    except (OSError, ValueError):
        raise ConfigError(f"--out={out} exists and was not written by this command: name another file") from None
    if any(facts[name] != before.get(name) for name in ("bytes", "changed")) and facts["data"] == before.get("data"):
        raise ConfigError(f"--data={facts['data']} has changed since {out} was begun: name another --out, or remove it")
    if different := [name for name in facts if facts[name] != before.get(name)]:
        said = ", ".join(f"{name} {before.get(name)!r} -> {facts[name]!r}" for name in different)
        raise ConfigError(f"--out={out} holds verdicts of another command ({said}): name another file, or remove it")
    with open(out, "rb+") as file:
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(file.tell() - len(line))
                break
            whole += 1
    return whole
