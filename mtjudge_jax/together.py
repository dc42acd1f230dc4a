"""What processes of one run do together, so that the mistake of one does not leave the others waiting for it.

An operation over all devices waits for every process. One that raises before it, because only its host cannot read a file,
would leave the others there for ever. So what can go wrong on one host is done first, in a block without such operations, and
then every process tells the others how it went.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

TEXT_BYTES = 512


class AnotherProcess(RuntimeError):
    """What another process of the run met, with its number."""


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """(what it returns, "") or (None, why not), to be told to the others."""
    try:
        return call(), ""
    except Exception as error:
        return None, one_line(error)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def on_any_process(flag: bool) -> bool:
    """Whether it holds on one process at least. Every process calls, and all go the same way afterwards."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def first_text(text: str) -> str:
    """The text of the first process that has one, "" where none has; of another process, "process 3: ..". Every process calls."""
    if jax.process_count() == 1:
        return text
    padded = np.zeros(TEXT_BYTES, np.uint8)
    encoded = np.frombuffer(text.encode()[:TEXT_BYTES], np.uint8)
    padded[: len(encoded)] = encoded
    if text:
        multihost_utils.process_allgather(padded)
        return text
    for process, row in enumerate(multihost_utils.process_allgather(padded)):
        if found := row.tobytes().rstrip(b"\0").decode(errors="ignore"):
            return f"process {process}: {found}"
    return ""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Processes leave the block together: where it raises on one, the others raise AnotherProcess, which names it.

    The block must hold nothing that waits for other processes.
    """
    try:
        yield
    except Exception as error:
        first_text(one_line(error))
        raise
    if text := first_text(""):
        raise AnotherProcess(f"{text}: mend it on that host and start again")
