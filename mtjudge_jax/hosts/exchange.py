"""What processes of one run do together, so that the mistake of one does not leave the others waiting for it.

An operation over all devices waits for every process. One that raises before it, because only its host cannot read a file,
would leave the others there for ever. So what can go wrong on one host is done first, in a block without such operations, and
then every process tells the others how it went.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mtjudge_jax.errors import ConfigError, UserError

TEXT_BYTES = 512


class HostsDiffer(ConfigError):
    """Hosts do not run the same thing. One line: what, on which host, what the others have."""


class AnotherProcess(UserError):
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


def tell(topic: str, text: str) -> None:
    """Leaves a word for the other processes, who need not wait for it. A topic is used once in a run, by any of them."""
    if jax.process_count() > 1:
        _messages().key_value_set(f"mtjudge/{topic}/{jax.process_index()}", text, allow_overwrite=True)


def told_by_others(topic: str) -> str:
    """"process 3: .." of the lowest process that has told, "" where none has. Does not wait; any thread may ask."""
    if jax.process_count() == 1:
        return ""
    told = {int(key.rpartition("/")[2]): text for key, text in _messages().key_value_dir_get(f"mtjudge/{topic}/")}
    return next((f"process {process}: {told[process]}" for process in sorted(told) if process != jax.process_index()), "")


def _messages() -> Any:
    """The key-value store of the runtime's coordinator, for which jax has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


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


def gather(fact: Any) -> list[Any]:
    """`fact` of every process, by process. It travels as JSON."""
    if jax.process_count() == 1:
        return [fact]
    data = np.frombuffer(json.dumps(fact).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(data)], np.int64)).ravel().tolist()
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(data)] = data
    everyone = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(everyone, sizes, strict=True)]


def gather_rows(local: Any) -> Any:
    """Arrays that lead with this process's rows -> the same with all rows, those of process 0 first; numpy, on every process."""
    if jax.process_count() == 1:
        return local
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(local, tiled=True))


def my_rows(rows: int) -> slice:
    """This process's part of so many rows, which divide by the processes."""
    each = rows // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


def refuse_differences(facts: dict[str, str]) -> None:
    """Raises HostsDiffer where a process has other facts than most: config, code, versions, data."""
    everyone = gather({"host": socket.gethostname(), "facts": facts})
    found = [other for name in _names(everyone) if (other := _odd_ones(name, everyone))]
    if found:
        rest = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        raise HostsDiffer(f"the hosts differ: {'; '.join(found[:5])}{rest}: give all hosts the same code, packages and flags")


def _names(everyone: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for one in everyone for name in one["facts"]))


def _odd_ones(name: str, everyone: list[dict]) -> str:
    """`jax 0.10.1 on process 3 (host-d), 0.10.2 on the others`, or nothing where all agree."""
    values = [one["facts"].get(name, "(none)") for one in everyone]
    usual = max(values, key=values.count)  # of as many, the lowest process's
    odd = [f"{value} on process {i} ({everyone[i]['host']})" for i, value in enumerate(values) if value != usual]
    return f"{name} {', '.join(odd[:3])}, {usual} on the others" if odd else ""
