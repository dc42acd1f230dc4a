"""`mtjudge COMMAND --flag=value ..`: each command is a module with a main, `python -m mtjudge_jax.COMMAND` is the same."""

import runpy
import sys

from mtjudge_jax.config import unknown

COMMANDS = {
    "demo": "train a tiny judge on this machine, evaluate it and write its report",
    "prepare": "write a data set as checked records",
    "plan": "see whether a run fits on a TPU slice you do not have here, and what a step costs",
    "train": "train by the config: multi-task GRPO, or SFT",
    "eval": "judge a prepared split with a model and score it",
    "judge": "judge your own images",
    "export": "write a model folder, with a model card, from a checkpoint of a run",
    "report": "write the HTML report of a workdir, or put several runs side by side",
}


def usage() -> str:
    lines = [f"  {name:8s} {text}" for name, text in COMMANDS.items()]
    body = "\n".join(lines)
    return f"usage: mtjudge COMMAND [--flag=value ..]\n\n{body}\n\nmtjudge COMMAND --help lists the flags of a command."


def help_of(command: str) -> str:
    """The flags of a command whose module takes seconds to import, without importing it."""
    from absl import flags

    from mtjudge_jax.flags import eval_flags, export_flags, judge_flags, plan_flags, train_flags

    known = {"plan": plan_flags, "train": train_flags, "eval": eval_flags, "judge": judge_flags, "export": export_flags}
    known[command]()
    return f"mtjudge {command}: {COMMANDS[command]}\n{flags.FLAGS.module_help(sys.modules[__name__])}"


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0 if len(sys.argv) > 1 else 2)
    command = sys.argv[1]
    if command not in COMMANDS:
        print(f"error: {unknown('command', command, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    if command in ("plan", "train", "eval", "judge", "export") and {"-h", "--help"} & set(sys.argv[2:]):
        print(help_of(command))
        sys.exit(0)
    sys.argv = [f"mtjudge {command}", *sys.argv[2:]]
    try:
        runpy.run_module(f"mtjudge_jax.{command}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # while it was still being imported
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
