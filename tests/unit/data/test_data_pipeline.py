"""Mixture, elastic restore, damaged records, evaluation batches."""

import collections
import hashlib
import json
import pickle
import re
import subprocess
import sys

import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from data_fixtures import data_config, encoded, example, noise, row_format, write_records
from feeding import COUNTS, NAMES, iterator, sources, write_data
from places import PACKAGE

from mtjudge_jax.config_check import check
from mtjudge_jax.data.bad_rows import BadRowCounter
from mtjudge_jax.data.pipeline import (
    RecordSource,
    Shard,
    eval_batches,
    fingerprint,
    fixed_mixture,
    open_split,
    read_manifest,
    read_split,
)
from mtjudge_jax.data.rows import completion_text, to_row
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.records import BadRecord, Label, pack, swapped, unpack
from mtjudge_jax.tasks import TASKS


@pytest.fixture(scope="module")
def fmt(tmp_path_factory):
    return row_format(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("batch,each", [(6, 1), (12, 2), (24, 4)])
def test_every_batch_is_exactly_balanced(data, fmt, batch, each):
    batches = iterator(data, fmt, prompts=batch)
    for _ in range(20):
        got = next(batches)
        counts = collections.Counter(zip(got["task"].tolist(), got["label"].tolist(), strict=True))
        assert counts == {(name, label): each for name in NAMES for label in (0, 1)}
    batches.close()


def test_batch_arrays(data, fmt):
    got = next(iterator(data, fmt))
    assert got["tokens"].shape == (12, 200) and got["patches"].shape == (12, 36, 768)
    assert got["patches"].dtype == np.uint8 and got["weight"].tolist() == [1.0] * 12
    for example_id, task, label in zip(got["example_id"], got["task"], got["label"], strict=True):
        name, _, number = str(example_id).partition("-")
        assert name == task and int(number) % 2 == label


def test_each_record_once_an_epoch_and_orders_differ(data):
    def drawn_by(seed):
        return fixed_mixture(sources(data), TASKS, data_config(NAMES, seed=seed, balance_labels=False))

    drawn, again, other = drawn_by(1), drawn_by(1), drawn_by(2)
    epochs = [[drawn[3 * (20 * e + i) + 1].record.example_id for i in range(20)] for e in range(3)]
    assert all(sorted(epoch) == sorted(f"safety-{i}" for i in range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert {drawn[i].task for i in range(1, 100, 3)} == {"safety"}
    ids = [[ds[i].record.example_id for i in range(60)] for ds in (drawn, again, other)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("balance", [True, False])
def test_proportional_mixture(data, balance):
    drawn = fixed_mixture(sources(data), TASKS, data_config(NAMES, seed=1, balance_labels=balance, mixture="proportional"))
    counts = collections.Counter(drawn[i].task for i in range(920))
    assert all(abs(counts[name] - 10 * COUNTS[name]) <= 2 for name in NAMES)


def test_pools_of_equal_size_are_shuffled_apart(tmp_path):
    folder = write_data(tmp_path, {"technical": 30, "safety": 30})
    both = {name: open_split(folder, "train", name) for name in ("technical", "safety")}
    drawn = fixed_mixture(both, TASKS, data_config(both, seed=1, balance_labels=False))
    pairs = [(drawn[i].record.group_id, drawn[i + 1].record.group_id) for i in range(0, 60, 2)]
    assert sum(a == b for a, b in pairs) < 10


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_restore_on_other_shard_counts(data, fmt, shards):
    whole = iterator(data, fmt)
    expected, states = [], []
    for _ in range(14):
        states.append(json.loads(json.dumps(whole.get_state())))
        expected.append(next(whole))
    whole.close()
    parts = [iterator(data, fmt, shard=Shard(i, shards)) for i in range(shards)]
    next(parts[0])  # a reader that is already under way is put back as well
    for part in parts:
        part.set_state(states[9])
    for step in range(9, 14):
        batches = [next(part) for part in parts]
        for key in ("example_id", "tokens", "patches", "label", "uid"):
            assert np.array_equal(np.concatenate([batch[key] for batch in batches]), expected[step][key])
    assert len({json.dumps(part.get_state()) for part in parts}) == 1
    for part in parts:
        part.close()


def test_threads_change_nothing(data, fmt):
    runs = []
    for threads in (0, 1, 4):
        batches = iterator(data, fmt, threads=threads)
        runs.append([next(batches)["example_id"].tolist() for _ in range(6)])
        batches.close()
    assert runs[0] == runs[1] == runs[2]


def test_targets(data, fmt):
    supervised = fmt._replace(
        completion_tokens=24, target=lambda e: (completion_text(e.rationale, TASKS[e.task].labels[e.label.binary]),)
    )
    got = next(iterator(data, supervised))
    assert got["target"].shape == got["target_mask"].shape == (12, 1, 24)
    for ids, label in zip(got["target"][:, 0], got["label"], strict=True):
        word = ("no", "yes")[label]
        assert fmt.tokenizer.decode(ids) == f"<think>looks sharp</think><answer>{word}</answer>"
    tight = to_row(example(1), "technical", supervised._replace(completion_tokens=10))
    assert tight["weight"] == 0 and tight["error"].startswith("target_too_long: ")
    assert not tight["target_mask"].any() and (tight["target"] == fmt.tokenizer.pad).all()


def damage(path, example_id):
    data = bytearray(path.read_bytes())
    at = data.index(example_id.encode())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_damaged_record_is_counted_and_the_rest_goes_on(tmp_path, fmt):
    folder = write_data(tmp_path)
    damage(folder / "train" / "safety.array_record", "safety-7")
    source = open_split(folder, "train", "safety")
    bad = [source[i] for i in range(20) if isinstance(source[i], BadRecord)]
    assert len(bad) == 1 and bad[0].reason == "damaged_record" and bad[0].example_id == "safety[7]"
    counter = BadRowCounter(max_share=0.1)
    batches = iterator(folder, fmt)
    for _ in range(30):
        got = next(batches)
        counter.add(got)
        for weight, error, example_id in zip(got["weight"], got["error"], got["example_id"], strict=True):
            assert (weight == 0) == (example_id == "safety[7]") == error.startswith("damaged_record: safety[7]: ")
    batches.close()
    assert counter.rows == 360 and counter.reasons == {"damaged_record": 6} and list(counter.ids) == ["safety[7]"]
    reading = BadRowCounter()
    assert [e.example_id for e in read_split(folder, "train", "safety", reading)] == [f"safety-{i}" for i in range(20) if i != 7]
    assert reading.reasons == {"damaged_record": 1} and reading.rows == 20


def test_hostile_pictures_become_rows_of_weight_zero(fmt):
    pictures = {
        "image_format": (b"", b"%PDF-1.7", encoded(noise(1, 9, 9), "TIFF")),
        "truncated_image": (encoded(noise(1, 40, 40))[:200], encoded(noise(1, 40, 40), "JPEG")[:-300]),
        "image_aspect": (encoded(noise(1, 2, 500)),),
    }
    for reason, images in pictures.items():
        for image in images:
            row = to_row(example(1, images=(image,)), "technical", fmt)
            assert str(row["error"]).startswith(f"{reason}: ")
            assert row["weight"] == 0 and row["example_id"] == "technical-1" and not row["patches"].any()


def test_eval_batches_keep_the_order_and_fill_up(fmt):
    examples = [example(i) for i in range(10)]
    examples[4] = example(4, images=(b"junk",))
    batches = list(eval_batches(examples, batch=4, fmt=fmt))
    assert [b["tokens"].shape for b in batches] == [(4, 200)] * 3
    ids = [i for b in batches for i in b["example_id"].tolist()]
    assert ids == [f"technical-{i}" for i in range(10)] + ["", ""]
    weights = np.concatenate([b["weight"] for b in batches])
    assert np.flatnonzero(weights == 0).tolist() == [4, 10, 11]
    counter = BadRowCounter()
    for b in batches:
        counter.add(b)
    assert counter.rows == 10 and counter.reasons == {"image_format": 1}
    assert list(eval_batches([], batch=4, fmt=fmt)) == []


def test_fingerprint_follows_the_content(data, tmp_path):
    base = fingerprint(data, tasks=NAMES, split="train")
    assert len(base) == 16 and base == fingerprint(data, tasks=NAMES[::-1], split="train")
    assert base != fingerprint(data, tasks=NAMES[:2], split="train")
    other = write_data(tmp_path, COUNTS | {"safety": 21})
    assert base != fingerprint(other, tasks=NAMES, split="train")
    assert fingerprint(data, tasks=NAMES[::2], split="train") == fingerprint(other, tasks=NAMES[::2], split="train")


def test_clear_errors(data, fmt, tmp_path):
    with pytest.raises(ValueError, match="shard 0 of 4 for 10 prompts: the shards must divide the global batch"):
        iterator(data, fmt, prompts=10, shard=Shard(0, 4))
    with pytest.raises(ValueError, match="shard 4 of 4 for 12 prompts"):
        iterator(data, fmt, shard=Shard(4, 4))
    with pytest.raises(ValueError, match="no records of train/rationality; train has alignment"):
        iterator(data, fmt, tasks=("rationality",))
    wrong = [(data_config(NAMES, mixture="even"), "'even': unknown choice 'even'"), (data_config(()), "data.tasks is empty")]
    for cfg, message in wrong:
        cfg.model.path = "demo"
        with pytest.raises(ConfigError, match=message):
            check(cfg)
    with pytest.raises(ValueError, match=r"manifest\.json missing; prepare the data first"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="missing; prepare the data first"):
        RecordSource(tmp_path / "none.array_record")


def test_damaged_files_are_named(tmp_path, fmt):
    folder = write_data(tmp_path)
    path = folder / "train" / "safety.array_record"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"safety\.array_record.*prepare the data again"):
        open_split(folder, "train", "safety")
    write_records(path, [example(i, "safety") for i in range(19)])
    with pytest.raises(ValueError, match="has 19 records, the manifest says 20"):
        open_split(folder, "train", "safety")
    write_records(path, [example(2 * i, "safety") for i in range(20)])
    with pytest.raises(ValueError, match=r"safety has no record with label 'yes': set data\.balance_labels=False"):
        iterator(folder, fmt)
    for text in ("{", '{"version": 1}', '{"version": 1, "files": {"train/safety": {}}}', "[]"):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="is damaged"):
            read_manifest(folder)
    (folder / "manifest.json").write_text('{"version": 3, "files": {}}')
    with pytest.raises(ValueError, match="has version 3, this code reads 1 and 2"):
        read_manifest(folder)


def test_record_round_trip_and_damage():
    record = example(3)
    data = pack(record)
    assert unpack(data) == record
    reasons = collections.Counter()
    for at in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        try:
            unpack(bytes(flipped))
        except BadRecord as e:
            reasons[e.reason] += 1
    assert reasons["image_hash"] > 0.9 * len(record.images[0]) / 7
    error = pickle.loads(pickle.dumps(BadRecord("reason", "detail: more", "id")))
    assert (error.reason, str(error), error.example_id) == ("reason", "reason: detail: more", "id")


def test_swapped():
    pair = example(1, "pairwise_technical", kind="pairwise", images=(b"a", b"b"), label=Label(winner=0))
    turned = swapped(pair)
    assert turned.images == (b"b", b"a") and turned.label == Label(winner=1) and swapped(turned) == pair
    with pytest.raises(ValueError, match="technical-1 is no pairwise example"):
        swapped(example(1))


def test_jax_is_not_imported():
    for path in (PACKAGE / "data").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) (jax|flax|torch)", path.read_text(), re.MULTILINE), path


def test_records_are_read_without_grain():
    """`mtjudge prepare` and `mtjudge report` read manifests and records; Grain, which brings jax, is slow to import."""
    code = "import sys, mtjudge_jax.data.pipeline; print([m for m in ('grain', 'jax') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("[]\n", "")


def test_records_of_another_version_are_refused_in_one_line(tmp_path):
    fields = msgpack.unpackb(pack(example(0, "technical"))) | {"schema_version": 1}
    path = tmp_path / "train" / "technical.array_record"
    path.parent.mkdir()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(3):
        writer.write(msgpack.packb(fields))
    writer.close()
    files = {"train/technical": {"count": 3, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}
    (tmp_path / "manifest.json").write_text(json.dumps({"version": 1, "dataset": "test", "files": files}))
    with pytest.raises(ValueError, match=r"record has version 1, this code reads 2: prepare the data again$"):
        open_split(tmp_path, "train", "technical")
