"""What a user got wrong: the classes of such errors, and how one is said in a line. All else is a bug and shows a traceback."""

import difflib
import os
import sys
from collections.abc import Iterable
from typing import NoReturn


class UserError(ValueError):
    """Something that the user can put right. The text names the value, the limit and the remedy.

    A command that raises it prints the text as one line and ends with exit status 2.
    """


class ConfigError(UserError):
    """A field of the config, a flag or a setting that cannot be."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """One line that names the nearest right name: `unknown task 'saftey', did you mean 'safety'?`."""
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"unknown {what} {name!r}" + (f", did you mean {near[0]!r}?" if near else f": known are {', '.join(known)}")


def one_line(error: Exception, most: int = 6) -> str:
    """The lines of an error side by side; of a long list the first, and of a traceback's text its cause."""
    text, _, trace = str(error).partition("Traceback (most recent call last):")
    lines = [line.strip() for line in [*text.splitlines(), *trace.splitlines()[-1:]] if line.strip()]
    rest = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + rest


def fail(text: str) -> NoReturn:
    """Says the text as an error and ends with exit status 2."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def leave(status: int) -> NoReturn:
    """Ends the process at once: reader threads and a half-written save must not delay it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
