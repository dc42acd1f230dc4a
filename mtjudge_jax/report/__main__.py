"""Writes the HTML report of one run, serves it while the run trains, or compares several runs.

mtjudge report --workdir=runs/mine
mtjudge report --workdir=runs/mine --watch
mtjudge report base=runs/demo/eval/base_test.json trained=runs/demo/eval/trained_test.json --out=runs/tables
"""

from absl import flags

from mtjudge_jax.cli import run_command
from mtjudge_jax.errors import UserError
from mtjudge_jax.flags import define_list

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of one run (config.json, metrics.jsonl, eval/).")
OUT = flags.DEFINE_string("out", None, "One run: file to write, default WORKDIR/report.html. Several runs: folder, default .")
WATCH = flags.DEFINE_bool("watch", False, "One run: serve the page on this machine and follow the run, until Ctrl-C.")
PORT = flags.DEFINE_integer("port", 0, "With --watch: the port; 0 = a free one.")
BASE = flags.DEFINE_string("base", "", "Several runs: the arm subtracted from the others; default: off_the_shelf or the first.")
TASKS = define_list("tasks", [], "Several runs: the tasks to show; default: all that were judged.")


def main(runs: list[str]) -> None:
    """runs: PATH or ARM=PATH each: a workdir, an --out of mtjudge eval, or a file in one of them."""
    if bool(WORKDIR.value) == bool(runs):
        raise UserError("give --workdir=DIR for the report of one run, or the runs to compare: mtjudge report A B NAME=C")
    if WATCH.value and (runs or OUT.value):
        raise UserError("--watch serves the page of one run and writes no file: give --workdir=DIR, and leave --out out")
    # These import matplotlib, which --help must not wait for.
    from mtjudge_jax.paths import address, as_path
    from mtjudge_jax.report.compare.compare import compare
    from mtjudge_jax.report.compare.pages import comparison_markdown, write_comparison
    from mtjudge_jax.report.compare.read import read_runs, unlike_samples
    from mtjudge_jax.report.watch import watch_report
    from mtjudge_jax.report.write import write_report

    if WATCH.value:
        watch_report(WORKDIR.value, PORT.value)
        return
    if WORKDIR.value:
        print(f"report: {address(write_report(WORKDIR.value, out=OUT.value))}")
        return
    found = read_runs(runs)
    comparison = compare(found, base=BASE.value, tasks=TASKS.value)
    every = [result for results in found.values() for result in results]
    notes = [*dict.fromkeys(result["note"] for result in every if result.get("note")), *filter(None, [unlike_samples(found)])]
    note = "\n\n".join(notes)
    written = write_comparison(comparison, as_path(OUT.value or "."), note=note)
    print(comparison_markdown(comparison, note=note))
    print(" ".join(address(path) for path in written))


if __name__ == "__main__":
    run_command(main, positional=True)
