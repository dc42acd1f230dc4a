"""The probability of each verdict: that of its word after the greedy answer's reasoning, normalised over the labels."""

from collections.abc import Sequence

import jax
import numpy as np

from mtjudge_jax.policy.programs import Programs
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.sharding import local_rows, shard_batch
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.answer import truth_of
from mtjudge_jax.types import Params, PromptBatch

_ANSWER_TAG = "<answer>"
_MOST_WORDS = 11  # a task with more labels gets no probabilities; neither does a list


def add_probabilities(
    rows: list[dict],
    examples: Sequence[JudgeExample],
    task: Task,
    *,
    params: Params,
    prompts: PromptBatch,
    programs: Programs,
    length: int,
) -> None:
    """Fills `probabilities` of the labels, `probability` of the verdict, and `score_expected`: the mean grade under the
    probabilities, or the second label's probability. Every process must call this, with the same task and length in tokens.

    One teacher-forced pass, with the answer word replaced by each of the row's words. The completions of a row are equal up to
    the word, so their log-probabilities differ by that of the word.
    """
    if not 1 < len(task.labels) <= _MOST_WORDS:
        return
    tokenizer = programs.tokenizer
    shape = (prompts.tokens.shape[0] // jax.process_count(), len(task.labels), length)
    tokens, lengths = np.full(shape, tokenizer.pad, np.int32), np.zeros(shape[:2], np.int32)
    # (label, its answer word) for each label that is a legal answer
    words = [
        () if row["unusable"] else tuple(zip(task.labels, truth_of(task, example).words, strict=False))
        for row, example in zip(rows, examples, strict=True)
    ]
    for i, row in enumerate(rows):
        before, tag, _ = row["text"].partition(_ANSWER_TAG)
        answers = [tokenizer.encode_answer(f"{before}{tag}{word}</answer>") for _, word in words[i]]
        if not tag or not answers or max(map(len, answers)) > length:
            continue
        for j, ids in enumerate(answers):
            tokens[i, j, : len(ids)], lengths[i, j] = ids, len(ids)
    logp = local_rows(programs.logp(params, prompts, shard_batch(tokens, programs.mesh)), programs.mesh).astype(np.float64)
    total = (logp * (np.arange(length) < lengths[..., None])).sum(-1)
    for i, row in enumerate(rows):
        n = len(words[i])
        if not n or not lengths[i, :n].all():
            continue
        odds = np.exp(total[i, :n] - total[i, :n].max())
        shares = dict(zip((label for label, _ in words[i]), (odds / odds.sum()).tolist(), strict=True))
        row["probabilities"], row["probability"] = shares, shares.get(row["verdict"])
        graded = task.kind == "pointwise_score"
        row["score_expected"] = sum(float(word) * p for word, p in shares.items()) if graded else list(shares.values())[1]
