"""`mtjudge report --workdir=DIR`: the page of one run. `mtjudge report A B C.. [--out=DIR]`: runs side by side."""

import sys

from absl import app, flags

from mtjudge_jax.paths import address, as_path
from mtjudge_jax.report import write_report
from mtjudge_jax.report.compare import compare
from mtjudge_jax.report.compare_pages import markdown, write_comparison
from mtjudge_jax.report.compare_read import read_runs

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of one run (config.json, metrics.jsonl, eval/).")
flags.DEFINE_string("out", None, "Of one run: file to write, default report.html in the workdir. Of several: folder, default .")
flags.DEFINE_string("base", "", "Of several: the run that the others are compared with; default: off_the_shelf, else the first.")
flags.DEFINE_list("tasks", [], "Of several: the columns; default: all tasks that were judged.")


def write(runs: list[str]) -> str:
    """Writes what the flags and `runs` (PATH or ARM=PATH) ask for; returns what to print."""
    if bool(FLAGS.workdir) == bool(runs):
        raise ValueError("give --workdir=DIR for the page of one run, or runs to put side by side: report A B NAME=C")
    if flag := next((run for run in runs if run.startswith("-")), ""):
        raise ValueError(f"unknown flag {flag}: the flags are --workdir, --out, --base, --tasks")
    if FLAGS.workdir:
        return f"report: {address(write_report(FLAGS.workdir, out=FLAGS.out))}"
    comparison = compare(read_runs(runs), base=FLAGS.base, tasks=FLAGS.tasks)
    written = write_comparison(comparison, as_path(FLAGS.out or "."))
    return f"{markdown(comparison)}\n{' '.join(address(path) for path in written)}"


def main(argv: list[str]) -> None:
    try:
        print(write(argv[1:]))
    except (OSError, ValueError) as e:
        print(f"error: no report was written: {e}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
