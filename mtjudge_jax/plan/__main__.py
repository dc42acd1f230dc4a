"""Tells whether a run fits on a TPU slice that you need not have, what a step computes, and how long it takes at least.

mtjudge plan --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --topology=v5p:4x4x4
"""

import importlib.util
import os

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.flags import define_config, define_list, typed
from mtjudge_jax.plan.chips import tpu_slice

CONFIG = define_config()
TOPOLOGY = define_list("topology", [], "TPU slices that you need not have, e.g. v5p:4x4x4; default: this machine's devices.")
MODEL = flags.DEFINE_string("model", "", "A published size instead of model.path, e.g. 30b-a3b; no weights are needed.")
SWEEP = flags.DEFINE_bool("sweep", False, "Rank mesh shapes, and slices, by the roofline time of a step.")
TRIES = flags.DEFINE_integer("tries", 6, "Variants to compile at most, in a sweep or where it does not fit.", lower_bound=0)
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")
# No chip is opened: libtpu only compiles, and asks no metadata server what machine this is.
WITHOUT_A_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


def without_a_tpu(topologies: list[str]) -> None:
    """Checks the slices' names and sets the environment in which they are compiled for. Raises ConfigError."""
    for name in topologies:
        tpu_slice(name)
    if topologies and importlib.util.find_spec("libtpu") is None:
        raise ConfigError("--topology needs XLA's compiler for TPUs, which is not installed: pip install 'mtjudge_jax[tpu]'")
    if topologies:
        os.environ.update(WITHOUT_A_TPU)


def main() -> None:
    cfg = typed(CONFIG.value)
    without_a_tpu(TOPOLOGY.value)
    from mtjudge_jax.plan.run import run  # jax reads the environment when it is imported

    run(cfg, model_name=MODEL.value, names=TOPOLOGY.value, sweep=SWEEP.value, tries=TRIES.value, as_json=JSON.value)


if __name__ == "__main__":
    run_command(main)
