"""The command line `mtjudge COMMAND --flag=value ..`, and how a command ends. `python -m mtjudge_jax.COMMAND` is the same."""

import contextlib
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

from mtjudge_jax.errors import UserError, fail, leave, one_line, unknown
from mtjudge_jax.flags import parse_flags

EXIT_CTRL_C = 130  # as shells have it: 128 and the number of SIGINT
EXIT_PIPE = 141  # of SIGPIPE
_STOP_SECONDS = 0.5  # for the line that it prints
COMMANDS = {
    "demo": "train a tiny judge on this machine, evaluate it and write its report",
    "prepare": "turn a data set into checked records",
    "plan": "predict the memory and the time of a run on a TPU slice, without the slice",
    "train": "train a judge with a config: multi-task GRPO, SFT or DPO",
    "sample": "make reasonings for SFT, or pairs for DPO, from labels and a model's own answers",
    "eval": "judge a prepared split with a model and score the answers",
    "judge": "judge your own images",
    "serve": "serve a judge over HTTP, for other programs and machines",
    "export": "write a Hugging Face folder with a model card from a run or one of its checkpoints",
    "report": "write the HTML report of a run, or compare several runs",
}


def usage() -> str:
    body = "\n".join(f"  {name:8s} {text}" for name, text in COMMANDS.items())
    return f"usage: mtjudge COMMAND [--flag=value ..]\n\n{body}\n\n'mtjudge COMMAND --help' lists the flags of a command."


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0 if len(sys.argv) > 1 else 2)
    command = sys.argv[1]
    if command not in COMMANDS:
        fail(unknown("command", command, COMMANDS))
    sys.argv = [f"mtjudge {command}", *sys.argv[2:]]
    try:
        runpy.run_module(f"mtjudge_jax.{command}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # during the command's imports
        print("stopped", file=sys.stderr)
        sys.exit(EXIT_CTRL_C)


def run_command(main: Callable[..., None], *, positional: bool = False, workdir: flags.FlagHolder | None = None) -> None:
    """Runs `main` after parsing the flags. A UserError or an OSError ends in one line and exit status 2. Any other error is a
    bug and ends in its traceback and exit status 1.

    positional: passes the arguments that are not flags to main; without it they are refused. workdir: the flag with the folder
    of the run that the command continues after a stop.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1 and not positional:
            fail(f"unexpected argument {argv[1]!r}: flags are written --name=value")
        logging.set_verbosity(logging.WARNING)  # Orbax and jax log every file that they write
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored in the background of a script
            _listen_for_ctrl_c(None if workdir is None else workdir.value)
        try:
            main(argv[1:]) if positional else main()
        except BrokenPipeError:  # nobody reads on, as after `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            leave(EXIT_PIPE)
        except Exception as raised:
            error = _explained(raised)
            if os.environ.get("MTJUDGE_TRACEBACK") or not isinstance(error, UserError | OSError):
                traceback.print_exc()
                leave(1)
            print(f"error: {one_line(error)}", file=sys.stderr)
            leave(2)

    if {"-h", "--help"} & set(sys.argv[1:]):
        _, _, listed = flags.FLAGS.main_module_help().strip().partition("\n")  # the first line is the module's path
        print(f"{(sys.modules['__main__'].__doc__ or '').strip()}\n\nflags:\n{listed}")
        sys.exit(0)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are folders: no command downloads one
    app.run(guarded, flags_parser=parse_flags)


def _explained(error: Exception) -> Exception:
    """The error, or what is wrong with JAX_PLATFORMS, which jax itself says in a dozen ways."""
    if not isinstance(error, UserError | OSError) and "jax" in sys.modules:
        from mtjudge_jax.jax_setup import check_platform  # imports jax, which --help must not wait for

        try:
            check_platform()
        except Exception as found:
            return found if isinstance(found, UserError) else error
    return error


def resume_text(workdir: str | None) -> str:
    """What the same command does after a stop. A bucket is not listed, because Ctrl-C must not wait for the network."""
    steps = []
    if workdir and "://" not in workdir:
        with contextlib.suppress(OSError):
            steps = [int(name) for name in os.listdir(Path(workdir) / "checkpoints") if name.isdecimal()]
    if steps:
        return f"the same command continues after step {max(steps)}"
    return "the same command continues from what was saved, or starts from the beginning"


class _CtrlC:
    """What the process knows of Ctrl-C."""

    saves = False  # whether a first one saves and then ends the process
    asked = False  # whether that first one came


@contextlib.contextmanager
def first_ctrl_c_saves() -> Iterator[None]:
    """While it lasts, a first Ctrl-C asks all processes to stop, as a SIGTERM does (hosts.stop_if_asked); a second one ends this
    process at once. For commands in a group of hosts.start.
    """
    _CtrlC.saves = True
    try:
        yield
    finally:
        _CtrlC.saves = False


def ctrl_c_asked() -> bool:
    """Whether it was a Ctrl-C that asked this process to stop."""
    return _CtrlC.asked


def _listen_for_ctrl_c(workdir: str | None) -> None:
    """A thread acts on Ctrl-C. Python's own handler would wait for the end of a computation or a compilation, and the
    KeyboardInterrupt that it raises may get lost: while jax collects garbage, Python drops it.
    """
    signals, written = socket.socketpair()
    written.setblocking(False)
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=written.close)  # else the Ctrl-C of a child would count as another one

    def listen() -> None:
        with written:
            while number := signals.recv(1):
                if number[0] == signal.SIGINT:
                    _act_on_ctrl_c(workdir)

    threading.Thread(target=listen, name="ctrl-c", daemon=True).start()


def _act_on_ctrl_c(workdir: str | None) -> None:
    if not _CtrlC.saves or _CtrlC.asked:
        _stop(workdir)
    _CtrlC.asked = True
    _say_at_once("stopping after what is computed now, and saving; Ctrl-C again ends at once")
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(workdir: str | None) -> NoReturn:
    last = threading.Timer(_STOP_SECONDS, os._exit, (EXIT_CTRL_C,))  # where the file system of the workdir does not answer
    last.daemon = True
    last.start()
    _say_at_once(f"stopped; {resume_text(workdir)}")
    os._exit(EXIT_CTRL_C)


def _say_at_once(text: str) -> None:
    newline = "\n" if sys.stderr.isatty() else ""  # after the terminal's ^C
    os.write(2, f"{newline}{text}\n".encode())


if __name__ == "__main__":
    main()
