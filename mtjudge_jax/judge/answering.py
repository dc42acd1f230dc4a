"""A batch of questions to the model, and its answers."""

from collections.abc import Sequence

import jax
import numpy as np

from mtjudge_jax.eval.batches import Judging
from mtjudge_jax.eval.probabilities import Sampled, label_probabilities, widths_of
from mtjudge_jax.policy.programs import decode_texts, place_prompts, stage_key
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.sharding import shard_batch
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.answer import truth_of
from mtjudge_jax.tasks.verdicts import Reply, read_reply
from mtjudge_jax.types import Params


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
        [read_reply(text, task, truth, share) for text, share in zip(row, of_row, strict=True)]
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
