"""`mtjudge prepare`: what is refused and counted, how records are split, what a stopped command leaves, what is written."""

import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from preparing import arguments, by_split, made, picture, reader_of, run

from mtjudge_jax.data.bad_rows import TooManyBadRecords
from mtjudge_jax.data.pipeline import fingerprint, read_manifest
from mtjudge_jax.data.tf_example import record_in, tf_example
from mtjudge_jax.errors import UserError
from mtjudge_jax.prepare.prepare import Arguments, prepare
from mtjudge_jax.records import BadRecord, Candidate, Label, check_example, pack, unpack
from mtjudge_jax.report.examples import read_examples


def test_records_come_back_as_they_were(tmp_path, source):
    examples = [made(i) for i in range(100)]
    out, report = run(tmp_path, source, examples)
    found = by_split(out)
    assert {split: len(members) for split, members in found.items()} == {"train": 80, "val": 10, "test": 10}
    written = sorted((e for members in found.values() for e in members), key=lambda e: int(e.example_id[5:]))
    assert written == [replace(e, split=w.split) for e, w in zip(examples, written, strict=True)]
    assert report["records_read"] == report["records_written"] == 100 and report["unusable"] == report["left_out"] == {}
    for members in found.values():
        for example in members:
            check_example(example)
    assert len(fingerprint(out, tasks=["sharp"], split="train")) == 16
    assert (out / "contact_sheet.png").is_file() and "100 of 100 records" in (out / "report.md").read_text()


def test_tensorflow_datasets_opens_it(tmp_path, source):
    import tensorflow_datasets as tfds

    out, _ = run(tmp_path, source, [made(i) for i in range(10)], val=0, test=0)
    opened = tfds.builder_from_directory(out / "judge_examples" / "1.0.0").as_data_source("train_sharp")
    assert len(opened) == 10 and opened[3]["example_id"] == b"fake/3" and opened[3]["label"] == b"1"
    assert unpack(opened[3]["record"]) == made(3, split="train") and "tensorflow" not in sys.modules


def test_a_record_in_a_tf_example_is_found_and_damage_is_told():
    record = pack(made(1, split="train"))
    held = tf_example({"task": b"sharp", "record": record, "label": b"1"})
    assert record_in(held) == record_in(record) == record
    text = tf_example({"recalc": record})
    for damaged in (text, held[: len(held) // 2], held[:9], b"\n", b"\n\x08\x01"):
        with pytest.raises(ValueError, match=r"tf\.Example|ends at byte"):
            record_in(damaged)


@pytest.mark.parametrize("mode", ["native", "grouped"])
def test_no_prompt_and_no_image_is_in_two_splits(tmp_path, source, mode):
    """Chains: i and i+1 share a prompt, i+1 and i+2 an image, in clusters of four."""
    examples = []
    for i in range(200):
        cluster, part = divmod(i, 4)
        image = picture(1000 + cluster * 2 + (part in (1, 2)), "PNG" if i % 2 else "BMP")
        examples.append(made(i, images=(image,), group_id=f"p{cluster}-{part // 2}", instruction=f"{i}"))
    if mode == "native":
        rng = np.random.default_rng(0)
        examples = [replace(e, split=str(rng.choice(["train", "val", "test"]))) for e in examples]
    out, report = run(tmp_path, source, examples, split=mode, val=0.2, test=0.2)
    found = by_split(out)
    groups = {split: {e.group_id for e in members} for split, members in found.items()}
    pixels = {split: {np.asarray(Image.open(io.BytesIO(e.images[0]))).tobytes() for e in m} for split, m in found.items()}
    for sets in (groups, pixels):
        assert not (sets["train"] & sets["val"] or sets["train"] & sets["test"] or sets["val"] & sets["test"])
    if mode == "grouped":
        assert {s: len(m) for s, m in found.items()} == {"train": 120, "val": 40, "test": 40} and report["left_out"] == {}
    else:
        natively_test = sum(e.split == "test" for e in examples)
        assert len(found["test"]) == natively_test and report["left_out"]["leak"]["count"] == 200 - report["records_written"]


def test_the_papers_random_split_has_the_papers_sizes_and_says_what_leaks(tmp_path, source):
    from mtjudge_jax.prepare.splits import deal

    split = deal([i // 3 for i in range(3 * 6049)], ["nat", "tech", "rat"] * 6049, {"test": 0.1, "val": 0.1}, 0)
    assert [split.count(name) for name in ("train", "val", "test")] == [3 * 4839, 3 * 605, 3 * 605]
    tasks = ("sharp", "sound")
    examples = [replace(made(i, group_id=f"g{i // 10}"), task=t, example_id=f"{t}/{i}") for i in range(200) for t in tasks]
    out, report = run(tmp_path, source, examples, split="paper_random")
    found = by_split(out)
    assert {s: len(m) for s, m in found.items()} == {"train": 320, "val": 40, "test": 40}
    for members in found.values():  # the questions about one image stay together
        assert len({e.images for e in members}) == len(members) // 2
    assert any("share a prompt or an image with another split" in note for note in report["notes"])


def test_each_task_gets_its_shares(tmp_path, source):
    """240 records of one task, 60 of another, and images that both judge, which stay together."""
    examples = [made(i) for i in range(240)] + [made(i, task="safe") for i in range(300, 340)]
    both = [replace(made(i), task=task, example_id=f"{task}/{i}") for i in range(400, 420) for task in ("sharp", "safe")]
    out, _ = run(tmp_path, source, [*examples, *both])
    counts = {name: entry["count"] for name, entry in read_manifest(out)["files"].items()}
    assert counts == {
        "train/sharp": 208, "val/sharp": 26, "test/sharp": 26, "train/safe": 48, "val/safe": 6, "test/safe": 6,
    }  # fmt: skip


def test_a_source_without_validation_gets_one_from_train_by_group(tmp_path, source):
    examples = [made(i, split="train" if i < 80 else "test", group_id=f"g{i // 2}") for i in range(100)]
    out, report = run(tmp_path, source, examples)
    assert {s: len(m) for s, m in by_split(out).items()} == {"train": 72, "val": 8, "test": 20}
    assert report["notes"] == ["The source has no val split: cut from train by group."]


@pytest.mark.parametrize("terms", ["eval_only", "gated"])
def test_terms_keep_records_out_of_train(tmp_path, source, terms):
    out, report = run(tmp_path, source, [made(i, terms=terms) for i in range(50)], name="free")
    assert {s: len(m) for s, m in by_split(out).items()} == {"test": 50} and f"--allow_terms={terms}" in report["notes"][0]
    native = [made(i, terms=terms, split=("train", "ood")[i % 2]) for i in range(50)]
    out, report = run(tmp_path, source, native, name="native", val=0)
    assert {s: len(m) for s, m in by_split(out).items()} == {"ood": 25} and report["left_out"]["terms"]["count"] == 25
    out, report = run(tmp_path, source, native, name="allowed", val=0, test=0, allow_terms=(terms,))
    assert {s: len(m) for s, m in by_split(out).items()} == {"train": 25, "ood": 25}
    assert report["notes"][0] == f"25 records of terms {terms} are in train or val, as --allow_terms={terms} allows."
    mixed = [made(i, terms=(terms, "open")[i % 2], split="train") for i in range(100)]
    out, report = run(tmp_path, source, mixed, name="mixed")
    assert report["left_out"]["terms"]["count"] == 50 and report["terms_of_records"] == {"open": 50}
    with pytest.raises(ValueError, match="did you mean 'gated'"):
        run(tmp_path, source, native, allow_terms=("gatd",))


def test_the_median_is_learned_from_train_alone(tmp_path, source):
    """Train has the scores 0 to 79, so 39.5; test has 1000 and more, which must not move it. The margin thins train only."""

    def graded(i):
        score = float(i) if i < 80 else 1000.0 + i if i < 90 else 40.0 + 0.01 * i
        split = "train" if i < 80 else "test"
        return made(i, split=split, label=Label(score=score), score_min=0.0, score_max=2000.0, label_rule="train_median")

    examples = [graded(i) for i in range(100)]
    out, report = run(tmp_path, source, examples, val=0, options={"margin": "1.5"})
    found = by_split(out)
    assert report["medians"] == {"sharp": {"value": 39.5, "train_records": 80}}
    assert report["left_out"]["margin"]["count"] == 4 and len(found["train"]) == 76 and len(found["test"]) == 20
    for example in (*found["train"], *found["test"]):
        assert example.label.binary == int(example.label.score > 39.5)
        assert example.label_rule == "score > 39.5 (train_median of 80 records)"
    assert report["labels"] == {"test/sharp": {"1": 20}, "train/sharp": {"0": 38, "1": 38}}
    assert report["notes"][0].startswith("test/sharp: 100% of the labels are positive, outside 30% to 70%")
    with pytest.raises(ValueError, match="train has no record of it: give a fixed threshold"):
        run(tmp_path, source, [replace(e, split="test") for e in examples], name="other")
    with pytest.raises(ValueError, match="--option=margin=-1 must be a number, at least 0"):
        run(tmp_path, source, examples, name="other", options={"margin": "-1"})


def test_the_median_itself_is_not_above_it(tmp_path, source):
    examples = [made(i, split="train", label=Label(score=float(i)), label_rule="train_median") for i in (1, 2, 3)]
    out, report = run(tmp_path, source, examples, val=0, test=0)
    assert [example.label.binary for example in by_split(out)["train"]] == [0, 0, 1]
    assert report["labels"] == {"train/sharp": {"0": 2, "1": 1}}


def flat(width: int, height: int, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height)).save(out, "PNG")
    return out.getvalue()


def test_black_images_of_other_shapes_are_not_duplicates(tmp_path, source):
    examples = [made(i, images=(flat(*size),), instruction="") for i, size in enumerate([(20, 30), (30, 20), (20, 30)])]
    _, report = run(tmp_path, source, examples, val=0, test=0)
    assert report["left_out"]["duplicate"]["count"] == 1 and report["records_written"] == 2


def test_bad_records_are_counted_and_told(tmp_path, source):
    good = [made(i) for i in range(190)]
    bad = [
        made(200, images=(picture(200)[:-60],)),
        made(201, images=(b"no picture",)),
        made(202, images=(flat(10_000, 10_000, "1"),)),
        made(203, images=(picture(203, side=24), picture(204))),
        made(204, label=Label(binary=2)),
        made(205, task="../up"),
        made(3),
        made(208, images=(flat(402, 2),)),
        made(206, instruction="half a \ud83d sign"),
        made(207, label=Label(score=float("nan")), label_rule="train_median"),
        BadRecord("missing_image", "rows.csv line 9: images/9.png is not there", "fake/9"),
    ]
    out, report = run(tmp_path, source, [*good, *bad], val=0, test=0, max_bad=0.06)
    assert {reason: entry["count"] for reason, entry in report["unusable"].items()} == {
        "truncated_image": 1, "image_format": 1, "image_too_large": 1, "wrong_fields": 4, "duplicate_id": 1, "missing_image": 1,
        "broken_text": 1, "image_aspect": 1,
    }  # fmt: skip
    assert report["unusable"]["missing_image"]["first"] == ["fake/9: rows.csv line 9: images/9.png is not there"]
    assert "10000x10000 is over 51000000 pixels" in report["unusable"]["image_too_large"]["first"][0]
    assert len(by_split(out)["train"]) == 190
    said = r"11 of 201 records cannot be used, the limit is 2.0%. Reasons: wrong_fields 4, as fake/203: .*; truncated_image 1"
    with pytest.raises(TooManyBadRecords, match=said):
        run(tmp_path, source, [*good, *bad], name="strict", max_bad=0.02)
    assert not (tmp_path / "strict").exists()
    with pytest.raises(TooManyBadRecords, match=r"^none of 2 records can be used\. Reasons: .*\. Fix the source$"):
        run(tmp_path, source, bad[:2], name="none")


def test_the_contact_sheet_keeps_pairs_apart_and_names_labels(tmp_path, source, monkeypatch):
    """White columns of the first row of pictures: 4 pixels within a pair, 20 between pairs."""
    pair = {"kind": "pairwise", "label": Label(winner=0), "task": "nicer"}
    examples = [made(i, images=tuple(flat(90 + i, 90 + side) for side in (1, 2)), **pair) for i in range(3)]
    out, _ = run(tmp_path, source, examples, val=0, test=0)
    dark = np.asarray(Image.open(out / "contact_sheet.png").convert("L"))[:80].min(0) < 128
    starts, ends = (np.flatnonzero(np.diff(dark.astype(int)) == step) for step in (1, -1))
    assert (starts[1:] - ends[:-1]).tolist() == [4, 20, 4, 20, 4]
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, colour: written.append(text))
    options = {"positive": "pass,good", "negative": "fail"}
    run(tmp_path, source, [made(i) for i in range(4)], name="words", val=0, test=0, options=options)
    assert written == ["train/sharp", "label fail", "train/sharp", "label pass"] * 2
    written.clear()
    run(tmp_path, source, [made(i) for i in range(2)], name="numbers", val=0, test=0)
    assert written == ["train/sharp", "label 0", "train/sharp", "label 1"]


def labelled(kind, labels, **changes):
    """Records of one kind with these labels; pairs and lists show pictures of their own."""
    shown = {"pairwise": 2, "listwise": 3}.get(kind, 1)
    several = {"candidates": tuple(Candidate(1) for _ in range(shown))} if shown > 1 else {}
    return [
        made(i, task=kind, kind=kind, images=tuple(picture(10 * i + k) for k in range(shown)), label=label, **several, **changes)
        for i, label in enumerate(labels)
    ]


def test_the_report_writes_labels_as_a_user_does(tmp_path, source, monkeypatch):
    """Counts of grades too, A, B and tie, orders, and the user's words; a set with many scores has their range."""
    written = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, colour: written.append(text))
    cases = {
        "pairwise": ([Label(winner=w) for w in (0, 1, -1, -1)], {"allow_tie": True}, "A: 1, B: 1, tie: 2"),
        "listwise": ([Label(ranks=(2, 1, 2)), Label(ranks=(1, 2, 3))], {}, "A > B > C: 1, B > A = C: 1"),
        "pointwise_score": ([Label(score=s) for s in (2, 10, 1, 2, 3, 4)], {"score_min": 1, "score_max": 10},
                            "1: 1, 2: 2, 3: 1, 4: 1, 10: 1"),
        "pointwise_binary": ([Label(binary=b) for b in (1, 0, 1)], {}, "no: 1, yes: 2"),
    }  # fmt: skip
    for kind, (labels, changes, text) in cases.items():
        out, _ = run(tmp_path, source, labelled(kind, labels, **changes), name=kind, val=0, test=0, dataset="jsonl")
        assert f"| train/{kind} | {len(labels)} | {len(labels)} | {text} |" in (out / "report.md").read_text()
    assert {"label tie", "label A", "label B > A = C", "label 10", "label yes", "label no"} <= set(written)
    scores = labelled("pointwise_score", [Label(score=1 + i / 8) for i in range(20)], score_min=1, score_max=5)
    out, _ = run(tmp_path, source, scores, name="scores", val=0, test=0)
    assert "| 20 different, 1 to 3.375 |" in (out / "report.md").read_text()
    twins = labelled("pairwise", [Label(winner=0), Label(winner=1)])
    twins[1] = replace(twins[1], images=twins[0].images, instruction=twins[0].instruction)
    _, report = run(tmp_path, source, twins, name="twins", val=0, test=0)
    assert report["left_out"]["duplicate"]["first"][0].endswith("fake/0 in train, whose label is another one")


SHARES = "80 % train, 10 % val, 10 % test"


@pytest.mark.parametrize(
    ("changes", "mode", "text"),
    [({}, "native", f"by group, {SHARES}, as the source has no splits"), ({}, "grouped", f"by group, {SHARES}"),
     ({"split": "test"}, "native", "as in the source"), ({"split": "test"}, "paper_random", f"at random, {SHARES}"),
     ({"terms": "eval_only"}, "native", "test, as the terms allow no training")],
)  # fmt: skip
def test_the_report_says_how_the_splits_were_made(tmp_path, source, changes, mode, text):
    out, report = run(tmp_path, source, [made(i, **changes) for i in range(40)], split=mode)
    assert report["split"] == text and f" Split: {text}; seed 0. From " in (out / "report.md").read_text()
    mixed = [made(i, **changes, **({} if changes else {"split": "train"})) for i in range(10)] + [made(i) for i in range(10, 20)]
    if mode == "native" and "terms" not in changes:
        _, report = run(tmp_path, source, mixed, name="mixed")
        assert report["split"] == f"as in the source; the other 10 records by group, {SHARES}"


def test_a_reason_is_told_once_with_its_count(tmp_path, source):
    """Not ten times, over a thousand characters."""
    bad = [BadRecord("unknown_field", f"rows.jsonl line {i}: unknown field 'picture'", f"fake/{i}") for i in range(1, 11)]
    with pytest.raises(TooManyBadRecords) as told:
        run(tmp_path, source, bad)
    said = "Reasons: unknown_field 10, as rows.jsonl line 1: unknown field 'picture'"
    assert str(told.value) == f"none of 10 records can be used. {said}. Fix the source"
    with pytest.raises(TooManyBadRecords) as told:
        run(tmp_path, source, [*(made(i) for i in range(90)), *bad, BadRecord("bad_json", "y" * 999)], name="other")
    assert str(told.value) == (
        f"11 of 101 records cannot be used, the limit is 5.0%. {said}; bad_json 1, as {'y' * 250}... "
        "Fix the source, or raise --max_bad: records that are checked are not checked again"
    )


def test_what_cannot_be_decoded_is_told_with_its_file_and_row(tmp_path, source):
    bad = made(2, images=(b"no picture",), place="rows.jsonl line 15")
    half = made(3, instruction="half a \ud83d sign", place="rows.jsonl line 16")
    _, report = run(tmp_path, source, [made(1), bad, half], val=0, test=0)
    first = {reason: entry["first"][0] for reason, entry in report["unusable"].items()}
    assert first["image_format"] == "rows.jsonl line 15: fake/2: image 0: 10 bytes are none of PNG, JPEG, WEBP, GIF, BMP"
    assert first["broken_text"].startswith("rows.jsonl line 16: 'fake/3': ")


def test_the_same_command_again_does_nothing_and_another_is_refused(tmp_path, source):
    examples = [made(i) for i in range(30)]
    out, _ = run(tmp_path, source, examples)
    (tmp_path / ".out.partial").mkdir()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    reader = reader_of(examples)
    assert prepare(reader, arguments(source), out) is False and reader.calls == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before and set(tmp_path.iterdir()) == {out, source}
    with pytest.raises(ValueError, match="holds data made with seed 0, asked for 1: choose another folder or remove this one"):
        prepare(reader, arguments(source, seed=1), out)
    (source / "rows.csv").write_text("two lines\nnow\n")
    with pytest.raises(ValueError, match="holds data made with files "):
        prepare(reader, arguments(source), out)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match=r"is not empty and has no manifest\.json"):
        prepare(reader, arguments(source), other)
    with pytest.raises(ValueError, match="is inside --source"):
        prepare(reader, arguments(source), source / "out")
    with pytest.raises(ValueError, match=r"no such folder or file\. Draw them\."):
        prepare(reader, arguments(tmp_path / "nowhere"), tmp_path / "new")


def test_a_stopped_command_goes_on_and_ends_in_the_same_bytes(tmp_path, source, monkeypatch):
    from mtjudge_jax.prepare import checking

    examples = [made(i) if i % 20 else BadRecord("missing_image", f"row {i}", f"fake/{i}") for i in range(200)]
    whole, _ = run(tmp_path, source, examples, name="whole")
    with pytest.raises(KeyError):
        prepare(reader_of([*examples[:150], KeyError("killed")]), arguments(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    work = tmp_path / ".out.partial"
    journaled = (work / "journal.jsonl").read_bytes().count(b"\n")
    with (work / "journal.jsonl").open("ab") as file:
        file.write(b'{"row": {"place"\n')
    with (work / "spool.bin").open("ab") as file:
        file.write(b"half a record")
    looked = []
    monkeypatch.setattr(checking, "_look", lambda image, whole=checking._look: looked.append(image) or whole(image))
    prepare(reader_of(examples), arguments(source), tmp_path / "out")
    assert journaled >= 100 and len(looked) == 190 - (journaled - len(range(0, journaled, 20)))
    assert not work.exists()
    for name in ("judge_examples/1.0.0/judge_examples-train_sharp.array_record-00000-of-00001", "report.md", "manifest.json"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()
    with pytest.raises(KeyError):
        prepare(reader_of([*examples[:150], KeyError("killed")]), arguments(source), tmp_path / "new")
    with (tmp_path / ".new.partial" / "spool.bin").open("r+b") as file:  # the last record's end did not reach the disk
        file.truncate(file.seek(0, 2) - 10)
    again = len(looked)
    prepare(reader_of(examples), arguments(source), tmp_path / "new")
    assert len(looked) - again == 64
    assert (tmp_path / "new" / "manifest.json").read_bytes() == (whole / "manifest.json").read_bytes()
    with pytest.raises(KeyError):
        prepare(reader_of([*examples[:150], KeyError("killed")]), arguments(source), tmp_path / "other")
    with pytest.raises(ValueError, match="record 1 is 'fake/2', it was 'fake/1': the source has changed"):
        prepare(reader_of([examples[0], *examples[2:]]), arguments(source), tmp_path / "other")


def test_two_commands_do_not_write_one_folder(tmp_path, source):
    from mtjudge_jax.prepare.folder import work_folder

    with work_folder(tmp_path / "out"), pytest.raises(ValueError, match=r"out is in use by .*process .*wait until it ends"):
        run(tmp_path, source, [made(1)])


def test_other_splits_need_no_second_check(tmp_path, source, monkeypatch):
    from mtjudge_jax.prepare import checking

    examples = [made(i) for i in range(120)]
    broken = [replace(e, images=(b"",)) if i < 12 else e for i, e in enumerate(examples)]
    with pytest.raises(TooManyBadRecords):
        run(tmp_path, source, broken)
    monkeypatch.setattr(checking, "_look", lambda image: pytest.fail("looked again"))
    _, report = run(tmp_path, source, broken, max_bad=0.2, seed=7)
    assert report["records_written"] == 108 and report["unusable"]["image_format"]["count"] == 12


def test_the_report_of_a_run_finds_the_records(tmp_path, source):
    out, _ = run(tmp_path, source, [made(i) for i in range(20)])
    problems: list[str] = []
    ids = {example.example_id for example in by_split(out)["test"]}
    found = read_examples(out, problems, split="test", task="sharp", ids=ids)
    assert found.keys() == ids and len(ids) == 2 and problems == []


def test_prepared_folders_are_joined(tmp_path, source):
    """Splits, labels and ids stay; a picture in train of one set and in test of another leaves train."""
    shared = picture(900)
    one = [made(i, split="train" if i < 8 else "val") for i in range(10)]
    one[0] = made(0, split="train", images=(shared,))
    others = [made(i, example_id=f"b/{i}", task="nice", group_id=f"b{i}", split=("train", "test")[i % 2]) for i in range(20, 30)]
    others[1] = made(21, example_id="b/21", task="nice", group_id="b21", split="test", images=(shared,))
    for name, examples in (("one", one), ("other", others)):
        prepare(reader_of(examples), arguments(source, val=0, test=0), tmp_path / "data" / name)
    from mtjudge_jax.prepare.readers import prepared

    joining = Arguments(dataset="prepared", source=str(tmp_path / "data"), options={}, val=0, test=0)
    prepare(prepared, joining, tmp_path / "both")
    counts = {name: entry["count"] for name, entry in read_manifest(tmp_path / "both")["files"].items()}
    assert counts == {"train/sharp": 7, "val/sharp": 2, "train/nice": 5, "test/nice": 5}
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert report["left_out"]["leak"]["count"] == 1 and "fake/0" in report["left_out"]["leak"]["first"][0]
    found = {e.example_id: (e.split, e.label.binary) for examples in by_split(tmp_path / "both").values() for e in examples}
    assert found["fake/1"] == ("train", 1) and found["b/21"] == ("test", 1)
    prepare(prepared, replace(joining, options={"folders": "one"}), tmp_path / "alone")
    assert set(read_manifest(tmp_path / "alone")["files"]) == {"train/sharp", "val/sharp"}
    for changed, text in (
        ({"options": {"folders": "on"}}, "unknown prepared folder 'on', did you mean 'one'"),
        ({"source": str(tmp_path / "data" / "one")}, "is one prepared folder itself"),
        ({"source": str(source)}, "no folder in it has a manifest.json"),
    ):
        with pytest.raises(ValueError, match=text):
            prepare(prepared, replace(joining, **changed), tmp_path / "none")


def test_groups_too_large_for_a_split_are_refused_with_the_remedy(tmp_path, source):
    """160 pictures that share an instruction all went to train, and the run ended at its first validation."""
    rows = [made(i, group_id="a red ball") for i in range(160)]
    said = r"no record of sharp is in test or val \(--test=0.2, --val=0.2\): its 160 records are 1 group, .*`group`"
    with pytest.raises(UserError, match=said):
        run(tmp_path, source, rows, val=0.2, test=0.2)
    other = [made(200 + i, task="safety", group_id=f"photo {i}") for i in range(100)]
    with pytest.raises(UserError, match="no record of sharp is in test or val"):  # another task has some
        run(tmp_path, source, rows + other, val=0.2, test=0.2, name="other")
    out, _ = run(tmp_path, source, rows, val=0.0, test=0.0)
    assert {name: len(found) for name, found in by_split(out).items()} == {"train": 160}
    out, _ = run(tmp_path, source, [made(i, group_id=f"photo {i}") for i in range(160)], val=0.2, test=0.2, name="own")
    assert {name: len(found) for name, found in by_split(out).items()} == {"train": 96, "val": 32, "test": 32}
