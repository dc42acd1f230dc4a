"""Tells whether a run fits on a TPU slice that you need not have, what a step computes, and how long it takes at least.

mtjudge plan --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --topology=v5p:4x4x4
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.flags import define_config, define_list, typed
from mtjudge_jax.plan.chips import without_a_tpu

CONFIG = define_config()
TOPOLOGY = define_list("topology", [], "TPU slices that you need not have, e.g. v5p:4x4x4; default: this machine's devices.")
MODEL = flags.DEFINE_string("model", "", "A published size instead of model.path, e.g. 30b-a3b; no weights are needed.")
SWEEP = flags.DEFINE_bool("sweep", False, "Rank mesh shapes, and slices, by the roofline time of a step.")
TRIES = flags.DEFINE_integer("tries", 6, "Variants to compile at most, in a sweep or where it does not fit.", lower_bound=0)
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")


def main() -> None:
    cfg = typed(CONFIG.value)
    without_a_tpu(TOPOLOGY.value)
    from mtjudge_jax.plan.run import run  # jax reads the environment when it is imported

    run(cfg, model_name=MODEL.value, names=TOPOLOGY.value, sweep=SWEEP.value, tries=TRIES.value, as_json=JSON.value)


if __name__ == "__main__":
    run_command(main)
