"""How a judged question reads on the pages, from its prediction line and, where the data is there, its record."""

import dataclasses
import statistics
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import JudgeExample, swapped
from mtjudge_jax.tasks import Task, task_of
from mtjudge_jax.tasks.answer import ranking_text, truth_of
from mtjudge_jax.tasks.base import INSTRUCTION_SLOT, Wordings, without_contract


class Answer(NamedTuple):
    """One model's answer. `chance` is what it says about the verdict in a number, in words and shown, e.g. p(yes) 0.91."""

    verdict: str | None
    correct: bool
    reasoning: str
    text: str
    error: str
    reward: float | None
    sampled_right: str  # "6 of 7", "" without samples
    chance_name: str
    chance: str


def answer_of(p: dict) -> Answer:
    verdicts = p.get("sampled_verdicts") or []
    share, right = p.get("sampled_accuracy"), ""
    if share is not None:
        right = f"{round(share * len(verdicts))} of {len(verdicts)}" if verdicts else f"{share:.0%}"
    name, chance = _chance(p, verdicts)
    return Answer(
        p["verdict"], bool(p["correct"]), p["reasoning"], p["text"], p.get("error") or "", p.get("reward"), right, name, chance
    )


def _chance(p: dict, verdicts: list[str | None]) -> tuple[str, str]:
    """p(yes) of a binary task, of the second of a pair, the expected grade. From the probabilities of the answer words, or where
    these were not computed, as in validation, from the verdicts of the sampled answers.
    """
    task, given = _task_or_none(p), p.get("probabilities") or {}
    if task is None or task.kind == "listwise":
        return "", ""
    valid = [verdict for verdict in verdicts if verdict in task.labels]
    counted = f" ({len(valid)} samples)" if not given else ""
    if task.kind == "pointwise_score":
        grade = p.get("score_expected")
        if not given:
            grade = statistics.fmean(map(float, valid)) if valid else None
        return "expected grade", "–" if grade is None else f"{grade:.2f}{counted}"
    word = task.labels[1]
    share = given.get(word) if given else valid.count(word) / len(valid) if valid else None
    return f"p({word})", "–" if share is None else f"{share:.2f}{counted}"


def question_of(p: dict) -> str:
    """The question alone: its wording and its instruction, without what all questions share. The id where neither is known."""
    task, instruction = _task_or_none(p), (p.get("instruction") or "").strip()
    if task is None:
        return instruction or p["example_id"]
    if task.wordings is None:
        return without_contract(task.template.replace(INSTRUCTION_SLOT, instruction))
    question, name = task.wordings.forms[_number_of(p, task.wordings)].text, task.wordings.instruction
    return f"{question} {name}: {instruction}" if name and instruction else question


def asked_text(p: dict, example: JudgeExample) -> str:
    """The whole question as the model read it, "" if the record does not fit the task any more."""
    task = _task_or_none(p)
    if task is None:
        return ""
    if task.wordings is not None:
        form = task.wordings.forms[_number_of(p, task.wordings)]
        if form.flipped:
            form = form._replace(words=form.words or (*task.wordings.words[0][1::-1], *task.wordings.words[0][2:]), flipped=False)
        wordings = dataclasses.replace(task.wordings, forms=(form._replace(held_out=False),), templates="first")
        task = dataclasses.replace(task, wordings=wordings)
    try:
        return task.question_text(example.question, example.example_id)
    except ValueError:
        return ""


def as_shown(p: dict, example: JudgeExample, seeds: tuple[int, ...]) -> JudgeExample:
    """The record with its candidates in the order that the model saw: a pair by its `order`, a list by the label.

    seeds: those that the order of a list may come from.
    """
    if p.get("order") == "ba":
        try:
            return swapped(example)
        except ValueError:
            return example
    task = _task_or_none(p)
    if task is None or task.kind != "listwise" or task.wordings is None:
        return example
    for seed in seeds:
        seeded = dataclasses.replace(task, wordings=dataclasses.replace(task.wordings, seed=seed))
        try:
            shown = seeded.displayed(example)
            truth = truth_of(seeded, shown)
        except ValueError:
            return example
        if ranking_text(truth.ranks, truth.words) == p["label"]:
            return shown
    return example


def _task_or_none(p: dict) -> Task | None:
    """None for a task that this version of the package does not know or refuses."""
    try:
        return task_of(p)
    except UserError:
        return None


def _number_of(p: dict, wordings: Wordings) -> int:
    """The wording that was asked: 1 of "blur/1@0f3a..", 0 if the line does not say."""
    number = str(p.get("template") or "").partition("@")[0].rpartition("/")[2]
    return int(number) if number.isdecimal() and int(number) < len(wordings.forms) else 0
