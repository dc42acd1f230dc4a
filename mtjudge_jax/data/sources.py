"""Prepared data on disk: the manifest, one ArrayRecord file a (split, task), and what of it cannot be used."""

import collections
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from mtjudge_jax.data.tf_example import record_in
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import as_path, in_bucket, local_copy
from mtjudge_jax.records import BadRecord, JudgeExample, unpack

MANIFEST_VERSION = 2  # 2: an entry may say where its file is; the demo writes 1
MANIFEST_VERSIONS = (1, 2)
MAX_BAD_SHARE = 0.01
SHOWN_IDS = 10
MIN_ROWS_TO_JUDGE = 100  # below, one bad row would already be over the limit


OF_CONFIG = ("too_many_patches", "prompt_too_long", "target_too_long")  # reasons that no other preparation mends


class TooManyBadRecords(UserError):
    """More records than the limit allows could not be used; the text lists reasons and ids."""


class RecordSource:
    """Random access to the records of some files: `source[i]` is a JudgeExample, or the BadRecord that it raised.

    Reading never raises, so a damaged record meets the counter in the loop instead of killing a reader thread.
    """

    def __init__(self, files: Sequence[str | os.PathLike]):
        self.files = [os.fspath(file) for file in files]
        missing = [file for file in self.files if not os.path.isfile(file)]
        if missing:
            raise UserError(f"{', '.join(missing)} missing; prepare the data first")
        try:
            self._records = ArrayRecordDataSource(self.files)
        except Exception as e:
            raise UserError(f"{', '.join(self.files)}: not readable as ArrayRecord ({e}); prepare the data again") from e

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> JudgeExample | BadRecord:
        place = f"{as_path(self.files[0]).stem}[{index}]"
        try:
            return unpack(record_in(self._records[index]))
        except BadRecord as e:
            return BadRecord(e.reason, f"{place}: {e}", place)
        except Exception as e:  # a failed checksum is a RuntimeError, a ValueError or an IndexError by the damage
            return BadRecord("damaged_record", f"{place}: {type(e).__name__}: {e}", place)

    def __repr__(self) -> str:
        return f"RecordSource({self.files})"


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """`manifest.json` of a data folder. Raises ValueError where it is missing, damaged or of another version."""
    path = as_path(folder) / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path} missing; prepare the data first or give another data folder")
    try:
        manifest = json.loads(path.read_text())
        version, files = manifest["version"], manifest["files"]
        assert all(isinstance(entry["count"], int) and isinstance(entry["sha256"], str) for entry in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}: {e}); prepare the data again") from e
    if version not in MANIFEST_VERSIONS:
        reads = " and ".join(map(str, MANIFEST_VERSIONS))
        raise UserError(f"{path} has version {version}, this code reads {reads}; prepare the data again")
    return manifest


def _manifest_entry(folder: str | os.PathLike, split: str, task: str) -> dict[str, Any]:
    files = read_manifest(folder)["files"]
    name = f"{split}/{task}"
    if name not in files:
        raise UserError(f"{folder} has no records of {name}; it has {', '.join(sorted(files)) or 'none'}")
    return files[name]


def record_path(entry: Mapping[str, Any], split: str, task: str) -> str:
    """Where the file of a manifest's entry is, from the data folder on."""
    return entry.get("path", f"{split}/{task}.array_record")


def open_split(folder: str | os.PathLike, split: str, task: str) -> RecordSource:
    """The records of one task in one split. Raises ValueError where manifest and file disagree on their number, and
    where the records were written by another version.

    ArrayRecord is read from disks only: of a bucket the file is copied once to this machine, see `paths.local_copy`.
    """
    entry = _manifest_entry(folder, split, task)
    expected, path = entry["count"], as_path(folder) / record_path(entry, split, task)
    if in_bucket(path) and not path.exists():
        raise UserError(f"{path} missing; prepare the data first")
    source = RecordSource([local_copy(path, entry["sha256"])])
    if len(source) != expected:
        raise UserError(f"{path} has {len(source)} records, the manifest says {expected}; prepare the data again")
    first = source[0] if expected else None
    if isinstance(first, BadRecord) and first.reason == "schema_version":  # all of them: said once, not a line a record
        raise UserError(f"{path}: {first}")
    return source


def fingerprint(folder: str | os.PathLike, *, tasks: Iterable[str], split: str) -> str:
    """16 hex digits of the content that a run reads, from the manifest alone. The order of `tasks` does not matter.

    A checkpoint keeps it: Grain would go on with other records under the same position without a word.
    """
    entries = [(task, _manifest_entry(folder, split, task)) for task in sorted(tasks)]
    content = [(split, task, entry["count"], entry["sha256"]) for task, entry in entries]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class BadRowCounter:
    """Counts rows that could not be used, by reason, and stops the run above a share of them.

    `reasons` maps a short reason to its number of rows, `ids` the ids to their whole messages.
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
        """Counts the rows of a batch; rows that only fill it up (weight 0, no error) do not count."""
        for example_id, weight, error in zip(batch["example_id"], batch["weight"], batch["error"], strict=True):
            if weight > 0 or error:
                self.add_one(str(example_id), str(error))

    def facts(self) -> dict[str, Any]:
        """What another process needs to count these rows too; JSON."""
        return {"rows": self.rows, "reasons": dict(self.reasons), "ids": dict(list(self.ids.items())[:SHOWN_IDS])}

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        self.rows += facts["rows"]
        self.reasons.update(facts["reasons"])
        self.ids |= facts["ids"]

    def add_one(self, example_id: str, error: str) -> None:
        """Counts one row; `error` is "reason: detail", or empty for a good row. Logs an id the first time it is bad."""
        self.rows += 1
        if not error:
            return
        self.reasons[error.partition(":")[0]] += 1
        if example_id not in self.ids:
            logging.getLogger(__name__).warning("record %s left out: %s", example_id, error)
            self.ids[example_id] = error

    def check(self) -> None:
        """Raises TooManyBadRecords above `max_share` of at least `min_rows` rows."""
        if self.rows < self.min_rows or self.bad <= self.max_share * self.rows:
            return
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common())
        shown = "; ".join(f"{example_id} ({error})" for example_id, error in list(self.ids.items())[:SHOWN_IDS])
        raise TooManyBadRecords(
            f"{self.bad} of {self.rows} rows cannot be used, the limit is {self.max_share:.1%}. Reasons: {reasons}. "
            f"First ids: {shown}. {remedy_of(self.reasons)}"
        )


def remedy_of(reasons: Iterable[str]) -> str:
    """What helps where records cannot be used for these reasons, or for "reason: detail"."""
    names = {reason.partition(":")[0] for reason in reasons}
    remedies = ["change the config as that says"] if names & set(OF_CONFIG) else []
    remedies += ["prepare the data again or leave these records out"] if names - set(OF_CONFIG) else []
    return "; ".join(remedies).capitalize()


def read_split(folder: str | os.PathLike, split: str, task: str, counter: BadRowCounter | None = None) -> list[JudgeExample]:
    """All readable examples of one task in one split, in file order; the others are counted and logged.

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
