"""Questions as a caller may write them, the texts in them, and the names of tasks."""

import numpy as np
import pytest
from PIL import Image

from mtjudge_jax.errors import UserError
from mtjudge_jax.judge.questions import (
    OwnQuestion,
    find_task,
    listed,
    question_example,
    read_question,
    untrained,
    warnings_about,
    with_instructions,
)
from mtjudge_jax.tasks import TASKS, tasks_with

PICTURE = np.zeros((8, 8, 3), np.uint8)
IMAGE = Image.fromarray(PICTURE)


def asked(raw, several=False):
    found = read_question(raw, several)
    return [*found.images], found.instruction, [*found.texts], found.task


@pytest.mark.parametrize(
    "raw,images,instruction,texts",
    [
        ("a.jpg", ["a.jpg"], "", []),
        (("a.jpg",), ["a.jpg"], "", []),
        ((("a.jpg",),), ["a.jpg"], "", []),
        (("a.jpg", ""), ["a.jpg"], "", []),
        (("a.jpg", "a dog"), ["a.jpg"], "a dog", []),
        (["a.jpg", "a dog"], ["a.jpg"], "a dog", []),
        ((["a.jpg"], "a dog"), ["a.jpg"], "a dog", []),
        ((["a.jpg", "b.jpg"], "a dog"), ["a.jpg", "b.jpg"], "a dog", []),
        ((["a.jpg"], "q", ("one", "two")), ["a.jpg"], "q", ["one", "two"]),
        (("a.jpg", "q", ["one", "two"]), ["a.jpg"], "q", ["one", "two"]),
        (([], "q", ["one"]), [], "q", ["one"]),
        ((IMAGE, IMAGE), [IMAGE, IMAGE], "", []),
        ({"image": "a.jpg", "instruction": "a dog"}, ["a.jpg"], "a dog", []),
        ({"image": "a.jpg", "text": "a dog"}, ["a.jpg"], "a dog", []),
        ({"image": ["a.jpg"], "text": "x", "instruction": "q"}, ["a.jpg"], "q", ["x"]),
        ({"images": ("a.jpg", "b.jpg"), "label": "yes", "id": 3}, ["a.jpg", "b.jpg"], "", []),
        ({"images": "a.jpg", "texts": ["one", "two"], "instruction": None}, ["a.jpg"], "", ["one", "two"]),
    ],
)
def test_forms_of_a_question(raw, images, instruction, texts):
    assert asked(raw) == (images, instruction, texts, "")


def test_two_paths_are_a_pair_where_the_task_takes_one():
    assert asked(("a.jpg", "b.jpg"), several=True) == (["a.jpg", "b.jpg"], "", [], "")
    assert asked(["a.jpg", "b.jpg", "c.jpg"], several=True)[0] == ["a.jpg", "b.jpg", "c.jpg"]
    assert asked((("a.jpg", "b.jpg"), "a dog"), several=True) == (["a.jpg", "b.jpg"], "a dog", [], "")
    assert asked(("a.jpg", "q", ["one", "two"]), several=True) == (["a.jpg"], "q", ["one", "two"], "")
    assert asked({"image": "a.jpg", "task": "safety"})[3] == "safety"


@pytest.mark.parametrize(
    "raw,said",
    [
        ((), "it is empty: give"),
        ((["a.jpg"], "q", ["t"], 4), "it has 4 parts: give"),
        ({"imge": "a.jpg"}, "unknown field 'imge', did you mean 'image'"),
        ({"image": "a.jpg", "images": ["b.jpg"]}, "both image and images"),
    ],
)
def test_other_forms_are_refused(raw, said):
    with pytest.raises(UserError, match=said):
        read_question(raw, False)


def test_what_may_be_given_as_questions():
    batch = np.zeros((5, 8, 8, 3), np.uint8)
    assert len(listed(batch)) == 5 and len(listed(batch.transpose(0, 3, 1, 2))) == 5 and len(listed(PICTURE)) == 1
    assert listed("a.jpg") == ["a.jpg"] and listed(IMAGE) == [IMAGE] and listed({"image": "a"}) == [{"image": "a"}]
    assert listed(b"x") == [b"x"] and listed(["a", "b"]) == ["a", "b"]
    with pytest.raises(UserError, match=r"7 is no list of questions"):
        listed(7)
    both = [*with_instructions(["a.jpg", ["b.jpg", "c.jpg"]], "a dog")]
    assert both == [OwnQuestion(["a.jpg"], "a dog"), OwnQuestion(["b.jpg", "c.jpg"], "a dog")]
    assert [q.instruction for q in with_instructions(["a", "b"], ["x", "y"])] == ["x", "y"]
    with pytest.raises(UserError, match=r"2 elements of images, but 1 instructions"):
        with_instructions(["a", "b"], ["x"])


@pytest.mark.parametrize(
    "text,said",
    [
        ("caf\udce9", r"instruction is no Unicode text: '\\udce9' at character 3"),
        ("\ud83d", r"instruction is no Unicode text: '\\ud83d' at character 0"),
        (None, "instruction is None, a NoneType: give a text"),
        (b"a dog", "instruction is b'a dog', a bytes: give a text"),
        (7, "instruction is 7, a int"),
        ("", "needs an instruction"),
        (" \n", "needs an instruction"),
    ],
)
def test_a_text_that_cannot_be_asked(text, said):
    with pytest.raises(UserError, match=said):
        question_example([PICTURE], text, task=TASKS["alignment"], number=0)


def test_texts_are_checked_and_one_text_is_one():
    tasks = tasks_with([{"name": "caption", "kind": "pairwise", "question": "Which caption is better?", "noun": "Answer"}])
    two = question_example([PICTURE], "", ["a dog", "a\0cat"], task=tasks["caption"], number=0)
    assert [candidate.text for candidate in two.candidates] == ["a dog", "a\0cat"] and two.context_images == 1
    with pytest.raises(UserError, match=r"texts\[1\] is no Unicode text: '\\ud83d' at character 2"):
        question_example([PICTURE], "", ["a dog", "a \ud83d"], task=tasks["caption"], number=0)
    with pytest.raises(UserError, match=r"judges 2 candidates, the question has 1"):
        question_example([PICTURE], "", "a dog", task=tasks["caption"], number=0)


def test_a_judge_names_its_own_tasks_first():
    own = ("upside_down", "sharper")
    known = tasks_with([{"name": name, "kind": "binary", "question": "Is it?"} for name in own])
    assert find_task("sharper", known, own).name == "sharper" and find_task("technical", known, own).name == "technical"
    with pytest.raises(UserError, match=r"^unknown task 'blurry'; this judge was trained on upside_down, sharper"):
        find_task("blurry", known, own)
    with pytest.raises(UserError, match=r"^unknown task 'sharpr', did you mean 'sharper'[?]; this judge was trained on"):
        find_task("sharpr", known, own)
    with pytest.raises(UserError, match=r"^--task is missing: name a task, e.g. --task=upside_down; this judge was trained on"):
        find_task(None, known, own)
    with pytest.raises(UserError, match=r"did you mean 'technical'"):
        find_task("technicall", TASKS, ())
    for name in (7, ["technical"], b"technical"):
        with pytest.raises(UserError, match=r"give the name of a task"):
            find_task(name, known, own)
    with pytest.raises(UserError, match=r"unknown task 'tech\\ud83d'"):
        find_task("tech\ud83d", known, own)
    assert untrained("technical", own).startswith("this judge was never trained on the task 'technical'")
    assert untrained("sharper", own) == untrained("technical", ()) == ""


def test_an_instruction_that_is_not_asked_is_said():
    technical, alignment = TASKS["technical"], TASKS["alignment"]
    (said,) = warnings_about(technical, ("technical",), "a red circle")
    assert said == "the task 'technical' shows no instruction: what was given is not asked"
    assert warnings_about(technical, ("technical",), " ") == warnings_about(alignment, (), "a dog") == []
    assert len(warnings_about(technical, ("alignment",), "a dog")) == 2
