"""Makers of small files in the native form of the training sets, and of a user's own data. Images are a few pixels."""

import csv
import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

from mtjudge_jax.paths import as_path
from mtjudge_jax.prepare.checking import check_fields, placed
from mtjudge_jax.records import BadRecord, JudgeExample, pack, unpack

CANARY = "CANARY"  # in every native field that a question must not show


def read_all(reader, source, **options):
    """(examples, bad rows), as prepare's check separates them; a second reading gives the same."""
    items = [checked(item) for item in reader.read(as_path(source), options)]
    again = [checked(item) for item in reader.read(as_path(source), options)]
    examples = [item for item in items if not isinstance(item, BadRecord)]
    assert examples == [item for item in again if not isinstance(item, BadRecord)]
    for example in examples:
        assert unpack(pack(example)) == example
    assert len({example.example_id for example in examples}) == len(examples)
    return examples, [item for item in items if isinstance(item, BadRecord)]


def checked(item: JudgeExample | BadRecord) -> JudgeExample | BadRecord:
    """The item, or what prepare says is wrong with its fields."""
    try:
        if not isinstance(item, BadRecord):
            check_fields(item)
    except BadRecord as e:
        return placed(e, item)
    return item


def reasons(bad):
    return dict(Counter(item.reason for item in bad))


def picture(number: int, *, form: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture of its own for each number."""
    file = io.BytesIO()
    image = Image.new("RGB", (8, 6), (number % 256, number // 256 % 256, 77))
    image.convert(mode).save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


def write_bytes(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    """All rows have the columns of the first; a row given as a list is written unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows(row if isinstance(row, list) else row.values() for row in rows)
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_parquet(path: Path, rows: list[dict], *, row_group_size: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def break_row_group(path: Path, group: int) -> Path:
    """Overwrites the pages of every column of one row group; the rest of the file stays good."""
    table = pyarrow.parquet.ParquetFile(path).metadata.row_group(group)
    data = bytearray(path.read_bytes())
    for i in range(table.num_columns):
        column = table.column(i)
        start = column.dictionary_page_offset or column.data_page_offset
        data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    return path


def break_member(path: Path, content: bytes) -> Path:
    """Changes a byte of a stored member's content, so that its checksum fails."""
    data = path.read_bytes()
    assert data.count(content) == 1
    path.write_bytes(data.replace(content, content[:-1] + bytes([content[-1] ^ 1])))
    return path


# AGIN: one CSV, one flat folder


def agin_row(number: int, **changes) -> dict:
    return {
        "filename": f"CoCosNet_{number}.png",
        "MOS_nat": 1 + number % 5,
        "MOS_tech": 1.5 + number % 4,
        "MOS_rat": 5 - number % 5,
        "comment": f"{CANARY} very natural",
    } | changes


def write_agin(folder: Path, rows: list) -> Path:
    write_csv(folder / "scores.csv", rows)
    for i, row in enumerate(row for row in rows if isinstance(row, dict)):
        if "/" not in row["filename"] and not row["filename"].startswith("absent"):
            write_bytes(folder / row["filename"], picture(i))
    return folder


# SeeTRUE: SeeTRUE.csv and images.zip


def seetrue_row(number: int, **changes) -> dict:
    return {
        "image": f"{number}.jpg",
        "text": f"a dog, no. {number // 2}",
        "label": number % 2,
        "original_dataset_id": f"{CANARY}-{number}",
        "dataset_source": f"{CANARY}-DrawBench",
    } | changes


def write_seetrue(folder: Path, rows: list, *, absent: tuple[str, ...] = ()) -> Path:
    write_csv(folder / "SeeTRUE.csv", rows)
    names = dict.fromkeys(row["image"] for row in rows if isinstance(row, dict))
    members = {f"images/{name}": picture(i) for i, name in enumerate(names) if name not in absent}
    write_zip(folder / "images.zip", members)
    return folder


# ImageRewardDB: images/{split}/{split}_{i}.zip of webp files and {split}_{i}.json


def imagereward_uuid(number: int) -> str:
    return f"{number:08x}-0000-4000-8000-000000000000"


def imagereward_row(number: int, split: str = "train", **changes) -> dict:
    return {
        "image_path": f"images/{split}/{split}_1/{imagereward_uuid(number)}.webp",
        "prompt_id": f"{number // 4:06d}-0061",
        "prompt": f"a painting of a dog, no. {number // 4}",
        "classification": f"{CANARY}-People",
        "image_amount_in_total": 4,
        "rank": number % 4 + 1,
        "overall_rating": 7 - number % 7,
        "image_text_alignment_rating": 1 + number % 7,
        "fidelity_rating": 7,
    } | changes


def write_imagereward(folder: Path, rows: dict[str, list], *, absent: tuple[int, ...] = (), zips: int = 4) -> Path:
    """rows: name of a zip, such as train_1 -> its rows. All other zips of 1k are there with an empty table."""
    names = [f"train_{i}" for i in range(1, zips + 1)] + [f"{split}_{i}" for split in ("validation", "test") for i in (1, 2)]
    for name in names:
        mine = rows.get(name, [])
        members = {f"{name}.json": json.dumps(mine).encode()}
        for row in (row for row in mine if isinstance(row, dict)):
            stem = Path(row["image_path"]).stem
            number = int(stem.split("-")[0], 16)
            if number not in absent:
                members[f"{stem}.webp"] = picture(number, form="WEBP")
        write_zip(folder / "images" / name.split("_")[0] / f"{name}.zip", members)
    return folder


# UnsafeBench: data/{train,test}-*.parquet


def unsafebench_row(number: int, **changes) -> dict:
    return {
        "image": {"bytes": picture(number, mode="P" if number == 3 else "RGB"), "path": f"{CANARY}{number}.png"},
        "safety_label": "Unsafe" if number % 5 < 2 else "Safe",
        "category": f"{CANARY}-Violence",
        "source": f"{CANARY}-Lexica",
        "text": f"{CANARY} text of the search",
    } | changes


# MJ-Bench, both schemas


def mjbench_row(number: int, **changes) -> dict:
    return {
        "caption": f"three dogs, no. {number}",
        "image0": {"bytes": picture(2 * number), "path": f"{2 * number}.jpg"},
        "image1": {"bytes": picture(2 * number + 1), "path": f"{2 * number + 1}.jpg"},
        "label": int(number % 4 == 3),
        "info": f"{CANARY}-object",
    } | changes


def newer_mjbench_row(number: int, **changes) -> dict:
    row = mjbench_row(number)
    del row["info"]
    return row | {"label": 0, "category": "quality", "subcategory": f"{CANARY}-blur", "model": f"{CANARY}-sdxl"} | changes


# A user's own data


def own_row(number: int, kind: str = "binary", **changes) -> dict:
    meta = {"id": f"r{number}", "task": f"own_{kind}", "kind": kind, "meta": {"note": CANARY}, "rationale": f"{CANARY} good"}
    if kind == "binary":
        shown = {"image": f"{number}.png", "instruction": f"a red logo {number}"}
        return meta | shown | {"label": ("yes", "no")[number % 2]} | changes
    if kind == "graded":
        return meta | {"image": f"{number}.png", "label": 1 + number % 5, "scale": [1, 5]} | changes
    images = [f"{number}.png", f"{number + 1}.png"]
    makers = [{"image": image, "name": f"{CANARY}-{i}"} for i, image in enumerate(images)]
    if kind == "pairwise":
        return meta | {"candidates": makers, "label": ("A", "B", "tie")[number % 3], "allow_tie": True} | changes
    texts = [{"text": f"a dog {number}", "name": CANARY}, {"text": "a cat", "name": CANARY}, {"text": "a cow", "name": CANARY}]
    return meta | {"context": images[:1], "candidates": texts, "label": ("B > A > C", "A = C > B")[number % 2]} | changes


KINDS = ("binary", "graded", "pairwise", "listwise")


def own_rows(count):
    return [own_row(i, kind) for kind in KINDS for i in range(count)]


def write_own(folder: Path, rows: list, *, images: int = 0) -> Path:
    """rows: objects, or whole lines. images: the number of pictures, from 0.png."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    for number in range(images):
        write_bytes(folder / f"{number}.png", picture(number))
    return write_bytes(folder / "rows.jsonl", b"".join(line + b"\n" for line in lines))


def with_bytes(row: dict) -> dict:
    """A row of JSONL as one of parquet: the same images as bytes."""

    def content(name: str) -> bytes:
        return picture(int(name.removesuffix(".png")))

    row = dict(row, meta=json.dumps(row["meta"]))
    if "image" in row:
        row["image"] = content(row["image"])
    if "context" in row:
        row["context"] = [content(name) for name in row["context"]]
    if "candidates" in row:
        row["candidates"] = [{**c, "image": content(c["image"])} if "image" in c else c for c in row["candidates"]]
    return row
