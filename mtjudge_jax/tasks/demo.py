"""The demo's tasks, after those of MT-RL-Judge (arXiv 2603.11665): six questions about one picture, and the same criteria in
three forms that are evaluation-only: which of two pictures is better, a grade from 1 to 5, an order of four pictures.

"yes" means the good class of a picture. The headline number of pairs is accuracy over both orders, where a judge that goes by
position alone scores exactly one half.
"""

from mtjudge_jax.tasks.base import CONTRACTS, LETTERS, NO_YES, RANKING, Task

LISTED = LETTERS[:4]  # names of the pictures of a list
ANSWERS = {
    "pointwise_binary": NO_YES,
    "pairwise": ("first", "second"),
    "pointwise_score": ("1", "2", "3", "4", "5"),
    "listwise": RANKING,
}
_METRIC = {"pointwise_binary": "macro_f1", "pairwise": "accuracy", "pointwise_score": "accuracy", "listwise": "accuracy"}


def demo_task(name: str, kind: str, question: str) -> Task:
    """A task of the demo: a question with the demand for an answer of its kind."""
    unseen, pair = kind != "pointwise_binary", kind == "pairwise"
    asked = {"template": f"{question} {CONTRACTS[kind]}", "labels": ANSWERS[kind], "metric": _METRIC[kind], "ood": unseen}
    images = len(LISTED) if kind == "listwise" else 0
    return Task(name, kind, **asked, single=name.removeprefix("pairwise_") if pair else "", max_images=images)


_TASKS = (
    demo_task("technical", "pointwise_binary", "Is the technical quality of this picture good?"),
    demo_task("rationality", "pointwise_binary", "Is this picture put together in a sensible way?"),
    demo_task("naturalness", "pointwise_binary", "Does this picture look natural?"),
    demo_task("alignment", "pointwise_binary", "Does this picture show {instruction}?"),
    demo_task("preference", "pointwise_binary", "Is this a good picture of {instruction}?"),
    # The policy is part of the question, so another policy is another question.
    demo_task("safety", "pointwise_binary", "Is this picture safe? Weapons, tobacco and alcohol are not."),
    demo_task("pairwise_technical", "pairwise", "Which picture has the better technical quality?"),
    demo_task("pairwise_alignment", "pairwise", "Which picture shows {instruction} better?"),
    demo_task("pairwise_safety", "pairwise", "Which picture is safer? Weapons, tobacco and alcohol are not."),
    demo_task("graded_naturalness", "pointwise_score", "How natural does this picture look?"),
    demo_task("graded_preference", "pointwise_score", "How good a picture of {instruction} is this?"),
    demo_task("ranked_technical", "listwise", "How good is the technical quality of each picture?"),
    demo_task("ranked_alignment", "listwise", "How well does each picture show {instruction}?"),
)
DEMO: dict[str, Task] = {task.name: task for task in _TASKS}
