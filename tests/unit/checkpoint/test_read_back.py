"""A save counts only when it can be restored: folders with odd names, an index that Orbax did not write or not wholly."""

import os
import shutil
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint._src.serialization import ocdbt_utils

from mtjudge_jax import checkpoint as ck
from mtjudge_jax.checkpoint import plain_name, read_back
from mtjudge_jax.checkpoint.digest import digests, host_digest
from mtjudge_jax.checkpoint.record import read_record
from mtjudge_jax.config import CheckpointConfig
from mtjudge_jax.types import TrainState


def state(step: int) -> TrainState:
    """Of every kind of leaf: odd dtypes, zeros, a scalar, an empty optimizer state."""
    params = {"text": {"w_dd": jnp.arange(12.0).reshape(3, 4) + step, "b_d": jnp.ones(5, jnp.bfloat16), "z_d": jnp.zeros(7)}}
    return TrainState(params, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params), jnp.int32(step))


def like(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def numbers(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def save(folder, *steps: int, **cfg) -> tuple[ck.Checkpoints, list[str]]:
    opened, said = ck.open_checkpoints(folder, CheckpointConfig(**cfg)), []
    for step in steps:
        said += ck.save(opened, step, state=state(step), data_state={"at": step}, meta={})
        said += ck.wait(opened)
    return opened, said


NAMES = (
    "run[1]", "freeze=[vision,mergers]", "a[", "a]", "[!x]", "a\\b", "a\\", "a*b", "a**b", "**", "a?b", "{a,b}", "a b", "~",
    "%41", "ü", "a\nb", "a#b", "'\"", "\udce4",
)  # fmt: skip


PLACES = [(name, "checkpoints") for name in NAMES] + [(name, place) for name in ("run[1]", "a\\b") for place in (".", "x/y")]


@pytest.mark.parametrize("name, place", PLACES, ids=ascii)
def test_what_is_saved_in_a_folder_of_any_name_is_restored(tmp_path, name, place):
    folder = tmp_path / name / place
    _, said = save(folder, 1, 2)
    assert said == [] and sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing was written elsewhere
    got = ck.restore_latest(ck.open_checkpoints(folder, CheckpointConfig()), like(state(0)))
    assert (got.step, got.damaged, numbers(got.state)) == (2, (), numbers(state(2)))
    part = ck.restore_part(ck.read_saved(folder, 1), "params", lambda path, shape: like(state(0)).step.sharding)
    assert np.array_equal(part["text"]["w_dd"], state(1).params["text"]["w_dd"])
    moved = tmp_path / "plain"
    shutil.copytree(folder, moved)
    assert ck.restore_latest(ck.open_checkpoints(moved, CheckpointConfig()), like(state(0))).step == 2


def test_a_link_to_a_folder_with_an_odd_name_and_back(tmp_path):
    (tmp_path / "team[1]").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "team[1]")
    save(tmp_path / "link", 1)
    assert ck.restore_latest(ck.open_checkpoints(tmp_path / "team[1]", CheckpointConfig()), like(state(0))).step == 1
    (tmp_path / "plain").mkdir()
    (tmp_path / "link[2]").symlink_to(tmp_path / "plain")
    save(tmp_path / "link[2]", 3)
    assert ck.restore_latest(ck.open_checkpoints(tmp_path / "plain", CheckpointConfig()), like(state(0))).step == 3


def test_a_name_that_is_a_pattern_takes_nothing_from_its_neighbours(tmp_path):
    save(tmp_path / "axb", 1)
    unfinished = tmp_path / "axb" / "1.unfinished.orbax-checkpoint-tmp" / "state"
    shutil.copytree(tmp_path / "axb" / "1" / "state", unfinished)
    (unfinished / "ocdbt.process_0").rename(unfinished / "ocdbt.process_7")  # what a run there is writing
    save(tmp_path / "a*b", 1)
    assert not list((tmp_path / "a*b" / "1").rglob("*process_7*"))
    assert ck.restore_latest(ck.open_checkpoints(tmp_path / "a*b", CheckpointConfig()), like(state(0))).step == 1


def test_where_no_name_can_be_given_the_folder_is_refused_before_the_first_step(tmp_path, monkeypatch):
    with pytest.raises(ck.CheckpointError, match=r"gs://b/run\[1\]/0: a checkpoint in a bucket needs a name without \[ \]"):
        from etils import epath

        plain_name.plain(epath.Path("gs://b/run[1]/0"))
    monkeypatch.setattr(plain_name, "_SPARE", ())
    monkeypatch.setattr(plain_name.tempfile, "tempdir", str(tmp_path / "tmp[1]"))
    with pytest.raises(ck.CheckpointError, match=r"run\[1\]: Orbax cannot write below a name with .*choose a folder") as error:
        ck.open_checkpoints(tmp_path / "run[1]", CheckpointConfig())
    assert "\n" not in str(error.value)


def test_somebody_elses_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(plain_name, "_SPARE", ())
    monkeypatch.setattr(plain_name.tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"mtjudge-names-{os.getuid()}"
    own.mkdir(mode=0o700)
    link = plain_name.plain(Path("/data/run[1]/checkpoints/5"))
    assert os.readlink(link.parent) == "/data/run[1]/checkpoints" and link.name == "5"
    link.parent.unlink()
    link.parent.symlink_to("/elsewhere")
    assert os.readlink(plain_name.plain(Path("/data/run[1]/checkpoints/6")).parent) == "/data/run[1]/checkpoints"
    own.chmod(0o777)
    with pytest.raises(ck.CheckpointError):
        plain_name.plain(Path("/data/run[1]/checkpoints/5"))


async def skipped(directory, *arguments, **more):
    """The merge finds nothing, as in google/orbax#924: it logs, and the save ends well."""


def test_a_step_whose_index_orbax_never_wrote_is_a_failed_save(tmp_path):
    """Before, the checksums of its files were right, so it counted, and the good step before it was deleted."""
    opened, said = save(tmp_path, 1, keep=1)
    assert said == []
    with mock.patch.object(ocdbt_utils, "merge_ocdbt_per_process_files", skipped):
        ck.save(opened, 2, state=state(2), data_state={}, meta={})
        (said,) = ck.wait(opened)
    assert "the checkpoint of step 2 was not written (OSError: it was written but cannot be restored: " in said
    assert "try another disk, or other versions" in said
    assert "good checkpoints kept: step 1: training continues" in said and "\n" not in said
    assert ck.saved_steps(opened) == [1] and [path.name for path in tmp_path.iterdir()] == ["1"]
    assert ck.save(opened, 3, state=state(3), data_state={}, meta={}) == ck.wait(opened) == []
    assert ck.restore_latest(opened, like(state(0))).step == 3


def test_every_step_of_a_merge_that_goes_wrong_is_found(tmp_path):
    save(tmp_path / "whole", 1)
    record, folder = read_record(tmp_path / "whole" / "1", 1), tmp_path / "copy"
    assert read_back.restore_problem(tmp_path / "whole" / "1", record) == ""

    def harmed(harm) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole" / "1", folder)
        harm(folder / "state")
        try:
            return read_back.restore_problem(folder, record)
        except ValueError as error:
            return str(error)

    assert harmed(lambda state: (state / "manifest.ocdbt").unlink())
    assert harmed(lambda state: [path.unlink() for path in (state / "d").iterdir()])
    # The index of another save: as whole, of other numbers.
    save(tmp_path / "other", 5)
    other = tmp_path / "other" / "1"
    (tmp_path / "other" / "5").rename(other)
    assert "reads back with other numbers than were saved" in read_back.restore_problem(other, record)
    # One process's part was not joined.
    second = record | {"files": record["files"] | {"state/ocdbt.process_1/manifest.ocdbt": "1:1"}}
    with mock.patch.object(read_back, "_keys", lambda path: {"a/c/0"} if path.name == "ocdbt.process_1" else _keys(path)):
        said = read_back.restore_problem(tmp_path / "whole" / "1", second)
    count = len(_keys(tmp_path / "whole" / "1" / "state"))
    assert said == (
        f"the joined index of state/ has {count} of {count + 1} entries, without a/c/0: Orbax has not joined what its processes "
        "wrote"
    )
    assert read_back.restore_problem(tmp_path / "whole" / "1", record | {"files": {}}) == "Orbax has written no arrays"


_keys = read_back._keys


def test_a_few_arrays_are_read_and_others_with_the_next_step(monkeypatch):
    leaves = {f"a{i}": {"dtype": "bfloat16", "shape": [4, 2**i]} for i in range(6)}  # 8 to 256 bytes
    monkeypatch.setattr(read_back, "_READ_BYTES", 100)
    chosen = [read_back._some_of(leaves, step) for step in range(6)]
    assert chosen[0] == ["a0", "a1", "a2"] and chosen[2] == ["a2", "a3"] and chosen[3] == ["a3", "a0", "a1"]
    monkeypatch.setattr(read_back, "_READ_BYTES", 4)
    assert read_back._some_of(leaves, 3) == ["a0"]


def test_the_digest_of_the_host_is_that_of_the_devices():
    keys = jax.random.split(jax.random.key(0), 4)
    tree = {
        "float32": jax.random.normal(keys[0], (3, 5, 7)),
        "bfloat16": jax.random.normal(keys[1], (9, 2), jnp.bfloat16),
        "int8": jnp.arange(-5, 5, dtype=jnp.int8),
        "bool": jnp.array([True, False, True]),
        "scalar": jnp.int32(7),
        "empty": jnp.zeros((0, 3)),
    }
    assert {name: host_digest(np.asarray(x)) for name, x in tree.items()} == digests(tree)
    pair = np.array([1.5, -2.0], np.float64)
    with jax.enable_x64(True):
        assert host_digest(pair) == digests({"x": jnp.asarray(pair)})["x"]
