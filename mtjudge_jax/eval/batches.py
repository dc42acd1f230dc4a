"""Judges examples batch by batch, on all processes.

Every prompt gets G answers in one pass of the sampler, the first at temperature 0.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtjudge_jax import hosts
from mtjudge_jax.config import Config
from mtjudge_jax.data.bad_rows import MAX_BAD_SHARE
from mtjudge_jax.data.pipeline import eval_batches
from mtjudge_jax.data.rows import OTHER_ORDER_BIT, RowFormat
from mtjudge_jax.eval.predictions import AnswerGroup, answered_line, unusable_line
from mtjudge_jax.eval.probabilities import Sampled, add_probabilities
from mtjudge_jax.eval.resume import Kept
from mtjudge_jax.hosts.exchange import gather, my_rows
from mtjudge_jax.policy.programs import Programs, decode_texts, place_prompts, stage_key
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.rl.logp import EVERY, Filter
from mtjudge_jax.rl.rooms import quarters_of
from mtjudge_jax.rl.streams import in_least_room
from mtjudge_jax.sharding import local_rows
from mtjudge_jax.tasks import Task
from mtjudge_jax.types import Params, PromptRoom


class Judging(NamedTuple):
    """How to judge: what is the same for all batches of an evaluation.

    Sizes are for a question about one image; a question about n images gets n times as much.
    """

    programs: Programs
    fmt: RowFormat  # prompt_tokens, patch_count, completion_tokens of one image
    batch: int  # prompts per batch
    temperature: np.ndarray  # float32 [G], 0 first
    alpha: float
    seed: int
    max_bad_share: float = MAX_BAD_SHARE  # of unusable records; a larger share is an error
    only: Filter = EVERY
    line: Callable[..., dict] = answered_line  # (example, task, order, AnswerGroup, alpha) -> what is kept of a prompt's answers
    kept: int = 0  # prompts per batch where the caches of the answers are kept for the labels' probabilities; 0 = batch


def how_sampled(cfg: Config, samples: int) -> dict[str, Any]:
    """Fields of Judging: of `samples` answers the first is greedy, the others are sampled by the fields of cfg.eval."""
    temperature = np.full(samples, cfg.eval.temperature or cfg.rollout.temperature, np.float32)
    temperature[0] = 0
    return {"temperature": temperature, "only": Filter(cfg.eval.top_k, cfg.eval.top_p)}


def _roomy(fmt: RowFormat, images: int) -> RowFormat:
    """The format for questions about `images` images."""
    return fmt._replace(
        prompt_tokens=fmt.prompt_tokens * images,
        patch_count=fmt.patch_count * images,
        completion_tokens=fmt.completion_tokens * images,
        target=None,
        display=False,
    )


def judge(
    params: Params,
    examples: Sequence[JudgeExample],
    how: Judging,
    *,
    step: int,
    probabilities: bool,
    order: str = "",
    progress: Callable[[int], None] = lambda rows: None,
    kept: Kept | None = None,
) -> list[dict]:
    """Predictions of the examples of one task, one dict each, in their order. predictions.py makes a prediction.

    Each process judges its rows of every batch; every process returns all predictions. Batches that are in `kept` are not judged
    again, and new ones are added to it. progress: called with the number of prompts of each batch. Raises Preempted, after a
    batch is kept, if any process was asked to stop.
    """
    size = how.kept if probabilities and how.kept else how.batch
    how = how._replace(fmt=_roomy(how.fmt, max(1, *(len(e.images) for e in examples))), batch=size)
    old = [] if kept is None else [row for rows in kept.take(-(-len(examples) // how.batch)) for row in rows]
    if old:
        progress(len(old))
    examples = examples[len(old) :]
    if not examples:
        return old
    task, part, mine = how.fmt.tasks[examples[0].task], my_rows(how.batch), []
    settings = {"key": stage_key(how.seed, step, "evaluate"), "order": order, "probabilities": probabilities}
    for number, batch in enumerate(eval_batches(examples, batch=how.batch, fmt=how.fmt, part=part)):
        if order == "ba":
            batch["uid"] ^= OTHER_ORDER_BIT
        asked = examples[number * how.batch : (number + 1) * how.batch]
        rows = judge_batch(params, batch, asked[part], task, how, **settings)
        if kept is None:
            mine.append(rows)
        else:
            kept.add([row for rows in gather(rows) for row in rows])
        progress(len(asked))
        hosts.stop_if_asked()
    if kept is None:
        return [row for batch in zip(*gather(mine), strict=True) for rows in batch for row in rows]
    return old + [row for rows in kept.take(-(-len(examples) // how.batch)) for row in rows]


def judge_batch(
    params: Params,
    batch: dict[str, np.ndarray],
    here: Sequence[JudgeExample],
    task: Task,
    how: Judging,
    *,
    key: jax.Array,
    order: str,
    probabilities: bool,
) -> list[dict]:
    """Predictions of this process's rows of a batch; `here` are their examples, fewer if the batch was filled up."""
    programs, length = how.programs, how.fmt.completion_tokens
    room = PromptRoom(how.fmt.prompt_tokens, how.fmt.patch_count)
    prompts, context = in_least_room(place_prompts(batch, programs.mesh), programs.mesh, quarters_of(room)), None
    if probabilities:
        out, context = programs.sample_and_keep(params, prompts, key, how.temperature, length, 1, how.only)
    else:
        out = programs.sample(params, prompts, key, how.temperature, length, how.only)
    truncated, mask = (local_rows(x, programs.mesh) for x in (out.truncated, out.mask))
    answers = zip(decode_texts(programs, out), truncated, mask.sum(-1), strict=True)
    rows = [
        unusable_line(example, task, order, error)
        if error
        else how.line(example, task, order, AnswerGroup(*answer, how.temperature > 0), how.alpha)
        for example, error, answer in zip(here, batch["error"].tolist(), answers, strict=False)
    ]
    if probabilities:
        add_probabilities(rows, here, task, Sampled(prompts, out, context), params=params, programs=programs)
    return rows
