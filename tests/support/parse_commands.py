"""For test_docs.py: whether `mtjudge` commands parse. `python parse_commands.py COMMAND` reads a JSON list of lists of flags and
prints a JSON list: "" for each that the real flags of the command take and whose config passes the checks of a run, else why
not.

The flags of each command are in its light `__main__`. Each line is parsed in a process of its own, since flags are global.
"""

import importlib
import json
import os
import sys


def why_not(command: str, argv: list[str]) -> str:
    """Runs in a fork: nothing here is undone."""
    from mtjudge_jax.config_check import check
    from mtjudge_jax.flags import parse_flags, typed

    module = sys.modules[f"mtjudge_jax.{command}.__main__"]
    sys.argv = [f"mtjudge {command}", *argv]
    rest = parse_flags(sys.argv)[1:]
    if rest and command != "report":
        return f"{rest} are no flags"
    if any(word.startswith("--config=") for word in argv):
        check(typed(module.CONFIG.value))
    return ""


def main() -> None:
    command, out = sys.argv[1], []
    importlib.import_module(f"mtjudge_jax.{command}.__main__")
    for argv in json.load(sys.stdin):
        read, write = os.pipe()
        if not (child := os.fork()):
            os.dup2(write, 1)
            os.dup2(write, 2)
            try:
                print(why_not(command, argv), end="")
            except (Exception, SystemExit) as error:
                print(f"{type(error).__name__}: {error}", end="")
            sys.stdout.flush()
            os._exit(0)
        os.close(write)
        with open(read) as file:
            out.append(file.read())
        os.waitpid(child, 0)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
