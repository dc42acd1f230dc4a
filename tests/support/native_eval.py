"""Makers of small files in the native form of the evaluation sets: rows and folders as each was published."""

import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
from native import checked
from PIL import Image

from mtjudge_jax.paths import as_path
from mtjudge_jax.records import BadRecord, pack, unpack

CANARY = "CANARY"  # in every field that a question must not show


def png(number: int) -> bytes:
    """A picture of its own for each number."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number % 256, number // 256 % 256, 77)).save(file, "PNG")
    return file.getvalue()


def struct(number: int, *, path: str | None = None) -> dict:
    """As Hugging Face stores an image."""
    return {"bytes": png(number), "path": path}


def write_parquet(path: Path, rows: list[dict], *, row_group_size: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return path


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def write_image(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number))
    return path


def vl_row(number: int, **changes) -> dict:
    return {
        "id": f"RLAIF-V-{CANARY}-{number}",
        "query": f"What is in picture {number}?",
        "response": [f"A dog {number}.", f"A cat {number}."],
        "image": struct(number),
        "human_ranking": [0, 1],
        "models": [f"{CANARY}-one", f"{CANARY}-two"],
        "judge": f"{CANARY}-judge",
        "rationale": f"{CANARY} answer 1 is better",
        "query_source": f"{CANARY}-source",
        "ground_truth": f"{CANARY}-truth",
    } | changes


def mmrb_row(number: int, **changes) -> dict:
    return {
        "ID": f"{CANARY}-{number}",
        "Text": f"How many dogs are in picture {number}?",
        "Image": f"mathvista/{number}.png",
        "Output1": f"{number} dogs",
        "Output2": f"{number + 1} dogs",
        "Better": "Output1",
        "Category": f"{CANARY}-category",
    } | changes


def genai_row(number: int, **changes) -> dict:
    return {
        "prompt": f"a painting of {number} dogs",
        "left_model": f"{CANARY}-left",
        "left_image": struct(2 * number),
        "right_model": f"{CANARY}-right",
        "right_image": struct(2 * number + 1),
        "vote_type": "leftvote",
    } | changes


def genai_edit_row(number: int, **changes) -> dict:
    return {
        "source_prompt": "a dog",
        "target_prompt": "a red dog",
        "instruct_prompt": f"make dog {number} red",
        "source_image": struct(10_000 + number),
        "left_model": f"{CANARY}-left",
        "left_output_image": struct(2 * number),
        "right_model": f"{CANARY}-right",
        "right_output_image": struct(2 * number + 1),
        "vote_type": "rightvote",
    } | changes


def mllm_score_row(number: int, **changes) -> dict:
    return {
        "score_id": number,
        "name": f"{CANARY}-model",
        "answer": f"There are {number} dogs.",
        "id": number // 2,
        "instruction": f"How many dogs are in picture {number // 2}?",
        "image_path": f"{number // 2}.jpg",
        "original_dataset": f"{CANARY}-coco",
        "human": 4,
    } | changes


def mllm_pair_row(number: int, **changes) -> dict:
    return {
        "id": number // 2,
        "pair_id": number,
        "image_path": f"image/{number // 2}.jpg",
        "original_dataset": f"{CANARY}-coco",
        "instruction": f"How many dogs are in picture {number // 2}?",
        "answer1": {"name": f"{CANARY}-one", "answer": f"{number} dogs"},
        "answer2": {"name": f"{CANARY}-two", "answer": f"{number} cats"},
        "human_answer": "A",
    } | changes


def mllm_batch_row(number: int, **changes) -> dict:
    answers = [{"name": f"{CANARY}-{model}", "answer": f"{model + 1} dogs in picture {number}"} for model in range(4)]
    return {
        "id": number,
        "instruction": f"How many dogs are in picture {number}?",
        "image_path": f"image/{number}.jpg",
        "original_dataset": f"{CANARY}-coco",
        "answers": answers,
        "human_answer": "CDAB",
    } | changes


def pickapic_row(number: int, **changes) -> dict:
    return {
        "caption": f"a painting of {number} dogs",
        "jpg_0": png(2 * number),
        "jpg_1": png(2 * number + 1),
        "label_0": 1.0,
        "label_1": 0.0,
        "ranking_id": number,
        "user_id": 7,
        "model_0": f"{CANARY}-zero",
        "model_1": f"{CANARY}-one",
        "best_image_uid": f"{CANARY}-uid",
    } | changes


def hpdv2_row(number: int, *, count: int = 3, **changes) -> dict:
    return {
        "prompt": f"a painting of {number} dogs",
        "image_path": [f"{CANARY}-{number}-{place}.jpg" for place in range(count)],
        "rank": list(range(1, count + 1)),
        "raw_annotations": [{"rank": list(range(1, count + 1)), "user_hash": f"{CANARY}-user"}],
    } | changes


def mmrb(tmp_path, rows, missing=()):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "all_data.json").write_text(json.dumps(rows))
    for number, row in enumerate(rows):
        if isinstance(row, dict) and number not in missing:
            write_image(tmp_path / "data" / "images" / "mathvista" / f"{number}.png", number)
    return tmp_path


def hpd(tmp_path, rows, *, folder="test", missing=()):
    (tmp_path / "test.json").write_text(json.dumps(rows))
    number = 0
    for row in rows:
        for name in row["image_path"]:
            if number not in missing:
                write_image(tmp_path / folder / name, number)
            number += 1
    return tmp_path


def read_all(reader, source, **options):
    """(examples, [(reason, text)] of bad rows)"""
    got = [checked(item) for item in reader.read(as_path(source), options)]
    examples = [item for item in got if not isinstance(item, BadRecord)]
    for example in examples:
        assert unpack(pack(example)) == example
    assert len({example.example_id for example in examples}) == len(examples)
    return examples, [(item.reason, str(item)) for item in got if isinstance(item, BadRecord)]


def reasons(bad):
    return [reason for reason, _ in bad]
