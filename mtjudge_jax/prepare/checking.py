"""Reads a source once: checks each record, decodes its images, and keeps good records in a spool. It resumes after a stop.

A folder holds `spool.bin` (packed records one after the other) and `journal.jsonl` (one line per record read: its
CheckedRecord, or why it is bad). A record whose bytes did not reach the disk is read again.
"""

import collections
import hashlib
import itertools
import json
import math
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgpack
from PIL import Image
from tqdm import tqdm

from mtjudge_jax.data.images import MAX_ASPECT, decode_image
from mtjudge_jax.data.record_file import label_feature
from mtjudge_jax.errors import UserError
from mtjudge_jax.prepare.splits import STRICTEST, CheckedRecord, Drop
from mtjudge_jax.records import BadRecord, JudgeExample, candidates_of, check_example, pack, reordered

Item = JudgeExample | BadRecord
# Git without its extension for large files leaves a text file in place of each of them.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NOT_DOWNLOADED = "a git-lfs pointer, not the file itself: run `git lfs pull` in the clone, or get it with `hf download`"
TRAIN_MEDIAN = "train_median"  # the label rule of a record whose binary label waits for the median score of train
_THREADS, _AHEAD = 16, 8  # threads at most; records ahead per thread
_FLUSH_EVERY = 64
_HEX = 32
_TASK_NAME = re.compile(r"[A-Za-z0-9_]+")


class _Look(NamedTuple):
    """What decoding an image yields: a hash of its pixels, and its width and height."""

    pixels: str
    size: tuple[int, int]


class Checked(NamedTuple):
    rows: list[CheckedRecord]
    bad: list[Drop]

    @property
    def read(self) -> int:
        return len(self.rows) + len(self.bad)


def _look(image: bytes) -> _Look | BadRecord:
    """Decodes the whole image, because a truncated one has a good header. Threads help: Pillow and hashlib release the GIL."""
    if image.startswith(LFS_POINTER):
        return BadRecord("lfs_pointer", NOT_DOWNLOADED)
    try:
        pixels = decode_image(image)
    except BadRecord as e:
        return e
    height, width, _ = pixels.shape
    if max(height, width) > MAX_ASPECT * min(height, width):
        return BadRecord("image_aspect", f"{width}x{height} is over {MAX_ASPECT} to 1; crop or pad it first")
    digest = hashlib.sha256(b"%d %d " % (width, height))
    digest.update(pixels)
    return _Look(digest.hexdigest()[:_HEX], (width, height))


def _needs_median(example: JudgeExample) -> bool:
    return example.kind == "pointwise_binary" and example.label.binary is None and example.label_rule == TRAIN_MEDIAN


def check_fields(example: JudgeExample) -> None:
    """Raises BadRecord like check_example, for a record whose split or binary label may still be open."""
    waits = _needs_median(example) and example.label.score is not None and math.isfinite(example.label.score)
    label = example.label._replace(binary=0) if waits else example.label
    check_example(replace(example, split=example.split or "train", label=label))
    if not _TASK_NAME.fullmatch(example.task):
        raise BadRecord("wrong_fields", f"task {example.task!r} must be letters, digits and _", example.example_id)
    if example.split and example.split not in STRICTEST:
        raise BadRecord("wrong_fields", f"split {example.split!r} is not one of {', '.join(STRICTEST)}", example.example_id)


def _question_and_answer(example: JudgeExample, pixels: Sequence[str]) -> tuple[str, str]:
    """Hash of all that is asked and shown, and the label as text, both with the candidates in a canonical order.

    So a pair and the same pair exchanged have equal hashes, and equal labels if they agree. pixels: hash of each image.
    """
    context, at = example.context_images, example.context_images
    shown = []
    for candidate in candidates_of(example):
        shown.append((candidate.text, pixels[at : at + candidate.images]))
        at += candidate.images
    order = sorted(range(len(shown)), key=shown.__getitem__)
    first = reordered(example, order)
    about = (example.task, example.kind, example.criterion, first.instruction, pixels[:context], [shown[i] for i in order])
    return hashlib.sha256(msgpack.packb(about)).hexdigest()[:_HEX], label_feature(first.label)


class _Spool:
    """The two files, opened to append. They stay open for one check; `close` closes them."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: list[CheckedRecord] = []
        self.bad: list[Drop] = []
        self.ids: list[str] = []  # of every record read, in order
        self.seen: set[str] = set()
        self.looks: dict[str, _Look | BadRecord] = {}
        self._bytes, self._lines = (folder / "spool.bin").open("ab"), (folder / "journal.jsonl").open("ab")
        self._resume(folder / "journal.jsonl", (folder / "spool.bin").stat().st_size)

    def _resume(self, journal: Path, spooled_bytes: int) -> None:
        """Loads what a stopped check wrote; cuts off a half-written end."""
        whole = 0
        with journal.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    entry = json.loads(line)
                except ValueError:  # a machine that lost power leaves zeros
                    break
                if "row" in entry and (set(entry["row"]) != set(CheckedRecord._fields) or entry["row"]["stop"] > spooled_bytes):
                    break  # written by another version, or its record is missing
                self._take(entry)
                whole += len(line)
        self._lines.truncate(whole)
        self._bytes.truncate(self.rows[-1].stop if self.rows else 0)

    def _take(self, entry: dict) -> None:
        if "row" in entry:
            row = CheckedRecord(**entry["row"])
            sizes = tuple((width, height) for width, height in row.sizes)
            row = row._replace(files=tuple(row.files), pixels=tuple(row.pixels), sizes=sizes)
            self._known(row)
        else:
            self.bad.append(Drop(*entry["bad"]))
        self.ids.append(entry["id"])

    def _known(self, row: CheckedRecord) -> None:
        self.rows.append(row)
        self.seen.add(row.example_id)
        self.looks |= {f: _Look(p, size) for f, p, size in zip(row.files, row.pixels, row.sizes, strict=True)}

    def add_bad(self, error: BadRecord, example_id: str) -> None:
        text = str(error).removeprefix(f"{error.reason}: ")
        drop = Drop(error.reason, text, example_id)
        self.bad.append(drop)
        self._line({"bad": drop, "id": example_id})

    def add(self, example: JudgeExample, packed: bytes, files: tuple[str, ...], looks: list[_Look]) -> None:
        start = self.rows[-1].stop if self.rows else 0
        self._bytes.write(packed)
        pixels = tuple(seen.pixels for seen in looks)
        question, canonical_answer = _question_and_answer(example, pixels)
        row = CheckedRecord(
            place=len(self.ids),
            example_id=example.example_id,
            task=example.task,
            native=example.split,
            group=example.group_id,
            terms=example.terms,
            license=example.license,
            answer=label_feature(example.label),
            score=example.label.score,
            median=_needs_median(example),
            question=question,
            canonical_answer=canonical_answer,
            files=files,
            pixels=pixels,
            sizes=tuple(seen.size for seen in looks),
            start=start,
            stop=start + len(packed),
        )
        self._known(row)
        self._line({"row": row._asdict(), "id": example.example_id})

    def _line(self, entry: dict) -> None:
        self.ids.append(entry["id"])
        self._lines.write(json.dumps(entry).encode() + b"\n")
        if len(self.ids) % _FLUSH_EVERY == 0:
            self.flush()

    def flush(self) -> None:
        self._bytes.flush()
        self._lines.flush()

    def close(self) -> None:
        self.flush()
        self._bytes.close()
        self._lines.close()


def check_source(examples: Iterator[Item], folder: Path, *, limit: int = 0) -> Checked:
    """Checks what the reader yields, or only the first `limit` records. Memory grows with the records, not with the images.

    Raises UserError if the source differs from the one of the stopped check, or cannot be read any further.
    """
    spool = _Spool(folder)
    done, threads = len(spool.ids), min(os.cpu_count() or 1, _THREADS)
    waiting: collections.deque = collections.deque()
    looking: dict[str, Future] = {}
    try:
        bar = tqdm(desc="check", unit="record", disable=None, smoothing=0)
        with ThreadPoolExecutor(threads) as pool, bar, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such an image is refused anyway
            for place, item in enumerate(itertools.islice(_readable(examples), limit or None)):
                bar.update()
                if place < done:
                    if item.example_id != spool.ids[place]:
                        raise UserError(
                            f"record {place} is {item.example_id!r}, it was {spool.ids[place]!r}: the source has changed; "
                            f"remove {folder} to start again"
                        )
                    continue
                waiting.append((item, _start(item, spool, looking, pool)))
                if len(waiting) > _AHEAD * threads:
                    _finish(*waiting.popleft(), spool, looking)
            while waiting:
                _finish(*waiting.popleft(), spool, looking)
    finally:
        spool.close()
    return Checked(spool.rows, spool.bad)


def _readable(examples: Iterator[Item]) -> Iterator[Item]:
    """The reader's records. An error of its libraries about a damaged file becomes one line that says how far it read."""
    count = 0
    try:
        for example in examples:
            count += 1
            yield example
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as e:
        raise UserError(f"{e} (after {count} records)" if count else str(e)) from e


def _start(item: Item, spool: _Spool, looking: dict[str, Future], pool: ThreadPoolExecutor) -> tuple[str, ...]:
    """Sends the images not seen yet to the threads; returns the hash of each image."""
    if isinstance(item, BadRecord):
        return ()
    files = tuple(hashlib.sha256(image).hexdigest()[:_HEX] for image in item.images)
    for name, image in zip(files, item.images, strict=True):
        if name not in spool.looks and name not in looking:
            looking[name] = pool.submit(_look, image)
    return files


def _finish(item: Item, files: tuple[str, ...], spool: _Spool, looking: dict[str, Future]) -> None:
    """Waits for the images of one record and keeps it, or the reason why it is unusable."""
    for name in files:
        if name in looking:
            spool.looks[name] = looking.pop(name).result()
    if isinstance(item, BadRecord):
        return spool.add_bad(item, item.example_id)
    looks = [spool.looks[name] for name in files]
    try:
        check_fields(item)
        if item.example_id in spool.seen:
            raise BadRecord("duplicate_id", f"{item.example_id} is also the id of an earlier record", item.example_id)
        for number, seen in enumerate(looks):
            if isinstance(seen, BadRecord):
                detail = str(seen).removeprefix(f"{seen.reason}: ")
                raise BadRecord(seen.reason, f"{item.example_id}: image {number}: {detail}", item.example_id)
        packed = pack(replace(item, source_split=item.source_split or item.split))
    except BadRecord as e:
        return spool.add_bad(placed(e, item), item.example_id)
    except UnicodeEncodeError as e:
        return spool.add_bad(placed(BadRecord("broken_text", f"{item.example_id!a}: {e}"), item), item.example_id)
    spool.add(item, packed, files, looks)


def placed(error: BadRecord, example: JudgeExample) -> BadRecord:
    """The error, preceded by the file and row if the reader knows them."""
    detail = str(error).removeprefix(f"{error.reason}: ")
    return BadRecord(error.reason, f"{example.place}: {detail}", error.example_id) if example.place else error


def spooled(file: BinaryIO, row: CheckedRecord) -> bytes:
    return os.pread(file.fileno(), row.stop - row.start, row.start)
