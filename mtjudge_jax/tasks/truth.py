"""The right answer of an example in the words of its question; travels with its prompt to the rewards, as JSON."""

import json
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import TIE, JudgeExample, candidates_of
from mtjudge_jax.tasks.base import Task
from mtjudge_jax.tasks.parse import dense, ranking_text


class Truth(NamedTuple):
    """`words` are the legal answers and `label` is the index of the right one. For a list `label` is 0 and `ranks` is the right
    answer. `low` and `high` are the ends of a scale of grades, `score` is the grade, which may be between two whole ones. A
    user's own reward may read `facts`.
    """

    kind: str
    words: tuple[str, ...]
    label: int
    template: str = ""
    score: float | None = None
    low: float = 0.0
    high: float = 0.0
    ranks: tuple[int, ...] = ()
    facts: dict = {}

    @property
    def ranked(self) -> bool:
        return self.kind == "listwise"

    @property
    def tie(self) -> int | None:
        """The label index of a tie, if a tie is a legal answer."""
        return 2 if self.kind == "pairwise" and len(self.words) == 3 else None


def truth_of(task: Task, example: JudgeExample) -> Truth:
    """The truth of an example in the order shown. Raises UserError if label or question does not fit the task."""
    asked, label = task.ask(example.question, example.example_id), task.label_index(example.label)
    if label >= len(asked.words):
        raise UserError(f"task {task.name!r}: label.winner is {TIE}, but the question allows no tie")
    truth = Truth(task.kind, asked.words, label, asked.template, facts=_facts_of(example))
    if task.kind == "pointwise_score":
        return truth._replace(score=float(example.label.score), low=float(task.labels[0]), high=float(task.labels[-1]))
    if task.kind == "listwise":
        if len(example.label.ranks) != len(asked.words):
            raise UserError(f"task {task.name!r}: label.ranks is {example.label.ranks}, must be {len(asked.words)} ranks")
        return truth._replace(ranks=dense(example.label.ranks))
    return truth


def _facts_of(example: JudgeExample) -> dict:
    """All that is known about an example except its images, as plain values."""
    names = ("example_id", "dataset", "group_id", "task", "criterion", "kind", "instruction", "raw", "rationale")
    facts = {name: getattr(example, name) for name in names}
    label = {name: value for name, value in example.label._asdict().items() if value not in (None, "")}
    if example.label.ranks:
        label["ranks"] = list(example.label.ranks)  # as JSON has it
    return facts | {"candidates": [candidate.text for candidate in candidates_of(example)], "label": label}


def write_truth(truth: Truth) -> str:
    return json.dumps(truth)


def read_truth(text: str) -> Truth:
    kind, words, label, template, score, low, high, ranks, facts = json.loads(text)
    return Truth(kind, tuple(words), label, template, score, low, high, tuple(ranks), facts)


def answer_text(truth: Truth) -> str:
    """The right answer as written inside <answer>."""
    return ranking_text(truth.ranks, truth.words) if truth.ranked else truth.words[truth.label]
