"""The probability of each verdict: that of its word after an answer's reasoning, normalised over the labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.hosts.exchange import gather
from mtjudge_jax.policy.lanes import Context
from mtjudge_jax.policy.programs import Programs
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.sharding import local_rows, shard_batch
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.answer import truth_of
from mtjudge_jax.tasks.verdicts import Shares, expected
from mtjudge_jax.types import Params, PromptBatch, Rollout

_ANSWER_TAG = "<answer>"
_MOST_WORDS = 11  # a task with more labels gets no probabilities; neither does a list
# A continuation has one of a few shapes, so that tasks share compiled programs.
_BRANCHES = (2, 4, 8, _MOST_WORDS)
_WIDTHS = (4, 32)  # in tokens: a word and what closes it; what is longer takes the length of an answer


class Sampled(NamedTuple):
    """What the sampler returned for a batch."""

    prompts: PromptBatch
    out: Rollout
    context: Context


def add_probabilities(
    rows: list[dict], examples: Sequence[JudgeExample], task: Task, sampled: Sampled, *, params: Params, programs: Programs
) -> None:
    """Fills `probabilities` of the labels, `probability` of the verdict, and `score_expected`: the mean grade under the
    probabilities, or the second label's probability. Every process must call this, with the same task and length in tokens.
    """
    texts = [[] if row["unusable"] else [row["text"]] for row in rows]
    found = label_probabilities(texts, examples, task, sampled, params=params, programs=programs)
    for row, (shares, *_) in zip(rows, found, strict=True):
        if shares is not None:
            row["probabilities"], row["probability"] = shares, shares.get(row["verdict"])
            row["score_expected"] = expected(shares, task)


def branches_of(task: Task) -> int:
    """How many continuations are computed of an answer to the task, 0 if it gets no probabilities."""
    return branches_for(len(task.labels))


def branches_for(words: int) -> int:
    return next(size for size in _BRANCHES if words <= size) if 1 < words <= _MOST_WORDS else 0


def widths_of(length: int) -> tuple[int, ...]:
    """The lengths that continuations of an answer may have, smallest first."""
    return (*(width for width in _WIDTHS if width < length), length)


def label_probabilities(
    texts: Sequence[Sequence[str]],
    examples: Sequence[JudgeExample],
    task: Task,
    sampled: Sampled,
    *,
    params: Params,
    programs: Programs,
) -> list[list[Shares | None]]:
    """The shares after each answer whose cache was kept; `texts` are these answers, for each example the same number or none.
    None for an answer without a place for a verdict. Every process must call this, with the same task and number of answers.
    """
    branches = branches_of(task)
    if not branches:
        return [[None] * sampled.context.answers.k.shape[2] for _ in texts]
    words = [truth_of(task, e).words if of_row else () for of_row, e in zip(texts, examples, strict=True)]
    found = word_shares(texts, words, branches, sampled, params=params, programs=programs)
    named = lambda one: None if one is None else dict(zip(task.labels, one, strict=False))  # noqa: E731
    return [[named(one) for one in of_row] for of_row in found]


def word_shares(
    texts: Sequence[Sequence[str]],
    words: Sequence[Sequence[str]],
    branches: int,
    sampled: Sampled,
    *,
    params: Params,
    programs: Programs,
) -> list[list[list[float] | None]]:
    """The probability of each word as the verdict of each answer, normalised over the row's words. `words` are those of each
    row, at most `branches`, or none. Every process must call this, with the same `branches`.

    The answer word is replaced by each of the row's words. These answers are equal up to the word, so their log-probabilities
    differ by those of the tokens from there on, which continue the cache that the answer has left.
    """
    kept = sampled.context.answers.k.shape[2]
    found: list[list[list[float] | None]] = [[None] * kept for _ in texts]
    drawn, length = local_rows(sampled.out.tokens, programs.mesh)[:, :kept], sampled.out.tokens.shape[-1]
    last = local_rows(sampled.prompts.tokens, programs.mesh)[:, -1]
    answers = {
        (i, g): ids
        for i, of_row in enumerate(texts)
        for g, text in enumerate(of_row)
        if (ids := _answers(text, words[i], programs, length))
    }
    shared = {(i, g): min(_equal(ids, drawn[i, g]) for ids in every) for (i, g), every in answers.items()}
    longest = max((len(ids) - shared[at] for at, every in answers.items() for ids in every), default=1)
    longest = max(one for (one,) in gather([longest]))
    width = next(width for width in widths_of(length) if longest <= width)
    tokens = np.full((*drawn.shape[:2], branches, width + 1), programs.tokenizer.pad, np.int32)
    at, lengths = np.zeros(drawn.shape[:2], np.int32), np.zeros(tokens.shape[:3], np.int32)
    for (i, g), every in answers.items():
        start = at[i, g] = shared[i, g]
        tokens[i, g, :, 0] = drawn[i, g, start - 1] if start else last[i]
        for j, ids in enumerate(every):
            lengths[i, g, j] = len(ids) - start
            tokens[i, g, j, 1 : 1 + lengths[i, g, j]] = ids[start:]
    placed = shard_batch((tokens, at), programs.mesh)
    logp = local_rows(programs.branch_logp(params, sampled.prompts, sampled.context, *placed), programs.mesh)
    total = (logp.astype(np.float64) * (np.arange(width) < lengths[..., None])).sum(-1)
    for (i, g), every in answers.items():
        own = total[i, g, : len(every)]
        odds = np.exp(own - own.max())
        found[i][g] = (odds / odds.sum()).tolist()
    return found


def _answers(text: str, words: Sequence[str], programs: Programs, length: int) -> list[list[int]]:
    """The answer with each of the words in the place of its verdict, as ids; [] without a place, or if one is too long."""
    before, tag, _ = text.partition(_ANSWER_TAG)
    ids = [programs.tokenizer.encode_answer(f"{before}{tag}{word}</answer>") for word in words] if tag else []
    return ids if ids and max(map(len, ids)) <= length else []


def _equal(ids: Sequence[int], drawn: np.ndarray) -> int:
    """How many first tokens are equal."""
    different = np.asarray(ids, np.int32) != drawn[: len(ids)]
    return int(np.argmax(different)) if different.any() else len(ids)
