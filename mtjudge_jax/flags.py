"""What the commands share: their flags, a clean exit on bad input. Imports nothing heavy, so that --help answers at once."""

import contextlib
import dataclasses
import dis
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from mtjudge_jax.config import Config, ConfigError, flatten, unknown
from mtjudge_jax.tasks.wording import TEMPLATES

PACKAGE = str(Path(__file__).parent)
flags.disclaim_key_flags()  # a flag defined here belongs to the command that asked for it, and its --help shows it


def define_config(name: str = "config"):
    """`--config=FILE.py[:argument]` and `--config.field.sub=value`."""
    return config_flags.DEFINE_config_file(name, None, "Python file with get_config(), see configs/.", lock_config=True)


class _ListFlag(flags.Flag):
    def parse(self, argument):
        before = self.value if self.present else []
        super().parse(argument)
        self.value = [*before, *self.value]


def define_list(name: str, default: list[str], text: str) -> flags.FlagHolder[list[str]]:
    """A flag of names by commas; given twice it holds both, where absl's own would forget the first."""
    parser, serializer = flags.ListParser(), flags.CsvListSerializer(",")
    return flags.DEFINE_flag(_ListFlag(parser=parser, serializer=serializer, name=name, default=default, help_string=text))


def train_flags():
    """(config, workdir, print_config, allow_change)."""
    return (
        define_config(),
        flags.DEFINE_string("workdir", None, "Folder of the run; made if missing, resumed if not."),
        flags.DEFINE_bool("print_config", False, "Check and print the resolved config, compute nothing."),
        define_list(
            "allow_change", [], "What may differ from the run in --workdir, by name: optim.lr, seed, data.path, training_data .."
        ),
    )


def plan_flags():
    """(config, topology, model, sweep, tries, json)."""
    return (
        define_config(),
        define_list("topology", [], "TPU slices that need not be here, e.g. v5p:4x4x4; default: this machine's devices."),
        flags.DEFINE_string("model", "", "A published size instead of model.path, e.g. 30b-a3b; no weights are needed."),
        flags.DEFINE_bool("sweep", False, "Rank the shapes of the mesh, and the slices, by the roofline time of a step."),
        flags.DEFINE_integer("tries", 6, "Variants compiled at most, in a sweep or where it does not fit.", lower_bound=0),
        flags.DEFINE_bool("json", False, "Print JSON instead of tables."),
    )


def eval_flags():
    """(config, model, data, out, name, split, tasks, limit, batch, samples, seed, templates, mesh)."""
    return (
        define_config(),
        flags.DEFINE_string(
            "model", None, "Hugging Face folder, or workdir of a run, whose best/ it is; default: --config's model.path."
        ),
        flags.DEFINE_string("data", None, "Folder of `mtjudge prepare`, e.g. runs/demo/data."),
        flags.DEFINE_string("out", None, "Folder for scores and predictions."),
        flags.DEFINE_string("name", "", "Name of the files; default: the split."),
        flags.DEFINE_string("split", "test", "Which split to judge."),
        define_list("tasks", [], "Tasks to judge; default: all of the split."),
        flags.DEFINE_integer("limit", 0, "Examples a task; 0 = all.", lower_bound=0),
        flags.DEFINE_integer("batch", 24, "Prompts judged at a time; with --config its rollout.prompts.", lower_bound=1),
        flags.DEFINE_integer("samples", 8, "Answers a prompt: one greedy, the rest sampled.", lower_bound=1),
        flags.DEFINE_integer("seed", 0, "Of the sampled answers.", lower_bound=0),
        flags.DEFINE_enum("templates", "train", TEMPLATES, "Wordings that are asked: those of training, those held out, all."),
        define_list("mesh", [], "Devices along the axes, e.g. fsdp=2,tensor=2; default: all along data."),
    )


def judge_flags():
    """(model, image, task, instruction, json)."""
    return (
        flags.DEFINE_string("model", None, "Hugging Face folder, e.g. runs/demo/best."),
        flags.DEFINE_multi_string("image", None, "Image file; give it twice for a pair."),
        flags.DEFINE_string("task", None, "Task name, e.g. technical or pairwise_safety."),
        flags.DEFINE_string("instruction", "", "What the picture should show, for tasks that ask: 'a dog'."),
        flags.DEFINE_bool("json", False, "Print one JSON object."),
    )


def export_flags():
    """(workdir, step, checkpoint, out, dtype, adapter, base, overwrite)."""
    return (
        flags.DEFINE_string("workdir", "", "Folder of the run, e.g. runs/mine."),
        flags.DEFINE_string("step", "", "A number, or latest, or best (the default), which is best by validation."),
        flags.DEFINE_string("checkpoint", "", "Instead of the two: the folder of a step, e.g. runs/mine/checkpoints/8."),
        flags.DEFINE_string("out", None, "Folder to write; must not exist."),
        flags.DEFINE_enum("dtype", "", ["", "bfloat16", "float32"], "Of the weights; default: what the run computed in."),
        flags.DEFINE_enum("adapter", "merge", ["merge", "peft"], "A run with LoRA: a whole model, or adapters alone for PEFT."),
        flags.DEFINE_string("base", "", "Folder of the starting model, where that has moved."),
        flags.DEFINE_bool("overwrite", False, "Replace an older export."),
    )


def need(*wanted: tuple[flags.FlagHolder, str]) -> None:
    """Raises ConfigError that names each flag that is not given, and what to give: absl's own text for it is none to read."""
    missing = [f"--{flag.name} is missing: {remedy}" for flag, remedy in wanted if not flag.value]
    if missing:
        raise ConfigError("; ".join(missing))


def run_command(main: Callable[..., None], *, positional: bool = False, workdir: flags.FlagHolder | None = None) -> None:
    """Runs `main` after parsing the flags. What is the user's to mend ends in one line and exit status 2, not a traceback.

    positional: the arguments that are no flags are allowed, and are main's argument. workdir: the flag with the folder of the
    run that a stopped command goes on with.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1 and not positional:
            fail(f"unexpected argument {argv[1]!r}: flags are written --name=value")
        logging.set_verbosity(logging.WARNING)  # Orbax and jax tell every file they write
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, lambda *_: stop(None if workdir is None else workdir.value))
        try:
            main(argv[1:]) if positional else main()
        except Exception as error:
            if os.environ.get("MTJUDGE_TRACEBACK") or not is_ours(error):
                traceback.print_exc()
                leave(1)
            print(f"error: {one_line(error)}", file=sys.stderr)
            leave(2)

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # folders only: nothing here opens a connection
    app.run(guarded, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with the reason alone for a bad flag instead of the whole usage."""
    fields = flatten(Config())
    for argument in argv:
        name = argument.partition("=")[0].lstrip("-")
        if name.startswith("config.") and name.removeprefix("config.") not in fields:
            fail(unknown("field", name.removeprefix("config."), fields))
    path = config_file(argv)
    if path and not Path(path).is_file():
        fail(f"--config={path}: no such file")
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(one_line(error))
    except Exception as error:  # a config file is a program, it can raise anything
        if os.environ.get("MTJUDGE_TRACEBACK"):
            raise
        fail(f"--config={path}: {type(error).__name__}: {one_line(error)}")


def config_file(argv: list[str]) -> str:
    """The file that `--config=FILE.py[:argument]` or `--config FILE.py` names, "" where there is none."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return (value if equals else following).partition(":")[0]
    return ""


def fail(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def one_line(error: Exception, most: int = 6) -> str:
    """The lines of an error side by side; of a long list the first, and of a traceback's text its cause."""
    text, _, trace = str(error).partition("Traceback (most recent call last):")
    lines = [line.strip() for line in [*text.splitlines(), *trace.splitlines()[-1:]] if line.strip()]
    rest = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + rest


def is_ours(error: Exception) -> bool:
    """Whether a `raise` of this package made it: those name value, limit and remedy. Others keep their traceback.

    The file alone does not tell: jax takes its own frames out of a traceback, so its errors seem to come from here.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if isinstance(error, OSError) or trace is None:
        return isinstance(error, OSError)
    code = trace.tb_frame.f_code
    return code.co_filename.startswith(PACKAGE) and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def going_on(workdir: str | None) -> str:
    """What the same command does after a stop. A bucket is not asked: that takes time, and Ctrl-C must not."""
    steps = []
    if workdir and "://" not in workdir:
        with contextlib.suppress(OSError):
            steps = [int(name) for name in os.listdir(Path(workdir) / "checkpoints") if name.isdecimal()]
    if steps:
        return f"the same command goes on after step {max(steps)}"
    return "the same command goes on from what it has saved, or begins anew where that is nothing"


def stop(workdir: str | None) -> NoReturn:
    """What Ctrl-C does. Not by KeyboardInterrupt: raised while jax collects garbage, Python drops it, and the run goes on."""
    newline = "\n" if sys.stderr.isatty() else ""  # after the terminal's ^C
    os.write(2, f"{newline}stopped; {going_on(workdir)}\n".encode())
    os._exit(130)


def leave(status: int) -> NoReturn:
    """Ends the process at once: reader threads and a half-written save must not hold up a stop."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def typed(cfg: object) -> Config:
    """The config of a file's get_config(). Raises ConfigError if it is something else, or has a field that does not exist."""
    if cfg is None and not config_file(sys.argv):
        raise ConfigError("no --config: name a config file, e.g. --config=configs/demo.py")
    if isinstance(cfg, Config):
        refuse_strays(cfg)
        split_names(cfg)
        return cfg
    try:
        cfg.steps  # noqa: B018  ml_collections raises here what it met when it loaded the file
    except OSError as error:
        raise ConfigError(f"--config: {one_line(error)}") from error
    except AttributeError:
        pass
    raise ConfigError(f"get_config() of the --config file gave a {type(cfg).__name__}, not a mtjudge_jax.config.Config")


def split_names(cfg: object) -> None:
    """`--config.data.tasks=technical,safety` arrives as one name: ml_collections splits numbers only."""
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        if dataclasses.is_dataclass(value):
            split_names(value)
        elif isinstance(value, tuple) and all(isinstance(name, str) for name in value):
            setattr(cfg, f.name, tuple(part.strip() for name in value for part in name.split(",")))


def refuse_strays(cfg: object, where: str = "") -> None:
    """A misspelt `cfg.optim.learning_rate = ..` makes a new attribute, which nothing would ever read."""
    fields = {f.name for f in dataclasses.fields(cfg)}
    for name, value in vars(cfg).items():
        if name not in fields:
            raise ConfigError(unknown("field", where + name, [where + known for known in fields]))
        if dataclasses.is_dataclass(value):
            refuse_strays(value, f"{where}{name}.")
