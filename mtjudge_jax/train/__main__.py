"""Trains a judge: by multi-task GRPO, or by SFT or DPO if the config's stage is `sft` or `dpo`.

mtjudge train --config=configs/demo.py --config.data.path=runs/data --workdir=runs/mine

After a stop or a kill, the same command continues from the newest checkpoint in --workdir.
"""

import json

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.config import to_dict
from mtjudge_jax.config_check import check
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.flags import define_config, define_list, typed

CONFIG = define_config()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; created if missing, continued if it has checkpoints.")
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Check and print the config with its overrides, and stop.")
ALLOW_CHANGE = define_list(
    "allow_change", [], "What may differ from the run in --workdir: optim.lr, seed, data.path, training_data .."
)


def main() -> None:
    cfg = typed(CONFIG.value)
    if PRINT_CONFIG.value:
        check(cfg)
        print(json.dumps(to_dict(cfg), indent=1))
        return
    if not WORKDIR.value:
        raise ConfigError("no --workdir: name the folder of the run, e.g. --workdir=runs/mine")
    check(cfg)
    from mtjudge_jax.train.fit import fit_and_report  # imports jax, which --help must not wait for

    fit_and_report(cfg, WORKDIR.value, allowed=tuple(ALLOW_CHANGE.value))


if __name__ == "__main__":
    run_command(main, workdir=WORKDIR)
