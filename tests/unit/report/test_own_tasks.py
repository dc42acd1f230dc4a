"""Cards and tables of a run's own tasks: questions in words, p(yes) where it was sampled, grades, lists, pairs in both orders."""

import base64
import dataclasses
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from report_folder import draw_picture, make_workdir

from mtjudge_jax.records import JudgeExample, Label, swapped
from mtjudge_jax.report import details
from mtjudge_jax.report.examples import Card, Judged, build_cards, make_cards, strip_of, thumbnail, wrong_first
from mtjudge_jax.report.questions import answer_of, as_shown, asked_text, question_of
from mtjudge_jax.report.read import read_run
from mtjudge_jax.report.write import write_report
from mtjudge_jax.tasks import tasks_with
from mtjudge_jax.tasks.answer import ranking_text, truth_of

BLUR = {"name": "blur", "kind": "binary", "question": "Is the image blurred?", "paraphrases": ["Does the image lack sharpness?"],
        "flipped": ["Is the image sharp?"], "instruction": "Prompt"}  # fmt: skip
GRADE = {"name": "light", "kind": "graded", "question": "How bright is the image?"}
PAIR = {"name": "sharper", "kind": "pairwise", "question": "Which image is sharper?", "allow_tie": True}
ORDER = {"name": "ordered", "kind": "listwise", "question": "Order the images by sharpness."}


def line(entry, *, label, verdict, name="a", **more):
    p = {"example_id": name, "task": entry["name"], "group_id": name, "split": "val", "instruction": "", "template": "",
         "label": label, "verdict": verdict, "correct": label == verdict, "text": "", "reasoning": "", "reward": 1.0,
         "sampled_accuracy": None, "sampled_verdicts": [], "probabilities": None, "custom": entry}  # fmt: skip
    return p | more


def example(entry, kind, label, count=1):
    images = tuple(draw_picture(np.random.default_rng(i), side=8) for i in range(count))
    return JudgeExample(
        example_id="a", dataset="jsonl", split="val", task=entry["name"], group_id="a", criterion="", kind=kind,
        instruction="a cat", images=images, label=label, **({"score_min": 1.0, "score_max": 5.0} if "score" in kind else {}),
    )  # fmt: skip


def test_the_question_of_an_own_task_is_its_wording():
    """Not the id, also without the record; the wording is the one that was asked."""
    p = line(BLUR, label="yes", verdict="yes")
    assert question_of(p) == "Is the image blurred?"
    asked = p | {"template": "blur/1@0123456789abcdef", "instruction": "a cat"}
    assert question_of(asked) == "Does the image lack sharpness? Prompt: a cat"
    for number in ("9", "3", "-1", "\u00b2", ""):  # it has three: 0, 1, 2
        assert question_of(p | {"template": f"blur/{number}@0"}) == "Is the image blurred?"
    assert question_of(p | {"template": "blur/2@0"}) == "Is the image sharp?"
    assert question_of(p | {"task": "gone", "custom": None}) == "a"
    assert question_of(p | {"task": "technical", "custom": None}) == "Is it right that this picture has good technical quality?"
    record = example(BLUR, "pointwise_binary", Label(binary=1))
    assert "Prompt: a cat\nImage: [image]" in asked_text(asked, record) and "lack sharpness?" in asked_text(asked, record)
    flipped = asked_text(p | {"template": "blur/2@0"}, record)
    assert "Is the image sharp?" in flipped and "yes or no" in flipped  # the words of a flipped wording are exchanged
    assert asked_text(p, dataclasses.replace(record, kind="pairwise")) == ""


def test_the_chance_of_a_verdict_is_sampled_where_no_probabilities_were_computed():
    p = line(BLUR, label="yes", verdict="yes", sampled_verdicts=["yes", "no", "yes", None, "yes"], sampled_accuracy=0.6)
    found = answer_of(p)
    assert (found.chance_name, found.chance, found.sampled_right) == ("p(yes)", "0.75 (4 samples)", "3 of 5")
    found = answer_of(p | {"probabilities": {"no": 0.125, "yes": 0.875}})
    assert (found.chance_name, found.chance) == ("p(yes)", "0.88")
    found = answer_of(line(PAIR, label="B", verdict="A", probabilities={"A": 0.5, "B": 0.25, "tie": 0.25}))
    assert (found.chance_name, found.chance, found.sampled_right) == ("p(B)", "0.25", "")
    graded = line(GRADE, label="4", verdict="5", score_expected=4.25, probabilities=dict.fromkeys("12345", 0.2))
    assert (answer_of(graded).chance_name, answer_of(graded).chance) == ("expected grade", "4.25")
    graded |= {"probabilities": None, "score_expected": None, "sampled_verdicts": ["4", "5", None], "sampled_accuracy": 1 / 3}
    assert answer_of(graded).chance == "4.50 (2 samples)" and answer_of(graded).sampled_right == "1 of 3"
    assert answer_of(line(BLUR, label="yes", verdict=None)).chance == "–"
    assert answer_of(line(ORDER, label="A > B", verdict="B > A")).chance_name == ""


@pytest.mark.parametrize("seed", [0, 3])
def test_a_list_is_shown_in_the_order_that_was_judged(seed):
    record = example(ORDER, "listwise", Label(ranks=(1, 2, 3)), count=3)
    task = tasks_with([ORDER], seed=seed)["ordered"]
    shown = task.displayed(record)
    truth = truth_of(task, shown)
    p = line(ORDER, label=ranking_text(truth.ranks, truth.words), verdict=None)
    assert as_shown(p, record, (7, seed, 0)).images == shown.images
    pair = example(PAIR, "pairwise", Label(winner=1), count=2)
    assert as_shown(line(PAIR, label="A", verdict="A", order="ba"), pair, (0,)).images == swapped(pair).images


def test_pictures_of_every_readable_format_are_shown_the_way_the_model_sees_them():
    for form in ("GIF", "BMP", "PNG"):
        file = io.BytesIO()
        Image.new("RGB", (4, 2), "red").save(file, form)
        assert thumbnail(file.getvalue()).startswith("data:image/webp;base64,"), form
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (4, 2), "red").save(file, "JPEG", exif=exif)
    assert Image.open(io.BytesIO(base64.b64decode(thumbnail(file.getvalue()).split(",")[1]))).size == (2, 4)


def question(task, *right, name="a"):
    orders = ("",) if len(right) == 1 else ("ab", "ba")
    return [
        Judged("test", None, line(PAIR | {"name": task}, label="A", verdict="A" if ok else "B", order=order, name=name))
        for ok, order in zip(right, orders, strict=True)
    ]


def test_wrong_answers_come_first_and_the_tasks_in_turn():
    asked = [question("x", True), question("x", False), question("x", False), question("y", True, False), question("y", True)]
    found = wrong_first(asked)
    assert found == [asked[1], asked[3], asked[2], asked[0], asked[4]]


def test_pairs_wrong_in_both_orders_are_marked_and_counted():
    rights = ((False, False), (True, False), (True, True))
    judged = [one for i, right in enumerate(rights) for one in question("x", *right, name=str(i))]
    cards = make_cards(judged, None, [], seeds=(0,))
    assert [card.outcome for card in cards] == [
        "wrong bothwrong", "wrong bothwrong", "right flipped", "wrong flipped", "right", "right",
    ]  # fmt: skip


def test_the_strip_is_of_many_tasks_with_wrong_ones_among_them():
    def card(task, outcome, order="", pictures=("data:",)):
        return Card(task, task, "test", order, "", "", "", list(pictures), None, None, outcome)

    cards = [card("a", "wrong"), card("b", "wrong"), card("a", "right"), card("a", "right fixed"), card("b", "right"),
             card("c", "right", "ba"), card("c", "right", "ab", ("x", "y")), card("d", "right", pictures=())]  # fmt: skip
    chosen = strip_of(cards)
    assert [cards[place].outcome.split()[0] for place in chosen] == ["right", "right", "wrong", "right", "right", "wrong"]
    assert chosen[0] == 3 and cards[chosen[1]].task == "b" and not {5, 7} & set(chosen)
    assert strip_of([]) == []


def own_run(folder, means=(0.5, 0.62)):
    """A run of own tasks that was only validated, at steps 0 and 12. means: of the macro-F1."""
    make_workdir(folder, per_task=2)
    for path in (folder / "eval").iterdir():
        path.unlink()
    config = json.loads((folder / "config.json").read_text())
    config |= {"data": {"path": "", "tasks": ["blur", "light"], "custom_tasks": [BLUR, GRADE]}}
    (folder / "config.json").write_text(json.dumps(config))
    rows = [line(BLUR, label="no", verdict=verdict, name=f"u{i}", sampled_verdicts=["no", "yes"], sampled_accuracy=0.5)
            for i, verdict in enumerate(("no", "yes"))]  # fmt: skip
    rows += [line(GRADE, label=label, verdict=verdict, name=f"g{label}{verdict}") for label, verdict in ("12", "33", "33", "5x")]
    rows = [row | {"verdict": None if row["verdict"] == "x" else row["verdict"]} for row in rows]
    score = {"macro_f1": 0.5, "accuracy": 0.625, "sampled_accuracy": 0.5, "count": 2}
    lines = []
    for step, mean in zip((0, 12), means, strict=True):
        result = {"tasks": {"blur": score, "light": score}, "mean": {"macro_f1": mean, "sampled_accuracy": 0.5}}
        (folder / "eval" / f"val_{step:06d}.json").write_text(json.dumps(result))
        (folder / "eval" / f"val_{step:06d}.predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines.append({"kind": "eval", "split": "val", "step": step} | result)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def test_the_page_shows_the_answers_of_the_model_that_is_kept(tmp_path):
    """Where a later validation was worse, those of the best: the headline is of its model."""
    folder = own_run(tmp_path / "run", means=(0.6, 0.5))
    assert [name for name in read_run(folder).evaluations if name.startswith("val_")] == ["val_000000"]
    better = own_run(tmp_path / "better")
    assert [name for name in read_run(better).evaluations if name.startswith("val_")] == ["val_000000", "val_000012"]


def test_a_run_of_own_tasks_that_was_only_validated(tmp_path):
    """Its page shows the questions, the validations in a table, the grades' confusion matrix and the commands in boxes."""
    source = write_report(own_run(tmp_path / "my run")).read_text(encoding="utf-8")
    text = html.unescape(" ".join(re.sub(r"<[^>]*>", " ", source[source.index("<body>") :]).split()))
    assert "Is the image blurred?" in text and "p(yes) 0.50 (2 samples) 0.50 (2 samples)" in text
    assert "blur 2 0.500 0.500 0.625 0.625 0.500 0.500" in text and "macro-F1, step 12" in text
    assert "Confusion matrices" in text and "light best validation" in text
    table = text[text.index("true \\ said") :]
    rows = ("1 0 1 0 0 0 0", "2 0 0 0 0 0 0", "3 0 0 2 0 0 0", "4 0 0 0 0 0 0", "5 0 0 0 0 0 1")
    assert table.startswith(f"true \\ said 1 2 3 4 5 invalid {' '.join(rows)} ")
    code = source[source.index("<code>") + 6 : source.index("</code>")]
    assert code.startswith("mtjudge eval \\\n  --config=CONFIG.py \\\n  ") and source.count('class="copy"') == 2
    assert "white-space: pre;" in source and "Pairs in both orders" not in text


def test_counts_of_failing_pairs(tmp_path):
    run = read_run(make_workdir(tmp_path, per_task=4))
    found = details.pair_failures(run.evaluations["trained_test"])
    for task, failures in found.items():
        rows = [p for p in run.evaluations["trained_test"].predictions if p["task"] == task]
        right = {name: sum(p["correct"] for p in rows if p["example_id"] == name) for name in {p["example_id"] for p in rows}}
        counts = list(right.values())
        assert failures == (4, counts.count(0), counts.count(1))
    assert len(found) == 3 and details.pair_failures(None) == {}
    assert any("bothwrong" in card.outcome for card in build_cards(run)) is any(f.both_wrong for f in found.values())
