"""What a run looks at and tells before its first step: whether its records can be asked, how large what comes will be."""

import jax
import numpy as np

from mtjudge_jax.config import Config
from mtjudge_jax.data.pipeline import RowFormat, to_row
from mtjudge_jax.data.sources import open_split
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.records import BadRecord
from mtjudge_jax.train.monitor.messages import step_text
from mtjudge_jax.types import Params

LOOKED_AT = 8  # training records a task, from its whole length


def check_records(cfg: Config, folder: AnyPath, fmt: RowFormat) -> list[str]:
    """Makes the rows of some training records of each task; what is to be said of them, beginning with their numbers.

    Raises ConfigError where none of a task's can be used: each would be left out with a line of its own, and the run would end
    well without having taught the task.
    """
    counts, alone = [], []
    for name in cfg.data.tasks:
        source = open_split(folder, "train", name)
        counts.append(f"{name} {len(source):,}")
        places = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT, dtype=int)).tolist()
        records = [source[place] for place in places]
        errors = [str(to_row(record, name, fmt)["error"]) for record in records]
        if all(errors):
            looked = f"{len(errors)} of {len(source)}" if len(errors) < len(source) else str(len(source))
            raise ConfigError(f"{folder}: no training record of {name} can be used ({looked} looked at), {errors[0]}")
        if not any(record.rationale.strip() for record in records if not isinstance(record, BadRecord)):
            alone.append(name)
    said = [f"training records: {', '.join(counts)}"]
    if cfg.stage == "sft" and cfg.sft.target == "rationale" and alone:
        said.append(
            f"warning: {', '.join(alone)}: no record looked at has a gold reasoning (rationale), so the verdict alone is taught; "
            "GRPO from that model earns nothing, as it pays for reasoning first"
        )
    return said


def opening_lines(cfg: Config, params: Params) -> list[str]:
    """The model, the devices, the sizes of a step. params: the whole model, on its devices."""
    leaves = jax.tree.leaves(params)
    count, devices = sum(leaf.size for leaf in leaves), jax.devices()
    size = f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.2f} million"
    return [
        f"{size} parameters on {len(devices)} {devices[0].device_kind} device{'s' * (len(devices) > 1)}",
        *(line.strip() for line in step_text(cfg).splitlines()),
        "the first step and the first validation take longer: they are compiled",
    ]
