"""Photographs of 0.1 to 12 megapixels and panoramas, with a folder's settings as they are downloaded: prepared, trained on,
judged, exported, and seen by transformers in the grids of training.
"""

import json
import re
from functools import cache
from pathlib import Path

import picture_drills as drills
import pytest
from commands import Ended, commands
from PIL import Image


@cache
def folder() -> Path:
    out = commands().folder / "any_size"
    out.mkdir()
    drills.write_inputs(out)
    return out


def run(*argv: object) -> Ended:
    ended = commands().run(*argv)
    assert ended.status == 0, ended.out[-1500:] + ended.err[-3000:]
    return ended


@cache
def prepared() -> str:
    return run("prepare", "--dataset=jsonl", f"--source={folder() / 'photos'}", f"--out={folder() / 'data'}").out


@cache
def trained() -> str:
    prepared()
    said = run("train", f"--config={folder() / 'config.py'}", f"--workdir={folder() / 'run'}").out
    run("export", f"--workdir={folder() / 'run'}", f"--out={folder() / 'judge'}", "--step=latest")
    return said


@cache
def judged() -> dict:
    trained()
    return commands().call("picture_drills.judged", folder=str(folder()))


def test_prepare_tells_what_a_limit_costs():
    """Of 22 pictures: 2 of each size of val, 3 of each size of train."""
    said = json.loads((folder() / "data" / "report.json").read_text()) if prepared() else {}
    assert said["records_written"] == 23 and not said["unusable"]
    assert said["images"]["tokens"] == {"median": 1024, "nine_tenths": 11844, "largest": 11844}
    assert said["images"]["made_smaller_at"] == {"262144": 0.7727, "1048576": 0.5, "4194304": 0.2273}
    assert (
        "median 1,024, nine of ten at most 11,844, largest 11,844. Made smaller by data.max_pixels: 77% at 262,144" in prepared()
    )


def test_it_trains_on_all_of_them():
    out = trained()
    assert re.search(r"^step 2/2 ", out, re.M) and "skipped" not in out
    assert re.search(r"longest of \d+ prompts checked: \d+ tokens and 2\d\d patches, the limits are 192 .* and 256", out)
    assert re.search(r"1\d of 18 pictures checked were made smaller so that their prompts fit data.patches", out)
    lines = [json.loads(line) for line in (folder() / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines if line["kind"] in ("train", "eval")].count("train") == 2
    val = (folder() / "run" / "eval" / "val_000002.predictions.jsonl").read_text().splitlines()
    assert len(val) == 2 and not any(json.loads(line)["unusable"] for line in val)


def test_the_export_says_the_limit():
    trained()
    settings = json.loads((folder() / "judge" / "preprocessor_config.json").read_text())
    assert settings == drills.HUB | {"size": {"shortest_edge": 16384, "longest_edge": 65536}}
    told = json.loads((folder() / "judge" / "judge.json").read_text())
    assert (told["min_pixels"], told["max_pixels"], told["patches"]) == (16384, 65536, 256)
    card = (folder() / "judge" / "README.md").read_text()
    assert '"which": {"shortest_edge": 16384, "longest_edge": 32768},' in card and '"bright": {"shortest_edge": 16384,' in card
    best = json.loads((folder() / "run" / "best" / "preprocessor_config.json").read_text())
    assert best == settings


def test_the_judge_sees_the_grids_of_transformers():
    """Single pictures by the exported file alone, a pair with the limit that the card gives, in rows of the trained size. Of a
    picture longer than its 64 tokens no side is below one, which a larger row holds.
    """
    pytest.importorskip("torch", reason="torch is not installed")
    from transformers import Qwen2VLImageProcessorPil

    images, found = Qwen2VLImageProcessorPil.from_pretrained(folder() / "judge"), judged()
    photos = [Image.open(folder() / "photos" / f"{number}.jpg") for number in range(len(drills.SIZES))]
    theirs = [images(photo)["image_grid_thw"].tolist() for photo in photos]
    pair = {"shortest_edge": 16384, "longest_edge": 32768}
    theirs.append(images([photos[5], photos[4]], size=pair)["image_grid_thw"].tolist())
    assert [[[1, *grid] for grid in grids] for grids in found["grids"]] == theirs
    assert found["rooms"] == [[192, 256]] * 6 + [[256, 512]] * 2 + [[192, 256]]
    assert found["grids"][5:8] == [[[12, 18]], [[2, 194]], [[194, 2]]] and all(verdict["text"] for verdict in found["verdicts"])


def test_the_commands_judge_a_photograph():
    trained()
    largest = folder() / "photos" / "5.jpg"
    flags = [f"--image={largest}", "--task=bright", "--json"]
    assert json.loads(run("judge", f"--model={folder() / 'run'}", *flags).out)["text"]
    out = folder() / "evaluated"
    flags = ["--split=train", "--tasks=which", "--limit=2", "--samples=1", "--batch=2"]
    run("eval", f"--model={folder() / 'judge'}", f"--data={folder() / 'data'}", f"--out={out}", *flags)
    lines = [json.loads(line) for line in (out / "train.predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and not any(line["unusable"] for line in lines)
