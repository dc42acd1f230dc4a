"""One line of a predictions file: a question, the answers to it, and how they are read (docs/evaluation.md)."""

import json
from typing import NamedTuple

import numpy as np

from mtjudge_jax.records import JudgeExample
from mtjudge_jax.tasks import TASKS, Task
from mtjudge_jax.tasks.answer import Parsed, Truth, parse_lenient, parse_strict, ranking_text, truth_of
from mtjudge_jax.tasks.reward import graded, ranking, reward_of
from mtjudge_jax.tasks.verdicts import read_reply, verdict_text

_RAW_CHARS = 200  # a longer native field is free text, which no metric reads


class AnswerGroup(NamedTuple):
    """The G answers to one question, the greedy one first."""

    texts: list[str]
    truncated: np.ndarray  # bool [G]
    tokens: np.ndarray  # int [G]
    sampled: np.ndarray  # bool [G]


def answered_line(example: JudgeExample, task: Task, order: str, answers: AnswerGroup, alpha: float) -> dict:
    """The line of a record that was judged; probabilities are added later. alpha: weight of the format in `reward`."""
    truth = truth_of(task, example)
    form = {"labels": truth.words, "ranked": truth.ranked}
    right = truth.ranks if truth.ranked else truth.label
    strict, reply = parse_strict(answers.texts[0], **form), read_reply(answers.texts[0], task, truth)
    lenient = [parse_lenient(text, **form) for text in answers.texts]
    reward = reward_of(strict, label_index=right, truncated=bool(answers.truncated[0]), alpha=alpha).total
    drawn = [parsed for parsed, sampled in zip(lenient, answers.sampled, strict=True) if sampled]
    greedy = lenient[0]  # read as leniently as the sampled answers, so that their scores are comparable
    return _blank_line(example, task, order, truth) | {
        "verdict": reply.verdict,
        "correct": greedy.verdict == right,
        "text": answers.texts[0],
        "reasoning": reply.reasoning,
        "error": reply.error,
        "parse": reply.parse,
        "reward": reward,
        "closeness": _closeness(greedy, truth),
        "sampled_accuracy": sum(parsed.verdict == right for parsed in drawn) / len(drawn) if drawn else None,
        "sampled_verdicts": [verdict_text(parsed, task, truth) for parsed in drawn],
        "tokens": int(answers.tokens[0]),
        "sampled_tokens": int(answers.tokens[1:].sum()),
    }


def unusable_line(example: JudgeExample, task: Task, order: str, error: str) -> dict:
    """The line of a record that could not be shown to the model. `error` is "reason: detail"."""
    try:
        truth = truth_of(task, example)
    except ValueError:
        truth = None
    return _blank_line(example, task, order, truth) | {"error": error, "unusable": True}


def _blank_line(example: JudgeExample, task: Task, order: str, truth: Truth | None) -> dict:
    """A line without an answer. `custom` is the entry of a user's own task, so that the line says what its labels are."""
    label = None if truth is None else ranking_text(truth.ranks, truth.words) if truth.ranked else task.labels[truth.label]
    custom = {} if task.name in TASKS else {"custom": task.entry}
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
        "raw": _raw_fields(example),
        "order": order,
        "unusable": False,
    } | custom


def _closeness(parsed: Parsed, truth: Truth) -> float | None:
    """How close a grade or an order is to the truth, 0 to 1; None for a verdict that is only right or wrong."""
    if truth.kind not in ("pointwise_score", "listwise"):
        return None
    if parsed.verdict is None:
        return 0.0
    return ranking(parsed.verdict, truth) if truth.ranked else graded(parsed.verdict, truth)


def _raw_fields(example: JudgeExample) -> dict:
    """The record's native fields, which official metrics read, without long texts; {} if they are no JSON object."""
    try:
        found = json.loads(example.raw or "{}")
    except ValueError:
        return {}
    found = found if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if not isinstance(value, str) or len(value) <= _RAW_CHARS}
