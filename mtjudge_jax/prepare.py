"""`mtjudge prepare`: writes a data set as checked records."""

from absl import flags

from mtjudge_jax.command import run_command
from mtjudge_jax.config import ConfigError, unknown
from mtjudge_jax.data.sources import read_manifest
from mtjudge_jax.demo.dataset import write_demo_data

DATASETS = {"demo": write_demo_data}


def main() -> None:
    if DATASET.value not in DATASETS:
        raise ConfigError(unknown("data set", DATASET.value, DATASETS))
    DATASETS[DATASET.value](OUT.value, seed=SEED.value)
    files = read_manifest(OUT.value)["files"]
    for name, entry in files.items():
        print(f"{name:32s} {entry['count']:6d} records")
    print(f"{sum(entry['count'] for entry in files.values())} records in {OUT.value}")


if __name__ == "__main__":
    DATASET = flags.DEFINE_string("dataset", "demo", f"One of {', '.join(DATASETS)}.")
    OUT = flags.DEFINE_string("out", None, "Folder to write.", required=True)
    SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn.")
    run_command(main)
