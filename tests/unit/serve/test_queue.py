"""Calls that wait are judged together; none is lost, none is judged for nobody."""

import threading
import time

import pytest
from fake_judge import FakeJudge, png

from mtjudge_jax.judge.calls import judge_call, score_call
from mtjudge_jax.judge.engine import AskedAs
from mtjudge_jax.serve.queue import CallQueue, Full, NotAsked

PLAIN = AskedAs(None)


def scored(judge, *light, asked=PLAIN, instruction=""):
    return score_call(judge.task("technical"), [png(one) for one in light], instructions=instruction, asked=asked)


@pytest.fixture
def judge():
    return FakeJudge()


def queue_of(judge, **changes):
    return CallQueue(judge, **({"batch": 4, "most": 12, "wait": 0.0} | changes))


def occupied(judge, queue):
    """The judge is busy with one question until `judge.gate` is released."""
    judge.gate.acquire()
    first = queue.put(scored(judge, 0.5))
    while not judge.asked:
        time.sleep(0.001)
    return first


def test_what_waits_is_asked_together_and_each_gets_its_own(judge):
    queue = queue_of(judge)
    first = occupied(judge, queue)
    light = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    waiting = [queue.put(scored(judge, one)) for one in light]
    assert queue.depth == 6
    judge.gate.release()
    assert [future.result(5).tolist() for future in waiting] == [[pytest.approx(one, abs=0.003)] for one in light]
    assert first.result().tolist() == [pytest.approx(0.5, abs=0.003)]
    assert [count for count, _ in judge.asked] == [1, 6] and queue.depth == 0
    queue.close()


def test_only_what_is_asked_alike_goes_together(judge):
    queue = queue_of(judge)
    occupied(judge, queue)
    seeds = [0, 1, 0, 1, 2]
    waiting = [queue.put(scored(judge, 0.1 * seed, asked=AskedAs(None, seed=seed))) for seed in seeds]
    judge.gate.release()
    assert [future.result(5)[0] for future in waiting] == [pytest.approx(0.1 * seed, abs=0.003) for seed in seeds]
    assert [(count, asked.seed) for count, asked in judge.asked[1:]] == [(2, 0), (2, 1), (1, 2)]
    queue.close()


def test_a_go_is_bounded(judge):
    queue = queue_of(judge, batch=2, most=100)
    occupied(judge, queue)
    waiting = [queue.put(scored(judge, *[0.5] * 3)) for _ in range(6)]
    judge.gate.release()
    assert all(len(future.result(5)) == 3 for future in waiting)
    assert [count for count, _ in judge.asked[1:]] == [15, 3]  # eight batches of two hold five of the calls
    queue.close()


def test_a_full_queue_refuses_and_says_when(judge):
    queue = queue_of(judge, most=5)
    occupied(judge, queue)
    kept = [queue.put(scored(judge, 0.1, 0.2)), queue.put(scored(judge, 0.3, 0.4, 0.5))]
    with pytest.raises(Full, match=r"the queue is full: try again in \d+ s") as refused:
        queue.put(scored(judge, 0.6))
    assert refused.value.seconds >= 1
    judge.gate.release()
    assert [len(future.result(5)) for future in kept] == [2, 3]
    assert len(queue.put(scored(judge, 0.6)).result(5)) == 1
    queue.close()


def test_who_has_left_is_not_judged(judge):
    queue = queue_of(judge)
    occupied(judge, queue)
    waiting = [queue.put(scored(judge, one)) for one in (0.1, 0.2, 0.3)]
    assert waiting[1].cancel()
    judge.gate.release()
    assert waiting[0].result(5)[0] == pytest.approx(0.1, abs=0.003) and waiting[2].result(5)[0] == pytest.approx(0.3, abs=0.003)
    assert [count for count, _ in judge.asked] == [1, 2]
    queue.close()


def test_a_question_waits_for_others_to_fill_the_batch(judge):
    queue = queue_of(judge, wait=30.0)
    first = queue.put(scored(judge, 0.1))
    time.sleep(0.1)
    assert judge.asked == []
    others = [queue.put(scored(judge, 0.2)) for _ in range(3)]  # the fourth question fills the batch
    assert first.result(5)[0] == pytest.approx(0.1, abs=0.003) and len(judge.asked) == 1
    assert all(future.result(5) for future in others)
    queue.close()


def test_an_error_stays_with_its_call(judge):
    queue = queue_of(judge)
    occupied(judge, queue)
    bad = queue.put(score_call(judge.task("technical"), [png(0.1), b"no picture"], asked=PLAIN))
    good = queue.put(scored(judge, 0.2))
    judge.gate.release()
    with pytest.raises(NotAsked) as refused:
        bad.result(5)
    assert refused.value.number == 1 and good.result(5)[0] == pytest.approx(0.2, abs=0.003)
    crashed = queue.put(judge_call(judge.task("alignment"), png(0.5), instruction="crash", asked=PLAIN))
    with pytest.raises(RuntimeError, match="a bug"):
        crashed.result(5)
    assert len(queue.put(scored(judge, 0.2)).result(5)) == 1
    queue.close()


def test_closing_answers_what_waits_and_takes_no_more(judge):
    queue = queue_of(judge, wait=30.0)
    waiting = [queue.put(scored(judge, 0.1)) for _ in range(3)]
    closing = threading.Thread(target=queue.close)
    closing.start()
    assert [len(future.result(5)) for future in waiting] == [1, 1, 1]
    closing.join(5)
    assert not closing.is_alive()
    with pytest.raises(Full):
        queue.put(scored(judge, 0.1))
