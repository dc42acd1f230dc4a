"""What must hold for the readers of all evaluation sets: what a question must not show, bad files, images, flat memory."""

import io
import json
import os
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from native_eval import (
    CANARY,
    genai_edit_row,
    genai_row,
    hpd,
    hpdv2_row,
    mllm_batch_row,
    mllm_pair_row,
    mllm_score_row,
    mmrb,
    mmrb_row,
    pickapic_row,
    png,
    read_all,
    reasons,
    vl_row,
    write_image,
    write_jsonl,
    write_parquet,
)

from mtjudge_jax.prepare.readers import READERS, fields, image_files
from mtjudge_jax.prepare.readers.benchmarks import (
    genai_bench,
    hpdv2,
    mllm_judge,
    multimodal_rewardbench,
    pickapic,
    vl_rewardbench,
)
from mtjudge_jax.records import TERMS, BadRecord

NAMES = ("vl_rewardbench", "multimodal_rewardbench", "genai_bench", "mllm_judge", "pickapic", "hpdv2")


MAKERS = {
    "vl_rewardbench": lambda n, k: vl_row(n, human_ranking=[[0, 1], [1, 0]][k % 2]),
    "genai_image": lambda n, k: genai_row(n, vote_type=("leftvote", "rightvote", "tievote", "bothbad_vote")[k]),
    "genai_edit": lambda n, k: genai_edit_row(n, vote_type=("leftvote", "rightvote", "tievote", "bothbad_vote")[k]),
    "pickapic": lambda n, k: pickapic_row(n, label_0=(1.0, 0.0, 0.5, 1.0)[k], label_1=(0.0, 1.0, 0.5, 0.0)[k]),
    "mllm_score": lambda n, k: mllm_score_row(n, human=k + 1, image_path=f"{n}.jpg"),
    "mllm_pair": lambda n, k: mllm_pair_row(n, human_answer="ABCA"[k], image_path=f"{n}.jpg"),
    "mllm_batch": lambda n, k: mllm_batch_row(n, human_answer=("ABCD", "DCBA", "BADC", "CDAB")[k]),
    "multimodal_rewardbench": lambda n, k: mmrb_row(n, Better=("Output1", "Output2")[k % 2]),
    "hpdv2": lambda n, k: hpdv2_row(n, count=2, rank=[[1, 2], [2, 1]][k % 2]),
    "hpdv2_list": lambda n, k: hpdv2_row(n, rank=([1, 2, 3], [3, 2, 1], [2, 1, 3], [1, 1, 2])[k]),
}


def native_folder(folder: Path, task: str, rows: list[dict]) -> tuple[object, Path, dict]:
    """(reader, source, options)"""
    for number in range(100):
        write_image(folder / "image" / f"{number}.jpg", number)
    if task.startswith("mllm"):
        write_jsonl(folder / f"{task.removeprefix('mllm_')}.jsonl", rows)
        return mllm_judge, folder, {}
    if task == "multimodal_rewardbench":
        return multimodal_rewardbench, mmrb(folder, rows), {}
    if task.startswith("hpdv2"):
        return hpdv2, hpd(folder, rows), {"form": "list" if task == "hpdv2_list" else "pairs"}
    reader = genai_bench if task.startswith("genai") else READERS[task]
    name = {"vl_rewardbench": "test", "pickapic": "test_unique"}.get(task, "test_v1")
    return reader, write_parquet(folder / f"{name}-0.parquet", rows, row_group_size=10).parent, {}


@pytest.mark.parametrize("task", MAKERS)
def test_a_question_shows_no_label_no_rating_and_no_maker(tmp_path, task):
    """100 records with the canary in every hidden field, each with four labels: the questions do not differ and hold none."""
    seen = []
    for k in range(4):
        reader, source, options = native_folder(tmp_path / str(k), task, [MAKERS[task](n, k) for n in range(100)])
        examples, bad = read_all(reader, source, **options)
        assert bad == [] and len(examples) == 100
        assert {example.task for example in examples} == {task} and task in reader.TASKS
        assert all(CANARY in example.raw or CANARY in str(example.candidates) for example in examples)
        seen.append((examples, [example.question for example in examples]))
    for examples, questions in seen:
        assert questions == seen[0][1]
        for question in questions:
            assert CANARY not in repr(question)
            for word in ("vote", "Output", "human", "rank"):
                assert word not in repr(question._replace(images=(), task=""))
        assert [e.example_id for e in examples] == [e.example_id for e in seen[0][0]]
    assert len({str([e.label for e in examples]) for examples, _ in seen}) >= 2


@pytest.mark.parametrize("task", MAKERS)
def test_reading_twice_gives_the_same(tmp_path, task):
    reader, source, options = native_folder(tmp_path, task, [MAKERS[task](n, n % 4) for n in range(20)])
    first, second = (read_all(reader, source, **options)[0] for _ in range(2))
    assert first == second and len(first) == 20


@pytest.mark.parametrize("name", NAMES)
def test_the_interface(name):
    reader = READERS[name]
    assert reader.TERMS in TERMS and reader.LICENSE and reader.HOW.count("\n") == 0
    assert all(isinstance(text, str) and text for text in reader.OPTIONS.values()) and "revision" in reader.OPTIONS
    with pytest.raises(ValueError, match="unknown option 'revison', did you mean 'revision'"):
        list(reader.read(Path("."), {"revison": "1"}))
    with pytest.raises(ValueError, match="nowhere: no such folder or file"):
        list(reader.read(Path("nowhere"), {}))


def test_the_tasks_are_those_agreed():
    tasks = [task for name in NAMES for task in READERS[name].TASKS]
    assert tasks == ["vl_rewardbench", "multimodal_rewardbench", "genai_image", "genai_edit", "mllm_score", "mllm_pair",
                     "mllm_batch", "pickapic", "hpdv2", "hpdv2_list"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_folder_is_one_line(tmp_path, name):
    with pytest.raises(ValueError, match="no file that ends in") as e:
        list(READERS[name].read(tmp_path, {}))
    assert str(tmp_path) in str(e.value) and READERS[name].HOW in str(e.value)


@pytest.mark.parametrize(
    ("reader", "file", "row", "column"),
    [(vl_rewardbench, "test-0.parquet", vl_row(0), "human_ranking"),
     (genai_bench, "test_v1-0.parquet", genai_row(0), "vote_type"),
     (genai_bench, "test_v1-0.parquet", genai_edit_row(0), "left_output_image"),
     (pickapic, "test_unique-0.parquet", pickapic_row(0), "caption"), (mllm_judge, "score.jsonl", mllm_score_row(0), "answer"),
     (multimodal_rewardbench, "all_data.json", mmrb_row(0), "Better"), (hpdv2, "test.json", hpdv2_row(0), "rank")],
)  # fmt: skip
def test_a_missing_column_is_one_line(tmp_path, reader, file, row, column):
    row = {key: value for key, value in row.items() if key != column} | {"other": 1}
    path = tmp_path / file
    if file.endswith(".parquet"):
        write_parquet(path, [row])
    else:
        path.write_text(json.dumps(row) if file.endswith("jsonl") else json.dumps([row]))
    with pytest.raises(ValueError, match=f"{file}: no column .*{column}.*; it has .*other") as e:
        list(reader.read(tmp_path, {}))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("damage", ["text", "cut", "empty"])
def test_a_broken_parquet_is_one_line(tmp_path, damage):
    path = write_parquet(tmp_path / "test-0.parquet", [vl_row(n) for n in range(20)])
    whole = path.read_bytes()
    path.write_bytes({"text": b"version https://git-lfs", "cut": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"test-0.parquet: not readable as parquet .*; download it again") as e:
        list(vl_rewardbench.read(tmp_path, {}))
    assert "\n" not in str(e.value)


def test_a_broken_part_of_a_parquet_costs_its_rows(tmp_path):
    """Row groups of two: the first is overwritten, the ids and numbers of the others stay."""
    path = write_parquet(tmp_path / "test_v1-0.parquet", [genai_row(n) for n in range(6)])
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(150) + whole[154:])
    examples, bad = read_all(genai_bench, tmp_path)
    assert [e.example_id for e in examples] == [f"genai_image/test_v1/{n}" for n in (2, 3, 4, 5)]
    assert reasons(bad) == ["broken_row_group"] * 2 and bad[1][1].startswith(
        "broken_row_group: test_v1-0.parquet row 1: row group 0"
    )


@pytest.mark.parametrize("text", [b"\xff\xfe{}", b"[1, 2", b"", b"[1, 2]", b"nothing\nnone", b"[" * 100_000])
def test_broken_json_is_one_line(tmp_path, text):
    (tmp_path / "test.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"test.json: ") as e:
        list(hpdv2.read(tmp_path, {}))
    assert "\n" not in str(e.value) and not isinstance(e.value, BadRecord) and "download it again" in str(e.value)


# Images


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "image/../../secret.png", "/etc/passwd", "C:\\x.png", "..\\secret.png", "http://a/x.png", "gs://b/x.png",
     "file:///etc/passwd", ".", "a\0b", "a" * 300, "out/secret.png", "link.png"],
)  # fmt: skip
def test_no_image_leads_out_of_the_folder(tmp_path, name):
    write_image(tmp_path / "secret.png", 1)
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "out").symlink_to(tmp_path, target_is_directory=True)
    os.symlink(tmp_path / "secret.png", inside / "link.png")
    with image_files.image_reader(inside) as read, pytest.raises(BadRecord) as e:
        read(name)
    assert e.value.reason == "image_path" and "\n" not in str(e.value)


def test_an_image_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "_MAX_IMAGE_BYTES", 50)
    write_image(tmp_path / "a.png", 1)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("b.png", bytes(51))
    with image_files.image_reader(tmp_path) as read:
        for name in ("a.png", "b.png"):
            with pytest.raises(BadRecord, match=f"image_bytes: {name} has [0-9]+ bytes, more than 50"):
                read(name)


def test_a_damaged_zip(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/1.png", os.urandom(1000))
        archive.writestr("images/2.png", png(2))
    data = bytearray(path.read_bytes())
    data[200:210] = bytes(10)
    path.write_bytes(data)
    with image_files.image_reader(tmp_path) as read:
        assert read("2.png") == png(2)
        with pytest.raises(BadRecord, match=r"broken_zip: images/1.png: "):
            read("1.png")
    path.write_bytes(bytes(data[:500]))
    with pytest.raises(ValueError, match=r"images.zip: not readable as zip"), image_files.image_reader(tmp_path):
        pass


def test_reading_is_lazy_and_of_flat_memory(tmp_path):
    """200 rows of 400 kB in row groups of 20 (8 MB): not more than a few groups are in memory at once."""
    rows = [pickapic_row(n, jpg_0=os.urandom(400_000)) for n in range(200)]
    path = write_parquet(tmp_path / "test_unique-0.parquet", rows, row_group_size=20)
    del rows
    before, most = pyarrow.total_allocated_bytes(), 0
    count = 0
    for example in pickapic.read(path, {}):
        count += len(example.images[0]) == 400_000
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert count == 200
    assert most < 40_000_000


def test_a_row_twice_over_files_keeps_both(tmp_path):
    rows = [vl_row(0), vl_row(0)]
    write_parquet(tmp_path / "a" / "test-0.parquet", rows)
    write_parquet(tmp_path / "b" / "test-1.parquet", rows[:1])
    ids = [e.example_id.split("/")[1] for e in read_all(vl_rewardbench, tmp_path)[0]]
    assert ids == [f"RLAIF-V-{CANARY}-0{again}" for again in ("", "#2", "#3")]


@pytest.mark.parametrize("value", [1, 1.0, "1", " 1 ", "1.0"])
def test_a_number_is_taken_in_each_form(value):
    assert fields.number_of(value, "human", (1, 2)) == 1.0


@pytest.mark.parametrize("value", [True, None, "", "one", [1], 3, "nan", float("nan"), 10**400, "1e999"])
def test_what_is_no_allowed_number(value):
    with pytest.raises(BadRecord, match=r"label_outside: human is .*, must be 1 or 2"):
        fields.number_of(value, "human", (1, 2))


def test_image_column_forms():
    def read(name):
        return name.encode()

    assert image_files.image_of(b"x", read, "image") == b"x"
    assert image_files.image_of({"bytes": b"x", "path": "a"}, read, "image") == b"x"
    assert image_files.image_of({"bytes": None, "path": "a"}, read, "image") == b"a"
    assert image_files.image_of("a", read, "image") == b"a"
    for value in (None, b"", "", {}, 3, io.BytesIO(b"x")):
        with pytest.raises(BadRecord, match="missing_image: image holds no image"):
            image_files.image_of(value, read, "image")
