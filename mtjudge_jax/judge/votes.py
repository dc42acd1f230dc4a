"""The answers to a question, one or several, in one order or both, and the verdict that they give together."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtjudge_jax.eval.batches import Judging
from mtjudge_jax.eval.predictions import verdict_text
from mtjudge_jax.eval.probabilities import Sampled, Shares, expected, label_probabilities, widths_of
from mtjudge_jax.policy.programs import decode_texts, place_prompts, stage_key
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.sharding import shard_batch
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.answer import Truth, parse_lenient, parse_strict, truth_of
from mtjudge_jax.types import Params


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


def answer_batch(
    params: Params, batch: dict[str, np.ndarray], here: Sequence[JudgeExample], task: Task, how: Judging, *, key: jax.Array
) -> list[list[Reply]]:
    """The answers to this process's rows of a batch, one per temperature; `here` are their examples. Every process calls."""
    programs, group = how.programs, len(how.temperature)
    prompts = place_prompts(batch, programs.mesh)
    out, context = programs.sample_and_keep(params, prompts, key, how.temperature, how.fmt.completion_tokens, group)
    texts = decode_texts(programs, out)[: len(here)]
    truths = [truth_of(task, example) for example in here]
    shares = label_probabilities(texts, here, task, Sampled(prompts, out, context), params=params, programs=programs)
    return [
        [_read(text, task, truth, share) for text, share in zip(row, of_row, strict=True)]
        for row, truth, of_row in zip(texts, truths, shares, strict=True)
    ]


def compile_batch(params: Params, batch: dict[str, np.ndarray], branches: int, how: Judging) -> None:
    """Runs everything that `answer_batch` may run on a batch of this shape and a task with so many continuations."""
    programs, length, group = how.programs, how.fmt.completion_tokens, len(how.temperature)
    prompts = place_prompts(batch, programs.mesh)
    out, context = programs.sample_and_keep(params, prompts, stage_key(how.seed, 0, "evaluate"), how.temperature, length, group)
    for width in widths_of(length) if branches else ():
        tokens = np.zeros((len(batch["uid"]), group, branches, width + 1), np.int32)
        placed = shard_batch((tokens, tokens[:, :, 0, 0]), programs.mesh)
        jax.block_until_ready(programs.branch_logp(params, prompts, context, *placed))
    jax.block_until_ready(out)


def _read(text: str, task: Task, truth: Truth, shares: Shares | None) -> Reply:
    form = {"labels": truth.words, "ranked": truth.ranked}
    lenient, strict = parse_lenient(text, **form), parse_strict(text, **form)
    if lenient.verdict is None:
        return Reply(None, lenient.reasoning, text, lenient.error, "invalid", shares)
    said = verdict_text(lenient, task, truth)
    return Reply(said, lenient.reasoning, text, "", "lenient" if strict.verdict is None else "strict", shares)


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
