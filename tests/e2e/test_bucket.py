"""gs:// paths against a bucket on loopback: what is read, in which order it is written, what is said when it cannot be."""

import functools
import hashlib
import json
import os
import random
import signal

import jax
import jax.numpy as jnp
import native_eval
import numpy as np
import preparing
import pytest
from bucket import Bucket
from commands import commands
from flax.traverse_util import flatten_dict

from mtjudge_jax import checkpoint as ck
from mtjudge_jax import paths
from mtjudge_jax.config import CheckpointConfig
from mtjudge_jax.data import bucket_cache
from mtjudge_jax.data.pipeline import open_split
from mtjudge_jax.demo.dataset import write_demo_data
from mtjudge_jax.models.hf import folder, place, shards
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.models.qwen3_vl.config import load_config
from mtjudge_jax.policy.model import DEMO_BASE
from mtjudge_jax.prepare.prepare import prepare
from mtjudge_jax.prepare.readers import READERS
from mtjudge_jax.train.monitor import metrics_file

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:coroutine:RuntimeWarning")


@functools.cache
def server() -> Bucket:
    """One a test process: clients remember where they found it."""
    made = Bucket().__enter__()
    os.environ.update(made.env)
    return made


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    made = server()
    made.objects.clear()
    made.deny, made.room = set(), 1 << 40
    monkeypatch.setenv("MTJUDGE_CACHE", str(tmp_path / "cache"))
    yield made
    made.deny, made.room = set(), 1 << 40


def test_an_address_that_cannot_be_used_is_one_line(bucket, monkeypatch):
    paths.reach.cache_clear()
    said = {}
    for name in ("gs://other/run", "gs://", "s3://bucket/run", "gs:/bucket/run", "file:///tmp/x"):
        with pytest.raises(ValueError) as error:
            paths.as_path(name)
        said[name] = str(error.value)
    assert said["gs://other/run"] == "gs://other: there is no such bucket: check the name"
    assert said["gs://"] == "gs://: names no bucket: write gs://bucket/folder"
    for name in ("s3://bucket/run", "gs:/bucket/run", "file:///tmp/x"):
        assert said[name] == f"{name}: neither a folder on this machine nor gs://bucket/folder: give one of the two"
    bucket.deny = {"read"}
    with pytest.raises(ValueError, match=r"^gs://bucket: no permission \(Forbidden: .*read access.*\): give"):
        paths.as_path("gs://bucket/run")
    bucket.deny = set()
    assert isinstance(paths.as_path("runs/x"), paths.Path) and str(paths.as_path("gs://bucket/run/")) == "gs://bucket/run"
    bucket.deny = {"write"}
    with pytest.raises(ck.CheckpointError, match=r"^gs://bucket/run: cannot be written to: no permission \(Forbidden") as error:
        ck.check_workdir("gs://bucket/run")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(paths.importlib.util, "find_spec", lambda name: None)
    paths.bucket_files.cache_clear()
    with pytest.raises(ValueError, match=r"gcsfs, which is not installed: pip install -e '\.\[gcs\]'"):
        paths.bucket_files()


def test_credentials_and_network():
    assert paths.explain(Exception("Anonymous caller does not have storage.objects.list access, 401")).startswith("no permission")
    assert paths.explain(Exception("Request had invalid authentication credentials, 401")).startswith("no credentials")
    assert "check the network" in paths.explain(TimeoutError("after 20 s"))


def test_ranges_sums_copies_and_removal(bucket):
    at, data = paths.as_path("gs://bucket/a"), random.Random(0).randbytes(9 << 20)
    paths.write_whole(at / "deep" / "x", data)
    paths.write_whole(at / "y", b"y")
    before = bucket.read
    assert paths.read_ranges(at / "deep" / "x", [(0, 10), (5, 6 << 20)]) == [data[:10], data[5 : 6 << 20]]
    assert bucket.read - before == 10 + (6 << 20) - 5
    assert paths.files_below(at) == {"deep/x": len(data), "y": 1}
    before = bucket.read
    sums = paths.checksums(at, ["deep/x", "y", "z"])
    assert sums["deep/x"].startswith(f"{len(data)}:") and sums["z"] == "" and bucket.read == before
    bucket.put("a/y", b"z")
    assert paths.checksums(at, ["deep/x", "y"]) | {"y": sums["y"], "z": ""} == sums != paths.checksums(at, ["deep/x", "y", "z"])
    paths.copy_file(at / "y", at / "copy")
    assert bucket.objects["a/copy"].data == b"z" and bucket.read == before
    bucket.put("ab", b"another, whose name begins like it")
    paths.remove_tree(at)
    assert bucket.names() == ["ab"]
    paths.remove_tree(at)  # no error where there is none


def state_of(seed: int) -> dict:
    key = jax.random.key(seed)
    return {"w": jax.random.normal(key, (64, 32)), "b": jax.random.normal(key, (7,), jnp.bfloat16), "step": jnp.int32(seed)}


def abstract() -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))


def bits(tree) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def save_steps(steps, keep: int = 2, **cfg) -> ck.Checkpoints:
    opened = ck.open_checkpoints("gs://bucket/run/checkpoints", CheckpointConfig(keep=keep, **cfg))
    for step in steps:
        assert ck.save(opened, step, state=state_of(step), data_state={"at": step}, meta={"n": step}) == []
    assert ck.wait(opened) == []
    return opened


def test_checkpoints_in_a_bucket(bucket):
    opened = save_steps((1, 2, 3))
    assert ck.saved_steps(opened) == [2, 3] and bucket.names("run/checkpoints/1") == []
    got = ck.restore_latest(opened, abstract())
    assert (got.step, got.data_state, got.meta, got.damaged) == (3, {"at": 3}, {"n": 3}, ())
    assert bits(got.state) == bits(state_of(3))
    saved = ck.read_saved(paths.as_path("gs://bucket/run/checkpoints"), 2)
    assert saved.meta == {"n": 2} and str(saved.path) == "gs://bucket/run/checkpoints/2"


def test_a_first_save_that_was_killed_in_a_bucket_is_no_damaged_checkpoint(bucket):
    opened = save_steps((1,))
    del bucket.objects["run/checkpoints/1/record.json"]
    assert ck.restore_latest(opened, abstract()) is None
    assert ck.save(opened, 1, state=state_of(1), data_state={}, meta={"n": 1}) == [] and ck.wait(opened) == []
    assert ck.restore_latest(opened, abstract()).step == 1
    assert ck.save(opened, 1, state=state_of(2), data_state={}, meta={"n": 2}) == []  # the step is there: its meta alone changes
    got = ck.restore_latest(opened, abstract())
    assert (got.meta, bits(got.state)) == ({"n": 2}, bits(state_of(1)))


def test_every_object_of_a_step_in_a_bucket_counts(bucket):
    opened = save_steps((1, 2))
    whole, names = dict(bucket.objects), bucket.names("run/checkpoints/2/")
    assert len(names) >= 8
    rng = random.Random(0)
    for name in names:
        for harm in ("changed", "cut", "deleted"):
            data = bytearray(whole[name].data)
            if not data and harm != "deleted":
                continue
            if harm == "changed":
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                bucket.put(name, data)
            elif harm == "cut":
                bucket.put(name, data[: len(data) // 2])
            else:
                del bucket.objects[name]
            got = ck.restore_latest(opened, abstract())
            assert (got.step, bits(got.state), len(got.damaged)) == (1, bits(state_of(1)), 1), (name, harm)
            assert got.damaged[0].startswith("step 2: "), (name, harm)
            unfinished = name.endswith("record.json") and harm == "deleted"
            aside = "run/checkpoints/2/damaged.txt" in bucket.objects
            assert aside != unfinished and (not unfinished or bucket.names("run/checkpoints/2") == [])
            assert ck.saved_steps(opened) == [1]
            bucket.objects.clear()
            bucket.objects.update(whole)
    bucket.put(names[0], b"?")
    ck.restore_latest(opened, abstract())
    assert ck.save(opened, 2, state=state_of(2), data_state={}, meta={}) == [] and ck.wait(opened) == []
    assert ck.restore_latest(opened, abstract()).step == 2  # saved again over what was set aside


def test_a_bucket_that_is_full_or_closed_costs_the_save_and_not_the_run(bucket):
    opened = save_steps((1,))
    bucket.room = sum(len(stored.data) for stored in bucket.objects.values()) + 4000
    ck.save(opened, 2, state=state_of(2), data_state={}, meta={})
    (said,) = ck.wait(opened)
    assert "the checkpoint of step 2 was not written" in said and "quota" in said and "good checkpoints kept: step 1" in said
    bucket.room, bucket.deny = 1 << 40, {"write"}
    (said,) = ck.save(opened, 3, state=state_of(3), data_state={}, meta={}) or ck.wait(opened)
    assert "step 3 was not written" in said and "does not have" in said and "(this was number 2)" in said
    bucket.deny = set()
    got = ck.restore_latest(opened, abstract())
    assert (got.step, bits(got.state)) == (1, bits(state_of(1)))
    assert ck.save(opened, 4, state=state_of(4), data_state={}, meta={}) == []
    ck.close(opened)
    assert ck.saved_steps(opened) == [1, 4] and opened.failed == 0


def test_parts_of_tensors_in_a_bucket(bucket):
    """Any part of any shape is what numpy gives, and rows far apart are asked for one by one."""
    rng = np.random.default_rng(0)
    at = paths.as_path("gs://bucket/tensor")
    for number in range(60):
        shape = tuple(int(n) for n in rng.integers(1, 7, rng.integers(1, 5)))
        array = rng.integers(0, 60000, shape).astype(np.uint16)
        paths.write_whole(at, b"1234567" + array.tobytes())
        cuts = [sorted(rng.choice(size + 1, 2, replace=False).tolist()) for size in shape]
        index = tuple(slice(first, last) for first, last in cuts)
        shards.GAP_BYTES, real = (1, shards.GAP_BYTES) if number % 2 else (shards.GAP_BYTES, shards.GAP_BYTES)
        before = bucket.read
        try:
            part = place.copy_part(shards.Ranged(at, 7, np.dtype(np.uint16), shape, {}), index)
        finally:
            shards.GAP_BYTES = real
        assert part.dtype == np.uint16 and np.array_equal(part, array[index]), (shape, index)
        if number % 2:
            assert bucket.read - before == part.nbytes, (shape, index)


def test_devices_that_share_rows_share_their_reading(bucket):
    array = np.arange(64 * 32, dtype=np.float32).reshape(64, 32)
    at = paths.as_path("gs://bucket/tensor")
    paths.write_whole(at, array.tobytes())
    tensor, before = shards.Ranged(at, 0, array.dtype, array.shape, {}), bucket.read
    for first in range(0, 32, 8):
        assert np.array_equal(tensor.read((slice(8, 16), slice(first, first + 8))), array[8:16, first : first + 8])
    assert bucket.read - before == 8 * 32 * 4


def test_weights_are_read_from_a_bucket_by_parts_and_checked_first(bucket):
    for path in DEMO_BASE.iterdir():
        bucket.put(f"model/{path.name}", path.read_bytes())
    cfg = load_config("gs://bucket/model")
    assert cfg == load_config(DEMO_BASE)
    bucket.read = 0
    read = {"dtype": "float32", "sharding_of": lambda path, shape: None}
    here, there = (flatten_dict(load_params(where, cfg, **read), sep="/") for where in (DEMO_BASE, "gs://bucket/model"))
    assert here.keys() == there.keys() and all(np.array_equal(here[name], there[name]) for name in here)
    size = (DEMO_BASE / "model.safetensors").stat().st_size
    config = 2 * (DEMO_BASE / "config.json").stat().st_size  # whether the folder was replaced meanwhile
    assert 0 <= bucket.read - size - config < 100, "each byte once, and the beginning of the file again"
    bucket.put("model/model.safetensors", bucket.objects["model/model.safetensors"].data[:-100])
    with pytest.raises(ValueError, match=r"gs://bucket/model: the weights do not fit.*\ncut short: .*hint: a damaged file"):
        try:
            load_params("gs://bucket/model", cfg, **read)
        except ValueError as error:
            raise ValueError(str(error).replace("\nhint", " hint")) from error


def test_an_export_to_a_bucket_is_whole_whenever_its_marker_is_there(bucket, monkeypatch):
    cfg = load_config(DEMO_BASE)
    params = load_params(DEMO_BASE, cfg, dtype="float32", sharding_of=lambda path, shape: None)
    write = lambda **more: save_hf(  # noqa: E731
        params, "gs://bucket/best", source_folder=DEMO_BASE, dtype="float32", overwrite=True, shard_bytes=400_000, **more
    )
    write(files={"note.txt": b"first"})
    first = {name: stored.data for name, stored in bucket.objects.items()}
    assert "best/model.safetensors.index.json" in first and "best/config.json" in first
    bucket.requests.clear()
    write(files={"note.txt": b"second"})
    changes = [line for line in bucket.requests if line.startswith(("DELETE", "POST", "PUT")) and "/best" in line]
    place_of = lambda text: next(i for i, line in enumerate(changes) if text in line)  # noqa: E731
    gone = place_of("DELETE /storage/v1/b/bucket/o/best/config.json")
    copies = [line for line in changes[gone:] if "rewriteTo" in line]
    assert copies[-1].endswith("/o/best/config.json") and len(copies) == len(first)
    assert not any("o/best/" in line for line in changes[:gone])
    assert bucket.names() == sorted(first) and bucket.objects["best/note.txt"].data == b"second"

    def killed():
        raise KeyboardInterrupt

    real = folder.copy_file
    for after in (0, 3):  # killed as the files are copied into place
        count = iter(range(99))
        monkeypatch.setattr(folder, "copy_file", lambda a, b, n=after, count=count: real(a, b) if next(count) < n else killed())
        with pytest.raises(KeyboardInterrupt):
            write(files={"note.txt": b"third"})
        monkeypatch.setattr(folder, "copy_file", real)
        assert "best/config.json" not in bucket.objects
    write(files={"note.txt": b"fourth"})
    assert bucket.names() == sorted(first) and bucket.objects["best/note.txt"].data == b"fourth"
    bucket.room = 10_000
    with pytest.raises(OSError, match=r"gs://bucket/best: it is full \(.*quota"):
        write(files={"note.txt": b"fifth"})
    assert bucket.objects["best/note.txt"].data == b"fourth" and bucket.names() == sorted(first)
    bucket.room = 1 << 40
    back = load_params("gs://bucket/best", cfg, dtype="float32", sharding_of=lambda path, shape: None)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(back), strict=True))


def test_metrics_in_a_bucket(bucket, monkeypatch):
    metrics = metrics_file.open_metrics("gs://bucket/run/metrics.jsonl")
    now = [100.0]
    monkeypatch.setattr(metrics_file.time, "monotonic", lambda: now[0])
    add = lambda step: metrics_file.append_metrics(metrics, {"kind": "train", "step": step})  # noqa: E731
    there = lambda: [line["step"] for line in metrics_file.read_metrics("gs://bucket/run/metrics.jsonl")]  # noqa: E731
    for step in (1, 2, 3):
        add(step)
    assert there() == [1]
    metrics_file.flush_metrics(metrics)
    assert there() == [1, 2, 3]
    now[0] += metrics_file.REWRITE_SECONDS + 1
    add(4)
    assert there() == [1, 2, 3, 4]
    again = metrics_file.open_metrics("gs://bucket/run/metrics.jsonl")
    assert metrics_file.truncate_metrics(again, 2, 2) == 2 and there() == [1, 2]
    bucket.deny = {"write"}
    metrics_file.append_metrics(again, {"kind": "train", "step": 3})
    bucket.deny = set()
    assert there() == [1, 2]
    metrics_file.flush_metrics(again)
    assert there() == [1, 2, 3]


def test_data_in_a_bucket_are_copied_once_a_machine(bucket, tmp_path, capsys):
    write_demo_data("gs://bucket/data", train=2, val=2, test=2, unseen=2)
    write_demo_data(tmp_path / "data", train=2, val=2, test=2, unseen=2)
    for path in (p for p in (tmp_path / "data").rglob("*") if p.is_file()):
        assert bucket.objects[f"data/{path.relative_to(tmp_path / 'data').as_posix()}"].data == path.read_bytes()
    order = [line for line in bucket.requests if line.startswith(("POST", "PUT"))]
    count = len(order)
    write_demo_data("gs://bucket/data", train=2, val=2, test=2, unseen=2)  # there already
    assert len([line for line in bucket.requests if line.startswith(("POST", "PUT"))]) == count
    with pytest.raises(ValueError, match="gs://bucket/data holds data made with"):
        write_demo_data("gs://bucket/data", train=4, val=2, test=2, unseen=2)
    capsys.readouterr()
    bucket.read = 0
    first = [open_split("gs://bucket/data", "train", "safety")[i].example_id for i in (0, 1)]
    size = len(bucket.objects["data/train/safety.array_record"].data)
    assert first == [open_split(tmp_path / "data", "train", "safety")[i].example_id for i in (0, 1)]
    assert capsys.readouterr().out.count("copied gs://bucket/data/train/safety.array_record to ") == 1
    again, before = open_split("gs://bucket/data", "train", "safety"), bucket.read
    assert len(again) == 2 and bucket.read == before == size + 3 * len(bucket.objects["data/manifest.json"].data)
    data = bytearray(bucket.objects["data/val/safety.array_record"].data)
    data[100] ^= 1
    bucket.put("data/val/safety.array_record", data)
    with pytest.raises(ValueError, match=r"val/safety.array_record: its sha256 is \w+, the manifest says \w+: prepare"):
        open_split("gs://bucket/data", "val", "safety")
    assert [p.suffix for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"] == [".array_record"]


def test_copies_of_a_bucket_are_bounded(bucket, tmp_path):
    made = {}
    for number in range(4):
        data = random.Random(number).randbytes(1000)
        made[number] = hashlib.sha256(data).hexdigest()
        bucket.put(f"x/{number}.bin", data)
        copy = bucket_cache.local_copy(paths.as_path(f"gs://bucket/x/{number}.bin"), made[number], max_bytes=2500)
        os.utime(copy, (number, number))
    kept = {p.stem for p in (tmp_path / "cache").iterdir() if p.suffix == ".bin"}
    assert kept == {made[2], made[3]}
    assert bucket_cache.local_copy(tmp_path / "own", "") == tmp_path / "own"
    with pytest.raises(ValueError, match=r"3.bin: the manifest has '../../x' in place of a sha256"):
        bucket_cache.local_copy(paths.as_path("gs://bucket/x/3.bin"), "../../x")


def test_a_source_is_prepared_into_a_bucket(bucket, tmp_path, capsys):
    """The same bytes as on a disk, the manifest last; a command stopped in between goes on."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "rows.csv").write_text("rows")
    reader, arguments = preparing.reader_of([preparing.made(i) for i in range(20)]), preparing.arguments(source)
    out = paths.as_path("gs://bucket/own")
    assert prepare(reader, arguments, tmp_path / "own") and prepare(reader, arguments, out)
    for path in (p for p in (tmp_path / "own").rglob("*") if p.is_file() and p.suffix != ".png"):
        assert bucket.objects[f"own/{path.relative_to(tmp_path / 'own').as_posix()}"].data == path.read_bytes()
    assert list(bucket.objects)[-1] == "own/manifest.json" and not prepare(reader, arguments, out)
    manifest = bucket.objects.pop("own/manifest.json")
    assert prepare(reader, arguments, out) and bucket.objects["own/manifest.json"].data == manifest.data
    assert [open_split("gs://bucket/own", "test", "sharp")[i].split for i in (0, 1)] == ["test", "test"]
    assert list((tmp_path / "cache").glob("prepare-*")) == []


def test_prepare_train_kill_resume_evaluate_report_export_and_judge_in_a_bucket(bucket, tmp_path):
    """The whole path of a user with gs:// everywhere, on the tests' tiny config; a kill falls into it."""
    env = bucket.env | {"MTJUDGE_CACHE": str(tmp_path / "cache")}
    for path in (commands().folder / "data").rglob("*"):
        if path.is_file():
            bucket.put(f"data/{path.relative_to(commands().folder / 'data').as_posix()}", path.read_bytes())
    for path in DEMO_BASE.iterdir():
        bucket.put(f"base/{path.name}", path.read_bytes())
    train = ("train", f"--config={commands().config}", "--config.steps=3", "--config.eval.every_steps=3")
    train += ("--config.data.path=gs://bucket/data", "--config.model.path=gs://bucket/base", "--workdir=gs://bucket/run")

    def ok(*argv) -> str:
        ended = commands().run(*argv, env=env)
        assert ended.status == 0, (argv, ended.out[-2000:], ended.err[-4000:])
        return ended.out

    run = commands().start(*train, env=env)
    assert commands().until(lambda: "run/checkpoints/1/record.json" in bucket.objects, run)
    os.kill(run.pid, signal.SIGKILL)
    commands().wait(run)
    out = ok(*train)
    assert "resumed gs://bucket/run after step" in out and "done: step 3" in out and "copied" not in out
    lines = [json.loads(line) for line in bucket.objects["run/metrics.jsonl"].data.splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3]
    assert {name.split("/")[2] for name in bucket.names("run/checkpoints/")} == {"2", "3"}
    assert {"run/best/config.json", "run/best/model.safetensors", "run/best/judge.json"} <= set(bucket.names("run/best/"))
    assert not [name for name in bucket.names() if ".part" in name]

    out = ok("export", "--workdir=gs://bucket/run", "--step=latest", "--out=gs://bucket/judge")
    assert "step 3 exported to gs://bucket/judge; gs://bucket/judge/README.md says" in out
    ok("export", "--checkpoint=gs://bucket/run/checkpoints/2", f"--out={tmp_path / 'judge2'}")
    assert (tmp_path / "judge2" / "model.safetensors").is_file()
    picture = "mtjudge_jax/demo/assets/photos/chameleon.jpg"
    root = DEMO_BASE.parents[2]
    out = ok("judge", "--model=gs://bucket/judge", "--task=technical", f"--image={root / picture}", "--json")
    assert json.loads(out.splitlines()[-1])["text"]
    flags = ("--data=gs://bucket/data", "--tasks=technical", "--limit=2", "--samples=2", "--batch=2")
    out = ok("eval", "--model=gs://bucket/judge", *flags, "--out=gs://bucket/scores")
    assert "written to gs://bucket/scores/test.json" in out and "scores/test.predictions.jsonl" in bucket.objects
    assert ok("report", "--workdir=gs://bucket/run").splitlines()[-1] == "report: gs://bucket/run/report.html"
    assert b"data:image/webp" in bucket.objects["run/report.html"].data

    for argv in (
        ("judge", "--model=gs://other/judge", "--task=technical", f"--image={root / picture}"),
        ("eval", "--model=gs://bucket/judge", "--data=gs://other/data", "--out=x"),
        ("report", "--workdir=gs://other/run"),
        ("export", "--workdir=gs://other/run", "--out=x"),
        (*train[:-1], "--workdir=gs://other/run"),
        ("prepare", "--out=gs://other/data"),
    ):
        ended = commands().run(*argv, env=env)
        assert ended.status != 0 and "gs://other: there is no such bucket: check the name" in ended.err, (argv, ended)
        assert len(ended.err.strip().splitlines()) == 1, (argv, ended.err)


def test_native_files_of_a_data_set_are_read_from_a_bucket(bucket, tmp_path):
    rows = [native_eval.vl_row(n, image=native_eval.struct(n) if n else {"bytes": None, "path": "0.png"}) for n in range(3)]
    bucket.put("set/data/test-0.parquet", native_eval.write_parquet(tmp_path / "test-0.parquet", rows).read_bytes())
    bucket.put("set/image/0.png", native_eval.png(0))
    source = paths.as_path("gs://bucket/set")
    examples = list(READERS["vl_rewardbench"].read(source, {}))
    assert [example.images for example in examples] == [(native_eval.png(n),) for n in range(3)]
    assert examples[1:] == list(READERS["vl_rewardbench"].read(source / "data" / "test-0.parquet", {}))[1:]
    with pytest.raises(ValueError, match="gs://bucket/none: no such folder or file"):
        list(READERS["pickapic"].read(paths.as_path("gs://bucket/none"), {}))
