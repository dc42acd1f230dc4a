"""What several answers verdict_of, and what pairs and scores say of candidates."""

import numpy as np
import pytest

from mtjudge_jax.errors import UserError
from mtjudge_jax.tasks import TASKS, comparison
from mtjudge_jax.tasks.answer import Truth
from mtjudge_jax.tasks.comparison import opponents
from mtjudge_jax.tasks.custom import custom_task
from mtjudge_jax.tasks.verdicts import Reply, read_reply, turned, verdict_of

PAIR, SINGLE = TASKS["pairwise_technical"], TASKS["technical"]
FIRST, SECOND = PAIR.labels


def arrays(found):
    return found._replace(win_rate=np.array(found.win_rate), matrix=np.array(found.matrix))


def from_pairs(*given):
    return arrays(comparison.from_pairs(*given))


def from_scores(*given):
    return arrays(comparison.from_scores(*given))


def answer(verdict, share=None, text=""):
    shares = None if share is None else dict(zip(("no", "yes"), (1 - share, share), strict=True))
    return Reply(verdict, f"because {text}", text, "" if verdict else "no answer", "strict" if verdict else "invalid", shares)


def test_one_answer_is_the_verdict():
    found = verdict_of([answer("yes", 0.7, "a")], SINGLE)
    assert found == ("yes", "because a", {"no": pytest.approx(0.3), "yes": 0.7}, "a", "", 0.7, "strict", 0.7, None)
    found = verdict_of([answer(None, None, "a")], SINGLE)
    assert found == (None, "because a", None, "a", "no answer", None, "invalid", None, None)


def test_the_majority_decides_and_probabilities_are_means():
    answers = [answer("no", 0.4, "a"), answer("yes", 0.9, "b"), answer(None, None, "c"), answer("yes", 0.8, "d")]
    found = verdict_of(answers, SINGLE)
    assert (found.verdict, found.text, found.agreement) == ("yes", "b", 0.5)
    assert found.probabilities["yes"] == found.score_expected == pytest.approx(0.7)
    assert found.probability == pytest.approx(0.7)
    assert verdict_of([answer("no", 0.4, "a"), answer("yes", 0.9, "b")], SINGLE).verdict == "yes"  # equal votes: the likelier
    assert verdict_of([answer("no", 0.1, "a"), answer("yes", 0.8, "b")], SINGLE).verdict == "no"
    nothing = verdict_of([answer(None, None, "a"), answer(None, 0.9, "b")], SINGLE)
    assert (nothing.verdict, nothing.text, nothing.agreement, nothing.score_expected) == (None, "a", 0.0, 0.9)


def test_an_answer_about_the_other_order_is_turned_back():
    one = Reply(FIRST, "", "", "", "strict", {FIRST: 0.8, SECOND: 0.2})
    assert turned(one, PAIR).verdict == SECOND and turned(one, PAIR).shares == {FIRST: 0.2, SECOND: 0.8}
    assert turned(turned(one, PAIR), PAIR) == one
    tie = custom_task({"name": "t", "kind": "pairwise", "question": "Which?", "allow_tie": True}, ())
    drawn = Reply(tie.labels[2], "", "", "", "strict", dict(zip(tie.labels, (0.5, 0.2, 0.3), strict=True)))
    assert turned(drawn, tie).verdict == tie.labels[2] and list(turned(drawn, tie).shares.values()) == [0.2, 0.5, 0.3]
    assert turned(Reply(None, "", "", "e", "invalid", None), PAIR).verdict is None


def test_opponents():
    assert opponents(3, None) == [(0, 1), (0, 2), (1, 2)] == opponents(3, 1)
    ring = opponents(6, 1)
    assert ring == [(0, 1), (0, 5), (1, 2), (2, 3), (3, 4), (4, 5)]
    for count, anchors in ((6, 2), (9, 3), (20, 4)):
        met = np.bincount(np.array(opponents(count, anchors)).ravel())
        assert met.tolist() == [2 * anchors] * count
    for count, anchors, said in ((1, None, "1 candidate"), (0, None, "0 candidate"), (4, 0, "anchors = 0 must be at least 1")):
        with pytest.raises(UserError, match=said):
            opponents(count, anchors)


def test_win_rates_sum_to_half_and_turn_with_the_candidates():
    rng = np.random.default_rng(0)
    for count, anchors in ((2, None), (5, None), (9, 2)):
        pairs = opponents(count, anchors)
        said = {pair: rng.random((2, 3)) for pair in pairs}  # the probability of the first, in both orders, three answers each
        said |= {(j, i): 1 - said[i, j][::-1] for i, j in pairs}
        shares = lambda pair: [{FIRST: p, SECOND: 1 - p} for p in said[pair].ravel()]  # noqa: B023, E731
        found = from_pairs(count, pairs, [shares(pair) for pair in pairs], PAIR)
        seen = ~np.isnan(found.matrix)
        assert (found.matrix[seen] + found.matrix.T[seen] == 1).all() and seen.sum() == 2 * len(pairs) and found.unread == 0
        assert found.win_rate.sum() == pytest.approx(count / 2, abs=1e-12)
        back = count - 1 - np.arange(count)
        turned_pairs = [(int(back[i]), int(back[j])) for i, j in pairs]
        mirrored = from_pairs(count, [(j, i) for i, j in turned_pairs], [shares((j, i)) for i, j in pairs], PAIR)
        assert np.array_equal(mirrored.matrix[np.ix_(back, back)], found.matrix, equal_nan=True)
        i, j = pairs[0]
        assert found.matrix[i, j] == pytest.approx(said[i, j].mean(), abs=1e-9)


def test_what_could_not_be_read_is_undecided_and_counted():
    shares = [[{FIRST: 0.9, SECOND: 0.1}, None], [None, None], [{FIRST: 0.6, SECOND: 0.4}, {FIRST: 0.8, SECOND: 0.2}]]
    found = from_pairs(3, opponents(3, None), shares, PAIR)
    assert found.matrix[0, 1] == pytest.approx(0.9, abs=1e-9) and found.matrix[0, 2] == 0.5 and found.unread == 3
    assert found.matrix[1, 2] == pytest.approx(0.7, abs=1e-9)


def test_scores_are_compared_as_if_drawn():
    grades = [{"1": 0.2, "2": 0.3, "3": 0.5}, {"1": 0.6, "2": 0.4, "3": 0.0}, None]
    found = from_scores(grades)
    above = 0.3 * 0.6 + 0.5 * (0.6 + 0.4)  # of independent draws
    equal = 0.2 * 0.6 + 0.3 * 0.4
    assert found.matrix[0, 1] == pytest.approx(above + equal / 2, abs=1e-9) and found.matrix[0, 2] == 0.5 and found.unread == 1
    assert found.win_rate.sum() == pytest.approx(1.5, abs=1e-12)
    binary = from_scores([{"no": 0.1, "yes": 0.9}, {"no": 0.4, "yes": 0.6}])
    assert binary.matrix[0, 1] == pytest.approx(0.5 + (0.9 - 0.6) / 2, abs=1e-9)


def test_an_answer_that_cannot_be_read_has_no_score():
    """Its words after `<answer>` are none of the labels, whatever the model thinks of these."""
    truth, shares = Truth("pointwise_binary", SINGLE.labels, 0), {"no": 0.1, "yes": 0.9}
    good, bad = (read_reply(f"<think>sharp</think><answer>{word}</answer>", SINGLE, truth, shares) for word in ("yes", "yesyes"))
    assert good.shares == shares and verdict_of([good], SINGLE).score_expected == 0.9
    assert bad.parse == "invalid" and bad.shares is None and verdict_of([bad], SINGLE).score_expected is None
    assert verdict_of([bad, good], SINGLE).score_expected == 0.9
