"""Checkpoints: exact on every mesh, damage named and rolled back, nothing good ever lost."""

import hashlib
import json
import random
import shutil
import subprocess
from collections import namedtuple
from concurrent.futures import Future
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtjudge_jax import checkpoint as ck
from mtjudge_jax.checkpoint import record as records
from mtjudge_jax.checkpoint import saving
from mtjudge_jax.checkpoint.digest import digests
from mtjudge_jax.config import CheckpointConfig, MeshConfig, differences
from mtjudge_jax.sharding import make_mesh, tree_shardings
from mtjudge_jax.types import TrainState

# Orbax leaves coroutines unawaited when a file it reads is damaged
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")

META = {"config": {"optim": {"lr": 1e-6}, "tasks": ("a", "b")}, "data": "f00d"}


def make_state(seed: int, mesh: jax.sharding.Mesh, dtype=jnp.bfloat16) -> TrainState:
    """A small train state with real parameter names, incompressible, sharded by the table."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "text": {
            "embed_vd": jax.random.normal(keys[0], (2048, 32), dtype),
            "norm_d": jax.random.normal(keys[1], (32,), jnp.float32),
            "layers": {"q_ldnh": jax.random.normal(keys[2], (2, 64, 4, 64), jnp.float32)},
        }
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = TrainState(params, tx.init(params), jnp.int32(seed))
    return jax.device_put(state, tree_shardings(state, mesh))


def abstract(state, mesh):
    shardings = tree_shardings(state, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def hosted(tree):
    """Bytes of every leaf, so that equality is of bits."""
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def flip(file, rng):
    content = bytearray(file.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


@pytest.fixture
def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))


def saved(folder, mesh, steps=(1, 2), keep=2):
    """An open folder with these steps in it; the state of a step is made from its number."""
    checkpoints = ck.open_checkpoints(folder, CheckpointConfig(keep=keep))
    for step in steps:
        ck.save(checkpoints, step, state=make_state(step, mesh), data_state={"global_next_index": step * 8}, meta=META)
    ck.wait(checkpoints)
    return checkpoints


def test_digest_is_the_same_on_every_mesh_and_sees_every_single_change(mesh):
    tree = make_state(0, mesh).params | {"flags": jnp.array([True, False]), "bytes": jnp.arange(7, dtype=jnp.uint8)}
    one = jax.device_put(tree, jax.devices()[0])
    assert digests(tree) == digests(one)
    x = np.arange(64, dtype=np.float32)
    want = digests({"x": x})["x"]
    for bit in range(32):
        for place in (0, 31, 63):
            y = x.copy()
            y.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert digests({"x": y})["x"] != want
    assert digests({"x": x[::-1]})["x"] != want
    assert len({digests({"x": jnp.zeros(n)})["x"] for n in range(1, 5)}) == 4


@pytest.mark.parametrize("process,left", [(0, []), (1, ["7.unfinished"])])
def test_the_first_process_removes_what_a_killed_save_left(tmp_path, process, left):
    (tmp_path / "7.unfinished").mkdir()
    (tmp_path / "7.unfinished" / "state").write_text("half")
    with mock.patch.object(jax, "process_index", lambda: process):
        ck.open_checkpoints(tmp_path, CheckpointConfig())
    assert [path.name for path in tmp_path.iterdir()] == left


def test_save_and_restore_of_the_newest(tmp_path, mesh):
    checkpoints = saved(tmp_path, mesh, (1, 2, 3))
    assert ck.saved_steps(checkpoints) == [2, 3]
    later = META | {"judged": 3}  # of a complete step the meta alone changes
    assert ck.save(checkpoints, 3, state=make_state(9, mesh), data_state={}, meta=later) == []
    assert checkpoints.pending is None
    again = ck.open_checkpoints(tmp_path, CheckpointConfig(keep=2))
    got = ck.restore_latest(again, abstract(make_state(0, mesh), mesh))
    assert (got.step, got.data_state, got.damaged) == (3, {"global_next_index": 24}, ())
    assert differences(got.meta, later) == []
    assert hosted(got.state) == hosted(make_state(3, mesh))
    assert jax.tree.structure(got.state) == jax.tree.structure(make_state(3, mesh))
    assert ck.restore_latest(ck.open_checkpoints(tmp_path / "new", CheckpointConfig()), abstract(got.state, mesh)) is None


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 2, 2), (1, 2, 1), (1, 1, 1)])
def test_restore_on_another_mesh_is_bit_equal(tmp_path, mesh, shape):
    checkpoints = saved(tmp_path, mesh, (1,))
    data, fsdp, tensor = shape
    other = make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])
    state = ck.restore_latest(checkpoints, abstract(make_state(0, mesh), other)).state
    assert hosted(state) == hosted(make_state(1, mesh))
    assert state.params["text"]["embed_vd"].sharding.mesh.size == data * fsdp * tensor


def test_arrays_may_be_donated_once_save_returned(tmp_path, mesh):
    checkpoints = ck.open_checkpoints(tmp_path, CheckpointConfig())
    state = jax.device_put({"w": jnp.arange(2.0**20)}, jax.devices()[0])
    want = hosted(state)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    ck.save(checkpoints, 1, state=state, data_state={}, meta={})
    jax.block_until_ready(overwrite(state))
    like = {"w": jax.ShapeDtypeStruct((2**20,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}
    assert hosted(ck.restore_latest(checkpoints, like).state) == want


def test_fifty_harms_to_any_file_of_the_newest_step_are_named_and_the_one_before_is_used(tmp_path, mesh):
    """30 flipped bits, 10 cut files, 10 deleted files. A seed chooses files and places, files equally often or by their size."""
    whole = tmp_path / "whole"
    saved(whole, mesh)
    like, want = abstract(make_state(0, mesh), mesh), hosted(make_state(1, mesh))
    rng, named = random.Random(0), 0
    files = sorted(p.relative_to(whole) for p in (whole / "2").rglob("*") if p.is_file() and p.stat().st_size)
    sizes = [(whole / file).stat().st_size for file in files]
    harms = {
        "flipped": lambda p: flip(p, rng),
        "cut": lambda p: p.write_bytes(p.read_bytes()[: rng.randrange(p.stat().st_size)]),
        "deleted": lambda p: p.unlink(),
    }
    assert len(files) >= 8
    for number, name in enumerate(["flipped"] * 30 + ["cut"] * 10 + ["deleted"] * 10):
        folder = tmp_path / "copy"
        shutil.copytree(whole, folder)
        file = rng.choices(files, sizes)[0] if number % 2 else rng.choice(files)
        harms[name](folder / file)
        got = ck.restore_latest(ck.open_checkpoints(folder, CheckpointConfig()), like)
        assert (got.step, got.data_state, hosted(got.state)) == (1, {"global_next_index": 8}, want), (name, file)
        reason = got.damaged[0].removeprefix("step 2: ")
        assert len(got.damaged) == 1 and (file.name in reason or "Error" in reason or "record" in reason), (name, file, reason)
        assert (folder / "2.damaged-1").is_dir() and not (folder / "2").exists()
        named += 1
        shutil.rmtree(folder)
    assert named == 50


def test_every_byte_counts(tmp_path, mesh):
    """A bit in the first, the middle and the last byte of every file: bytes that nothing reads are covered too."""
    whole = tmp_path / "whole"
    saved(whole, mesh)
    record = records.read_record(whole / "2", 2)
    files = sorted(p for p in (whole / "2").rglob("*") if p.is_file())
    assert {p.relative_to(whole / "2").as_posix() for p in files} == {*record["files"], "record.json"}
    for file in files:
        content = file.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1} if content else ():
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            if file.name == "record.json":
                with pytest.raises(ValueError, match=r"record.json does not match its sha256"):
                    records.read_record(whole / "2", 2)
            else:
                name = file.relative_to(whole / "2").as_posix()
                assert records.damage_in(whole / "2", record["files"], 0, 1) == f"wrong checksum: {name}"
            file.write_bytes(content)
    assert records.damage_in(whole / "2", record["files"], 0, 1) == ""


def test_digests_find_what_checksums_cannot(tmp_path, mesh):
    """Files and record agree, yet another state comes out, as if the library that writes or reads them had a bug."""
    checkpoints = saved(tmp_path, mesh)
    path = tmp_path / "2" / "record.json"
    record = records.read_record(path.parent, 2)
    record["leaves"]["params/text/norm_d"]["digest"] ^= 1
    text = json.dumps(record, sort_keys=True)
    path.write_text(json.dumps({"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    got = ck.restore_latest(checkpoints, abstract(make_state(0, mesh), mesh))
    assert got.step == 1 and "step 2: params/text/norm_d: digest" in got.damaged[0]


def test_another_format_is_refused_and_not_taken_for_damage(tmp_path, mesh):
    checkpoints = saved(tmp_path, mesh)
    record = records.read_record(tmp_path / "2", 2)
    records._write_record(tmp_path / "2", record | {"format": 3})
    said = f"{tmp_path}/2 has checkpoint format 3, this version of mtjudge_jax reads format 2: use the version that wrote it"
    for read in (lambda: ck.restore_latest(checkpoints, abstract(make_state(0, mesh), mesh)), lambda: ck.read_saved(tmp_path, 2)):
        with pytest.raises(ck.CheckpointError) as error:
            read()
        assert str(error.value) == said
    assert ck.saved_steps(checkpoints) == [1, 2]


def test_damage_is_logged_and_the_step_can_be_saved_again(tmp_path, mesh, caplog):
    checkpoints = saved(tmp_path, mesh)
    flip(max((tmp_path / "2").rglob("ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size), random.Random(2))
    with caplog.at_level("WARNING"):
        got = ck.restore_latest(checkpoints, abstract(make_state(0, mesh), mesh))
    assert got.step == 1 and "step 2" in caplog.text and "set aside as 2.damaged-1" in caplog.text
    assert ck.save(checkpoints, 2, state=make_state(2, mesh), data_state={}, meta={}) == []
    assert ck.restore_latest(checkpoints, abstract(make_state(0, mesh), mesh)).step == 2


def test_all_damaged_is_an_error_every_time(tmp_path, mesh):
    checkpoints = saved(tmp_path, mesh)
    for step in (1, 2):
        (tmp_path / str(step) / "record.json").write_bytes(b"\xff{")
    for _ in range(2):  # nothing was renamed, so the second start does not begin from nothing without a word
        with pytest.raises(ck.CheckpointError, match=r"all 2 checkpoints are damaged \(step 2: .*step 1: "):
            ck.restore_latest(checkpoints, abstract(make_state(0, mesh), mesh))


def test_another_structure_shape_or_dtype_is_refused_by_name(tmp_path, mesh):
    checkpoints = saved(tmp_path, mesh, (1,))
    other = make_state(0, mesh, jnp.float32)
    with pytest.raises(ck.CheckpointError, match=r"embed_vd is bfloat16\[2048, 32\] in the checkpoint, float32\[2048, 32\]"):
        ck.restore_latest(checkpoints, abstract(other, mesh))
    less = abstract(make_state(0, mesh), mesh)
    less.params["text"]["extra_d"] = less.params["text"].pop("norm_d")
    with pytest.raises(ck.CheckpointError) as error:
        ck.restore_latest(checkpoints, less)
    assert "params/text/extra_d is not in the checkpoint" in str(error.value)
    assert "params/text/norm_d is not in the state" in str(error.value)
    assert ck.saved_steps(checkpoints) == [1]


def test_the_caller_refuses_by_meta_before_arrays_are_read(tmp_path, mesh):
    checkpoints = saved(tmp_path, mesh, (1,))

    def refuse(meta):
        raise ck.CheckpointError(", ".join(differences(meta["config"], {"optim": {"lr": 1e-5}, "tasks": ("a", "b"), "n": 1})))

    with pytest.raises(ck.CheckpointError, match=r"optim.lr: 1e-06 -> 1e-05, n: .absent. -> 1"):
        ck.restore_latest(checkpoints, {}, check_meta=refuse)


def test_disk_full_is_found_before_writing(tmp_path, mesh, monkeypatch):
    checkpoints = saved(tmp_path, mesh, (1,))
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 5000, 5000))
    (said,) = ck.save(checkpoints, 2, state=make_state(2, mesh), data_state={}, meta={})
    need = sum(x.nbytes for x in jax.tree.leaves(make_state(2, mesh))) + saving.RECORD_BYTES
    assert said == (
        f"{tmp_path}: the checkpoint of step 2 was not written (it needs {need:,} bytes and 5,000 are free); good checkpoints "
        "kept: step 1: training continues and stops after 3 failed saves in a row (this was number 1): free some space, fix the "
        "folder's permissions, or lower checkpoint.keep (2)"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["1"]
    monkeypatch.undo()
    assert ck.save(checkpoints, 3, state=make_state(3, mesh), data_state={}, meta={}) == []
    ck.close(checkpoints)
    assert ck.saved_steps(checkpoints) == [1, 3]


def test_a_failed_write_is_reported_by_the_next_call_with_its_step(tmp_path, mesh):
    checkpoints = saved(tmp_path, mesh, (1,))
    failed = Future()
    failed.set_exception(OSError(28, "No space left on device"))
    (tmp_path / "2.unfinished.orbax-checkpoint-tmp").mkdir()
    checkpoints.pending = saving.Pending(2, failed)
    (said,) = ck.save(checkpoints, 3, state=make_state(3, mesh), data_state={}, meta={})
    assert "step 2 was not written (OSError: [Errno 28] No space left on device); good checkpoints kept: step 1: training" in said
    assert not (tmp_path / "2.unfinished.orbax-checkpoint-tmp").exists()  # it took the room that is missing
    ck.close(checkpoints)
    assert ck.saved_steps(checkpoints) == [1, 3]


def test_what_a_failed_write_still_writes_is_removed_too(tmp_path, mesh, monkeypatch):
    """The first file that fails fails the save, while other threads still make folders and files."""
    checkpoints, late = saved(tmp_path, mesh, (1,)), [3, 2, 1]

    def write_on(seconds: float) -> None:
        if late:
            part = tmp_path / "2.unfinished.orbax-checkpoint-tmp" / str(late.pop())
            part.mkdir(parents=True)
            (part / "array").write_bytes(bytes(100))

    failed = Future()
    failed.set_exception(OSError(28, "No space left on device"))
    (tmp_path / "2.unfinished.orbax-checkpoint-tmp").mkdir()
    checkpoints.pending = saving.Pending(2, failed)
    monkeypatch.setattr(saving.folders.time, "sleep", write_on)
    (said,) = ck.wait(checkpoints)
    assert "step 2 was not written" in said and late == []
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_the_run_stops_after_failed_saves_in_a_row_and_at_its_end(tmp_path, mesh, monkeypatch):
    checkpoints = saved(tmp_path, mesh, (1,))
    Usage = namedtuple("Usage", "total used free")
    full = lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, free))  # noqa: E731
    save = lambda step: ck.save(checkpoints, step, state=make_state(step, mesh), data_state={}, meta={})  # noqa: E731
    for start in (2, 5):
        full(5000)
        assert len(save(start)) == len(save(start + 1)) == 1
        if start == 2:
            full(10**9)
            assert save(4) == ck.wait(checkpoints) == []  # a good one in between
    said = r"step 7 was not written .*good checkpoints kept: step 1, 4; 3 saves in a row failed"
    with pytest.raises(ck.CheckpointError, match=said):
        save(7)
    other = ck.open_checkpoints(tmp_path, CheckpointConfig(max_failed_saves=9))
    assert len(ck.save(other, 8, state=make_state(8, mesh), data_state={}, meta={})) == 1
    with pytest.raises(ck.CheckpointError, match=r"step 8 was not written .*start the same command again"):
        ck.close(other)
    assert ck.restore_latest(other, abstract(make_state(0, mesh), mesh)).step == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 9 MB; a state here has 0.8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_fills_up(small_disk, mesh):
    """Full before a save, full in the middle of one, full as a step is finished: good steps stay, and a save follows."""
    checkpoints = saved(small_disk / "c", mesh, (1,), keep=1)
    ballast = small_disk / "ballast"
    left = lambda: shutil.disk_usage(small_disk).free  # noqa: E731
    ballast.write_bytes(bytes(left() - (1 << 16)))
    (said,) = ck.save(checkpoints, 2, state=make_state(2, mesh), data_state={}, meta={})
    assert "bytes and 65,536 are free" in said and "good checkpoints kept: step 1" in said
    # As where another program takes the room meanwhile.
    with mock.patch.object(saving.folders, "room_problem", lambda folder, need: ""):
        assert ck.save(checkpoints, 3, state=make_state(3, mesh), data_state={}, meta={}) == []
        (said,) = ck.wait(checkpoints)
    assert "step 3 was not written" in said and "good checkpoints kept: step 1" in said and "(this was number 2)" in said
    assert [p.name for p in (small_disk / "c").iterdir()] == ["1"] and left() >= 1 << 16
    ballast.unlink()
    real = records.write_whole

    def fill_up(*arguments):
        ballast.write_bytes(bytes(left()))
        real(*arguments)

    checkpoints.failed = 0
    with mock.patch.object(records, "write_whole", fill_up):
        ck.save(checkpoints, 4, state=make_state(4, mesh), data_state={}, meta={})
        (said,) = ck.wait(checkpoints)
    assert "step 4 was not written (OSError: [Errno 28] No space left on device" in said
    got = ck.restore_latest(checkpoints, abstract(make_state(0, mesh), mesh))
    assert (got.step, hosted(got.state)) == (1, hosted(make_state(1, mesh)))
    ballast.unlink()
    assert ck.save(checkpoints, 5, state=make_state(5, mesh), data_state={}, meta={}) == []
    ck.close(checkpoints)
    assert ck.saved_steps(checkpoints) == [5] and checkpoints.failed == 0


def test_a_disk_that_cannot_be_written_to_any_more(small_disk, mesh):
    checkpoints = saved(small_disk / "c", mesh, (1,))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    (said,) = ck.save(checkpoints, 2, state=make_state(2, mesh), data_state={}, meta={})
    assert "step 2 was not written (the folder cannot be written to); good checkpoints kept: step 1" in said
    with pytest.raises(ck.CheckpointError, match=r"cannot be written to \(Read-only file system\)"):
        ck.check_workdir(small_disk / "new")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert ck.save(checkpoints, 3, state=make_state(3, mesh), data_state={}, meta={}) == []
    ck.close(checkpoints)
    assert ck.saved_steps(checkpoints) == [1, 3]


def test_a_file_that_another_process_renames_meanwhile_is_none_of_a_steps(tmp_path, monkeypatch):
    """Process 0 lists a step while process 1 writes its part, as a file beside it that it renames."""
    (tmp_path / "ocdbt.process_0").mkdir()
    (tmp_path / "ocdbt.process_0" / "d").write_bytes(b"abc")
    passing = tmp_path / "part-1.json.tmp-77"
    whole = Path.stat

    def stat(path, **how):
        found = whole(path, **how)
        if path == passing:
            passing.unlink()
        return found

    passing.write_bytes(b"{}")
    monkeypatch.setattr(Path, "stat", stat)
    assert records.files_of(tmp_path, 0) == ["ocdbt.process_0/d"]
    assert not passing.exists()


def test_check_workdir(tmp_path):
    ck.check_workdir(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ck.CheckpointError, match="a part of this path is a file: choose another path") as error:
            ck.check_workdir(path)
        assert "\n" not in str(error.value)
    with pytest.raises(ck.CheckpointError, match="cannot be written to"):
        ck.check_workdir("/proc/nowhere")
    with pytest.raises(ValueError, match="s3://bucket/run: neither a folder on this machine nor gs://bucket/folder"):
        ck.check_workdir("s3://bucket/run")


def test_differences():
    old = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": {"f": 1}}
    assert differences(old, json.loads(json.dumps(old))) == []
    assert differences(old, {"a": 2, "b": {"c": (1, 2), "d": 0}, "g": 1}) == [
        "a: 1 -> 2",
        "b.d: None -> 0",
        "e: {'f': 1} -> (absent)",
        "g: (absent) -> 1",
    ]
