"""Held-out judging: the greedy answer, a few sampled ones, and the probability of each verdict.

Every prompt gets `samples` answers in one pass of the sampler, the first at temperature 0. A verdict's probability is that
of its word after the greedy answer's own reasoning, normalised over the label set.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtjudge_jax.data.pipeline import BadRowCounter, RowFormat, eval_batches
from mtjudge_jax.data.records import JudgeExample, Label, swapped
from mtjudge_jax.data.sources import MAX_BAD_SHARE
from mtjudge_jax.kept import Kept
from mtjudge_jax.metrics import mean_score, pairwise_score, task_score
from mtjudge_jax.paths import as_path, write_whole
from mtjudge_jax.score import score
from mtjudge_jax.sharding import local_rows, shard_batch
from mtjudge_jax.stages import Stages, decode_texts, place_prompts, stage_key
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.parse import parse_lenient
from mtjudge_jax.together import gather, my_rows
from mtjudge_jax.types import Params, PromptBatch

ANSWER_TAG = "<answer>"
RAW_CHARS = 200  # a longer native field is a text, which no metric reads
Official = Callable[[str, list[dict]], Mapping[str, float]]  # a task's predictions -> its data set's own numbers, if any


def no_official(task: str, predictions: list[dict]) -> Mapping[str, float]:
    return {}


class Judging(NamedTuple):
    """How to judge: what stays the same over the batches of an evaluation.

    Sizes are for a question about one image; one about n images gets n times the room.
    """

    stages: Stages
    fmt: RowFormat  # prompt_tokens, patch_count, completion_tokens of one image
    batch: int  # prompts a batch
    temperature: np.ndarray  # float32 [G], 0 first
    alpha: float
    seed: int
    max_bad_share: float = MAX_BAD_SHARE  # of records that cannot be used; more is an error


def roomy(fmt: RowFormat, images: int) -> RowFormat:
    """The format for questions about `images` images."""
    return fmt._replace(
        prompt_tokens=fmt.prompt_tokens * images,
        patch_count=fmt.patch_count * images,
        completion_tokens=fmt.completion_tokens * images,
        target=None,
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
    """Predictions of the examples, one dict each in their order (README, Files of a run).

    Each process judges its rows of every batch; all of them return all predictions. Batches that `kept` has are not judged
    again, and new ones are kept in it.
    """
    done = [] if kept is None else kept.take(-(-len(examples) // how.batch))
    old = [row for rows in done for row in rows]
    progress(len(old))
    examples = examples[len(old) :]
    if not examples:
        return old
    mine, at, part = [], 0, my_rows(how.batch)
    fmt = roomy(how.fmt, len(examples[0].images))
    key = stage_key(how.seed, step, "evaluate")
    for batch in eval_batches(examples, batch=how.batch, fmt=fmt, part=part):
        prompts = place_prompts(batch, how.stages.mesh)
        out = how.stages.sample(params, prompts, key, how.temperature, fmt.completion_tokens)
        texts = decode_texts(how.stages, out)
        truncated = local_rows(out.truncated, how.stages.mesh)
        here = examples[at : at + how.batch][part]
        errors = batch["error"].tolist()
        rows = [
            _unusable(e, errors[i], order) if errors[i] else _prediction(e, texts[i], truncated[i], how, order)
            for i, e in enumerate(here)
        ]
        if probabilities:
            _add_probabilities(rows, params, prompts, how.stages, TASKS[examples[0].task].labels, fmt.completion_tokens)
        _add_numbers(rows, local_rows(out.mask, how.stages.mesh).sum(-1))
        mine.append(rows)
        if kept is not None:
            kept.add([row for rows in gather(mine.pop()) for row in rows])
        progress(len(examples[at : at + how.batch]))
        at += how.batch
    if kept is not None:
        return old + [row for rows in kept.take(at // how.batch) for row in rows]
    return [row for batch in zip(*gather(mine), strict=True) for rows in batch for row in rows]


def _prediction(example: JudgeExample, texts: list[str], truncated: np.ndarray, how: Judging, order: str) -> dict:
    task = TASKS[example.task]
    label = task.label_index(example.label)
    parsed = parse_lenient(texts[0], task.labels)
    scores = score([texts], truncated[None], tasks=[task.name], labels=np.array([label]), alpha=how.alpha)
    sampled = scores.accuracy[0, how.temperature > 0]
    return _line(example, order, label) | {
        "verdict": word_of(parsed.verdict, task.labels),
        "correct": parsed.verdict == label,
        "text": texts[0],
        "reasoning": parsed.reasoning,
        "error": parsed.error,
        "reward": float(scores.total[0, 0]),
        "sampled_accuracy": float(sampled.mean()) if sampled.size else None,
        "sampled_verdicts": [
            word_of(parse_lenient(text, task.labels).verdict, task.labels)
            for text, temperature in zip(texts, how.temperature, strict=True)
            if temperature > 0
        ],
    }


def word_of(verdict: int | None, labels: tuple[str, ...]) -> str | None:
    return None if verdict is None else labels[verdict]


def _unusable(example: JudgeExample, error: str, order: str) -> dict:
    """The line of a record that could not be shown to the model. `error` is "reason: detail"."""
    try:
        label = TASKS[example.task].label_index(example.label)
    except ValueError:
        label = None
    return _line(example, order, label) | {"error": error, "unusable": True}


def _line(example: JudgeExample, order: str, label: int | None) -> dict:
    """A prediction line before its answer."""
    return {
        "example_id": example.example_id,
        "task": example.task,
        "group_id": example.group_id,
        "split": example.split,
        "instruction": example.instruction,
        "label": None if label is None else TASKS[example.task].labels[label],
        "label_index": label,
        "verdict": None,
        "correct": False,
        "text": "",
        "reasoning": "",
        "error": "",
        "reward": 0.0,
        "sampled_accuracy": None,
        "sampled_verdicts": [],
        "probabilities": None,
        "probability": None,
        "score_expected": None,
        "score_true": example.label.score,
        "tokens": 0,
        "sampled_tokens": 0,
        "raw": raw_fields(example),
        "order": order,
        "unusable": False,
    }


def raw_fields(example: JudgeExample) -> dict:
    """The record's native fields, which official metrics read, without long texts; none where they are no JSON object."""
    try:
        found = json.loads(example.raw or "{}")
    except ValueError:
        return {}
    found = found if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if not isinstance(value, str) or len(value) <= RAW_CHARS}


def _add_numbers(rows: list[dict], lengths: np.ndarray) -> None:
    """Fills `tokens` of the greedy answer and of the sampled ones together, `probability` of its verdict, and
    `score_expected`: the mean grade by the probabilities, or the second label's probability. lengths: int `[Q, G]`.
    """
    for row, (length, *others) in zip(rows, lengths.tolist(), strict=False):
        if row["unusable"]:
            continue
        row["tokens"], row["sampled_tokens"], shares = length, sum(others), row["probabilities"]
        if not shares:
            continue
        row["probability"] = shares.get(row["verdict"])
        graded = TASKS[row["task"]].kind == "pointwise_score"
        row["score_expected"] = sum(float(word) * p for word, p in shares.items()) if graded else list(shares.values())[1]


def _add_probabilities(
    rows: list[dict], params: Params, prompts: PromptBatch, stages: Stages, labels: tuple[str, ...], length: int
) -> None:
    """Fills `probabilities`: one teacher-forced pass with the answer word replaced by each label in turn.

    Up to the word the completions of a row are the same, so the difference of their log-probabilities is the word's.
    """
    tokenizer = stages.tokenizer
    shape = (prompts.tokens.shape[0] // jax.process_count(), len(labels), length)
    tokens, lengths = np.full(shape, tokenizer.pad, np.int32), np.zeros(shape[:2], np.int32)
    for i, row in enumerate(rows):
        before, tag, _ = row["text"].partition(ANSWER_TAG)
        answers = [tokenizer.encode_answer(f"{before}{tag}{label}</answer>") for label in labels]
        if not tag or max(map(len, answers)) > length:
            continue
        for j, ids in enumerate(answers):
            tokens[i, j, : len(ids)], lengths[i, j] = ids, len(ids)
    logp = local_rows(stages.logp(params, prompts, shard_batch(tokens, stages.mesh)), stages.mesh).astype(np.float64)
    total = (logp * (np.arange(shape[2]) < lengths[..., None])).sum(-1)
    odds = np.exp(total - total.max(-1, keepdims=True))
    share = odds / odds.sum(-1, keepdims=True)
    for i, row in enumerate(rows):
        if lengths[i].all():
            row["probabilities"] = dict(zip(labels, share[i].tolist(), strict=True))


def alone(example: JudgeExample, index: int) -> JudgeExample:
    """One picture of a pair as a question of the pointwise task of the same criterion."""
    return dataclasses.replace(
        example,
        example_id=f"{example.example_id}/{index}",
        task=TASKS[example.task].single,
        kind="pointwise_binary",
        images=(example.images[index],),
        label=Label(binary=int(example.label.winner == index)),
    )


def judge_task(
    params: Params,
    examples: Sequence[JudgeExample],
    how: Judging,
    *,
    step: int,
    probabilities: bool,
    progress=lambda rows: None,
    kept: Kept | None = None,
) -> tuple[list[dict], dict]:
    """Predictions and score of one task. A pair is judged in both orders, and each of its pictures alone.

    Records that cannot be used have a prediction that says why and no part in the score.
    """
    settings = {"step": step, "progress": progress, "kept": kept}
    if TASKS[examples[0].task].kind != "pairwise":
        predictions = judge(params, examples, how, probabilities=probabilities, **settings)
        return predictions, task_score(usable(predictions))
    predictions = judge(params, examples, how, probabilities=True, order="ab", **settings)
    predictions += judge(params, [swapped(e) for e in examples], how, probabilities=True, order="ba", **settings)
    singles = [alone(e, i) for e in examples for i in (0, 1)]
    yes = [
        p["probabilities"][TASKS[p["task"]].labels[1]] if p["probabilities"] else 0.5
        for p in judge(params, singles, how, probabilities=True, **settings)
    ]
    single_yes = {e.example_id: (yes[2 * i], yes[2 * i + 1]) for i, e in enumerate(examples)}
    return predictions, pairwise_score(usable(predictions), single_yes=single_yes)


def usable(predictions: list[dict]) -> list[dict]:
    """The predictions that can be scored. Raises ValueError where there is none."""
    kept = [p for p in predictions if not p["unusable"]]
    if not kept:
        name, example_id, error = (predictions[0][key] for key in ("task", "example_id", "error"))
        raise ValueError(f"no record of {name} can be used, {example_id}: {error}: prepare the data again")
    return kept


def evaluate(
    params: Params,
    examples: dict[str, list[JudgeExample]],
    how: Judging,
    *,
    step: int,
    probabilities: bool = False,
    progress=lambda rows: None,
    kept: Kept | None = None,
    official: Official = no_official,
) -> tuple[list[dict], dict]:
    """Judges every task's examples; returns all predictions and their scores, with the data set's `official` ones beside.

    Scores: {"step": .., "tasks": {name: score}, "mean": score or None, "unusable": {reason: count}}. Raises TooManyBadRecords
    where more than max_bad_share of at least 100 records cannot be used.
    """
    predictions, tasks = [], {}
    for name, group in examples.items():
        settings = {"step": step, "probabilities": probabilities, "progress": progress, "kept": kept}
        rows, tasks[name] = judge_task(params, group, how, **settings)
        if numbers := official(name, usable(rows)):
            tasks[name]["official"] = numbers
        predictions += rows
    bad = BadRowCounter(how.max_bad_share)
    for p in predictions:
        bad.add_one(p["example_id"], p["error"] if p["unusable"] else "")
    bad.check()
    in_distribution = any(not TASKS[name].ood for name in tasks)
    mean = mean_score(tasks) if in_distribution else None
    return predictions, {"step": step, "tasks": tasks, "mean": mean, "unusable": dict(bad.reasons)}


def count_rows(examples: dict[str, list[JudgeExample]]) -> int:
    """Prompts that `evaluate` will judge: four a pair, two orders and two pictures alone."""
    return sum(len(group) * (4 if TASKS[name].kind == "pairwise" else 1) for name, group in examples.items())


def write_evaluation(folder: str | os.PathLike, name: str, predictions: list[dict], result: dict) -> None:
    """`<name>.json` with the scores and `<name>.predictions.jsonl` with a line a prediction; process 0 writes."""
    if jax.process_index() > 0:
        return
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(p) + "\n" for p in predictions)
    for path, text in ((folder / f"{name}.predictions.jsonl", lines), (folder / f"{name}.json", json.dumps(result, indent=1))):
        write_whole(path, text.encode())
