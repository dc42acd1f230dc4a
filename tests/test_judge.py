"""Judging: `mtjudge judge`, `mtjudge eval` and `Judge`, with the base that ships with the package."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import commands
from PIL import Image, ImageOps

from mtjudge_jax.demo.dataset import DEMO_TASKS
from mtjudge_jax.policy import DEMO_BASE
from mtjudge_jax.tasks import TASKS


@cache
def pictures() -> Path:
    """Pictures of several forms: a.png, its bytes turned aside with a note in EXIF, pairs."""
    folder = commands().folder / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
    picture.save(folder / "a.png")
    ImageOps.invert(picture).save(folder / "b.png")
    turned, exif = picture.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise to be seen
    turned.save(folder / "turned.png", exif=exif)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.png")
    for name, size in (("wide", (300, 40)), ("tall", (30, 200)), ("small", (5, 4)), ("large", (1500, 1100))):
        picture.resize(size).save(folder / f"{name}.png")
    return folder


def is_verdict(found: dict, task: str) -> None:
    labels = TASKS[task].labels
    assert found["verdict"] in (*labels, None) and (found["verdict"] is None) == bool(found["error"])
    if found["probabilities"] is not None:
        assert tuple(found["probabilities"]) == labels and sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_the_command_judges_a_picture_and_a_pair_as_json():
    one = commands().run("judge", f"--model={DEMO_BASE}", f"--image={pictures() / 'a.png'}", "--task=technical", "--json")
    pair = [f"--image={pictures() / name}" for name in ("a.png", "b.png")]
    two = commands().run("judge", f"--model={DEMO_BASE}", *pair, "--task=pairwise_alignment", "--instruction=a dog", "--json")
    for ended, task in ((one, "technical"), (two, "pairwise_alignment")):
        assert ended.status == 0, ended.err[-3000:]
        (line,) = ended.out.splitlines()
        is_verdict(json.loads(line), task)
        assert json.loads(line)["verdict"] and json.loads(line)["probabilities"]


def test_the_command_judges_in_words():
    ended = commands().run("judge", f"--model={DEMO_BASE}", f"--image={pictures() / 'a.png'}", "--task=technical")
    assert ended.status == 0 and [line.split()[0] for line in ended.out.splitlines()][:2] == ["verdict", "reasoning"]
    assert "no " in ended.out.splitlines()[2] and "%" in ended.out


@cache
def judged() -> dict:
    return commands().call("drills.judging", folder=str(pictures()))


def test_a_path_bytes_and_a_pil_image_are_the_same_picture():
    for name in ("a.png", "turned.png", "cmyk.jpg", "palette.png"):
        path, data, image = judged()["forms"][name]
        assert path == data == image, name
    assert judged()["forms"]["turned.png"][0] == judged()["forms"]["a.png"][0]


def test_many_questions_keep_their_order():
    """Three questions in batches of two: the last is filled up."""
    for found in judged()["alone"]:
        is_verdict(found, "alignment")
    assert len(judged()["together"]) == 3
    for found, alone in zip(judged()["together"], judged()["alone"], strict=True):
        assert {**found, "probabilities": None} == {**alone, "probabilities": None}
        assert found["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    assert len({json.dumps(found["probabilities"]) for found in judged()["alone"]}) == 3
    assert judged()["none"] == []


def test_pictures_of_any_shape_fit():
    for name, found in judged()["shapes"].items():
        is_verdict(found, "technical")
        assert found["text"], name


ERRORS = {
    "two images": "exactly 1 image(s), the question has 2",
    "one image": "exactly 2 image(s), the question has 1",
    "instruction": "needs an instruction",
    "url": "looks like a URL",
    "no file": "no file",
    "unreadable": "truncated_image",
    "16 bits": "image_mode",
    "task": "did you mean 'technical'?",
    "folder": "has no config.json",
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_questions_are_refused(case):
    said = judged()["errors"][case]
    assert ERRORS[case] in said and "\n" not in said


@cache
def evaluated() -> tuple[str, dict, list[dict]]:
    """What `mtjudge eval` prints and writes about two tasks of a test split with a damaged record."""
    folder = commands().folder / "evaluated"
    commands().call("drills.damaged_test_split", folder=str(folder / "data"))
    tasks = "--tasks=technical,pairwise_technical"
    ended = commands().run(
        "eval", f"--model={DEMO_BASE}", f"--data={folder / 'data'}", f"--out={folder}", tasks, "--samples=2", "--batch=4"
    )
    assert ended.status == 0, ended.err[-3000:]
    lines = [json.loads(line) for line in (folder / "test.predictions.jsonl").read_text().splitlines()]
    return ended.out, json.loads((folder / "test.json").read_text()), lines


def test_eval_writes_scores_and_every_prediction():
    _, result, lines = evaluated()
    assert list(result["tasks"]) == ["technical", "pairwise_technical"] and result["split"] == "test"
    single = [line for line in lines if line["task"] == "technical"]
    # The second of the four technical records is nonsense: it has no id to write.
    assert [line["example_id"] for line in single] == [f"demo/technical/test/00000{i}" for i in (0, 2, 3)]
    pairs = [line for line in lines if line["task"] == "pairwise_technical"]
    assert [(line["example_id"], line["order"]) for line in pairs] == [
        (f"demo/pairwise_technical/test/00000{i}", order) for order in ("ab", "ba") for i in range(4)
    ]
    for line in lines:
        is_verdict(line, line["task"])
        assert line["correct"] == (line["verdict"] == line["label"])
    for ab, ba in zip(pairs[:4], pairs[4:], strict=True):
        assert ab["label_index"] == 1 - ba["label_index"]


def test_eval_leaves_out_and_counts_what_cannot_be_used():
    out, result, lines = evaluated()
    assert result["unusable"] == {"unreadable_record": 1, "truncated_image": 1}
    assert result["tasks"]["technical"]["count"] == 2
    cut = lines[0]
    assert cut["unusable"] and cut["error"].startswith("truncated_image") and cut["verdict"] is None and not cut["correct"]
    assert not any(line["unusable"] for line in lines[1:])
    assert "left out, they cannot be used: unreadable_record 1, truncated_image 1" in out


def test_eval_prints_a_table():
    out, result, _ = evaluated()
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["task", "count", "macro-F1"]
    name, count, score, interval = lines[1].split()[:4]
    assert (name, count) == ("technical", "2") and "-" in interval
    assert float(score) == pytest.approx(result["tasks"]["technical"]["macro_f1"], abs=1e-3)
    assert any("both orders" in line for line in lines) and any(line.startswith("mean of tasks") for line in lines)
    assert "11 predictions" in lines[-1] and lines[-1].endswith("test.json")


def test_the_base_knows_every_demo_task():
    assert set(DEMO_TASKS) <= set(TASKS)
