"""Memory and waiting of each host, and the records that it could not use."""

from mtjudge_jax import hosts
from mtjudge_jax.data.sources import BadRowCounter
from mtjudge_jax.hosts.exchange import gather
from mtjudge_jax.train.monitor.clock import Clock
from mtjudge_jax.train.run import Run


def of_hosts(run: Run, rows: dict, clock: Clock) -> dict:
    """Memory in MB and seconds of waiting for data and of own work, by host. Raises TooManyBadRecords on all of them together."""
    run.bad_rows.add(rows)
    own = clock.seconds["data"] + clock.seconds.get("score", 0.0)
    mine = {"memory_mb": hosts.memory_bytes() / 1e6, "data_seconds": clock.seconds["data"], "own_seconds": own}
    everyone = gather(mine | {"bad": run.bad_rows.facts()})
    counted = BadRowCounter(run.cfg.data.max_bad_share)
    for one in everyone:
        counted.add_facts(one["bad"])
    counted.check()
    return {"hosts": {name: [one[name] for one in everyone] for name in mine}}
