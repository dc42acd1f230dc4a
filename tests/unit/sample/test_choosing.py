"""Which of a prompt's answers are kept, in which words, and how labels and tasks are balanced."""

import dataclasses

import numpy as np
import pytest
from task_records import record

from mtjudge_jax.data.rows import completion_text
from mtjudge_jax.eval.predictions import AnswerGroup
from mtjudge_jax.records import Label
from mtjudge_jax.sample.choosing import balanced, drawn_line, wanted
from mtjudge_jax.tasks import TASKS, tasks_with
from mtjudge_jax.tasks.answer import as_asked

SAFE = dataclasses.replace(record("unsafebench"), label=Label(binary=1))  # its words are No and Yes


def said(reasoning: str, word: str) -> str:
    return completion_text(reasoning, word)


def line_of(texts, *, lengths=None, cut=(), example=SAFE, tasks=TASKS, choose="shortest", most=64) -> dict:
    """The line of answers with these texts; by default as many tokens as they have words."""
    lengths = np.array([len(text.split()) for text in texts] if lengths is None else lengths)
    truncated = np.isin(np.arange(len(texts)), cut)
    group = AnswerGroup(list(texts), truncated, lengths, np.ones(len(texts), bool))
    return drawn_line(example, tasks[example.task], "", group, 0.1, choose=choose, most_tokens=most)


def test_right_is_the_whole_form_and_the_label():
    """Of six answers two count: the others are wrong, out of form, cut, or of another form that only the lenient parser reads."""
    texts = [said("calm and kind", "Yes"), said("calm", "yes"), said("a knife", "No"), "Yes", "<answer>Yes</answer>",
             said("cut", "Yes")]  # fmt: skip
    line = line_of(texts, cut=[5])
    assert line["pass_rate"] == pytest.approx(2 / 6) and line["readable"] == pytest.approx(4 / 6)
    assert line["reasoning"] == "calm" and line["chosen"] == said("calm", "Yes")
    assert (line["label"], line["label_index"], line["unusable"]) == ("Yes", 1, False)


def test_an_answer_that_training_cannot_show_is_not_kept():
    texts = [said("short", "Yes"), said("long enough", "Yes")]
    assert line_of(texts, lengths=[90, 60])["reasoning"] == "long enough"
    line = line_of(texts, lengths=[90, 80])
    assert line["chosen"] is None and line["pass_rate"] == 1.0 and not wanted(line, "right")
    pair = record("genai_image")
    named = line_of([said("{A} is better", "A"), said("{A} is worse", "B")], example=pair)
    assert named["chosen"] is None is named["rejected"]  # a record would read {A} as the name of a candidate


def test_the_voted_answer_is_the_one_the_others_are_most_like():
    """The shared words over all words, in the mean: a b c d has 3/5 and 3/5 with the next two, and 0 with the last."""
    texts = [said("z", "Yes"), said("a b c e", "Yes"), said("a b c d", "Yes"), said("a b d c f", "Yes")]
    assert line_of(texts)["reasoning"] == "z"
    assert line_of(texts, choose="voted")["reasoning"] == "a b c d"
    alike = [said("x one two", "Yes"), said("x two one", "Yes")]
    assert line_of(alike, lengths=[9, 8], choose="voted")["reasoning"] == "x two one"


def test_the_wrong_answer_is_readable_first_and_then_near_in_length():
    right = said("r", "Yes")
    texts = [right, "no form at all", said("w1", "No"), said("w2", "No")]
    assert line_of(texts, lengths=[10, 10, 2, 12])["rejected"] == said("w2", "No")
    line = line_of(texts[:2], lengths=[10, 40])
    assert line["rejected"] == "no form at all" and wanted(line, "pairs")
    assert line_of([right, " "], lengths=[3, 1])["rejected"] is None
    assert line_of([right, said("w", "No")], cut=[1])["rejected"] is None
    assert line_of([said("w", "No")])["rejected"] is None  # no chosen one beside it


def test_a_stored_verdict_is_the_tasks_label_and_comes_back_in_the_words_asked():
    """Whether the words vary, the question is flipped, or candidates have other names."""
    tasks = tasks_with((), vary_polarity=True, vary_words=True, templates="all")
    seen = set()
    for name in ("unsafebench", "genai_image", "mllm_score", "mllm_batch"):
        for number in range(16):
            example = dataclasses.replace(record(name, number), allow_tie=False)
            if example.kind == "pairwise" and example.label.winner == -1:
                continue
            asked = tasks[name].ask(example.question, example.example_id)
            ranks = example.label.ranks
            index = tasks[name].label_index(example.label)
            word = asked.words[index] if ranks is None else " > ".join(asked.words[::-1])
            if ranks is not None:
                example = dataclasses.replace(example, label=Label(ranks=tuple(range(len(asked.words), 0, -1))))
            text = said("so it is", word)
            line = line_of([text], example=example, tasks=tasks)
            assert line["pass_rate"] == 1.0
            plain = line["chosen"].partition("<answer>")[2].removesuffix("</answer>")
            assert plain == (tasks[name].labels[index] if ranks is None else " > ".join("ABCDEFG"[: len(ranks)][::-1]))
            assert as_asked(line["chosen"], tasks[name], example) == text
            seen.add((name, plain == word))
    assert {("unsafebench", False), ("unsafebench", True), ("genai_image", False)} <= seen


def test_what_each_keep_wants():
    def line(rate, rejected):
        return {"unusable": False, "chosen": "a", "rejected": rejected, "pass_rate": rate}

    cases = {(0.5, "b"): ("right", "hard", "pairs"), (1.0, None): ("right",), (0.5, None): ("right", "hard")}
    for (rate, rejected), keeps in cases.items():
        assert tuple(keep for keep in ("right", "hard", "pairs") if wanted(line(rate, rejected), keep)) == keeps
    assert not wanted(line(0.0, "b") | {"chosen": None}, "hard") and not wanted({"unusable": True}, "right")


def lines(task: str, *counts: int) -> list[dict]:
    """counts[i] lines of label index i."""
    return [
        {"example_id": f"{task}/{index}/{number}", "label_index": index} for index, n in enumerate(counts) for number in range(n)
    ]


def counts_of(ids: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in ids:
        found[name.rpartition("/")[0]] = found.get(name.rpartition("/")[0], 0) + 1
    return found


def test_labels_are_kept_equally_often():
    given = {"unsafebench": lines("unsafebench", 3, 9), "genai_image": lines("genai_image", 5, 4, 7)}
    given |= {"mllm_score": lines("mllm_score", 1, 5, 2), "seetrue": lines("seetrue", 0, 4)}
    kept = {name: counts_of(ids) for name, ids in balanced(given, TASKS, "labels", 0).items()}
    assert kept["unsafebench"] == {"unsafebench/0": 3, "unsafebench/1": 3}
    assert kept["genai_image"] == {"genai_image/0": 4, "genai_image/1": 4, "genai_image/2": 4}
    assert kept["mllm_score"] == {"mllm_score/0": 1, "mllm_score/1": 5, "mllm_score/2": 2}  # grades stay as they are
    assert kept["seetrue"] == {"seetrue/1": 4}  # one label alone cannot be balanced
    every = balanced(given, TASKS, "none", 0)
    assert {name: len(ids) for name, ids in every.items()} == {name: len(found) for name, found in given.items()}


def test_tasks_are_kept_equally_often():
    given = {
        "unsafebench": lines("unsafebench", 30, 9),
        "mllm_score": lines("mllm_score", 4, 40),
        "seetrue": lines("seetrue", 20, 20),
    }
    kept = balanced(given, TASKS, "tasks", 0)
    assert {name: len(ids) for name, ids in kept.items()} == dict.fromkeys(given, 18)
    assert counts_of(kept["seetrue"]) == {"seetrue/0": 9, "seetrue/1": 9}
    assert balanced(given, TASKS, "tasks", 0) == kept != balanced(given, TASKS, "tasks", 1)
    assert balanced({"unsafebench": [], "seetrue": lines("seetrue", 2, 2)}, TASKS, "labels", 0)["unsafebench"] == set()
