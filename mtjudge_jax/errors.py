"""Errors that a user can fix, and how a command prints one as a single line. Any other error is a bug and shows a traceback."""

import difflib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn

_SHOWN = 12  # of the known names


class UserError(ValueError):
    """An error that the user can fix. Its text names the value, the limit and the remedy.

    A command that raises it prints the text as one line and ends with exit status 2.
    """


class ConfigError(UserError):
    """An invalid config field, flag or setting."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A line that suggests the nearest known name: `unknown task 'saftey', did you mean 'safety'?`."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN + 1 else ""
    shown = ", ".join(names[:_SHOWN] if more else names)
    return f"unknown {what} {name!r}" + (f", did you mean {near[0]!r}?" if near else f": known are {shown}{more}")


def one_line(error: Exception, most: int = 6) -> str:
    """The lines of an error joined into one: the first `most` of a long list, and only the cause of a traceback's text."""
    text, _, trace = str(error).partition("Traceback (most recent call last):")
    lines = [line.strip() for line in [*text.splitlines(), *trace.splitlines()[-1:]] if line.strip()]
    rest = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + rest


def fail(text: str) -> NoReturn:
    """Prints the text as an error and ends with exit status 2."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def leave(status: int) -> NoReturn:
    """Ends the process at once, without waiting for reader threads or an unfinished save."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
