"""A caller's own question as a record that a task can ask."""

from collections.abc import Sequence
from typing import Any

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import Candidate, JudgeExample, Label, lone_surrogate
from mtjudge_jax.tasks.base import Task


def one_text_each(texts: str | Sequence[str], count: int, what: str = "images") -> list[str]:
    """One text for all, or a text for each of `count`. Raises UserError for another number of texts."""
    each = [texts] * count if isinstance(texts, str) else [*texts]
    if len(each) != count:
        raise UserError(f"{count} {what}, but {len(each)} instructions: give one text, or one for each")
    return each


def example_about(images: Sequence[Any], instruction: str, texts: Sequence[str] = (), *, task: Task, number: int) -> JudgeExample:
    """One question as a record with a placeholder label; its images are passed on as they are. Raises UserError if it does not
    fit the task.
    """
    texts = [texts] if isinstance(texts, str) else texts
    for name, text in (("instruction", instruction), *((f"texts[{i}]", text) for i, text in enumerate(texts))):
        if not isinstance(text, str):
            raise UserError(f"{name} is {text!r:.60}, a {type(text).__name__}: give a text")
        if found := lone_surrogate(text):
            raise UserError(f"{name} is no Unicode text: {found}; decode it as UTF-8")
    count = len(texts) or len(images)
    low, high = (float(task.labels[0]), float(task.labels[-1])) if task.kind == "pointwise_score" else (None, None)
    label = {
        "pairwise": Label(winner=0),
        "pointwise_score": Label(score=low),
        "listwise": Label(ranks=tuple(range(1, count + 1))),
    }.get(task.kind, Label(binary=0))
    example = JudgeExample(
        f"question {number}", "user", "test", "", task.name, task.name, task.kind, instruction, tuple(images), label,
        context_images=len(images) if texts else 0, candidates=tuple(Candidate(0, text) for text in texts),
        allow_tie=task.kind == "pairwise" and len(task.labels) == 3, score_min=low, score_max=high,
    )  # fmt: skip
    task.question_text(example.question)
    return example
