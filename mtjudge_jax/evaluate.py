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
from mtjudge_jax.tasks import TASKS, Task
from mtjudge_jax.tasks.parse import Parsed, parse_lenient, parse_strict, ranking_text
from mtjudge_jax.tasks.reward import graded, ranking
from mtjudge_jax.tasks.truth import Truth, truth_of, write_truth
from mtjudge_jax.together import gather, my_rows
from mtjudge_jax.types import Params, PromptBatch

ANSWER_TAG = "<answer>"
MOST_WORDS = 11  # label words whose probabilities are computed; of a list there are none
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
    """Predictions of the examples, one dict each in their order (README, Files of a run).

    Each process judges its rows of every batch; all of them return all predictions. Batches that `kept` has are not judged
    again, and new ones are kept in it.
    """
    fmt, tasks = roomy(how.fmt, max(1, *(len(e.images) for e in examples))), how.fmt.tasks
    done = [] if kept is None else kept.take(-(-len(examples) // how.batch))
    old = [row for rows in done for row in rows]
    if old:
        progress(len(old))
    examples = examples[len(old) :]
    if not examples:
        return old
    mine, at, part = [], 0, my_rows(how.batch)
    key = stage_key(how.seed, step, "evaluate")
    for batch in eval_batches(examples, batch=how.batch, fmt=fmt, part=part):
        prompts = place_prompts(batch, how.stages.mesh)
        out = how.stages.sample(params, prompts, key, how.temperature, fmt.completion_tokens)
        texts = decode_texts(how.stages, out)
        truncated = local_rows(out.truncated, how.stages.mesh)
        here = examples[at : at + how.batch][part]
        errors = batch["error"].tolist()
        rows = [
            _unusable(e, errors[i], order, tasks) if errors[i] else _prediction(e, texts[i], truncated[i], how, order)
            for i, e in enumerate(here)
        ]
        if probabilities and 1 < len(tasks[examples[0].task].labels) <= MOST_WORDS:
            words = [() if row["unusable"] else words_of(tasks[e.task], e) for row, e in zip(rows, here, strict=True)]
            shape = (len(tasks[examples[0].task].labels), fmt.completion_tokens)
            _add_probabilities(rows, params, prompts, how.stages, words, shape)
        _add_numbers(rows, local_rows(out.mask, how.stages.mesh).sum(-1), tasks)
        mine.append(rows)
        if kept is not None:
            kept.add([row for rows in gather(mine.pop()) for row in rows])
        progress(len(examples[at : at + how.batch]))
        at += how.batch
    if kept is not None:
        return old + [row for rows in kept.take(at // how.batch) for row in rows]
    return [row for batch in zip(*gather(mine), strict=True) for rows in batch for row in rows]


def words_of(task: Task, example: JudgeExample) -> tuple[tuple[str, str], ...]:
    """(label, word that answers it) of each label that is a legal answer."""
    return tuple(zip(task.labels, truth_of(task, example).words, strict=False))


def _prediction(example: JudgeExample, texts: list[str], truncated: np.ndarray, how: Judging, order: str) -> dict:
    task = how.fmt.tasks[example.task]
    truth = truth_of(task, example)
    parsed = parse_lenient(texts[0], truth.words, ranked=truth.ranked)
    known = {"labels": np.array([truth.label]), "truths": [write_truth(truth)], "known": how.fmt.tasks}
    scores = score([texts], truncated[None], tasks=[task.name], alpha=how.alpha, **known)
    sampled = scores.accuracy[0, how.temperature > 0]
    strict = parse_strict(texts[0], truth.words, ranked=truth.ranked).verdict is not None
    return _line(example, order, how.fmt.tasks, truth) | {
        "verdict": verdict_text(parsed, task, truth),
        "correct": parsed.verdict == (truth.ranks if truth.ranked else truth.label),
        "text": texts[0],
        "reasoning": parsed.reasoning,
        "error": parsed.error,
        "parse": "invalid" if parsed.verdict is None else "strict" if strict else "lenient",
        "reward": float(scores.total[0, 0]),
        "closeness": _closeness(parsed, truth),
        "sampled_accuracy": float(sampled.mean()) if sampled.size else None,
        "sampled_verdicts": [
            verdict_text(parse_lenient(text, truth.words, ranked=truth.ranked), task, truth)
            for text, temperature in zip(texts, how.temperature, strict=True)
            if temperature > 0
        ],
    }


def verdict_text(parsed: Parsed, task: Task, truth: Truth) -> str | None:
    """A verdict in the words of results: a label of the task, of a list the order of its candidates as they were shown."""
    if parsed.verdict is None:
        return None
    return ranking_text(parsed.verdict, truth.words) if truth.ranked else task.labels[parsed.verdict]


def _closeness(parsed: Parsed, truth: Truth) -> float | None:
    """How near a grade or an order came, 0 to 1; None where there is nothing but right and wrong."""
    if truth.kind not in ("pointwise_score", "listwise"):
        return None
    if parsed.verdict is None:
        return 0.0
    return ranking(parsed.verdict, truth) if truth.ranked else graded(parsed.verdict, truth)


def _unusable(example: JudgeExample, error: str, order: str, tasks: Mapping[str, Task]) -> dict:
    """The line of a record that could not be shown to the model. `error` is "reason: detail"."""
    try:
        truth = truth_of(tasks[example.task], example)
    except ValueError:
        truth = None
    return _line(example, order, tasks, truth) | {"error": error, "unusable": True}


def _line(example: JudgeExample, order: str, tasks: Mapping[str, Task], truth: Truth | None) -> dict:
    """A prediction line before its answer. `custom` is the entry of a task of the user's own, so that the line tells what
    its labels are.
    """
    task = tasks[example.task]
    label = None if truth is None else ranking_text(truth.ranks, truth.words) if truth.ranked else task.labels[truth.label]
    told = {} if task.name in TASKS else {"custom": task.entry}
    return {
        "example_id": example.example_id,
        "task": example.task,
        "group_id": example.group_id,
        "split": example.split,
        "instruction": example.instruction,
        "template": "" if truth is None else truth.template,
        "label": label,
        "label_index": None if truth is None else truth.label,
        "verdict": None,
        "correct": False,
        "text": "",
        "reasoning": "",
        "error": "",
        "parse": "invalid",
        "reward": 0.0,
        "closeness": None,
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
    } | told


def raw_fields(example: JudgeExample) -> dict:
    """The record's native fields, which official metrics read, without long texts; none where they are no JSON object."""
    try:
        found = json.loads(example.raw or "{}")
    except ValueError:
        return {}
    found = found if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if not isinstance(value, str) or len(value) <= RAW_CHARS}


def _add_numbers(rows: list[dict], lengths: np.ndarray, tasks: Mapping[str, Task]) -> None:
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
        graded = tasks[row["task"]].kind == "pointwise_score"
        row["score_expected"] = sum(float(word) * p for word, p in shares.items()) if graded else list(shares.values())[1]


def _add_probabilities(
    rows: list[dict],
    params: Params,
    prompts: PromptBatch,
    stages: Stages,
    words: list[tuple[tuple[str, str], ...]],
    most: tuple[int, int],
) -> None:
    """Fills `probabilities`: one teacher-forced pass with the answer word replaced by each of its row's words in turn.

    Up to the word the completions of a row are the same, so the difference of their log-probabilities is the word's. words:
    (label, word) of each row, () where it has none. most: words and tokens of an answer, the same on all processes.
    """
    tokenizer, length = stages.tokenizer, most[1]
    shape = (prompts.tokens.shape[0] // jax.process_count(), *most)
    tokens, lengths = np.full(shape, tokenizer.pad, np.int32), np.zeros(shape[:2], np.int32)
    for i, row in enumerate(rows):
        before, tag, _ = row["text"].partition(ANSWER_TAG)
        answers = [tokenizer.encode_answer(f"{before}{tag}{word}</answer>") for _, word in words[i]]
        if not tag or not answers or max(map(len, answers)) > length:
            continue
        for j, ids in enumerate(answers):
            tokens[i, j, : len(ids)], lengths[i, j] = ids, len(ids)
    logp = local_rows(stages.logp(params, prompts, shard_batch(tokens, stages.mesh)), stages.mesh).astype(np.float64)
    total = (logp * (np.arange(shape[2]) < lengths[..., None])).sum(-1)
    for i, row in enumerate(rows):
        n = len(words[i])
        if n and lengths[i, :n].all():
            odds = np.exp(total[i, :n] - total[i, :n].max())
            row["probabilities"] = dict(zip((label for label, _ in words[i]), (odds / odds.sum()).tolist(), strict=True))


def alone(example: JudgeExample, index: int, task: Task) -> JudgeExample:
    """One picture of a pair as a question of the pointwise task of the same criterion."""
    return dataclasses.replace(
        example,
        example_id=f"{example.example_id}/{index}",
        task=task.single,
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
    """Predictions and score of one task. A pair is judged in both orders, and where a task asks for the same of one picture,
    each alone. A list is shown in an order by hash.

    Records that cannot be used have a prediction that says why and no part in the score.
    """
    settings = {"step": step, "progress": progress, "kept": kept}
    task = how.fmt.tasks[examples[0].task]
    if task.kind != "pairwise":
        examples = [in_order(e, task) for e in examples]
        predictions = judge(params, examples, how, probabilities=probabilities, **settings)
        return predictions, task_score(usable(predictions))
    predictions = judge(params, examples, how, probabilities=True, order="ab", **settings)
    predictions += judge(params, [swapped(e) for e in examples], how, probabilities=True, order="ba", **settings)
    if not task.single:
        return predictions, pairwise_score(usable(predictions))
    singles = [alone(e, i, task) for e in examples for i in (0, 1)]
    yes = [
        p["probabilities"][how.fmt.tasks[p["task"]].labels[1]] if p["probabilities"] else 0.5
        for p in judge(params, singles, how, probabilities=True, **settings)
    ]
    single_yes = {e.example_id: (yes[2 * i], yes[2 * i + 1]) for i, e in enumerate(examples)}
    return predictions, pairwise_score(usable(predictions), single_yes=single_yes)


def in_order(example: JudgeExample, task: Task) -> JudgeExample:
    """The example in the order shown; as it is where it cannot be ordered, which its row says."""
    try:
        return task.displayed(example)
    except ValueError:
        return example


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
    known = how.fmt.tasks
    mean = mean_score(tasks, known) if any(not known[name].ood for name in tasks) else None
    return predictions, {"step": step, "tasks": tasks, "mean": mean, "unusable": dict(bad.reasons)}


def count_rows(examples: dict[str, list[JudgeExample]], known: Mapping[str, Task] = TASKS) -> int:
    """Prompts that `evaluate` will judge: two orders a pair, and where its task asks so two pictures alone."""
    each = {name: 1 if known[name].kind != "pairwise" else 4 if known[name].single else 2 for name in examples}
    return sum(len(group) * each[name] for name, group in examples.items())


def write_evaluation(folder: str | os.PathLike, name: str, predictions: list[dict], result: dict) -> None:
    """`<name>.json` with the scores and `<name>.predictions.jsonl` with a line a prediction; process 0 writes."""
    if jax.process_index() > 0:
        return
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(p) + "\n" for p in predictions)
    for path, text in ((folder / f"{name}.predictions.jsonl", lines), (folder / f"{name}.json", json.dumps(result, indent=1))):
        write_whole(path, text.encode())
