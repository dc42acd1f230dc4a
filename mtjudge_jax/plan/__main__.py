"""`mtjudge plan`: whether a run fits on a slice that need not be here, what a step does, and how long it takes at least."""

import importlib.util
import os

from mtjudge_jax.config import ConfigError
from mtjudge_jax.flags import plan_flags, run_command, typed
from mtjudge_jax.plan.chips import tpu_slice

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
    CONFIG, TOPOLOGY, MODEL, SWEEP, TRIES, JSON = plan_flags()
    run_command(main)
