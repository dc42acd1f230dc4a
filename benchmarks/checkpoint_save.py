"""How long a save blocks the run: `python benchmarks/checkpoint_save.py [--gigabytes=1] [--saves=5] [--folder=/tmp]`.

Saves a state of random numbers, which do not compress, several times by `checkpoint.save`. A step that donates the state
follows each save, as in training. Prints for every save: seconds until `save` returned, seconds until the step was complete on
disk, read back and checked, the ratio of the two, and how much longer the following step took than a step without a save. Exit
status 1 if the median ratio is above `--most`.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags, logging

from mtjudge_jax import checkpoint
from mtjudge_jax.config import CheckpointConfig

GIGABYTES = flags.DEFINE_float("gigabytes", 1.0, "Size of the state.")
SAVES = flags.DEFINE_integer("saves", 5, "How many saves are measured, after a first one.")
FOLDER = flags.DEFINE_string("folder", "", "Where to write; by default the temporary folder of the system.")
MOST = flags.DEFINE_float("most", 0.1, "The largest median ratio of blocking to whole time that passes.")


def make_state(leaves: int = 8) -> dict:
    """Parameters and two moments of each, as after some steps of AdamW."""
    each = int(GIGABYTES.value * 1e9 / 4 / 3 / leaves) // 1024
    keys = jax.random.split(jax.random.key(0), 3 * leaves)
    make = jax.jit(lambda key: jax.random.normal(key, (each, 1024)))
    return {f"{part}_{i}_df": make(keys[leaves * j + i]) for j, part in enumerate("wmv") for i in range(leaves)}


step = jax.jit(lambda state: jax.tree.map(lambda x: x * 0.999 + 1e-3, state), donate_argnums=0)


def timed_step(state: dict) -> tuple[dict, float]:
    began = time.perf_counter()
    state = jax.block_until_ready(step(state))
    return state, time.perf_counter() - began


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)
    state = jax.block_until_ready(make_state())
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    plain = []
    for _ in range(4):
        state, seconds = timed_step(state)
        plain.append(seconds)
    version = f"Python {sys.version.split()[0]}, jax {jax.__version__}, {jax.devices()[0].device_kind}"
    print(f"{size / 1e9:.2f} GB of state, {version}; a step without a save: {statistics.median(plain[1:]):.2f} s")
    ratios, with_step = [], []
    with tempfile.TemporaryDirectory(dir=FOLDER.value or None) as folder:
        opened = checkpoint.open_checkpoints(Path(folder) / "checkpoints", CheckpointConfig(keep=1))
        for number in range(SAVES.value + 1):
            began = time.perf_counter()
            said = checkpoint.save(opened, number, state=state, data_state={}, meta={})
            blocked = time.perf_counter() - began
            state, seconds = timed_step(state)
            said += checkpoint.wait(opened)
            whole = time.perf_counter() - began
            assert not said, said
            if number:  # the first compiles the digests
                late = max(0.0, seconds - statistics.median(plain[1:]))
                ratios.append(blocked / whole)
                with_step.append((blocked + late) / whole)
                print(f"save {number}: blocked {blocked:.3f} s of {whole:.2f} s ({ratios[-1]:.1%}); next step {late:.2f} s late")
    print(f"blocking share: median {statistics.median(ratios):.1%}, largest {max(ratios):.1%}")
    print(f"with the delay of the next step, which shares the cores with the writing: median {statistics.median(with_step):.1%}")
    sys.exit(statistics.median(ratios) > MOST.value)


if __name__ == "__main__":
    app.run(main)
