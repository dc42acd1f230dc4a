"""`mtjudge report --workdir=DIR`: the page of one run. `mtjudge report A B C.. [--out=DIR]`: runs side by side."""

from absl import flags

from mtjudge_jax.flags import define_list, run_command
from mtjudge_jax.paths import address, as_path
from mtjudge_jax.report.compare.compare import compare
from mtjudge_jax.report.compare.pages import markdown, write_comparison
from mtjudge_jax.report.compare.read import read_runs
from mtjudge_jax.report.write import write_report

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of one run (config.json, metrics.jsonl, eval/).")
flags.DEFINE_string("out", None, "Of one run: file to write, default report.html in the workdir. Of several: folder, default .")
flags.DEFINE_string("base", "", "Of several: the run that the others are compared with; default: off_the_shelf, else the first.")
define_list("tasks", [], "Of several: the columns; default: all tasks that were judged.")


def main(runs: list[str]) -> None:
    """runs: PATH or ARM=PATH each."""
    if bool(FLAGS.workdir) == bool(runs):
        raise ValueError("give --workdir=DIR for the page of one run, or runs to put side by side: mtjudge report A B NAME=C")
    if FLAGS.workdir:
        print(f"report: {address(write_report(FLAGS.workdir, out=FLAGS.out))}")
        return
    comparison = compare(read_runs(runs), base=FLAGS.base, tasks=FLAGS.tasks)
    written = write_comparison(comparison, as_path(FLAGS.out or "."))
    print(markdown(comparison))
    print(" ".join(address(path) for path in written))


if __name__ == "__main__":
    run_command(main, positional=True)
