"""Prepared data on disk: the manifest, an ArrayRecord file for each (split, task), and the count of unusable records."""

import collections
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtjudge_jax.data.bucket_cache import local_copy
from mtjudge_jax.data.images import TOO_LARGE
from mtjudge_jax.data.tf_example import record_in
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, in_bucket
from mtjudge_jax.records import BadRecord, JudgeExample, unpack

MANIFEST_VERSION = 2  # an entry may name its file; version 1 had none of these and plain records
_READABLE_VERSIONS = (1, 2)
MAX_BAD_SHARE = 0.01
_SHOWN_IDS = 10
MIN_ROWS_TO_JUDGE = 100  # with fewer rows, a single bad one would already exceed the limit
REASONS_OF_CONFIG = (*TOO_LARGE, "target_too_long")  # the config can fix these, new data cannot


class TooManyBadRecords(UserError):
    """More records than the limit allows cannot be used; the text lists reasons and ids."""


class RecordSource:
    """Random access to the records of a file: `source[i]` is a JudgeExample, or the BadRecord that reading it raised.

    Reading never raises, so a damaged record reaches the counter in the loop instead of killing a reader thread.
    """

    def __init__(self, file: str | os.PathLike):
        self.file = os.fspath(file)
        if not os.path.isfile(self.file):
            raise UserError(f"{self.file} missing; prepare the data first: {_prepare_line(as_path(self.file).parents[1])}")
        # A slow import, which `mtjudge prepare --help` must not wait for.
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            self._records = ArrayRecordDataSource([self.file])
        except Exception as e:
            raise UserError(f"{self.file}: not readable as ArrayRecord ({e}); prepare the data again") from e

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> JudgeExample | BadRecord:
        place = f"{as_path(self.file).stem}[{index}]"
        try:
            return unpack(record_in(self._records[index]))
        except BadRecord as e:
            return BadRecord(e.reason, f"{place}: {e}", place)
        except Exception as e:  # a failed checksum raises RuntimeError, ValueError or IndexError, depending on the damage
            return BadRecord("damaged_record", f"{place}: {type(e).__name__}: {e}", place)

    def __repr__(self) -> str:
        return f"RecordSource({self.file!r})"


def _prepare_line(folder: AnyPath) -> str:
    """The command that makes the data folder; one that holds a user's rows is the source of another folder."""
    rows = next((kind for kind in ("jsonl", "parquet") if not in_bucket(folder) and any(folder.glob(f"*.{kind}"))), None)
    if rows is not None:
        return f"mtjudge prepare --dataset={rows} --source={folder} --out=data/{folder.name}"
    return f"mtjudge prepare --dataset=NAME --source=FOLDER --out={folder}"


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """`manifest.json` of a data folder. Raises UserError if it is missing, damaged or of another version."""
    path = as_path(folder) / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path} missing; prepare the data first: {_prepare_line(path.parent)}")
    try:
        manifest = json.loads(path.read_text())
        version, files = manifest["version"], manifest["files"]
        assert all(isinstance(entry["count"], int) and isinstance(entry["sha256"], str) for entry in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}: {e}); prepare the data again") from e
    if version not in _READABLE_VERSIONS:
        reads = " and ".join(map(str, _READABLE_VERSIONS))
        raise UserError(f"{path} has version {version}, this code reads {reads}; prepare the data again")
    return manifest


def _manifest_entry(folder: str | os.PathLike, split: str, task: str) -> dict[str, Any]:
    files = read_manifest(folder)["files"]
    name = f"{split}/{task}"
    if name not in files:
        raise UserError(f"{folder} has no records of {name}; it has {', '.join(sorted(files)) or 'none'}")
    return files[name]


def open_split(folder: str | os.PathLike, split: str, task: str) -> RecordSource:
    """The records of one task in one split.

    Raises UserError if manifest and file disagree on their number, or if the records are of another version. ArrayRecord
    reads disks only: a file in a bucket is copied once to this machine, see `local_copy`.
    """
    entry = _manifest_entry(folder, split, task)
    expected, path = entry["count"], as_path(folder) / entry.get("path", f"{split}/{task}.array_record")
    if in_bucket(path) and not path.exists():
        raise UserError(f"{path} missing; prepare the data first: {_prepare_line(as_path(folder))}")
    source = RecordSource(local_copy(path, entry["sha256"]))
    if len(source) != expected:
        raise UserError(f"{path} has {len(source)} records, the manifest says {expected}; prepare the data again")
    first = source[0] if expected else None
    if isinstance(first, BadRecord) and first.reason == "schema_version":  # then every record is: report it once
        raise UserError(f"{path}: {first}")
    return source


def fingerprint(folder: str | os.PathLike, *, tasks: Iterable[str], split: str) -> str:
    """16 hex digits that identify the content a run reads, from the manifest alone. The order of `tasks` does not matter.

    A checkpoint keeps it: Grain would silently continue with other records at the same position.
    """
    entries = [(task, _manifest_entry(folder, split, task)) for task in sorted(tasks)]
    content = [(split, task, entry["count"], entry["sha256"]) for task, entry in entries]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class BadRowCounter:
    """Counts unusable rows by reason, and stops the run if their share is too large.

    `reasons` maps a short reason to its number of rows, `ids` maps ids to their whole messages.
    """

    def __init__(self, max_share: float = MAX_BAD_SHARE, min_rows: int = MIN_ROWS_TO_JUDGE):
        self.max_share, self.min_rows = max_share, min_rows
        self.rows = 0
        self.reasons: collections.Counter[str] = collections.Counter()
        self.ids: dict[str, str] = {}

    @property
    def bad(self) -> int:
        return sum(self.reasons.values())

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts the rows of a batch; filler rows (weight 0, no error) do not count."""
        for example_id, weight, error in zip(batch["example_id"], batch["weight"], batch["error"], strict=True):
            if weight > 0 or error:
                self.add_one(str(example_id), str(error))

    def facts(self) -> dict[str, Any]:
        """What another process needs to count these rows too, as JSON."""
        return {"rows": self.rows, "reasons": dict(self.reasons), "ids": dict(list(self.ids.items())[:_SHOWN_IDS])}

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        self.rows += facts["rows"]
        self.reasons.update(facts["reasons"])
        self.ids |= facts["ids"]

    def add_one(self, example_id: str, error: str) -> None:
        """Counts one row; `error` is "reason: detail", or empty for a good row. Logs each bad id once."""
        self.rows += 1
        if not error:
            return
        self.reasons[error.partition(":")[0]] += 1
        if example_id not in self.ids:
            logging.getLogger(__name__).warning("record %s skipped: %s", example_id, error)
            self.ids[example_id] = error

    def check(self) -> None:
        """Raises TooManyBadRecords above `max_share` of at least `min_rows` rows."""
        if self.rows < self.min_rows or self.bad <= self.max_share * self.rows:
            return
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        shown = "; ".join(f"{example_id} ({error})" for example_id, error in list(self.ids.items())[:_SHOWN_IDS])
        raise TooManyBadRecords(
            f"{self.bad} of {self.rows} rows drawn, {len(self.ids)} records, cannot be used, the limit is {self.max_share:.1%}. "
            f"Reasons: {reasons}. "
            f"First ids: {shown}. {remedy_of(self.reasons)}"
        )


def remedy_of(reasons: Iterable[str]) -> str:
    """How to fix records that are unusable for these reasons, given as "reason" or "reason: detail"."""
    names = {reason.partition(":")[0] for reason in reasons}
    remedies = ["change the config as the reasons say"] if names & set(REASONS_OF_CONFIG) else []
    remedies += ["prepare the data again or leave these records out"] if names - set(REASONS_OF_CONFIG) else []
    return "; ".join(remedies).capitalize()


def read_split(folder: str | os.PathLike, split: str, task: str, counter: BadRowCounter | None = None) -> list[JudgeExample]:
    """All readable examples of one task in one split, in file order; unreadable ones are counted and logged.

    Raises TooManyBadRecords as BadRowCounter does.
    """
    counter = BadRowCounter() if counter is None else counter
    examples = []
    source = open_split(folder, split, task)
    for index in range(len(source)):
        record = source[index]
        if isinstance(record, BadRecord):
            counter.add_one(record.example_id, str(record))
        else:
            counter.add_one(record.example_id, "")
            examples.append(record)
    counter.check()
    return examples


def find_examples(folder: str | os.PathLike, split: str, task: str, ids: Iterable[str]) -> tuple[dict[str, JudgeExample], int]:
    """The examples with these ids, and the number of unreadable records met on the way. Raises UserError as `open_split`."""
    wanted, found, unreadable = set(ids), {}, 0
    source = open_split(folder, split, task)
    for index in range(len(source)):
        if len(found) == len(wanted):
            break
        record = source[index]
        if isinstance(record, BadRecord):
            unreadable += 1
        elif record.example_id in wanted:
            found[record.example_id] = record
    return found, unreadable
