"""Rewards of many answers at a time: what is paid, what fails, and what a step that is done again pays."""

import json
import threading
import time

import numpy as np
import pytest

from mtjudge_jax.errors import UserError
from mtjudge_jax.tasks import batch_reward
from mtjudge_jax.tasks.answer import Truth, write_truth
from mtjudge_jax.tasks.batch_reward import HowAsked, Paid, forget, pay
from mtjudge_jax.tasks.reward import Rule, score

HOW = HowAsked(answers=4, threads=8, timeout=5.0, retries=2, most_failed=0.5)
RULE = Rule(0.1, {"accuracy": 0.9, "format": 0.1, "m:f": 2.0}, batch=("m:f",))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(batch_reward.time, "sleep", lambda seconds: None)


def truths(count: int) -> list[str]:
    return [write_truth(Truth("pointwise_binary", ("no", "yes"), q % 2, facts={"example_id": f"e{q}"})) for q in range(count)]


def said(q: int, g: int) -> str:
    return f"<think>{q} {g}</think><answer>{('no', 'yes')[g % 2]}</answer>"


def paid_by(function, tmp_path, *, rows=3, group=4, how=HOW, written=None, texts=None, step=1):
    texts = texts or [[said(q, g) for g in range(group)] for q in range(rows)]
    written = truths(rows) if written is None else written
    cut = np.zeros((rows, group), bool)
    labels = np.arange(rows, dtype=np.int32) % 2
    plain = score(texts, cut, tasks=["technical"] * rows, labels=labels, alpha=RULE, truths=written)
    given = {"functions": {"m:f": function}, "weights": RULE.weights, "how": how, "paid": Paid(tmp_path, step, 0)}
    found, failed = pay(plain, texts, truths=written, images=lambda q: [np.full((2, 2, 3), q, np.uint8)], **given)
    return plain, found, failed


def by_place(facts, texts, parsed, images):
    """The row's number in hundredths from its picture, plus the answer's in thousandths."""
    for fact, text, image in zip(facts, texts, images, strict=True):
        assert fact["example_id"] == f"e{image[0][0, 0, 0]}" and text.startswith(f"<think>{image[0][0, 0, 0]} ")
    return [image[0].mean() / 100 + int(answer.reasoning.split()[1]) / 1000 for answer, image in zip(parsed, images, strict=True)]


def test_each_answer_gets_its_own_by_weight(tmp_path):
    plain, found, failed = paid_by(by_place, tmp_path)
    want = np.array([[q / 100 + g / 1000 for g in range(4)] for q in range(3)], np.float32)
    assert failed == 0 and np.allclose(found.parts["m:f"], want, atol=1e-7)
    assert np.allclose(found.total, plain.total + 2 * want, atol=1e-6) and (plain.parts["m:f"] == 0).all()
    assert np.array_equal(found.accuracy, plain.accuracy)


def test_calls_are_small_and_side_by_side(tmp_path):
    sizes, at_once, most, lock = [], 0, 0, threading.Lock()
    together = threading.Barrier(8)

    def slow(facts, texts, parsed, images):
        nonlocal at_once, most
        with lock:
            sizes.append(len(texts))
            at_once += 1
            most = max(most, at_once)
        together.wait(5)
        with lock:
            at_once -= 1
        return [0.0] * len(texts)

    paid_by(slow, tmp_path, rows=8, group=4)
    assert sizes == [4] * 8 and most == 8


def test_none_pays_nothing_and_equal_answers_are_asked_once(tmp_path):
    asked = []

    def some(facts, texts, parsed, images):
        asked.extend(texts)
        return [None if "<answer>no" in text else 1.0 for text in texts]

    texts = [[said(0, 0), said(0, 1), said(0, 1), "no form"]]
    _, found, failed = paid_by(some, tmp_path, rows=1, texts=texts)
    assert found.parts["m:f"].tolist() == [[0.0, 1.0, 1.0, 1.0]] and failed == 0 and len(asked) == 3


def test_a_row_that_was_not_asked_is_not_paid(tmp_path):
    written = truths(2)
    written[0] = ""
    _, found, failed = paid_by(lambda f, t, p, i: [1.0] * len(t), tmp_path, rows=2, written=written)
    assert found.parts["m:f"].tolist() == [[0.0] * 4, [1.0] * 4] and failed == 0


def test_a_call_is_tried_again(tmp_path):
    calls = []

    def down(facts, texts, parsed, images):
        calls.append(texts)
        if sum(texts == one for one in calls) < 3:
            raise ConnectionError("down")
        return by_place(facts, texts, parsed, images)

    _, found, failed = paid_by(down, tmp_path)
    _, want, _ = paid_by(by_place, tmp_path / "other")
    assert failed == 0 and np.array_equal(found.total, want.total) and len(calls) == 9


def test_what_fails_to_the_last_try_is_left_out_for_its_group(tmp_path):
    def broken(facts, texts, parsed, images):
        if any("1 2" in text for text in texts):
            raise ValueError("no")
        return by_place(facts, texts, parsed, images)

    plain, found, failed = paid_by(broken, tmp_path, how=HOW._replace(answers=1))
    assert failed == 1 and found.parts["m:f"][1].tolist() == [0.0] * 4 and np.array_equal(found.total[1], plain.total[1])
    assert (found.parts["m:f"][2] > 0).all()


def test_a_call_that_hangs_has_failed(tmp_path):
    free = threading.Event()

    def hangs(facts, texts, parsed, images):
        if "0 0" in texts[0]:
            free.wait(20)
        return [1.0] * len(texts)

    began = time.monotonic()
    _, found, failed = paid_by(hangs, tmp_path, how=HOW._replace(timeout=0.2, retries=1))
    free.set()
    assert failed == 4 and found.parts["m:f"].tolist() == [[0.0] * 4, [1.0] * 4, [1.0] * 4] and time.monotonic() - began < 10


@pytest.mark.parametrize(
    "returned,error",
    [([1.0], "1 rewards for 4 answers: give one each, or None"), (3, "3: give a list of a number or None for each answer")],
)
def test_a_function_of_another_form_is_the_users_error(tmp_path, returned, error):
    with pytest.raises(UserError, match=f"reward.batch: m:f returned {error}"):
        paid_by(lambda *_: returned, tmp_path)


def test_a_step_that_is_done_again_pays_the_same(tmp_path):
    """Also what failed; only what is missing is asked, the end of a line that a kill cut off included."""
    calls = []

    def noted(facts, texts, parsed, images):
        calls.append(texts)
        if any("2 " in text for text in texts):
            raise ConnectionError
        return by_place(facts, texts, parsed, images)

    _, first, failed = paid_by(noted, tmp_path)
    assert failed == 4 and len(calls) == 5
    _, again, failed = paid_by(noted, tmp_path)
    assert failed == 4 and len(calls) == 5 and np.array_equal(again.total, first.total)
    (path,) = tmp_path.glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 12 and all(len(json.loads(line)) == 2 for line in lines)
    kept = [line for line in lines if "failed" not in line]
    path.write_text("".join(kept[:7]) + kept[7][:20])
    _, third, _ = paid_by(by_place, tmp_path)
    assert np.array_equal(third.total[:2], first.total[:2]) and (third.parts["m:f"][2] > 0).all()
    _, other, _ = paid_by(noted, tmp_path, step=2)
    assert len(calls) == 10 and np.array_equal(other.total, first.total)


def test_old_steps_are_forgotten(tmp_path):
    for step in (1, 2, 10):
        Paid(tmp_path, step, 0).add([("a", 1.0)])
    forget(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["000010.0.jsonl"] and Paid(tmp_path, 10, 1).known == {"a": 1.0}
    forget(tmp_path / "none", 2)
