"""Reads a data set in its native form and writes checked records, split by group.

mtjudge prepare --dataset=demo --out=runs/data
mtjudge prepare --dataset=seetrue --source=/data/SeeTRUE --out=data/seetrue --allow_terms=eval_only
"""

from collections.abc import Sequence

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.flags import define_list
from mtjudge_jax.prepare import DATASETS
from mtjudge_jax.prepare.splits import MAX_BAD, MODES, NOT_FOR_TRAINING

DATASET = flags.DEFINE_string("dataset", "demo", f"One of {', '.join(('demo', *DATASETS))}.")
SOURCE = flags.DEFINE_string("source", "", "Folder (or file) of the data set as its makers publish it.")
OUT = flags.DEFINE_string("out", "", "Folder to write.")
OPTION = flags.DEFINE_multi_string("option", [], "name=value for the reader; without --source the command lists its options.")
SPLIT = flags.DEFINE_enum("split", "native", MODES, "native: the source's own splits, by group where it has none.")
VAL = flags.DEFINE_float("val", 0.1, "Share of validation, if the source has none.")
TEST = flags.DEFINE_float("test", 0.1, "Share of test, if the source has none.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of all random choices.")
ALLOW_TERMS = define_list("allow_terms", [], f"Licence terms that you accept for training: {', '.join(NOT_FOR_TRAINING)}.")
LIMIT = flags.DEFINE_integer("limit", 0, "Records to read; 0 = all.", lower_bound=0)
MAX_BAD_SHARE = flags.DEFINE_float("max_bad", MAX_BAD, "Share of records that may be unusable.", lower_bound=0, upper_bound=1)


def _parse_options(given: Sequence[str]) -> dict[str, str]:
    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--option={text}: write --option=name=value")
        options[name] = value
    return options


def main() -> None:
    # Imported here and below because --help must not wait for readers, images and records.
    from mtjudge_jax.data.pipeline import read_manifest
    from mtjudge_jax.prepare.readers import READERS

    names = ("demo", *READERS)
    if DATASET.value not in names:
        raise ConfigError(unknown("data set", DATASET.value, names))
    if DATASET.value == "demo":
        _prepare_demo()
    else:
        _prepare_source(READERS[DATASET.value])
    files = read_manifest(OUT.value)["files"]
    for name, entry in files.items():
        print(f"{name:32s} {entry['count']:6d} records")
    print(f"{sum(entry['count'] for entry in files.values())} records in {OUT.value}")


def _need_out() -> None:
    if not OUT.value:
        raise ConfigError("--out=FOLDER is missing: name the folder for the prepared records")


def _prepare_demo() -> None:
    _need_out()
    for flag in (SOURCE, OPTION, ALLOW_TERMS, LIMIT):
        if flag.present:
            raise ConfigError(f"--{flag.name}: the demo's data are drawn, not read: leave it out, or name another --dataset")
    from mtjudge_jax.demo.dataset import write_demo_data

    write_demo_data(OUT.value, seed=SEED.value)


def _prepare_source(reader) -> None:
    from mtjudge_jax.paths import absolute, as_path
    from mtjudge_jax.prepare.prepare import Arguments, prepare

    if not SOURCE.value:
        options = "; ".join(f"--option={name}=.. {meaning}" for name, meaning in reader.OPTIONS.items())
        raise ConfigError(f"--dataset={DATASET.value} needs --source=FOLDER. {reader.HOW} Options: {options or 'none'}")
    _need_out()
    arguments = Arguments(
        dataset=DATASET.value,
        source=str(absolute(as_path(SOURCE.value))),
        options=_parse_options(OPTION.value),
        limit=LIMIT.value,
        split=SPLIT.value,
        val=VAL.value,
        test=TEST.value,
        seed=SEED.value,
        allow_terms=tuple(ALLOW_TERMS.value),
    )
    out = absolute(as_path(OUT.value))
    if not prepare(reader, arguments, out, max_bad=MAX_BAD_SHARE.value):
        print(f"{out} already holds these data: nothing to do")
        return
    print((out / "report.md").read_text())
    print(f"{out} has this report as report.md and report.json, and pictures of some records in contact_sheet.png\n")


if __name__ == "__main__":
    run_command(main)
