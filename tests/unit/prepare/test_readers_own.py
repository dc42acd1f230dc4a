"""The readers of a user's own data: every kind of label in its forms, options, and rows that cannot be used."""

import json
import re

import native
import pytest
from native import CANARY, read_all, reasons

from mtjudge_jax.prepare.readers import READERS, user_rows
from mtjudge_jax.prepare.readers.user_files import JSONL, PARQUET
from mtjudge_jax.records import TIE, Candidate, Label


def binary(examples):
    return [example.label.binary for example in examples]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_own_data_of_every_kind(tmp_path, form):
    rows = native.own_rows(6)
    if form == "jsonl":
        native.write_own(tmp_path, rows, images=8)
    else:  # a label column has one type, so a file a kind
        for kind in native.KINDS:
            mine = [native.with_bytes(row) for row in rows if row["kind"] == kind]
            native.write_parquet(tmp_path / f"{native.KINDS.index(kind)}.parquet", mine)
    examples, bad = read_all(READERS[form], tmp_path)
    assert bad == [] and [e.task for e in examples] == [f"own_{kind}" for kind in native.KINDS for _ in range(6)]
    assert [e.label for e in examples[:6]] == [Label(binary=1), Label(binary=0)] * 3
    assert [e.label.score for e in examples[6:12]] == [1, 2, 3, 4, 5, 1]
    assert (examples[6].score_min, examples[6].score_max) == (1, 5)
    assert [e.label.winner for e in examples[12:18]] == [0, 1, TIE] * 2 and examples[12].allow_tie
    assert [e.label.ranks for e in examples[18:]] == [(2, 1, 3), (1, 2, 1)] * 3
    assert examples[13].images == (native.picture(1), native.picture(2))
    assert examples[18].candidates[0] == Candidate(0, "a dog 0", CANARY) and examples[18].context_images == 1
    assert examples[0].example_id == f"{form}/own_binary/r0" and examples[0].rationale == f"{CANARY} good"


LABELS = [
    ({"label": True}, 1), ({"label": "NO "}, 0), ({"label": 1}, 1), ({"label": 0.0}, 0), ({"label": "maybe"}, None),
    ({"label": 2}, None), ({"label": [1]}, None), ({"label": float("nan")}, None), ({"label": {}}, None),
]  # fmt: skip
PAIR_LABELS = [
    ({"label": 0}, 0), ({"label": "1"}, 1), ({"label": "b"}, 1), ({"label": -1}, TIE), ({"label": "both_bad"}, TIE),
    ({"label": "tie", "allow_tie": False}, None), ({"label": 2}, None), ({"label": "C"}, None), ({"label": ""}, None),
]  # fmt: skip
LIST_LABELS = [
    ({"label": [3, 1, 1]}, (3, 1, 1)), ({"label": "c>a=b"}, (2, 2, 1)), ({"label": "C,B,A"}, (3, 2, 1)),
    ({"label": "A > B"}, None), ({"label": "A > B > B"}, None), ({"label": [2, 3, 3]}, None), ({"label": [1, 2]}, None),
    ({"label": [1.0, 2, 3]}, None), ({"label": "A > B > D"}, None), ({"label": 1}, None), ({"label": [0, 1, 2]}, None),
    ({"label": [1, 2, 4]}, None),
]  # fmt: skip
GRADES = [
    ({"label": "2.5"}, 2.5), ({"label": 5}, 5), ({"label": 5.1}, None), ({"label": "good"}, None),
    ({"label": True}, None), ({"label": float("inf")}, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "field", "cases"),
    [("binary", "binary", LABELS), ("pairwise", "winner", PAIR_LABELS), ("listwise", "ranks", LIST_LABELS),
     ("graded", "score", GRADES)],
)  # fmt: skip
def test_own_labels_as_words_and_numbers(tmp_path, kind, field, cases):
    native.write_own(tmp_path, [native.own_row(0, kind, id=i, **changes) for i, (changes, _) in enumerate(cases)], images=2)
    examples, bad = read_all(JSONL, tmp_path)
    assert [e.label._asdict()[field] for e in examples] == [value for _, value in cases if value is not None]
    assert reasons(bad) == {"label_outside": sum(value is None for _, value in cases)}


def test_the_rows_in_the_description_are_good(tmp_path):
    """What a user copies from there works as it stands."""
    rows = [json.loads(text) for text in re.findall(r'^    (\{"(?:id|task)".*?\})$', user_rows.__doc__, re.M | re.S)]
    native.write_own(tmp_path, [*rows], images=0)
    for i, name in enumerate(("a.png", "b.png")):
        native.write_bytes(tmp_path / name, native.picture(i))
    examples, bad = read_all(JSONL, tmp_path)
    assert bad == [] and [e.kind for e in examples] == ["pointwise_binary", "pointwise_score", "pairwise", "listwise"]
    assert [e.label for e in examples] == [Label(binary=1), Label(score=4), Label(winner=1), Label(ranks=(2, 1))]


def test_own_options_stand_in_for_fields(tmp_path):
    native.write_own(tmp_path, [{"image": "0.png", "label": "pass"}, {"image": "1.png", "label": "Fail"}], images=2)
    options = {"task": "logo", "kind": "binary", "positive": "pass", "negative": "fail,bad"}
    options |= {"instruction": "a logo", "split": "test"}
    examples, bad = read_all(JSONL, tmp_path, **options, terms="research", criterion="red")
    assert bad == [] and binary(examples) == [1, 0] and {e.instruction for e in examples} == {"a logo"}
    assert [e.example_id for e in examples] == ["jsonl/logo/0", "jsonl/logo/1"] and len({e.group_id for e in examples}) == 2
    assert {(e.split, e.terms, e.criterion) for e in examples} == {("test", "research", "red")}
    native.write_own(tmp_path, [{"images": ["0.png", "1.png"], "label": "tie"}])
    examples, _ = read_all(JSONL, tmp_path, task="nicer", kind="pairwise", allow_tie="yes")
    assert examples[0].label == Label(winner=TIE) and len(examples[0].images) == 2
    native.write_own(tmp_path, [{"image": "0.png", "label": 7}])
    examples, _ = read_all(JSONL, tmp_path, task="sharp", kind="graded", scale="0-10")
    assert (examples[0].label.score, examples[0].score_max) == (7, 10)


@pytest.mark.parametrize(
    ("options", "text"),
    [({"kind": "binar"}, "did you mean 'binary'"), ({"allow_tie": "maybe"}, "option allow_tie"), ({"scale": "x"}, "option scale"),
     ({"positive": "no"}, "'no' means both labels"), ({"split": "dev"}, "option split"),
     ({"kinds": "binary"}, "mean 'kind'"), ({"file": "../rows.jsonl"}, "is not a file in")],
)  # fmt: skip
def test_own_refuses_options(tmp_path, options, text):
    native.write_own(tmp_path, [native.own_row(0)], images=1)
    with pytest.raises(ValueError, match=text):
        read_all(JSONL, tmp_path, **options)


def test_own_bad_rows(tmp_path):
    good, pair = native.own_row(0), native.own_row(0, "pairwise")
    (tmp_path / "data").mkdir()
    native.write_bytes(tmp_path / "secret.png", native.picture(9))
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    paths = ["link.png", "up/secret.png", "../secret.png", str(tmp_path / "secret.png"), "http://example.com/a.png",
             "file:///etc/passwd", "0.png\0.jpg", "C:\\a.png", "..\\secret.png", "a" * 300 + ".png",
             "data:image/png;base64,AA"]  # fmt: skip
    rows = [good, *({**good, "image": path} for path in paths)]
    rows += [{**good, "image": "gone.png"}, {**good, "image": ""}, {**good, "image": 7}, {**good, "image": "\ud800.png"}]
    rows += [{**good, "lable": "yes"}, {name: value for name, value in good.items() if name != "label"}]
    rows += [{**good, "kind": "grade"}, {**good, "split": "dev"}, {**good, "terms": "free"}, {**good, "candidates": ["0.png"]}]
    rows += [{**pair, "candidates": ["0.png"]}, {**pair, "candidates": [{"img": "0.png"}] * 2}, {**pair, "candidates": [{}, {}]}]
    rows += [{**good, "instruction": 5}, {**good, "instruction": "\ud800"}, {**good, "meta": [1]}, {**good, "raters": ["x"]}]
    lines = [b"{", b"[1]", b'{"image": "\xff"}', b"[" * 100_000]
    native.write_own(tmp_path / "data", [*rows, *lines, native.own_row(1)], images=2)
    examples, bad = read_all(JSONL, tmp_path / "data")
    assert [e.example_id for e in examples] == ["jsonl/own_binary/r0", "jsonl/own_binary/r1"]
    assert reasons(bad[: len(paths)]) == {"image_path": len(paths)}
    assert reasons(bad) == {
        "image_path": len(paths), "missing_image": 5, "unknown_field": 2, "missing_field": 1, "wrong_field": 7,
        "wrong_fields": 1, "label_outside": 1, "bad_json": 4,
    }  # fmt: skip
    assert all("\n" not in str(item) and str(item).startswith(f"{item.reason}: rows.jsonl line ") for item in bad)
    assert "unknown field 'lable', did you mean 'label'" in str(bad[len(paths) + 4])


NAMES = ", ".join(user_rows.FIELDS)
SAID = [
    ({"image": None, "picture": "0.png"}, f"unknown field 'picture' and no image: fields are {NAMES}"),
    ({"image": None, "label": None, "score": 3}, f"unknown field 'score' and no image and no label: fields are {NAMES}"),
    ({"photo": "0.png"}, f"unknown field 'photo': fields are {NAMES}"),
    ({"imag": "0.png"}, "unknown field 'imag', did you mean 'image'?"),
    ({"label": "Maybe"},
     "label is 'Maybe', must be yes or true or 1 or no or false or 0; other words are named by e.g. --option=positive=pass "
     "--option=negative=fail"),
    ({"messages": [{"role": "user", "content": "a dog?"}]},
     f"unknown field 'messages': chat rows are not read; fields are {NAMES}"),
    ({"prompt": "a dog?", "chosen": "yes", "rejected": "no"},
     f"unknown field 'prompt': chat rows are not read; fields are {NAMES}"),
    ({"chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"},
     "chosen is [{'role': 'assistant', 'content': 'yes'}], must be a text"),
    ({"label": None}, "no label; training and evaluation need one, pictures without labels are judged by `mtjudge judge --data`"),
]  # fmt: skip
PAIR_SAID = [
    ({"label": "C"}, "label is 'C', must be A or B or 0 or 1 or tie or both_good or both_bad"),
    ({"label": "C", "allow_tie": False}, "label is 'C', must be A or B or 0 or 1"),
    ({"candidates": ["0.png"]}, "pairwise takes 2 candidates, the row has 1"),
]


@pytest.mark.parametrize(("kind", "cases"), [("binary", SAID), ("pairwise", PAIR_SAID)])
def test_what_is_said_of_a_row(tmp_path, kind, cases):
    native.write_own(tmp_path, [native.own_row(0, kind, **changes) for changes, _ in cases], images=2)
    _, bad = read_all(JSONL, tmp_path)
    for number, (said, (_, text)) in enumerate(zip(bad, cases, strict=True), 1):
        assert str(said) == f"{said.reason}: rows.jsonl line {number}: {text}"


def test_a_record_knows_its_file_and_row(tmp_path):
    native.write_own(tmp_path, native.own_rows(1), images=2)
    examples, _ = read_all(JSONL, tmp_path)
    assert [example.place for example in examples] == [f"rows.jsonl line {number}" for number in (1, 2, 3, 4)]


def test_a_damaged_zip_beside_own_rows_is_to_be_written_again(tmp_path):
    native.write_own(tmp_path, [native.own_row(0)])
    native.write_bytes(tmp_path / "images.zip", b"no zip")
    with pytest.raises(ValueError, match=r"images.zip: not readable as zip .*; write it again$"):
        read_all(JSONL, tmp_path)


def test_own_images_in_a_zip_beside_the_rows(tmp_path):
    native.write_own(tmp_path, [native.own_row(0), native.own_row(1)])
    native.write_zip(tmp_path / "images.zip", {"0.png": native.picture(0), "1.png": native.picture(1)})
    native.break_member(tmp_path / "images.zip", native.picture(1))
    examples, bad = read_all(JSONL, tmp_path)
    assert len(examples) == 1 and reasons(bad) == {"broken_zip": 1}


def test_own_parquet_of_wrong_columns(tmp_path):
    native.write_parquet(tmp_path / "a.parquet", [{"image": native.picture(0), "lable": "yes"}])
    with pytest.raises(ValueError, match=r"a.parquet: unknown column 'lable', did you mean 'label'.*; rename it or leave it out"):
        read_all(PARQUET, tmp_path)
    native.write_parquet(tmp_path / "a.parquet", [{"image": native.picture(0)}])
    with pytest.raises(ValueError, match=r"a.parquet: no column label; it has image"):
        read_all(PARQUET, tmp_path)
    native.write_parquet(tmp_path / "a.parquet", [{"picture": native.picture(0), "label": "yes"}])
    with pytest.raises(ValueError, match=r"column 'picture' and no image: fields are id, .*, meta; rename it or leave it out"):
        read_all(PARQUET, tmp_path)
    native.write_parquet(tmp_path / "a.parquet", [{"images": [native.picture(0)], "messages": "hello"}])
    with pytest.raises(ValueError, match=r"unknown column 'messages': chat rows are not read; fields are id, .*, meta"):
        read_all(PARQUET, tmp_path)
    native.write_parquet(tmp_path / "a.parquet", [{"image": native.picture(0), "label": "yes", "__index_level_0__": 7}])
    assert len(read_all(PARQUET, tmp_path, task="t", kind="binary")[0]) == 1  # a column of pandas
    native.write_bytes(tmp_path / "a.parquet", b"PAR1 no parquet PAR1")
    with pytest.raises(ValueError, match=r"a.parquet: not readable as parquet .*; write it again$"):
        read_all(PARQUET, tmp_path)
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r"no file that ends in .parquet, there is nothing. Give a parquet file"):
        read_all(PARQUET, tmp_path)


def test_rows_of_one_instruction_or_else_of_one_image_are_a_group(tmp_path):
    asked = {"task": "t", "kind": "binary", "label": "yes"}
    rows = [
        asked | {"image": "0.png", "instruction": "a dog"}, asked | {"image": "1.png", "instruction": "a dog"},
        asked | {"image": "0.png"}, asked | {"image": "0.png", "text": "a cat"}, asked | {"image": "1.png"},
        asked | {"text": "a cow", "context": ["1.png"]}, asked | {"text": "a cow"}, asked | {"image": "0.png", "group": "mine"},
    ]  # fmt: skip
    native.write_own(tmp_path, rows, images=2)
    examples, bad = read_all(JSONL, tmp_path, instruction="the same for all without one")
    groups = [example.group_id for example in examples]
    assert bad == [] and [groups.index(group) for group in groups] == [0, 0, 2, 2, 4, 4, 6, 7] and groups[7] == "mine"


def test_rows_without_pictures_are_grouped_by_their_text_or_candidates(tmp_path):
    """Two criteria of one text share a group, so they land in one split; other texts and other candidates have others."""
    texts = [{"kind": "pointwise_binary", "task": "a", "criterion": "c", "text": text, "label": 1} for text in ("x", "x", "y")]
    pair = {"kind": "pairwise", "task": "b", "criterion": "c", "label": 0}
    pairs = [pair | {"candidates": [{"text": "x"}, {"text": second}]} for second in ("p", "p", "q")]
    native.write_own(tmp_path, [row | {"id": f"r{i}"} for i, row in enumerate(texts + pairs)])
    examples, bad = read_all(READERS["jsonl"], tmp_path)
    assert bad == []
    groups = [example.group_id for example in examples]
    assert [groups.index(group) for group in groups] == [0, 0, 2, 3, 3, 5]
