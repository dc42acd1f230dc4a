"""Judging: `mtjudge judge`, `mtjudge eval` and `Judge`, with the base that ships with the package."""

import json
import os
import shutil
import signal
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from commands import commands, photos, scoring
from PIL import Image, ImageOps

from mtjudge_jax.data.rows import RowFormat
from mtjudge_jax.demo.dataset import DEMO_TASKS, make_examples
from mtjudge_jax.eval import batches, evaluate
from mtjudge_jax.eval.predictions import AnswerGroup, answered_line
from mtjudge_jax.policy.model import DEMO_BASE
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
    pair = [f"--image={pictures() / name}" for name in ("a.png", "b.png")]
    ended = commands().run("judge", f"--model={DEMO_BASE}", *pair, "--task=pairwise_technical", "--instruction=a dog")
    assert ended.out.splitlines()[0] in ("verdict    first", "verdict    second")  # the word says which picture
    assert "warning: the task 'pairwise_technical' shows no instruction: what was given is not asked" in ended.err


@cache
def judged() -> dict:
    return commands().call("command_drills.judging", folder=str(pictures()))


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
        numbers = {"probabilities": None, "probability": None, "score_expected": None}
        assert {**found, **numbers} == {**alone, **numbers}
        assert found["probability"] == found["probabilities"][found["verdict"]] and found["parse"] == "strict"
        assert found["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        assert found["score_expected"] == found["probabilities"]["yes"]
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
    commands().call("command_drills.damaged_test_split", folder=str(folder / "data"))
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
    assert "skipped, cannot be used: unreadable_record 1, truncated_image 1" in out


def test_eval_prints_a_table():
    out, result, _ = evaluated()
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["task", "count", "macro-F1"]
    name, count, score, interval = lines[1].split()[:4]
    assert (name, count) == ("technical", "2") and "-" in interval
    assert float(score) == pytest.approx(result["tasks"]["technical"]["macro_f1"], abs=1e-3)
    assert any("both orders" in line for line in lines) and any(line.startswith("mean, trained tasks") for line in lines)
    # 4 single questions, one of them without an image; 4 pairs in two orders and 8 of their pictures alone, but one unreadable
    assert lines[-1].startswith("11 predictions, 19 prompts judged in ") and lines[-1].endswith("test.json")
    assert "prompts/s, " in lines[-1] and "tokens/s)" in lines[-1]
    assert "kappa" in lines[2] and "ECE" in lines[2]


# What the data sets' own metrics read of a prediction.
OFFICIAL_KEYS = {"example_id", "task", "group_id", "order", "label", "verdict", "score_expected", "score_true", "raw"}


def test_predictions_carry_what_official_metrics_read():
    _, result, lines = evaluated()
    for line in lines:
        assert line.keys() >= OFFICIAL_KEYS and line["raw"] == {} and line["score_true"] is None
        if line["probabilities"]:
            assert line["score_expected"] == list(line["probabilities"].values())[1]
            assert line["probability"] == line["probabilities"][line["verdict"]]
        if not line["unusable"]:
            assert len(line["sampled_verdicts"]) == 1 and line["tokens"] > 4 and line["sampled_tokens"] > 4
            assert line["sampled_accuracy"] == (line["sampled_verdicts"] == [line["label"]])  # one is sampled
    used = [line["tokens"] for line in lines if line["task"] == "technical" and not line["unusable"]]
    assert result["tasks"]["technical"]["mean_tokens"] == np.mean(used)


def test_no_usable_record_is_told_with_what_helps():
    remedies = {"image_hash: x": "Prepare the data again", "too_many_patches: x": "Change the config as the reasons say"}
    for error, remedy in remedies.items():
        with pytest.raises(ValueError, match=rf"^no record of t can be used, e: {error}\. {remedy}"):
            evaluate.usable([{"task": "t", "example_id": "e", "error": error, "unusable": True}])


def test_the_official_metric_stands_beside_its_task(monkeypatch):
    rows = [{"task": "technical", "example_id": str(i), "error": "", "unusable": i == 2} for i in range(3)]
    score = {"macro_f1": 0.5, "sampled_accuracy": None}
    monkeypatch.setattr(evaluate, "judge_task", lambda *_, **__: (rows, dict(score)))

    def official(task, predictions):
        return {"asked": len(predictions)} if task == "technical" else {}

    _, result = evaluate.evaluate({}, {"technical": [], "safety": []}, JUDGING, step=0, official=official)
    assert result["tasks"] == {"technical": score | {"official": {"asked": 2}}, "safety": score}


def test_sampled_answers_are_read_as_the_greedy_one_is():
    """Leniently: a model that gives its verdict alone is not wrong by that."""
    example = next(iter(make_examples(split="test", task="safety", count=2, seed=0)))
    word = TASKS["safety"].labels[example.label.binary]
    texts = ["<answer>maybe</answer>", f"<answer>{word}</answer>", f"<think>a</think><answer>{word}</answer>", "?"]
    answers = AnswerGroup(texts, np.zeros(4, bool), np.full(4, 5), np.arange(4) > 0)
    line = answered_line(example, TASKS["safety"], "", answers, 0.1)
    assert line["sampled_verdicts"] == [word, word, None] and line["sampled_accuracy"] == 2 / 3
    assert (line["verdict"], line["correct"], line["parse"], line["reward"]) == (None, False, "invalid", 0.0)
    line = answered_line(example, TASKS["safety"], "", answers._replace(texts=texts[1:], sampled=np.zeros(3, bool)), 0.1)
    assert (line["verdict"], line["correct"], line["parse"], line["sampled_accuracy"]) == (word, True, "lenient", None)


def test_the_two_orders_of_a_pair_are_sampled_apart():
    """By the same random numbers the second order's answers would be no others than the first's of a model that sees no order."""
    seen = {}

    def batch(params, rows, here, task, how, *, order, **_):
        seen[order] = rows["uid"].tolist()
        return []

    pair = SimpleNamespace(task="pairwise_safety", images=(b"", b""))
    rows = lambda *_, **__: [{"uid": np.array([5, 7], np.uint32)}]  # noqa: E731
    with mock.patch.object(batches, "judge_batch", batch), mock.patch.object(batches, "eval_batches", rows):
        for order in ("", "ab", "ba"):
            batches.judge({}, [pair], JUDGING, step=0, probabilities=False, order=order)
    assert seen == {"": [5, 7], "ab": [5, 7], "ba": [5 + 2**31, 7 + 2**31]}


@pytest.mark.parametrize("kept,probabilities,sizes", [(0, True, [6, 6]), (4, False, [6, 6]), (4, True, [4, 4, 4])])
def test_where_caches_are_kept_a_batch_is_as_small_as_a_rollouts(kept, probabilities, sizes):
    """For the labels' probabilities each prompt's cache stays until its answers are read."""
    seen = []

    def batch(params, rows, here, task, how, **_):
        seen.append((how.batch, rows["rows"]))
        return []

    rows = lambda examples, batch, **_: [{"rows": batch}] * -(-len(examples) // batch)  # noqa: E731
    single = SimpleNamespace(task="technical", images=(b"",))
    with mock.patch.object(batches, "judge_batch", batch), mock.patch.object(batches, "eval_batches", rows):
        batches.judge({}, [single] * 12, JUDGING._replace(batch=6, kept=kept), step=0, probabilities=probabilities)
    assert seen == [(size, size) for size in sizes]


JUDGING = evaluate.Judging(None, RowFormat(TASKS, None, None, 0, 0), 1, np.zeros(1, np.float32), 0.1, 0)


def eval_flags(out: Path, *changed: str) -> list[str]:
    flags = {"model": DEMO_BASE, "data": commands().folder / "data", "out": out, "tasks": "technical,pairwise_technical"}
    given = [f"--{name}={value}" for name, value in (flags | {"samples": 2, "batch": 2}).items()]
    again = tuple(flag.partition("=")[0] + "=" for flag in changed)
    return ["eval", *(flag for flag in given if not again or not flag.startswith(again)), *changed]


@cache
def whole() -> Path:
    """An evaluation that nothing stopped: 2 batches of single questions, 2 of each order, 4 of the pairs' pictures alone."""
    out = commands().folder / "whole_evaluation"
    assert commands().run(*eval_flags(out)).status == 0
    return out


@cache
def killed() -> Path:
    """What a kill after nine batches leaves."""
    out = commands().folder / "killed"
    run = commands().start(*eval_flags(out))
    assert commands().until(lambda: (out / "test.partial" / f"{8:06d}.jsonl").is_file(), run)
    os.kill(run.pid, signal.SIGKILL)
    commands().wait(run)
    assert not (out / "test.json").exists()
    return out


@pytest.mark.parametrize("batches", [1, 3, 9])
def test_a_killed_evaluation_goes_on_to_the_same_bytes(batches):
    """A kill earlier than at the ninth leaves the first of these files."""
    out = commands().folder / f"killed_{batches}"
    shutil.copytree(killed(), out)
    for part in sorted((out / "test.partial").glob("*.jsonl"))[batches:] if batches < 9 else ():
        part.unlink()
    left = sum(1 for _ in (out / "test.partial").glob("*.jsonl"))
    ended = commands().run(*eval_flags(out))
    assert ended.status == 0 and f"continuing after {left} batches" in ended.err
    assert f"12 predictions, {20 - 2 * left} prompts judged" in ended.out
    for name in ("test.json", "test.predictions.jsonl"):
        assert (out / name).read_bytes() == (whole() / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == ["test.json", "test.predictions.jsonl"]


def test_a_finished_evaluation_is_not_done_again():
    before = {path: path.stat().st_mtime_ns for path in whole().iterdir()}
    ended = commands().run(*eval_flags(whole()))
    assert ended.status == 0 and "12 predictions, judged before, written to" in ended.out
    assert before == {path: path.stat().st_mtime_ns for path in whole().iterdir()}


def test_held_out_wordings_that_are_none_are_refused():
    ended = commands().run(*eval_flags(commands().folder / "held_out", "--templates=held_out"))
    assert ended.status == 2 and not (commands().folder / "held_out").exists()
    assert "--templates=held_out, but no wording is held out of technical, pairwise_technical: give" in ended.err


def test_another_evaluation_in_the_same_place_is_refused():
    before = {path: path.stat().st_mtime_ns for path in whole().iterdir()}
    for flag, said in {
        "--limit=1": "limit is 0 there and 1 now",
        "--samples=3": "samples is 2 there and 3 now",
        "--tasks=technical": "tasks is ['technical', 'pairwise_technical'] there and ['technical'] now",
        "--seed=7": "seed is 0 there and 7 now",
        f"--model={other_model()}": "model is '",
    }.items():
        ended = commands().run(*eval_flags(whole(), flag))
        assert ended.status == 2 and said in ended.err and "another --out or --name" in ended.err, flag
        assert ended.err.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in whole().iterdir()}


@cache
def other_model() -> Path:
    """A workdir whose best/ is the base with one number changed."""
    workdir = commands().folder / "a_workdir"
    shutil.copytree(DEMO_BASE, workdir / "best")
    (path,) = (workdir / "best").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return workdir


def test_eval_takes_the_model_of_the_config():
    out = commands().folder / "model_of_the_config"
    flags = (f"--config={commands().config}", "--tasks=technical", "--limit=2", f"--data={commands().folder / 'data'}")
    for model in ((), (f"--model={DEMO_BASE}",)):
        ended = commands().run("eval", *flags, f"--out={out}", "--samples=2", *model)
        assert ended.status == 0, ended.err[-3000:]
    assert "2 predictions, judged before" in ended.out  # by the same model


def test_a_part_of_another_evaluation_is_refused():
    out = commands().folder / "part"
    folder = out / "test.partial"
    folder.mkdir(parents=True)
    settings = json.loads((whole() / "test.json").read_text())["settings"]
    (folder / "settings.json").write_text(json.dumps(settings | {"seed": 5}))
    ended = commands().run(*eval_flags(out))
    assert ended.status == 2 and "test.partial has batches of another evaluation: seed is 5 there and 0 now" in ended.err


def test_a_workdir_without_best_is_said():
    workdir = commands().folder / "no_best"
    workdir.mkdir()
    (workdir / "metrics.jsonl").touch()
    ended = commands().run(*eval_flags(commands().folder / "never", f"--model={workdir}"))
    assert ended.status == 2 and "is the workdir of a run that has no best/ yet" in ended.err
    ended = commands().run(*eval_flags(commands().folder / "never", "--mesh=fdsp=2"))
    assert ended.status == 2 and "--mesh=fdsp=2: give AXIS=DEVICES" in ended.err


def test_the_base_knows_every_demo_task():
    assert set(DEMO_TASKS) <= set(TASKS)


# scores, comparisons, votes


def test_scores_do_not_depend_on_the_batch_and_are_the_verdicts_probability():
    found = scoring()
    assert len(found["technical"]) == len(found["alignment"]) == 12 and np.ptp(found["alignment"]) > 0.5
    assert np.abs(np.array(found["one by one"]) - found["alignment"][:5]).max() < 1e-6
    assert found["verdict"]["probabilities"]["yes"] == pytest.approx(found["technical"][0], abs=1e-6)
    want = [*found["technical"][:3], None, *found["technical"][4:6]] * 9
    assert all(abs(a - b) < 1e-6 for a, b in zip(found["mixed"], want, strict=True) if b is not None)


def test_nothing_is_compiled_after_the_warm_up():
    assert scoring()["compiled"] == 0


def test_comparisons_turn_with_the_candidates():
    found = scoring()
    matrix, rates = np.array(found["matrix"]), np.array(found["win_rate"])
    off = ~np.eye(4, dtype=bool)
    assert (matrix + matrix.T)[off].tolist() == [1.0] * 12 and rates.sum() == pytest.approx(2.0, abs=1e-12)
    assert np.abs(np.array(found["swapped"])[::-1] - rates).max() < 1e-6
    pair = found["pairs"][0]
    assert pair["probabilities"]["first"] == pytest.approx(matrix[0, 1], abs=1e-6) and pair["agreement"] in (0.0, 0.5, 1.0)


def test_votes_are_those_of_their_seed():
    found = scoring()
    first, again, other = found["seeds"]
    assert first == again and first != other and np.abs(np.array(found["alone"]) - first).max() < 1e-6
    assert found["votes"]["agreement"] in (0.2, 0.4, 0.6, 0.8, 1.0)


def test_a_file_of_questions_goes_on_after_a_stop(tmp_path):
    """The same lines as without one; what cannot be judged has its reason; other settings are refused."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for number, photo in enumerate(photos()):
        (folder / f"{number}.png").write_bytes(photo)
        lines.append({"image": f"{number}.png", "id": f"row {number}"})
    lines[3] = {"image": "missing.png"}
    lines[7] = {"image": "7.png", "task": "alignment", "instruction": "a dog"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    flags = ["judge", f"--model={DEMO_BASE}", f"--data={rows}", f"--images={folder}", "--task=technical", "--batch=2"]
    whole = commands().run(*flags, f"--out={tmp_path / 'whole.jsonl'}")
    assert whole.status == 0, whole.err
    assert "13 rows judged in" in whole.out and "2 rows could not be judged" in whole.out
    said = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [line["row"] for line in said] == list(range(13)) and said[0]["id"] == "row 0"
    assert "no file" in said[3]["error"] and said[3]["verdict"] is None
    assert said[12]["error"].startswith("line 13 is no JSON object: ")
    good = [line["score_expected"] for i, line in enumerate(said) if i not in (3, 7, 12)]
    assert np.abs(np.array(good) - [s for i, s in enumerate(scoring()["technical"]) if i not in (3, 7)]).max() < 1e-6

    out = tmp_path / "again.jsonl"
    assert commands().run(*flags, f"--out={out}").status == 0
    text = out.read_text()
    out.write_text("".join(text.splitlines(keepends=True)[:5]) + text.splitlines()[5][:20])  # killed while it wrote
    again = commands().run(*flags, f"--out={out}")
    assert again.status == 0 and "5 of 13 rows were judged before; the rest follows" in again.out, again.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["verdict"] for line in lines] == [line["verdict"] for line in said] and lines[:5] == said[:5]
    done = commands().run(*flags, f"--out={out}")
    assert done.status == 0 and "13 rows were judged before" in done.out
    rows.write_text(rows.read_text() + "\n")
    changed = commands().run(*flags, f"--out={out}")
    assert changed.status == 2 and f"--data={rows} has changed since {out} was begun" in changed.err
    bare = tmp_path / "bare.jsonl"
    bare.write_text(rows.read_text())
    without = [flag for flag in flags if not flag.startswith("--task")]
    missing = commands().run(*without, f"--data={bare}", f"--out={tmp_path / 'no.jsonl'}")
    assert missing.status == 2 and "--task is missing and line 1 names none: give --task" in missing.err
    assert not (tmp_path / "no.jsonl").exists()
    named = [json.dumps({"image": f"{number}.png", "task": "technical"}) for number in range(3)]
    bare.write_text("\n".join([*named, "no json", named[0]]))
    ended = commands().run(*without, f"--data={bare}", f"--out={tmp_path / 'named.jsonl'}")
    assert ended.status == 0 and "1 rows could not be judged" in ended.out, ended.err
    said = [json.loads(line) for line in (tmp_path / "named.jsonl").read_text().splitlines()]
    assert [bool(line["verdict"]) for line in said] == [True] * 3 + [False, True] and "is no JSON object" in said[3]["error"]
    failed = next(line for line in map(json.loads, (tmp_path / "whole.jsonl").read_text().splitlines()) if line["row"] == 3)
    assert f"as row 3: {failed['error']}" in whole.out and "2 of them could not be, and are not tried again" in done.out
    lost = commands().run(*without, "--task=technical", f"--data={rows}", f"--out={tmp_path / 'lost.jsonl'}", "--images=nowhere")
    assert lost.status == 2 and "rows could not be judged: their verdict is null, the reason is in error, as row 0: " in lost.err
    assert not (tmp_path / "lost.jsonl").exists()
    (tmp_path / "empty.jsonl").touch()  # as a command leaves it that failed before its first verdict
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:1]))
    assert commands().run(*flags, f"--out={tmp_path / 'empty.jsonl'}").status == 0
    other = commands().run(*flags, f"--out={tmp_path / 'empty.jsonl'}", "--samples=3")
    assert other.status == 2 and "holds verdicts of another command (samples 1 -> 3)" in other.err
