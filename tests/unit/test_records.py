"""The record of a judging question: its bytes, its checks, the order of its candidates, and what a prompt may see."""

import dataclasses
import itertools
import pickle
import re

import msgpack
import pytest

from mtjudge_jax.records import (
    KINDS,
    TIE,
    BadRecord,
    Candidate,
    JudgeExample,
    Label,
    Question,
    candidates_of,
    check_example,
    holds_in_one_order,
    name_candidates,
    names_candidates,
    pack,
    reordered,
    swapped,
    unpack,
)

SECRET = "SECRET"


def record(shaped_as: str = "pointwise_binary", **changes) -> JudgeExample:
    """A good record of each kind: two images before the candidates of the list, which are texts and images mixed."""
    shape = {
        "pointwise_binary": {"images": (b"a",), "label": Label(binary=1, score=3.5)},
        "pointwise_score": {"images": (b"a",), "label": Label(score=4.0), "score_min": 1.0, "score_max": 5.0},
        "pairwise": {"images": (b"a", b"b"), "label": Label(winner=1)},
        "listwise": {
            "images": (b"x", b"y", b"a1", b"a2", b"c"),
            "context_images": 2,
            "candidates": (
                Candidate(2, "one", f"{SECRET}-a"),
                Candidate(0, "two", f"{SECRET}-b"),
                Candidate(1, "", f"{SECRET}-c"),
            ),
            "label": Label(ranks=(2, 1, 3)),
        },
    }[shaped_as]
    about = {"example_id": f"set/{SECRET}", "dataset": f"set-{SECRET}", "split": "train", "group_id": f"g-{SECRET}"}
    about |= {"task": "nice", "criterion": "nature", "kind": shaped_as, "instruction": "a dog", "rationale": f"{SECRET} because"}
    about |= {"license": SECRET, "raw": f'{{"mos": "{SECRET}"}}', "label_rule": f"{SECRET} > 3", "raters": (1.0, 2.5)}
    return JudgeExample(**about | {"revision": SECRET, "source_split": SECRET} | shape | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_from_its_bytes(kind):
    example = record(kind)
    check_example(example)
    again = unpack(pack(example))
    assert again == example and pack(again) == pack(example)
    assert type(again.label) is Label and all(type(candidate) is Candidate for candidate in again.candidates)
    assert hash(again.label) == hash(example.label)  # its ranks are a tuple, not a list


@pytest.mark.parametrize(
    ("label", "changes"),
    [(Label(winner=TIE, tie="both_bad"), {"kind": "pairwise", "images": (b"a", b"b"), "allow_tie": True}), (Label(binary=0), {})],
)
def test_labels_come_back(label, changes):
    example = record(**{"label": label} | changes)
    check_example(example)
    assert unpack(pack(example)).label == label


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_has_neither_label_nor_makers(kind):
    question = record(kind).question
    assert SECRET not in repr(question)
    assert "label" not in Question._fields and "rationale" not in Question._fields and "raw" not in Question._fields
    assert (question.task, question.criterion, question.instruction, question.kind) == ("nice", "nature", "a dog", kind)
    assert [candidate.text for candidate in question.candidates] == (["one", "two", ""] if kind == "listwise" else [])


def test_equal_questions_whatever_the_label():
    pair = record("pairwise")
    assert pair.question == dataclasses.replace(pair, label=Label(winner=0), rationale="other", raw="").question


def test_the_hash_of_an_id_is_the_start_of_its_sha256():
    assert pack(record()) == pack(record()) and record().uid == 0x87F817AF


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lambda data: data[:-3], "unreadable_record"), (lambda data: b"", "unreadable_record"),
     (lambda data: msgpack.packb([1, 2]), "unreadable_record"),
     (lambda data: data.replace(b"\xc4\x01a", b"\xc4\x01b"), "image_hash"),
     (lambda data: msgpack.packb(msgpack.unpackb(data) | {"schema_version": 1}), "schema_version"),
     (lambda data: msgpack.packb({k: v for k, v in msgpack.unpackb(data).items() if k != "task"}), "unreadable_record"),
     (lambda data: msgpack.packb(msgpack.unpackb(data) | {"more": 1}), "unreadable_record")],
)  # fmt: skip
def test_damaged_bytes_say_what_is_wrong(damage, reason):
    with pytest.raises(BadRecord) as error:
        unpack(damage(pack(record())))
    assert error.value.reason == reason


def test_a_bad_record_comes_through_another_process():
    bad = pickle.loads(pickle.dumps(BadRecord("reason", "detail: more", "id")))
    assert (str(bad), bad.reason, bad.example_id) == ("reason: detail: more", "reason", "id")


# order


def test_a_list_in_another_order_takes_images_names_and_ranks_along():
    moved = reordered(record("listwise"), (2, 0, 1))
    assert moved.images == (b"x", b"y", b"c", b"a1", b"a2")
    assert [candidate.name[-1] for candidate in moved.candidates] == ["c", "a", "b"]
    assert moved.label.ranks == (3, 2, 1) and moved.example_id == record().example_id
    check_example(moved)


@pytest.mark.parametrize("kind", ["pairwise", "listwise"])
def test_an_order_and_its_inverse_change_nothing(kind):
    example = record(kind)
    for order in itertools.permutations(range(len(candidates_of(example)))):
        inverse = [order.index(i) for i in range(len(order))]
        assert reordered(reordered(example, order), inverse) == example


def test_names_of_candidates_in_a_text_follow_the_order():
    """Old {C} comes first, {A} second, {B} third."""
    texts = {"rationale": "{C} has the dog, {A} and {B} do not; {D}, {a} and {} are text", "instruction": "{B} was edited"}
    moved = reordered(record("listwise", **texts), (2, 0, 1))
    assert (
        moved.rationale == "{A} has the dog, {B} and {C} do not; {D}, {a} and {} are text"
        and moved.instruction == "{C} was edited"
    )
    assert name_candidates("{B} > {A}, not {C}", ("first", "second")) == "second > first, not {C}"
    assert names_candidates("{B}", 2) and not names_candidates("{C} {} {ab}", 2)


@pytest.mark.parametrize("winner", [TIE, 0, 1])
def test_swapping_moves_the_winner(winner):
    pair = record("pairwise", label=Label(winner=winner, tie="both_good" if winner == TIE else ""), allow_tie=True)
    other = swapped(pair)
    assert other.images == (b"b", b"a") and other.label == pair.label._replace(winner={TIE: TIE, 0: 1, 1: 0}[winner])
    assert swapped(other) == pair and other.candidates == ()


@pytest.mark.parametrize("order", [(0,), (0, 0), (0, 1, 2), (1, 2), ()])
def test_no_permutation_is_refused(order):
    with pytest.raises(ValueError, match="is no permutation of its 2 candidates"):
        reordered(record("pairwise"), order)


@pytest.mark.parametrize(
    "example", [record(), record("listwise"), record("pairwise", label=Label()), record("pairwise", label=Label(winner=2))]
)
def test_nothing_to_swap(example):
    with pytest.raises(ValueError, match="nothing to swap"):
        swapped(example)


# checks


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("pairwise", {"kind": "pairs"}, "kind 'pairs' is not one of pointwise_binary"),
        ("pairwise", {"terms": "free"}, "terms 'free' is not one of open, research, gated, eval_only"),
        ("pairwise", {"group_id": ""}, "must not be empty"),
        ("pairwise", {"example_id": ""}, "a record without example_id: "),
        ("pairwise", {"images": (b"a",)}, "pairwise takes 2 candidates, the record has 1"),
        ("pointwise_binary", {"images": (b"a", b"b")}, "pointwise_binary takes 1 candidate, the record has 2"),
        (
            "listwise",
            {"candidates": (Candidate(0, "a"),) * 27, "label": Label(ranks=(1,) * 27)},
            "listwise takes 2 to 26 candidates, the record has 27",
        ),
        ("listwise", {"context_images": 1}, "5 images, question and candidates need 4"),
        ("pointwise_binary", {"label": Label(binary=2)}, "label.binary is 2, must be 0 or 1"),
        ("pointwise_binary", {"label": Label(score=2.0)}, "label.binary is None"),
        ("pointwise_score", {"label": Label(score=5.5)}, "label.score is 5.5, must be between score_min 1.0 and score_max 5.0"),
        ("pointwise_score", {"label": Label(score=float("nan"))}, "label.score is nan"),
        ("pointwise_score", {"score_max": None}, "label.score is 4.0"),
        ("pairwise", {"label": Label(winner=TIE)}, "label.winner is -1, must be 0 or 1, or -1 with allow_tie"),
        ("pairwise", {"label": Label(binary=1)}, "label.winner is None"),
        ("listwise", {"label": Label(ranks=(1, 2))}, "label.ranks is (1, 2), must be 3 ranks from 1"),
        ("listwise", {"label": Label(ranks=(2, 2, 3))}, "label.ranks is (2, 2, 3)"),
    ],
)
def test_a_field_that_does_not_fit_the_kind(kind, changes, text):
    with pytest.raises(BadRecord) as error:
        check_example(record(kind, **changes))
    assert error.value.reason == "wrong_fields" and text in str(error.value)


# two answers

PAIR = {"chosen": "<think>{A} is sharp</think><answer>{A}</answer>", "rejected": "<think>hm</think><answer>{B}</answer>"}


def test_fields_that_came_later_cost_a_record_without_them_nothing():
    """Such a record has the bytes that it always had, so code that does not know them reads it; and older bytes are read."""
    assert {"chosen", "rejected", "pass_rate"}.isdisjoint(msgpack.unpackb(pack(record())))
    whole = record("pairwise", **PAIR, pass_rate=0.25)
    assert unpack(pack(whole)) == whole and unpack(pack(record())) == record()


def test_answers_follow_the_order_of_the_candidates():
    moved = swapped(record("pairwise", **PAIR))
    assert moved.chosen == "<think>{B} is sharp</think><answer>{B}</answer>" and moved.rejected.endswith("<answer>{A}</answer>")
    both = record("pairwise", rationale="", **PAIR)
    assert not holds_in_one_order(both, ("chosen", "rejected"))
    assert holds_in_one_order(dataclasses.replace(both, rejected="the first"), ("chosen", "rejected"))
    assert not holds_in_one_order(dataclasses.replace(both, rejected="the first"))  # which looks at the rationale
    assert not holds_in_one_order(record(chosen="a", rejected="b"), ("chosen", "rejected"))  # one candidate has no order


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"chosen": "a"}, "chosen without rejected: a pair of answers needs both, or neither"),
     ({"rejected": "a", "chosen": " "}, "rejected without chosen: a pair of answers needs both"),
     ({"chosen": "a ", "rejected": "a"}, "chosen and rejected are the same text"),
     ({"chosen": "<think>{A} is sharp</think><answer>A</answer>", "rejected": "x"}, "chosen names candidates by {A} but its"),
     ({"chosen": "x", "rejected": "<think>{A}, then {B}</think><answer>B > A</answer>"}, "rejected names candidates by {A}")],
)  # fmt: skip
def test_a_pair_of_answers_that_cannot_be_learned_is_refused(changes, said):
    with pytest.raises(BadRecord, match=re.escape(said)) as error:
        check_example(record("pairwise", **changes))
    assert error.value.reason == "wrong_fields"


def test_good_pairs_of_answers_pass():
    check_example(record("pairwise", **PAIR))
    check_example(
        record("pairwise", chosen="<think>{A}</think><answer>TIE</answer>", rejected="<think>x</think><answer>A</answer>")
    )
    check_example(record(chosen="<think>a</think><answer>yes</answer>", rejected="<think>a</think><answer>no</answer>"))
