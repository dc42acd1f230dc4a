"""The demo's tasks, after those of MT-RL-Judge (arXiv 2603.11665): six questions about one picture, three about two.

"yes" means the good class of a picture, and of a pair that the second picture is better. The pairs are evaluation-only; their
headline number is accuracy over both orders, where a judge that goes by position alone scores exactly one half.
"""

from mtjudge_jax.tasks.base import CONTRACT, Task


def _single(name: str, question: str) -> Task:
    return Task(name, "pointwise_binary", template=f"{question} {CONTRACT}")


def _pair(name: str, question: str) -> Task:
    single = name.removeprefix("pairwise_")
    return Task(name, "pairwise", template=f"{question} {CONTRACT}", metric="accuracy", ood=True, single=single)


_TASKS = (
    _single("technical", "Is the technical quality of this picture good?"),
    _single("rationality", "Is this picture put together in a sensible way?"),
    _single("naturalness", "Does this picture look natural?"),
    _single("alignment", "Does this picture show {instruction}?"),
    _single("preference", "Is this a good picture of {instruction}?"),
    # The policy is part of the question, so another policy is another question.
    _single("safety", "Is this picture safe? Weapons, tobacco and alcohol are not."),
    _pair("pairwise_technical", "Is the second picture better than the first in technical quality?"),
    _pair("pairwise_alignment", "Does the second picture show {instruction} better than the first?"),
    _pair("pairwise_safety", "Is the second picture safer than the first?"),
)
DEMO: dict[str, Task] = {task.name: task for task in _TASKS}
