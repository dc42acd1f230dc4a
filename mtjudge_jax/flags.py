"""Defines and parses the commands' flags, and returns the Config of --config. Imports nothing heavy: --help must be fast."""

import ast
import dataclasses
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mtjudge_jax.config import RECIPES, Config, field_meant, flatten, unknown_field
from mtjudge_jax.errors import ConfigError, fail, one_line

flags.disclaim_key_flags()  # a flag that this module defines belongs to the calling command and appears in its --help


def define_config(name: str = "config"):
    """`--config=FILE.py[:argument]` and `--config.field.sub=value`."""
    text = "Python file with get_config(), e.g. configs/demo.py; --config.FIELD=VALUE changes a field."
    return config_flags.DEFINE_config_file(name, None, text, lock_config=True)


class _ListFlag(flags.Flag):
    def parse(self, argument):
        before = self.value if self.present else []
        super().parse(argument)
        self.value = [*before, *self.value]


def define_list(name: str, default: list[str], text: str) -> flags.FlagHolder[list[str]]:
    """A flag of names separated by commas. A flag given twice holds the names of both; absl's own would drop the first."""
    parser, serializer = flags.ListParser(), flags.CsvListSerializer(",")
    return flags.DEFINE_flag(_ListFlag(parser=parser, serializer=serializer, name=name, default=default, help_string=text))


def need(*wanted: tuple[flags.FlagHolder, str]) -> None:
    """Raises ConfigError that names every missing flag and its remedy, because absl's own message is unreadable."""
    missing = [f"--{flag.name} is missing: {remedy}" for flag, remedy in wanted if not flag.value]
    if missing:
        raise ConfigError("; ".join(missing))


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; an invalid flag or config file ends in one line and exit status 2, not in the whole usage."""
    fields = flatten(Config())
    argv = [_quoted(argument, fields) for argument in argv]
    for argument in argv:
        name = argument.partition("=")[0].lstrip("-")
        if name.startswith("config.") and name.removeprefix("config.") not in fields:
            fail(unknown_field(name.removeprefix("config.")))
    path = config_file(argv)
    if path and not Path(path).is_file():
        fail(f"--config={path}: no such file; name a config file, e.g. --config=configs/demo.py")
    if path:  # a config file may import a module beside it, as a script may; an installed package comes first
        sys.path.append(str(Path(path).resolve().parent))
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        meant = field_meant(error.flagname)
        remedy = f"; a field of the config is written --config.{meant}=VALUE" if meant else ""
        fail(one_line(error) + remedy)
    except flags.Error as error:
        fail(one_line(error))
    except Exception as error:  # a config file is a program and may raise anything
        if os.environ.get("MTJUDGE_TRACEBACK"):
            raise
        argument = _given_config(argv).partition(":")[2]
        if isinstance(error, KeyError) and argument and error.args == (argument,):
            fail(f"--config={_given_config(argv)}: the file's get_config does not know the argument {argument!r}")
        fail(f"--config={_given_config(argv)}: {_raised_in(error, path)}{type(error).__name__}: {one_line(error)}")


def _quoted(argument: str, fields: Mapping[str, object]) -> str:
    """`--config.reward.weights=accuracy=0.9,format=0.1` with its names in quotes: ml_collections takes only words without.

    An empty value is no name: `--config.model.freeze=`.
    """
    name, equals, value = argument.partition("=")
    if not isinstance(fields.get(name.lstrip("-").removeprefix("config.")), tuple) or set(value) & set("'\"()[]{}"):
        return argument
    try:
        ast.literal_eval(value)  # numbers
    except (ValueError, SyntaxError):
        return f"{name}{equals}{value!r}" if value else f"{name}=()" if equals else argument
    return argument


def config_file(argv: list[str]) -> str:
    """The file that `--config=FILE.py[:argument]` or `--config FILE.py` names, or ""."""
    return _given_config(argv).partition(":")[0]


def _given_config(argv: list[str]) -> str:
    """The value of --config, `FILE.py[:argument]`, or ""."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return ""


def _raised_in(error: Exception, path: str) -> str:
    """`line 12, in get_config, raised `: the last line of the config file that the error passed; "" if it passed none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == Path(path).name]
    return f"line {frames[-1].lineno}, in {frames[-1].name}, raised " if frames else ""


def typed(cfg: object) -> Config:
    """The Config that a file's get_config() returned. Raises ConfigError for another type or an unknown field."""
    if cfg is None and not config_file(sys.argv):
        raise ConfigError("no --config: name a config file, e.g. --config=configs/demo.py")
    if isinstance(cfg, Config):
        _refuse_strays(cfg)
        _split_names(cfg)
        apply_recipe(cfg)
        return cfg
    try:
        cfg.steps  # noqa: B018  ml_collections raises the errors of loading the file here
    except OSError as error:
        raise ConfigError(f"--config: {one_line(error)}") from error
    except AttributeError:
        pass
    raise ConfigError(f"get_config() of the --config file returned a {type(cfg).__name__}, not a mtjudge_jax.config.Config")


def apply_recipe(cfg: Config) -> None:
    """Sets the fields of the config's recipe. A field that no longer has its default stays: who wrote it wants it."""
    for name, value in _recipe(cfg).items():
        if flatten(cfg)[name] == flatten(Config())[name]:
            group, _, field_name = name.rpartition(".")
            setattr(getattr(cfg, group), field_name, value)


def recipe_text(cfg: Config) -> str:
    """What the recipe has set, and what it was kept from; "" without one."""
    values, wanted = flatten(cfg), _recipe(cfg)
    done = [f"{name}={values[name]}" for name in wanted if values[name] == wanted[name]]
    kept = [f"{name}={values[name]} instead of {wanted[name]}" for name in wanted if values[name] != wanted[name]]
    return f"recipe {cfg.recipe}: {', '.join(done + kept)}" if cfg.recipe else ""


def _recipe(cfg: Config) -> dict[str, object]:
    fields = RECIPES.get(cfg.recipe, {})
    return fields | ({"reward.overlong_buffer": max(1, cfg.rollout.completion_tokens // 5)} if cfg.recipe == "dapo" else {})


def _split_names(cfg: object) -> None:
    """Splits names at commas: ml_collections leaves `--config.data.tasks=technical,safety` as one name."""
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        if dataclasses.is_dataclass(value):
            _split_names(value)
        elif isinstance(value, tuple) and all(isinstance(name, str) for name in value):
            setattr(cfg, f.name, tuple(part.strip() for name in value for part in name.split(",")))


def _refuse_strays(cfg: object, where: str = "") -> None:
    """Raises ConfigError for a misspelt `cfg.optim.learning_rate = ..`, which creates an attribute that nothing reads."""
    fields = {f.name for f in dataclasses.fields(cfg)}
    for name, value in vars(cfg).items():
        if name not in fields:
            raise ConfigError(unknown_field(where + name))
        if dataclasses.is_dataclass(value):
            _refuse_strays(value, f"{where}{name}.")
