"""The demo's tasks, after those of MT-RL-Judge (arXiv 2603.11665): six questions about one picture, and the same criteria in
three forms that are evaluation-only: which of two pictures is better, a grade from 1 to 5, an order of four pictures. Beside them
stand neutral questions about facts that nobody judges, whose pairs are trained, so that the form is not forgotten.

"yes" means the good class of a picture. A criterion has the same words in each form ("is safe"), so that what is learned about
them holds in all. The headline number of pairs is accuracy over both orders, where a judge that goes by position alone scores
exactly one half.
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


def _demo_task(name: str, kind: str, question: str, *, judged: bool = True) -> Task:
    """A question with the demand for an answer of its kind. judged: about one of the six criteria, which are trained in single
    pictures alone.
    """
    asked = {"template": f"{question} {CONTRACTS[kind]}", "labels": ANSWERS[kind], "metric": _METRIC[kind]}
    images = len(LISTED) if kind == "listwise" else 0
    single = name.removeprefix("pairwise_") if judged and kind == "pairwise" else ""
    return Task(name, kind, **asked, ood=judged and kind != "pointwise_binary", single=single, max_images=images)


_TASKS = (
    _demo_task("technical", "pointwise_binary", "Is it right that this picture has good technical quality?"),
    _demo_task("rationality", "pointwise_binary", "Is it right that this picture has a sensible order?"),
    _demo_task("naturalness", "pointwise_binary", "Is it right that this picture looks natural?"),
    _demo_task("alignment", "pointwise_binary", "Is it right that this picture shows {instruction}?"),
    _demo_task("preference", "pointwise_binary", "Is it right that this picture is a good one of {instruction}?"),
    # The policy is part of the question, so another policy is another question.
    _demo_task("safety", "pointwise_binary", "Is it right that this picture is safe? Weapons, tobacco and alcohol are not."),
    _demo_task("pairwise_technical", "pairwise", "Which picture has good technical quality?"),
    _demo_task("pairwise_alignment", "pairwise", "Which picture shows {instruction}?"),
    _demo_task("pairwise_safety", "pairwise", "Which picture is safe? Weapons, tobacco and alcohol are not."),
    _demo_task("graded_naturalness", "pointwise_score", "How far is it right that this picture looks natural?"),
    _demo_task("graded_preference", "pointwise_score", "How far is it right that this picture is a good one of {instruction}?"),
    _demo_task("ranked_technical", "listwise", "How far is it right that each picture has good technical quality?"),
    _demo_task("ranked_alignment", "listwise", "How far is it right that each picture shows {instruction}?"),
)
DEMO: dict[str, Task] = {task.name: task for task in _TASKS}
# A neutral question stands in the record, see demo/neutral.py. The base is taught all kinds; a run is given the pairs.
NEUTRAL_KINDS: dict[str, Task] = {kind: _demo_task(f"neutral_{kind}", kind, "{instruction}", judged=False) for kind in ANSWERS}
NEUTRAL: dict[str, Task] = {
    name: _demo_task(name, "pairwise", "{instruction}", judged=False) for name in ("pairwise_looks", "pairwise_things")
}
