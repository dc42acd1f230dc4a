"""The answers to a question, one or several, in one order or both, and the verdict that they give together."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

from mtjudge_jax.tasks.answer import Parsed, Truth, parse_lenient, parse_strict, ranking_text
from mtjudge_jax.tasks.base import Task

Shares = dict[str, float]  # the probability of each label, in the order of the task's labels; they sum to 1


class Verdict(NamedTuple):
    verdict: str | None  # one of the task's labels; None if no answer could be read, or the question not asked
    reasoning: str
    probabilities: Shares | None  # of each label, after this reasoning; the mean over several answers
    text: str  # the whole answer, the first that gave the verdict
    error: str  # why there is no verdict, else ""
    probability: float | None  # of the verdict
    parse: str  # "strict": exactly the required form; "lenient": a verdict in another form; "invalid": no verdict
    score_expected: float | None = None  # the mean grade; of a task without grades, the probability of its second label
    agreement: float | None = None  # the share of the answers that gave the verdict, None of a single answer


class Reply(NamedTuple):
    """One answer, and the probabilities of the labels after its reasoning."""

    verdict: str | None
    reasoning: str
    text: str
    error: str
    parse: str
    shares: Shares | None


def read_reply(text: str, task: Task, truth: Truth, shares: Shares | None = None) -> Reply:
    """How an answer is read: leniently, and whether it has the required form. One that cannot be read has no shares."""
    form = {"labels": truth.words, "ranked": truth.ranked}
    lenient, strict = parse_lenient(text, **form), parse_strict(text, **form)
    parse = "invalid" if lenient.verdict is None else "lenient" if strict.verdict is None else "strict"
    shares = None if lenient.verdict is None else shares
    return Reply(verdict_text(lenient, task, truth), lenient.reasoning, text, lenient.error, parse, shares)


def verdict_text(parsed: Parsed, task: Task, truth: Truth) -> str | None:
    """The verdict as files write it: a label of the task, or for a list the order of its candidates as they were shown."""
    if parsed.verdict is None:
        return None
    return ranking_text(parsed.verdict, truth.words) if truth.ranked else task.labels[parsed.verdict]


def expected(shares: Shares, task: Task) -> float:
    """The mean grade under the probabilities, or the second label's probability."""
    graded = task.kind == "pointwise_score"
    return sum(float(word) * p for word, p in shares.items()) if graded else list(shares.values())[1]


def turned(answer: Reply, task: Task) -> Reply:
    """The answer to a pair that was shown in the other order, as one about the pair itself."""
    first, second = task.labels[:2]
    other = {first: second, second: first}
    shares = answer.shares and {label: answer.shares[other.get(label, label)] for label in answer.shares}
    return answer._replace(verdict=other.get(answer.verdict, answer.verdict), shares=shares)


def verdict_of(answers: Sequence[Reply], task: Task) -> Verdict:
    """The verdict that most answers give; of several, the one that has the higher probability."""
    given = [answer.shares for answer in answers if answer.shares]
    shares = {label: sum(one[label] for one in given) / len(given) for label in given[0]} if given else None
    votes = collections.Counter(answer.verdict for answer in answers if answer.verdict is not None)
    # By votes, then by probability; a list has no probabilities, and the verdict that came first is kept.
    best = max(votes, key=lambda verdict: (votes[verdict], (shares or {}).get(verdict, 0.0)), default=None)
    chosen = next(answer for answer in answers if answer.verdict == best)
    probability = None if shares is None else shares.get(best)
    score = None if shares is None else expected(shares, task)
    agreement = votes[best] / len(answers) if len(answers) > 1 else None
    return Verdict(best, chosen.reasoning, shares, chosen.text, chosen.error, probability, chosen.parse, score, agreement)
