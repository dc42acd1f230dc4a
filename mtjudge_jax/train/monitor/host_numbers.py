"""Memory and waiting time of each host, and the records that it could not use."""

from collections.abc import Sequence

import jax

from mtjudge_jax import hosts
from mtjudge_jax.data.bad_rows import BadRowCounter
from mtjudge_jax.hosts.exchange import gather
from mtjudge_jax.train.monitor.clock import Clock
from mtjudge_jax.train.run import Run


def host_numbers(run: Run, rows: dict, clock: Clock) -> dict:
    """By host: memory in MB, that of its fullest device so far at its peak, seconds of waiting for data, seconds of own work.

    Raises TooManyBadRecords on all hosts together.
    """
    run.bad_rows.add(rows)
    own = clock.seconds["data"] + clock.seconds.get("score", 0.0)
    mine = {"memory_mb": hosts.resident_bytes() / 1e6, "data_seconds": clock.seconds["data"], "own_seconds": own}
    if (peak := peak_device_bytes(jax.local_devices())) is not None:
        mine["device_memory_mb"] = peak / 1e6
    everyone = gather(mine | {"bad": run.bad_rows.facts()})
    counted = BadRowCounter(run.cfg.data.max_bad_share)
    for one in everyone:
        counted.add_facts(one["bad"])
    counted.check()
    return {"hosts": {name: [one[name] for one in everyone] for name in mine}}


def peak_device_bytes(devices: Sequence[jax.Device]) -> int | None:
    """The most bytes that were in use at a time since the start, on the fullest of the devices; None where they do not count, as
    a CPU does not.
    """
    peaks = [stats.get("peak_bytes_in_use") for device in devices if (stats := device.memory_stats())]
    return max((peak for peak in peaks if peak is not None), default=None)
