"""The count of rows and records that cannot be used, which stops a run, and how to help them."""

import collections
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mtjudge_jax.data.images import TOO_LARGE
from mtjudge_jax.errors import UserError

MAX_BAD_SHARE = 0.01
_SHOWN_IDS = 10
MIN_ROWS_TO_JUDGE = 100  # with fewer rows, a single bad one would already exceed the limit
REASONS_OF_CONFIG = (*TOO_LARGE, "target_too_long")  # the config can fix these, new data cannot


class TooManyBadRecords(UserError):
    """More records than the limit allows cannot be used; the text lists reasons and ids."""


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
