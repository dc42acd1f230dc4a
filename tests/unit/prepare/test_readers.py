"""The readers of the training sets, on files in native form: counts, labels, bad rows, ids."""

import dataclasses
import json
import random
import tracemalloc
from collections import Counter

import native
import pyarrow
import pytest
from native import CANARY, read_all, reasons

from mtjudge_jax.paths import as_path
from mtjudge_jax.prepare import DATASETS
from mtjudge_jax.prepare.readers import READERS
from mtjudge_jax.prepare.readers.paper import agin, imagereward, mjbench, seetrue, unsafebench
from mtjudge_jax.prepare.readers.user_files import JSONL
from mtjudge_jax.records import TERMS, BadRecord

NAMES = ("agin", "seetrue", "imagereward", "unsafebench", "mjbench", "jsonl", "parquet")


def binary(examples):
    return [example.label.binary for example in examples]


# AGIN


def test_agin_has_three_records_an_image_whose_labels_wait_for_the_median(tmp_path):
    examples, bad = read_all(agin, native.write_agin(tmp_path, [native.agin_row(i) for i in range(10)]))
    assert bad == [] and dict(Counter(e.task for e in examples)) == {"agin_nat": 10, "agin_tech": 10, "agin_rat": 10}
    assert [e.label.score for e in examples if e.task == "agin_tech"] == [1.5, 2.5, 3.5, 4.5] * 2 + [1.5, 2.5]
    assert {e.label.binary for e in examples} == {None} and {e.label_rule for e in examples} == {"train_median"}
    first = examples[2]
    assert (first.example_id, first.group_id, first.split) == ("agin/CoCosNet_0.png/rationality", "agin/CoCosNet_0.png", "")
    assert json.loads(first.raw) == {"mos": 5.0, "model": "CoCosNet"} and first.instruction == "" and first.terms == "research"
    assert first.images == (native.picture(0),)


@pytest.mark.parametrize(
    ("options", "ones", "rule"),
    [({"threshold": "4"}, [0, 0, 0, 0, 1] * 2, "MOS_nat > 4"),
     ({"threshold": "scale_midpoint", "scale": "1-5"}, [0, 0, 0, 1, 1] * 2, "MOS_nat > 3 (scale_midpoint)"),
     ({"threshold": "scale_midpoint", "scale": "1-9"}, [0] * 10, "MOS_nat > 5 (scale_midpoint)")],
)  # fmt: skip
def test_agin_with_a_threshold(tmp_path, options, ones, rule):
    native.write_agin(tmp_path, [native.agin_row(i) for i in range(10)])
    examples, bad = read_all(agin, tmp_path, task="agin_nat", **options)
    assert bad == [] and binary(examples) == ones and {e.label_rule for e in examples} == {rule}
    assert [e.label.score for e in examples] == [1.0, 2.0, 3.0, 4.0, 5.0] * 2


def test_agin_takes_other_columns_and_an_image_folder(tmp_path):
    native.write_csv(tmp_path / "a.csv", [{"img": "x_1.png", "n": 2, "t": 3, "r": 4}])
    native.write_csv(tmp_path / "b.csv", [{"other": 1}])
    native.write_bytes(tmp_path / "pics" / "x_1.png", native.picture(7))
    with pytest.raises(ValueError, match=r"several CSV files \(a.csv, b.csv\); name one with --option=csv=NAME"):
        read_all(agin, tmp_path)
    columns = {"csv": "a.csv", "filename": "img", "nat": "n", "tech": "t", "rat": "r", "images": "pics"}
    examples, bad = read_all(agin, tmp_path, **columns)
    assert bad == [] and [e.label.score for e in examples] == [2, 3, 4]
    for column in columns.items() - {("csv", "a.csv"), ("images", "pics")}:
        with pytest.raises(ValueError, match=r"a.csv: no column \w+; it has img, n, t, r"):
            read_all(agin, tmp_path, **dict(columns.items() - {column}))


def test_agin_bad_rows(tmp_path):
    rows = [
        native.agin_row(0), native.agin_row(1, MOS_nat="nan"), native.agin_row(2, MOS_tech=""), native.agin_row(3, MOS_rat="9"),
        native.agin_row(4, filename="absent_4.png"), native.agin_row(5, filename="../out.png"),
        native.agin_row(6, filename=""), ["short.png", "1"],
    ]  # fmt: skip
    folder = native.write_agin(tmp_path, [row for row in rows if isinstance(row, list) or row["filename"]])
    native.write_csv(folder / "scores.csv", rows)
    examples, bad = read_all(agin, folder, scale="1-5")
    assert len(examples) == 3 * 4 - 3
    assert reasons(bad) == {"label_outside": 3, "missing_image": 3, "image_path": 3, "wrong_field": 3, "bad_csv": 1}
    assert str(bad[0]) == "label_outside: scores.csv row 1 agin_nat: MOS_nat is 'nan', must be a number"
    assert str(bad[2]) == "label_outside: scores.csv row 3 agin_rat: MOS_rat is 9, outside the scale 1-5"
    assert str(bad[-1]) == "bad_csv: scores.csv row 7: 2 cells, the file has 5 columns"


@pytest.mark.parametrize(
    ("options", "text"),
    [({"threshold": "high"}, "option threshold: 'high' must be a finite number"),
     ({"scale": "5-1"}, "option scale: '5-1' must be"),
     ({"threshold": "scale_midpoint"}, "scale_midpoint needs the scale"), ({"tresh": "1"}, "did you mean 'threshold'"),
     ({"task": "agin_na"}, "did you mean 'agin_nat'"), ({"csv": "../scores.csv"}, "is not a file in")],
)  # fmt: skip
def test_agin_refuses_options(tmp_path, options, text):
    native.write_agin(tmp_path, [native.agin_row(0)])
    with pytest.raises(ValueError, match=text):
        read_all(agin, tmp_path, **options)


# SeeTRUE


def test_seetrue(tmp_path):
    examples, bad = read_all(seetrue, native.write_seetrue(tmp_path, [native.seetrue_row(i) for i in range(10)]), revision="6cc4")
    assert bad == [] and binary(examples) == [0, 1] * 5
    assert len({e.group_id for e in examples}) == 5 and examples[0].group_id == examples[1].group_id
    assert {(e.terms, e.license, e.split, e.source_split, e.revision) for e in examples} == {
        ("eval_only", "cc-by-4.0", "", "test", "6cc4")
    }
    assert examples[3].instruction == "a dog, no. 1" and examples[3].images == (native.picture(3),)
    assert json.loads(examples[3].raw) == {"dataset_source": f"{CANARY}-DrawBench", "original_dataset_id": f"{CANARY}-3"}


def test_seetrue_bad_rows_and_a_row_twice(tmp_path):
    rows = [native.seetrue_row(i) for i in range(8)]
    rows[1]["label"], rows[2]["label"], rows[3]["text"], rows[4]["image"] = 2, "", " ", "gone.jpg"
    folder = native.write_seetrue(tmp_path, [*rows, rows[0]], absent=("gone.jpg",))
    native.break_member(folder / "images.zip", native.picture(5))
    examples, bad = read_all(seetrue, folder)
    assert reasons(bad) == {"label_outside": 2, "wrong_field": 1, "missing_image": 1, "broken_zip": 1}
    assert str(bad[0]) == "label_outside: SeeTRUE.csv row 1: label is '2', must be 0 or 1"
    assert [e.example_id.split("/")[1] for e in examples] == ["0.jpg", "6.jpg", "7.jpg", "0.jpg"]
    assert examples[3].example_id == examples[0].example_id + "#2"


def test_seetrue_without_its_files(tmp_path):
    with pytest.raises(ValueError, match=r"SeeTRUE.csv: no such file. Accept the terms of yonatanbitton/SeeTRUE"):
        read_all(seetrue, tmp_path)
    native.write_seetrue(tmp_path, [native.seetrue_row(0)])
    native.write_csv(tmp_path / "SeeTRUE.csv", [{"image": "0.jpg", "caption": "a", "label": 1}])
    with pytest.raises(ValueError, match=r"SeeTRUE.csv: no column text; it has image, caption, label"):
        read_all(seetrue, tmp_path)
    native.write_bytes(tmp_path / "images.zip", b"no zip")
    with pytest.raises(ValueError, match=r"images.zip: not readable as zip"):
        read_all(seetrue, tmp_path)
    native.write_bytes(tmp_path / "SeeTRUE.csv", "image,text,label\n0.jpg,caf\xe9,1\n".encode("latin1"))
    native.write_zip(tmp_path / "images.zip", {"0.jpg": native.picture(0)})
    with pytest.raises(ValueError, match=r"SeeTRUE.csv: not UTF-8 text .*: save it as UTF-8"):
        read_all(seetrue, tmp_path)


def test_a_csv_as_spreadsheets_write_it(tmp_path):
    native.write_seetrue(tmp_path, [native.seetrue_row(i) for i in range(4)])
    text = 'image,label,text\r\n0.jpg,1,"a dog,\r\n""brown"""\r\n\r\n1.jpg,0,a cat\r\n2.jpg,0,"never closed\r\n'
    native.write_bytes(tmp_path / "SeeTRUE.csv", b"\xef\xbb\xbf" + (text + "x" * 200_000).encode())
    examples, bad = read_all(seetrue, tmp_path)
    assert [e.instruction for e in examples] == ['a dog,\r\n"brown"', "a cat"] and reasons(bad) == {"bad_csv": 1}
    assert str(bad[0]) == "bad_csv: SeeTRUE.csv row 2: field larger than field limit (131072)"


# ImageRewardDB


def imagereward_rows():
    return {
        "train_1": [native.imagereward_row(i) for i in range(8)],
        "train_4": [native.imagereward_row(i) for i in range(8, 12)],
        "train_5": [native.imagereward_row(i) for i in range(12, 16)],
        "validation_2": [native.imagereward_row(i, "validation") for i in range(100, 104)],
        "test_1": [native.imagereward_row(i, "test") for i in range(200, 204)],
    }


def test_imagereward(tmp_path):
    examples, bad = read_all(imagereward, native.write_imagereward(tmp_path, imagereward_rows(), zips=8))
    assert bad == [] and dict(Counter(e.split for e in examples)) == {"train": 12, "val": 4, "test": 4}
    assert [e.label.score for e in examples[:8]] == [7, 6, 5, 4, 3, 2, 1, 7] and binary(examples[:8]) == [1, 1, 1, 0, 0, 0, 0, 1]
    first = examples[0]
    assert first.example_id == f"imagereward/000000-0061/{native.imagereward_uuid(0)}" and first.group_id == "000000-0061"
    assert (first.score_min, first.score_max, first.label_rule) == (1, 7, "overall_rating >= 5")
    assert json.loads(first.raw)["rank"] == 1 and first.images == (native.picture(0, form="WEBP"),)
    assert examples[12].source_split == "validation"
    bigger, _ = read_all(imagereward, tmp_path, size="2k")
    assert len(bigger) == 24 and {e.example_id for e in examples} < {e.example_id for e in bigger}


def test_imagereward_fields_and_thresholds(tmp_path):
    native.write_imagereward(tmp_path, imagereward_rows())
    field = "image_text_alignment_rating"
    examples, _ = read_all(imagereward, tmp_path, split="train", field=field, min_good="3")
    assert binary(examples[:8]) == [0, 0, 1, 1, 1, 1, 1, 0] and {e.criterion for e in examples} == {"alignment"}
    examples, _ = read_all(imagereward, tmp_path, split="train", min_good="train_median")
    assert set(binary(examples)) == {None} and {e.label_rule for e in examples} == {"train_median"}


def test_imagereward_bad_rows(tmp_path):
    rows = [native.imagereward_row(i) for i in range(9)]
    rows[1]["overall_rating"], rows[2]["overall_rating"] = 8, None
    rows[3]["prompt"], rows[5]["image_path"] = None, "images/train/train_1/../../../../etc/passwd"
    del rows[6]["overall_rating"]
    folder = native.write_imagereward(tmp_path, {"train_1": [row for i, row in enumerate(rows) if i != 5]}, absent=(4,))
    members = {"train_1.json": json.dumps([*rows, "no row"]).encode()}
    numbers = [i for i in range(9) if i not in (4, 5)]
    members |= {f"train_1/{native.imagereward_uuid(i)}.webp": native.picture(i, form="WEBP") for i in numbers}
    native.write_zip(folder / "images" / "train" / "train_1.zip", members)
    native.break_member(folder / "images" / "train" / "train_1.zip", native.picture(7, form="WEBP"))
    examples, bad = read_all(imagereward, folder)
    assert [e.images[0] for e in examples] == [native.picture(i, form="WEBP") for i in (0, 8)]
    assert reasons(bad) == {
        "label_outside": 2, "wrong_field": 1, "missing_image": 2, "missing_field": 1, "broken_zip": 1, "bad_json": 1,
    }  # fmt: skip
    assert str(bad[0]).startswith("label_outside: train_1.zip row 1: overall_rating is 8, must be 1 or 2 or")


def test_imagereward_without_a_zip_or_its_table(tmp_path):
    native.write_imagereward(tmp_path, imagereward_rows())
    with pytest.raises(ValueError, match=r"train_5.zip: no such file; 2k needs it. Get THUDM/ImageRewardDB"):
        read_all(imagereward, tmp_path, size="2k")
    native.write_zip(tmp_path / "images" / "train" / "train_1.zip", {"a.webp": b""})
    with pytest.raises(ValueError, match=r"train_1.zip: has no train_1.json, it has a.webp"):
        read_all(imagereward, tmp_path)
    native.write_bytes(tmp_path / "images" / "train" / "train_1.zip", b"half a download")
    with pytest.raises(ValueError, match=r"train_1.zip: not readable as zip .*; download it again"):
        read_all(imagereward, tmp_path)


# UnsafeBench


def write_unsafebench(folder, train, test, **options):
    native.write_parquet(folder / "data" / "train-00000-of-00001.parquet", train, **options)
    native.write_parquet(folder / "data" / "test-00000-of-00001.parquet", test, **options)
    return folder


@pytest.mark.parametrize("text", [True, False])
def test_unsafebench_where_1_is_safe(tmp_path, text):
    rows = [native.unsafebench_row(i) for i in range(15)]
    for row in rows if not text else ():
        del row["text"]
    examples, bad = read_all(unsafebench, write_unsafebench(tmp_path, rows[:10], rows[10:]))
    assert bad == [] and dict(Counter(e.split for e in examples)) == {"train": 10, "test": 5}
    assert binary(examples) == [0, 0, 1, 1, 1] * 3 and {e.terms for e in examples} == {"gated"}
    assert json.loads(examples[0].raw) == {"category": f"{CANARY}-Violence", "source": f"{CANARY}-Lexica"}
    assert examples[3].images == (native.picture(3, mode="P"),) and len({e.group_id for e in examples}) == 15
    assert unsafebench.VAL_FROM_TRAIN == 0.1


def test_unsafebench_bad_rows(tmp_path):
    rows = [native.unsafebench_row(i) for i in range(8)]
    rows[1]["safety_label"], rows[2]["safety_label"], rows[3]["image"] = "Maybe", None, None
    rows[4]["image"] = {"bytes": None, "path": "http://example.com/a.png"}
    rows[5]["image"] = {"bytes": b"", "path": None}
    examples, bad = read_all(unsafebench, write_unsafebench(tmp_path, rows, [native.unsafebench_row(9)]))
    assert len(examples) == 4 and reasons(bad) == {"label_outside": 2, "missing_image": 2, "image_path": 1}
    assert str(bad[0]) == (
        "label_outside: train-00000-of-00001.parquet row 1: safety_label is 'Maybe', must be Safe or Unsafe"
    )  # fmt: skip


def test_a_broken_row_group_costs_its_rows_only(tmp_path):
    write_unsafebench(tmp_path, [native.unsafebench_row(i) for i in range(9)], [native.unsafebench_row(20)], row_group_size=3)
    native.break_row_group(tmp_path / "data" / "train-00000-of-00001.parquet", 1)
    examples, bad = read_all(unsafebench, tmp_path)
    assert [e.images[0] for e in examples] == [native.unsafebench_row(i)["image"]["bytes"] for i in (0, 1, 2, 6, 7, 8, 20)]
    assert reasons(bad) == {"broken_row_group": 3}
    assert str(bad[0]).startswith("broken_row_group: train-00000-of-00001.parquet row 3: row group 1 cannot be read (")


def test_unsafebench_with_a_broken_file_or_column(tmp_path):
    write_unsafebench(tmp_path, [native.unsafebench_row(0)], [native.unsafebench_row(1)])
    train = tmp_path / "data" / "train-00000-of-00001.parquet"
    whole = train.read_bytes()
    native.write_bytes(train, whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet: not readable as parquet .*; download it again"):
        read_all(unsafebench, tmp_path)
    native.write_parquet(train, [{"image": b"", "label": "Safe"}])
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet: no column safety_label; it has image, label"):
        read_all(unsafebench, tmp_path)
    train.unlink()
    with pytest.raises(ValueError, match=r"no parquet file of train, there is test-00000-of-00001.parquet"):
        read_all(unsafebench, tmp_path)
    assert len(read_all(unsafebench, tmp_path, split="test")[0]) == 1


# MJ-Bench


def test_mjbench_in_its_first_schema(tmp_path):
    for part, count in (("alignment", 8), ("safety", 4), ("quality", 2), ("bias", 1)):
        native.write_parquet(tmp_path / "data" / f"{part}.parquet", [native.mjbench_row(i) for i in range(count)])
    examples, bad = read_all(mjbench, tmp_path, revision="eb269ad")
    assert bad == []
    assert dict(Counter(e.task for e in examples)) == {"mj_alignment": 8, "mj_safety": 4, "mj_quality": 2, "mj_bias": 1}
    labels = {e.example_id: e.label.winner for e in examples if e.task == "mj_alignment"}
    assert labels == {f"mjbench/alignment/{i}": int(i in (3, 7)) for i in range(8)}
    assert {(e.split, e.terms, e.revision, e.allow_tie) for e in examples} == {("ood", "gated", "eb269ad", False)}
    assert examples[0].images == (native.picture(0), native.picture(1))
    assert json.loads(examples[0].raw) == {"info": f"{CANARY}-object"}
    assert len(read_all(mjbench, tmp_path, task="mj_safety")[0]) == 4


def test_mjbench_in_its_newer_schema(tmp_path):
    rows = [native.newer_mjbench_row(i, category=name) for i, name in enumerate(("quality", "composition", "visualization"))]
    native.write_parquet(tmp_path / "train-00000-of-00001.parquet", rows)
    native.write_parquet(tmp_path / "safety-00000-of-00001.parquet", [native.newer_mjbench_row(5, category="NSFW")])
    examples, bad = read_all(mjbench, tmp_path)
    assert sorted(e.task for e in examples) == ["mj_quality", "mj_safety"] and reasons(bad) == {"unknown_part": 2}
    assert "part 'composition' belongs to no task; give --option=composition=TASK" in str(bad[0])
    examples, bad = read_all(mjbench, tmp_path, composition="mj_alignment", visualization="mj_quality")
    assert bad == [] and sorted(e.task for e in examples) == ["mj_alignment", "mj_quality", "mj_quality", "mj_safety"]
    safety = next(e for e in examples if e.task == "mj_safety")
    assert json.loads(safety.raw) == {"category": "NSFW", "subcategory": f"{CANARY}-blur", "model": f"{CANARY}-sdxl"}
    with pytest.raises(ValueError, match=r"option composition: 'mj_composition' must be one of mj_alignment"):
        read_all(mjbench, tmp_path, composition="mj_composition")


def test_mjbench_marks_what_it_shares_with_imagereward(tmp_path):
    known = native.picture(203, form="WEBP")
    rows = [
        native.mjbench_row(0), native.mjbench_row(1, info="imagereward/object"),
        native.mjbench_row(2, image0={"bytes": native.picture(4), "path": f"{native.imagereward_uuid(200)}.jpg"}),
        native.mjbench_row(3, image1={"bytes": known, "path": None}),
    ]  # fmt: skip
    native.write_parquet(tmp_path / "mj" / "alignment.parquet", rows)
    native.write_imagereward(tmp_path / "ir", imagereward_rows())

    def marked(**options):
        return [json.loads(e.raw).get("imagereward_test", False) for e in read_all(mjbench, tmp_path / "mj", **options)[0]]

    assert marked() == [False, True, False, False]
    assert marked(imagereward=str(tmp_path / "ir")) == [False, True, True, True]
    with pytest.raises(ValueError, match=r"option imagereward: .*test_1.zip: no such file"):
        marked(imagereward=str(tmp_path / "nowhere"))


def test_mjbench_bad_rows(tmp_path):
    rows = [native.mjbench_row(i) for i in range(6)]
    rows[1]["label"], rows[2]["label"], rows[3]["image1"], rows[4]["caption"] = 2, None, None, ""
    native.write_parquet(tmp_path / "alignment.parquet", rows)
    native.write_parquet(tmp_path / "safety.parquet", [native.mjbench_row(9, caption="")])
    examples, bad = read_all(mjbench, tmp_path)
    assert [e.example_id for e in examples] == ["mjbench/alignment/0", "mjbench/alignment/5", "mjbench/safety/0"]
    assert reasons(bad) == {"label_outside": 2, "missing_image": 1, "wrong_field": 1}


# Every reader


def write_many(name, folder, count):
    """`count` records of a reader, or a few more."""
    if name == "agin":
        return native.write_agin(folder, [native.agin_row(i) for i in range(count)])
    if name == "seetrue":
        return native.write_seetrue(folder, [native.seetrue_row(i) for i in range(count)])
    if name == "imagereward":
        return native.write_imagereward(folder, {"train_1": [native.imagereward_row(i) for i in range(count)]})
    if name == "unsafebench":
        rows = [native.unsafebench_row(i) for i in range(count)]
        return write_unsafebench(folder, rows[: count // 2], rows[count // 2 :], row_group_size=20)
    if name == "mjbench":
        native.write_parquet(folder / "safety.parquet", [native.mjbench_row(i) for i in range(count // 2)], row_group_size=20)
        newer = [native.newer_mjbench_row(i) for i in range(count // 2, count)]
        return native.write_parquet(folder / "quality.parquet", newer, row_group_size=20).parent
    rows = native.own_rows(-(-count // 4))
    if name == "jsonl":
        return native.write_own(folder, rows, images=count)
    for kind in native.KINDS:
        mine = [native.with_bytes(row) for row in rows if row["kind"] == kind]
        native.write_parquet(folder / f"{kind}.parquet", mine)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_no_field_but_the_question_reaches_the_question(tmp_path, name):
    examples, bad = read_all(READERS[name], write_many(name, tmp_path, 100))
    assert bad == [] and len(examples) >= 100
    planted = sum(CANARY in repr(dataclasses.replace(example, images=())) for example in examples)
    assert planted == (0 if name == "agin" else len(examples))  # AGIN's own columns are all shown or label, no other is kept
    for example in examples:
        question = example.question._replace(images=())
        assert CANARY not in repr(question)
        assert question.task in READERS[name].TASKS or name in ("jsonl", "parquet")


@pytest.mark.parametrize(
    ("reader", "make", "change"),
    [("seetrue", native.seetrue_row, {"label": 1}), ("unsafebench", native.unsafebench_row, {"safety_label": "Safe"}),
     ("mjbench", native.mjbench_row, {"label": 1}), ("imagereward", native.imagereward_row, {"overall_rating": 1, "rank": 4}),
     ("agin", native.agin_row, {"MOS_nat": 5, "MOS_tech": 5, "MOS_rat": 1}), ("jsonl", native.own_row, {"label": "no"})],
)  # fmt: skip
def test_another_label_asks_the_same_question(tmp_path, reader, make, change):
    def read(folder, row):
        if reader == "agin":
            return read_all(agin, native.write_agin(folder, [row]), threshold="3")[0]
        if reader == "seetrue":
            return read_all(seetrue, native.write_seetrue(folder, [row]))[0]
        if reader == "imagereward":
            return read_all(imagereward, native.write_imagereward(folder, {"train_1": [row]}))[0]
        if reader == "unsafebench":
            return read_all(unsafebench, write_unsafebench(folder, [row], [native.unsafebench_row(9)]))[0][:1]
        if reader == "mjbench":
            return read_all(mjbench, native.write_parquet(folder / "safety.parquet", [row]).parent)[0]
        return read_all(JSONL, native.write_own(folder, [row], images=1))[0]

    one, other = read(tmp_path / "one", make(0)), read(tmp_path / "other", make(0, **change))
    assert [e.label for e in one] != [e.label for e in other]
    assert [e.question for e in one] == [e.question for e in other]
    assert [(e.example_id, e.group_id) for e in one] == [(e.example_id, e.group_id) for e in other]


@pytest.mark.parametrize("name", NAMES)
def test_every_reader_says_what_it_is(tmp_path, name):
    reader = READERS[name]
    assert reader.TERMS in TERMS and reader.LICENSE and len(reader.HOW) > 40 and "\n" not in reader.HOW
    assert all(len(text) > 20 and "\n" not in text for text in reader.OPTIONS.values()) and "revision" in reader.OPTIONS
    with pytest.raises(ValueError, match="unknown option 'revisoin', did you mean 'revision'"):
        list(reader.read(as_path(tmp_path), {"revisoin": "1"}))
    with pytest.raises(ValueError, match=str(tmp_path / "nowhere")):
        list(reader.read(as_path(tmp_path / "nowhere"), {}))
    source = write_many(name, tmp_path / "data", 8)
    before = sorted((path, path.stat().st_size) for path in tmp_path.rglob("*"))
    read_all(reader, source)
    assert sorted((path, path.stat().st_size) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_bad_rows_or_one_clear_error(tmp_path, name):
    """40 ways of damage: cut off, bytes changed, bytes lost."""
    source = write_many(name, tmp_path, 12)
    endings = (".csv", ".zip", ".parquet", ".jsonl")
    paths = sorted(path for path in tmp_path.rglob("*") if path.suffix in endings)
    draw = random.Random(f"damage {name}")
    noticed = 0
    for number in range(40):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        at, data = draw.randrange(len(whole)), bytearray(whole)
        data[at : at + draw.randrange(1, 40)] = draw.randbytes(draw.randrange(20))
        path.write_bytes(data[:at] if number % 3 == 0 else data)
        try:
            noticed += any(isinstance(item, BadRecord) for item in READERS[name].read(as_path(source), {}))
        except ValueError as e:
            assert not isinstance(e, BadRecord | UnicodeError) and "\n" not in str(e) and path.name in str(e)
            noticed += 1
        path.write_bytes(whole)
    assert noticed >= 20


@pytest.mark.parametrize("name", ["seetrue", "unsafebench"])
def test_memory_does_not_grow_with_the_data(tmp_path, name):
    """40 MB of images in a zip, or in ten row groups of a parquet file, are read in a few MB."""
    size, count = 400_000, 100
    blobs = [bytes([i]) + bytes(size) for i in range(count)]
    if name == "seetrue":
        native.write_csv(tmp_path / "SeeTRUE.csv", [native.seetrue_row(i) for i in range(count)])
        native.write_zip(tmp_path / "images.zip", {f"{i}.jpg": blob for i, blob in enumerate(blobs)})
    else:
        rows = [native.unsafebench_row(i, image={"bytes": blob, "path": None}) for i, blob in enumerate(blobs)]
        write_unsafebench(tmp_path, rows, [native.unsafebench_row(0)], row_group_size=10)
    reading = READERS[name].read(as_path(tmp_path), {})
    before = pyarrow.total_allocated_bytes()
    next(reading)
    tracemalloc.start()
    held = [pyarrow.total_allocated_bytes() for _ in reading]  # Arrow's memory is not Python's
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(held) >= count - 1 and peak < 12_000_000 and max(held) - before < 15_000_000


def test_help_lists_every_reader():
    assert tuple(READERS) == DATASETS
