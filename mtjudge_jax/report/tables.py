"""A table of a page, as text."""

from typing import NamedTuple


class Table(NamedTuple):
    """A table of text cells; `head` has the names of the columns."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
