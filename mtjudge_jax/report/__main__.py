"""`python -m mtjudge_jax.report --workdir=DIR [--out=FILE]`: writes the page and prints where it is."""

import sys

from absl import app, flags

from mtjudge_jax.paths import address
from mtjudge_jax.report import write_report

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of the run (config.json, metrics.jsonl, eval/).", required=True)
flags.DEFINE_string("out", None, "File to write; default: report.html in the workdir.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    try:
        path = write_report(FLAGS.workdir, out=FLAGS.out)
    except (OSError, ValueError) as e:
        print(f"error: no report was written: {e}", file=sys.stderr)
        sys.exit(2)
    print(f"report: {address(path)}")


if __name__ == "__main__":
    app.run(main)
