"""Which of a prompt's answers are kept, and which prompts."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mtjudge_jax.data.rows import completion_text
from mtjudge_jax.eval.predictions import AnswerGroup
from mtjudge_jax.records import JudgeExample, candidates_of, names_candidates
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.answer import Parsed, parse_strict, plain_words, ranking_text, truth_of

_TIED = 2  # the label index of a tie


class _Read(NamedTuple):
    """An answer that ended, as the strict parser reads it."""

    text: str
    parsed: Parsed
    tokens: int


def drawn_line(
    example: JudgeExample, task: Task, order: str, answers: AnswerGroup, alpha: float, *, choose: str, most_tokens: int
) -> dict:
    """What is kept of the answers to a prompt: the share of right ones, the right one chosen, and a wrong one beside it.

    Right is an answer in the whole form whose verdict is the label's. An answer that was cut, or is longer than `most_tokens`, is
    never kept: training could not show it. Texts are in the words of records (`tasks.answer.as_asked`). `order` and `alpha` are
    those of an evaluation and mean nothing here.
    """
    truth = truth_of(task, example)
    right = truth.ranks if truth.ranked else truth.label
    parsed = [parse_strict(text, truth.words, ranked=truth.ranked) for text in answers.texts]
    ended = [
        _Read(text, read, int(tokens))
        for text, read, cut, tokens in zip(answers.texts, parsed, answers.truncated, answers.tokens, strict=True)
        if not cut and tokens <= most_tokens and not names_candidates(text, len(candidates_of(example)))
    ]
    good = [one for one in ended if one.parsed.verdict == right]
    chosen = _chosen(good, choose) if good else None
    rejected = _rejected([one for one in ended if one.parsed.verdict != right and one.text.strip()], chosen)
    correct = sum(read.verdict == right and not cut for read, cut in zip(parsed, answers.truncated, strict=True))
    return {
        "example_id": example.example_id,
        "task": example.task,
        "label": ranking_text(truth.ranks, truth.words) if truth.ranked else task.labels[truth.label],
        "label_index": truth.label,
        "pass_rate": correct / len(parsed),
        "readable": sum(read.verdict is not None for read in parsed) / len(parsed),
        "reasoning": None if chosen is None else chosen.parsed.reasoning,
        "chosen": None if chosen is None else _stored(chosen, task, example),
        "rejected": None if rejected is None else _stored(rejected, task, example),
        "tokens": int(answers.tokens.sum()),
        "sampled_tokens": 0,
        "error": "",
        "unusable": False,
    }


def _chosen(good: Sequence[_Read], how: str) -> _Read:
    """The shortest, or the one whose words the others share most: the mean of |A and B| / |A or B| over the others' words."""
    if how == "shortest":
        return min(good, key=lambda one: one.tokens)
    words = [set(one.parsed.reasoning.lower().split()) for one in good]
    like = [sum(len(mine & other) / len(mine | other) for other in words) for mine in words]
    return max(zip(like, good, strict=True), key=lambda pair: (pair[0], -pair[1].tokens))[1]


def _rejected(wrong: Sequence[_Read], chosen: _Read | None) -> _Read | None:
    """A wrong answer whose verdict can be read, else any. Of these the one nearest in length to the chosen answer: DPO would
    learn a length that tells the two apart.
    """
    if chosen is None or not wrong:
        return None
    return min(wrong, key=lambda one: (one.parsed.verdict is None, abs(one.tokens - chosen.tokens)))


def _stored(one: _Read, task: Task, example: JudgeExample) -> str:
    """An answer as a record has it: its verdict in the task's own label. One that cannot be read stays as it is."""
    verdict = one.parsed.verdict
    if verdict is None:
        return one.text
    plain = plain_words(task, example)
    return completion_text(one.parsed.reasoning, ranking_text(verdict, plain) if task.kind == "listwise" else plain[verdict])


def wanted(line: dict, keep: str) -> bool:
    """Whether a prompt is kept, before labels are balanced. `hard`: at least one right answer and one that is not."""
    if line["unusable"] or line["chosen"] is None:
        return False
    return {"right": True, "hard": line["pass_rate"] < 1, "pairs": line["rejected"] is not None}[keep]


def balanced(lines: Mapping[str, list[dict]], known: Mapping[str, Task], how: str, seed: int) -> dict[str, set[str]]:
    """The ids to keep of each task, of the lines that are wanted.

    `labels`: of a binary task and of pairs, as many of one label as of the other; a tie comes at most as often. Grades and orders
    stay as they are, and so does a task with only one label left. `tasks`: that, and of each task as many as of the least one.
    Which ones go is drawn by a hash of (id, seed).
    """
    groups = {name: _groups(found, known[name], split=how != "none") for name, found in lines.items()}
    caps = {name: min(map(len, some)) if len(some) > 1 else None for name, some in groups.items()}
    if how == "tasks":
        sizes = [sum(len(group[: caps[name]]) for group in some) for name, some in groups.items() if some]
        for name, some in groups.items():
            share = min(sizes, default=0) // max(1, len(some))
            caps[name] = share if caps[name] is None else min(share, caps[name])
    kept = {}
    for name, found in lines.items():
        tied = [line for line in found if len(groups[name]) > 1 and line["label_index"] == _TIED]
        orders = [sorted(group, key=lambda line: _hash(line["example_id"], seed)) for group in (*groups[name], tied)]
        kept[name] = {line["example_id"] for order in orders for line in order[: caps[name]]}
    return kept


def _groups(lines: list[dict], task: Task, *, split: bool) -> list[list[dict]]:
    """The lines of each of the two labels that are balanced; all lines as one group where none is, or only one has any."""
    if split and task.kind in ("pointwise_binary", "pairwise"):
        sides = [[line for line in lines if line["label_index"] == index] for index in (0, 1)]
        if all(sides):
            return sides
    return [lines] if lines else []


def _hash(example_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{example_id}".encode()).digest()
