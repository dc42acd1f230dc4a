"""Refuses to start when the hosts of a run do not have the same code, packages, config or data."""

import socket

from mtjudge_jax.errors import ConfigError
from mtjudge_jax.hosts.exchange import gather

_MOST = 5  # differences in the error


class HostsDiffer(ConfigError):
    """The hosts do not run the same thing. One line: what differs, on which host, and what the others have."""


def refuse_differences(facts: dict[str, str]) -> None:
    """Raises HostsDiffer, on every process, where the facts of one process are not those of the majority. Every process calls."""
    everyone = gather({"host": socket.gethostname(), "facts": facts})
    names = dict.fromkeys(name for one in everyone for name in one["facts"])
    found = [difference for name in names if (difference := _difference(name, everyone))]
    if found:
        rest = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
        raise HostsDiffer(
            f"the hosts differ: {'; '.join(found[:_MOST])}{rest}: give all hosts the same code, packages, data and flags"
        )


def _difference(name: str, everyone: list[dict]) -> str:
    """`jax 0.10.1 on process 3 (host-d), 0.10.2 on the others`, or "" if all agree."""
    values = [one["facts"].get(name, "(none)") for one in everyone]
    usual = max(values, key=values.count)  # in a tie, that of the lowest process
    odd = [f"{value} on process {i} ({everyone[i]['host']})" for i, value in enumerate(values) if value != usual]
    return f"{name} {', '.join(odd[:3])}, {usual} on the others" if odd else ""
