"""The flags of the commands: how they are defined, parsed and turned into a Config. Imports nothing heavy, so that --help
answers at once."""

import dataclasses
import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mtjudge_jax.config import Config, flatten
from mtjudge_jax.errors import ConfigError, fail, one_line, unknown

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


def need(*wanted: tuple[flags.FlagHolder, str]) -> None:
    """Raises ConfigError that names each flag that is not given, and what to give: absl's own text for it is none to read."""
    missing = [f"--{flag.name} is missing: {remedy}" for flag, remedy in wanted if not flag.value]
    if missing:
        raise ConfigError("; ".join(missing))


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
