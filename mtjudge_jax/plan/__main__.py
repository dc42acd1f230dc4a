"""Predicts the memory of a run on a TPU slice, the work of a step and its least time. You do not need the slice.

mtjudge plan --config=configs/mt_rl_judge.py:30b-a3b,v5p:4x4x4 --topology=v5p:4x4x4
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.flags import define_config, define_list, typed
from mtjudge_jax.plan.slices import without_a_tpu

CONFIG = define_config()
TOPOLOGY = define_list("topology", [], "TPU slices, e.g. v5p:4x4x4; default: this machine's devices.")
MODEL = flags.DEFINE_string("model", "", "A published size instead of model.path, e.g. 30b-a3b; needs no weights.")
SWEEP = flags.DEFINE_bool("sweep", False, "Rank mesh shapes (and slices) by the roofline time of a step.")
TRIES = flags.DEFINE_integer("tries", 6, "Most variants to compile, in a sweep or if the run does not fit.", lower_bound=0)
LENGTHS = define_list("lengths", [], "Plan for these too: means or mean/95 %, e.g. prompt:600/1500,patches:1200,answer:200/600.")
DATA = flags.DEFINE_string("data", "", "Plan for the prompts and patches of this prepared folder too; needs the model's folder.")
JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")


def main() -> None:
    cfg = typed(CONFIG.value)
    without_a_tpu(TOPOLOGY.value)
    from mtjudge_jax.plan.run import run  # jax reads the environment when it is imported

    shown = {"sweep": SWEEP.value, "tries": TRIES.value, "as_json": JSON.value}
    run(cfg, model_name=MODEL.value, names=TOPOLOGY.value, lengths=LENGTHS.value, data=DATA.value, **shown)


if __name__ == "__main__":
    run_command(main)
