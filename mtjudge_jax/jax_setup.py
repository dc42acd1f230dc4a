"""What jax needs before a program is compiled: a platform that is there, and a cache of compiled programs."""

import hashlib
import os
import platform
import re
import sys
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from mtjudge_jax.errors import ConfigError, one_line

_MOST_BYTES = 4 << 30  # of the cache; the oldest programs are removed first
_LEAST_SECONDS = 0.1  # of a compilation worth keeping
_ABSENT = re.compile(r"known backends|NOT_FOUND|[Nn]o .*device|not found")  # not: a TPU that another process still holds


def check_platform() -> None:
    """Raises ConfigError if JAX_PLATFORMS names a platform that this machine, or this installation of jax, does not have."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion where jax knows no platform of the list
        asked = jax.config.jax_platforms
        if not asked or (isinstance(error, RuntimeError) and not _ABSENT.search(str(error))):
            raise
        reason = f" ({one_line(error).partition(' (set JAX_PLATFORMS')[0]})" if str(error) else ""
        raise ConfigError(
            f"JAX_PLATFORMS = {asked!r}, but this machine or its jax has no such device{reason}: unset it, or set it to cpu"
        ) from error


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder, so that the next process need not compile them again. Says so once.

    Does nothing where JAX_COMPILATION_CACHE_DIR is set, even to nothing, or JAX_ENABLE_COMPILATION_CACHE is off. Nor in a run of
    several processes: jax writes such a cache on process 0 only, so it must be a folder that all of them read, and a process
    that alone need not compile may wait for ever for the others.
    """
    chosen = jax.config.jax_compilation_cache_dir or "JAX_COMPILATION_CACHE_DIR" in os.environ
    if chosen or not jax.config.jax_enable_compilation_cache or jax.process_count() > 1:
        return
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_oldest(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        print(f"compiled programs are not kept: {one_line(error)}", file=sys.stderr)
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    compilation_cache.reset_cache()  # jax decides at its first compilation, which the caller may have had
    print(f"compiled programs are kept in {folder} (off: JAX_ENABLE_COMPILATION_CACHE=0)", file=sys.stderr)


def _cache_folder() -> Path:
    """One folder per kind of processor: programs for a CPU use its own instructions, and a home may be shared by machines."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    home = given if given.is_absolute() else Path.home() / ".cache"
    kind = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            kind += next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass  # no Linux
    return home / "mtjudge_jax" / f"compiled-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


def _remove_oldest(folder: Path) -> None:
    """Keeps the newest programs, _MOST_BYTES of them. Another process may do the same at the same time."""
    kept = 0
    found = [(path.stat().st_mtime, path.stat().st_size, path) for path in folder.iterdir() if path.is_file()]
    for _, size, path in sorted(found, reverse=True):
        kept += size
        if kept > _MOST_BYTES:
            path.unlink(missing_ok=True)
