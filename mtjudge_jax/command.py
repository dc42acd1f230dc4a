"""What the commands share: flags for a config, a clean exit on bad input."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from mtjudge_jax.config import Config, ConfigError, flatten, unknown


def define_config(name: str = "config"):
    """`--config=FILE.py[:argument]` and `--config.field.sub=value`."""
    return config_flags.DEFINE_config_file(name, None, "Python file with get_config(), see configs/.", lock_config=True)


def run_command(main: Callable[[], None]) -> None:
    """Runs `main` after parsing the flags. What is the user's to mend ends in one line and exit status 2, not a traceback."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}: flags are written --name=value")
        logging.set_verbosity(logging.WARNING)  # Orbax and jax tell every file they write
        try:
            main()
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
            leave(130)
        except (ValueError, OSError, RuntimeError) as error:
            if os.environ.get("MTJUDGE_TRACEBACK"):
                raise
            if not is_ours(error):
                raise
            print(f"error: {error}", file=sys.stderr)
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
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError, ValueError, TypeError) as error:
        fail(str(error))


def fail(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def is_ours(error: Exception) -> bool:
    """Errors that this package raises name value, limit and remedy; others keep their traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return isinstance(error, OSError) or (frame is not None and "mtjudge_jax" in frame.tb_frame.f_code.co_filename)


def leave(status: int) -> None:
    """Ends the process at once: reader threads and a half-written save must not hold up a stop."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def typed(cfg: object) -> Config:
    """The config of a file's get_config(). Raises ConfigError if it is something else."""
    if cfg is None:
        raise ConfigError("no --config: name a config file, e.g. --config=configs/demo.py")
    try:
        cfg.steps  # noqa: B018  ml_collections raises here what it met when it loaded the file
    except Exception as error:
        raise ConfigError(f"--config: {error}") from error
    if not isinstance(cfg, Config):
        raise ConfigError(f"get_config() of the --config file gave a {type(cfg).__name__}, not a mtjudge_jax.config.Config")
    return cfg


