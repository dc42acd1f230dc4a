"""What the processes of a run exchange, so that an error on one process ends or redirects all of them instead of a hang.

An operation over all devices waits for every process. If one process raises before it, because only its host cannot read a
file, the others wait for ever. So whatever can fail on a single host is done in a block without such operations; afterwards
every process reports to the others how its block ended.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtjudge_jax.errors import UserError

_TEXT_BYTES = 512


class AnotherProcess(UserError):
    """An error of another process of the run. The text names the process."""


def attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """(what `call` returns, ""), or (None, its error as a text to report to the other processes)."""
    try:
        return call(), ""
    except Exception as error:
        return None, error_text(error)


def error_text(error: BaseException) -> str:
    """One line of limited length: `OSError: No space left on device`. A UserError is understood without its class."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:300]


def on_any_process(flag: bool) -> bool:
    """Whether the flag is true on at least one process. Every process calls and gets the same answer."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def first_text(text: str) -> str:
    """The text of the lowest process that has one, as "process 3: ..", or "" if none has. A process that has a text gets its own
    back. Every process calls.
    """
    if jax.process_count() == 1:
        return text
    padded = np.zeros(_TEXT_BYTES, np.uint8)
    encoded = np.frombuffer(text.encode()[:_TEXT_BYTES], np.uint8)
    padded[: len(encoded)] = encoded
    if text:
        multihost_utils.process_allgather(padded)
        return text
    for process, row in enumerate(multihost_utils.process_allgather(padded)):
        if found := row.tobytes().rstrip(b"\0").decode(errors="ignore"):
            return f"process {process}: {found}"
    return ""


def post(topic: str, text: str) -> None:
    """Leaves a text for the other processes, which need not wait for it. A run uses each topic once."""
    if jax.process_count() > 1:
        _messages().key_value_set(f"mtjudge/{topic}/{jax.process_index()}", text, allow_overwrite=True)


def posted_by_others(topic: str) -> str:
    """ "process 3: .." of the lowest other process that posted on the topic, or "". Does not wait; any thread may call."""
    if jax.process_count() == 1:
        return ""
    posted = {int(key.rpartition("/")[2]): text for key, text in _messages().key_value_dir_get(f"mtjudge/{topic}/")}
    return next((f"process {process}: {posted[process]}" for process in sorted(posted) if process != jax.process_index()), "")


def _messages() -> Any:
    """The key-value store of the runtime's coordinator, which has no public name in JAX."""
    from jax._src import distributed

    return distributed.global_state.client


@contextlib.contextmanager
def together() -> Iterator[None]:
    """All processes leave the block together: if it raises on one, the others raise AnotherProcess, which names that process.

    The block must not contain anything that waits for other processes.
    """
    try:
        yield
    except Exception as error:
        first_text(error_text(error))
        raise
    if text := first_text(""):
        raise AnotherProcess(f"{text}: fix it on that host and start again")


def gather(fact: Any) -> list[Any]:
    """`fact` of every process, in the order of the processes. It travels as JSON."""
    if jax.process_count() == 1:
        return [fact]
    data = np.frombuffer(json.dumps(fact).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int64)).ravel().tolist()
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(data)] = data
    everyone = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(everyone, sizes, strict=True)]


def gather_rows(local: Any) -> Any:
    """A tree of arrays that hold this process's rows -> the same tree with the rows of all processes in order, as numpy."""
    if jax.process_count() == 1:
        return local
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(local, tiled=True))


def my_rows(rows: int) -> slice:
    """This process's part of so many rows. The number of processes must divide them."""
    each = rows // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)
