"""JAX_PLATFORMS that is not there, and the cache of compiled programs: where it is, who turns it off, that it is told once."""

import os

import jax
import pytest

from mtjudge_jax import cli, jax_setup
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.jax_setup import check_platform, keep_compiled

NO_SUCH = (
    "Unable to initialize backend 'foo': Backend 'foo' is not in the list of known backends: []. (set JAX_PLATFORMS='')"
)
NO_TPU = "Unable to initialize backend 'tpu': NOT_FOUND: TPU initialization failed: No jellyfish device found."
HELD = "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid 7."


def raising(error):
    def devices():
        raise error

    return devices


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError(NO_SUCH), RuntimeError(NO_TPU)])
def test_a_platform_that_is_not_there_is_one_line(monkeypatch, error):
    monkeypatch.setattr(jax, "devices", raising(error))
    with pytest.raises(ConfigError, match=r"^JAX_PLATFORMS = 'cpu', but this machine .*: unset it, or set it to cpu$"):
        check_platform()
    assert isinstance(cli._explained(error), UserError)


def test_other_errors_of_a_device_stay_as_they_are(monkeypatch):
    check_platform()
    error = KeyError("a bug")
    assert cli._explained(error) is error
    held = RuntimeError(HELD)  # by a process that is ending: the launchers start the command again, which status 2 would prevent
    monkeypatch.setattr(jax, "devices", raising(held))
    with pytest.raises(RuntimeError, match="already in use"):
        check_platform()
    assert cli._explained(held) is held


NAMES = ("jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process without any setting of a cache, with its own cache folder."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    jax_setup.compilation_cache.reset_cache()


def test_compiled_programs_are_kept_and_told_once(fresh, capsys):
    keep_compiled()
    keep_compiled()
    (folder,) = (fresh / "mtjudge_jax").iterdir()
    assert jax.config.jax_compilation_cache_dir == str(folder) and folder.name.startswith("compiled-")
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"compiled programs are kept in {folder} (off: JAX_ENABLE_COMPILATION_CACHE=0)\n"
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert jax.jit(lambda x: x * 3 + 17)(1) == 20  # jax has compiled before, without a cache
    assert [path.name for path in folder.iterdir() if path.name.startswith("jit_")]


def test_the_user_s_own_choice_is_kept(fresh, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    keep_compiled()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_enable_compilation_cache", False)
    keep_compiled()
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    keep_compiled()
    assert not jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    jax.config.update("jax_compilation_cache_dir", str(fresh / "mine"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(fresh / "mine")
    assert capsys.readouterr() == ("", "") and not (fresh / "mtjudge_jax").exists()


def test_a_folder_that_cannot_be_written_is_said_and_nothing_stops(fresh, capsys, monkeypatch):
    (fresh / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    keep_compiled()
    keep_compiled()
    assert capsys.readouterr().err.startswith("compiled programs are not kept: ") and not jax.config.jax_compilation_cache_dir


def test_the_oldest_programs_are_removed(fresh, monkeypatch):

    for age in range(4):
        (fresh / f"{age}").write_bytes(bytes(100))
        os.utime(fresh / f"{age}", (10**9 - age, 10**9 - age))
    monkeypatch.setattr(jax_setup, "_MOST_BYTES", 250)
    jax_setup._remove_oldest(fresh)
    assert sorted(path.name for path in fresh.iterdir()) == ["0", "1"]
