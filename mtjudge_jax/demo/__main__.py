"""Trains a tiny judge on this machine in minutes: writes data, evaluates the base, trains, evaluates again, writes a report.

mtjudge demo --workdir=runs/demo

After a stop at any moment, the same command continues.
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.flags import define_list, need

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; created if missing, resumed if present.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling and of the order of examples.")
ARMS = define_list("arms", [], "Train and compare these arms instead, e.g. all. An unknown name lists the arms.")
SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds per arm.", lower_bound=1)


def main() -> None:
    need((WORKDIR, "name the folder of the run, e.g. --workdir=runs/demo"))
    from mtjudge_jax.demo.run import run  # imports jax, which --help must not wait for

    run(WORKDIR.value, seed=SEED.value, arms=ARMS.value, seeds=SEEDS.value)


if __name__ == "__main__":
    run_command(main, workdir=WORKDIR)
