"""What a caller asks, as questions and what their answers say together: a verdict, scores, win rates."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.judge.engine import THREADS, Answered, AskedAs, Call
from mtjudge_jax.judge.pictures import Picture, pixels_of
from mtjudge_jax.judge.questions import OwnQuestion, as_pictures, listed, with_instructions
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.comparison import WinRates, compared_by, from_pairs, from_scores, opponents
from mtjudge_jax.tasks.verdicts import Verdict, verdict_of


def judge_call(
    task: Task, images: Picture | Sequence[Picture], *, instruction: str = "", texts: Sequence[str] = (), asked: AskedAs
) -> Call:
    """One question; `finish` gives its Verdict, or raises the UserError with which it cannot be asked."""

    def finish(answered: Sequence[Answered]) -> Verdict:
        return verdict_of(*_all_asked(answered)[0])

    return Call([OwnQuestion(as_pictures(images), instruction, texts, task.name)], asked, finish)


def score_call(task: Task, images: Iterable[Any], *, instructions: str | Sequence[str] = "", asked: AskedAs) -> Call:
    """A question for each element of `images`; `finish` gives float64 [N] as `Judge.score` does. Raises UserError for a task of
    pairs or lists.
    """
    if not task.kind.startswith("pointwise"):
        other = "compare" if task.kind == "pairwise" else "judge_all"
        raise UserError(f"task {task.name!r} asks {task.kind} questions, a score is of one picture: use {other}")
    questions = [one._replace(task=task.name) for one in with_instructions(images, instructions)]
    return Call(questions, asked, _scores)


def _scores(answered: Sequence[Answered]) -> np.ndarray:
    failed = warn_failed(answered)
    scores = [None if i in failed else verdict_of(*one).score_expected for i, one in enumerate(answered)]
    if unread := scores.count(None) - len(failed):
        warnings.warn(f"{unread} of {len(scores)} questions have no score: no answer to them could be read", stacklevel=3)
    return np.array([math.nan if score is None else score for score in scores])


def compare_call(
    task: Task,
    candidates: Iterable[Any],
    *,
    find: Callable[[str], Task],
    instruction: str = "",
    by: str | None = None,
    anchors: int | None = None,
    samples: int = 1,
    seed: int = 0,
) -> Call:
    """The questions about N pictures, as `Judge.compare` explains; `finish` gives WinRates. find: the task of a name. Raises
    UserError for anything that cannot be asked.
    """
    asked = compared_by(task, by, find)
    in_pairs, pictures = asked.kind == "pairwise", [*listed(candidates)]
    pairs = opponents(len(pictures), anchors if in_pairs else None)
    with ThreadPoolExecutor(THREADS) as pool:
        pixels = list(pool.map(_candidate, range(len(pictures)), pictures))
    shown = [[pixels[i], pixels[j]] for i, j in pairs] if in_pairs else [[one] for one in pixels]
    questions = [OwnQuestion(images, instruction, task=asked.name) for images in shown]

    def finish(answered: Sequence[Answered]) -> WinRates:
        found = _all_asked(answered)
        if in_pairs:
            result = from_pairs(len(pixels), pairs, [[answer.shares for answer in answers] for answers, _ in found], asked)
        else:
            result = from_scores([verdict_of(*one).probabilities for one in found])
        if result.unread:
            total = sum(len(answers) for answers, _ in found)
            warnings.warn(f"{result.unread} of {total} answers could not be read and count as undecided", stacklevel=3)
        return result._replace(win_rate=np.array(result.win_rate), matrix=np.array(result.matrix))

    return Call(questions, AskedAs(None, samples, both_orders=in_pairs, seed=seed), finish)


def _candidate(number: int, picture: Picture) -> np.ndarray:
    try:
        return pixels_of(picture)
    except UserError as error:
        raise UserError(f"candidate {number}: {error}") from error


def _all_asked(answered: Sequence[Answered]) -> list[tuple]:
    for one in answered:
        if isinstance(one, UserError):
            raise one
    return list(answered)


def warn_failed(answered: Sequence[Answered]) -> dict[int, str]:
    """What is wrong with the questions that cannot be asked, by number; warns where there are any."""
    failed = {i: f"question {i}: {one}" for i, one in enumerate(answered) if isinstance(one, UserError)}
    if failed:
        first = next(iter(failed.values()))
        warnings.warn(f"{len(failed)} of {len(answered)} questions were not judged: {first}", stacklevel=4)
    return failed
