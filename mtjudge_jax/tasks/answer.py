"""The right answer of an example, and the answer that a completion gives.

The right answer is in the words of the question and travels with its prompt to the rewards, as JSON. Of a completion, a text
without the end-of-sequence token, the verdict is parsed: strictly for a reward, leniently to measure a judge. A verdict is one
of a closed set of labels, or for a list (`ranked`) an order of its candidates, `B > A = C`. Both parsers are linear (find and
slice, no regular expression), never raise on any string, and never guess.
"""

import json
import string
import unicodedata
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import TIE, JudgeExample, candidates_of, name_candidates, names_candidates
from mtjudge_jax.tasks.base import LETTERS, Task

# 8,192 tokens of ordinary text are about 40,000 characters, far below this. A longer text is refused unread, which bounds
# the time for any string.
MAX_CHARS = 131_072
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# ASCII only: str.strip() would also take a dozen Unicode spaces and separators for nothing.
_WHITESPACE = " \t\r\n"
# Longest slice that the lenient parser compares with the labels (Unicode normalisation is not linear).
_MAX_LABEL_CHARS = 64
_MAX_RANKING_CHARS = 256
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Parsed(NamedTuple):
    """`verdict` is a label index, or for a list the rank of each candidate (1 = best, equal candidates share a rank, no rank is
    skipped). It is None exactly when `error` is set, to one of a few phrases to count by.
    """

    verdict: int | tuple[int, ...] | None
    reasoning: str
    error: str


def _ascii_lower(text: str) -> str:
    # str.lower() can change the length of a text (dotted capital I), which would shift every index.
    return text.lower() if text.isascii() else text.translate(_LOWER)


def _unreadable(text: str) -> str:
    if len(text) > MAX_CHARS:
        return "too long"
    return "NUL character" if "\0" in text else ""


def _label_index(word: str, labels: tuple[str, ...]) -> int | None:
    """Index of the label that equals `word` in ASCII, ignoring case; look-alike letters are not folded."""
    word = word.strip(_WHITESPACE)
    folded = [label.lower() for label in labels]
    return folded.index(word.lower()) if word.isascii() and word.lower() in folded else None


def _ranking(text: str, names: tuple[str, ...]) -> tuple[int, ...] | None:
    """Ranks of the candidates `names` from `B > A = C`, each named exactly once. `A = C` is the same as `C = A`."""
    if text.count(">") + text.count("=") != len(names) - 1:  # before building anything from a long text
        return None
    ranks: list[int] = [0] * len(names)
    for rank, level in enumerate(text.split(">"), start=1):
        for word in level.split("="):
            index = _label_index(word, names)
            if index is None or ranks[index]:
                return None
            ranks[index] = rank
    return tuple(ranks)


def ranking_text(ranks: tuple[int, ...], names: tuple[str, ...]) -> str:
    """`B > A = C` for the ranks (2, 1, 2); equal candidates in the order of `names`."""
    levels = [[name for name, rank in zip(names, ranks, strict=True) if rank == level] for level in sorted(set(ranks))]
    return " > ".join(" = ".join(level) for level in levels)


def dense(ranks: tuple[int, ...]) -> tuple[int, ...]:
    """Ranks without gaps, as the parser gives them: (1, 3, 3, 6) -> (1, 2, 2, 3)."""
    levels = sorted(set(ranks))
    return tuple(levels.index(rank) + 1 for rank in ranks)


def _verdict(word: str, labels: tuple[str, ...], ranked: bool) -> int | tuple[int, ...] | None:
    return _ranking(word, labels) if ranked else _label_index(word, labels)


def parse_strict(text: str, labels: tuple[str, ...], *, ranked: bool = False) -> Parsed:
    """Accepts `<think>REASONING</think><answer>LABEL</answer>` and nothing else.

    Each tag occurs exactly once, in this order. A tag in capitals is not a tag, but counts as a repetition beside a right
    one. The reasoning holds at least one letter or digit. Only ASCII whitespace may surround the two parts and the label.

        "<think>looks blurry</think><answer>No</answer>"          -> verdict 0, reasoning "looks blurry"
        "<think><answer>no</answer></think><answer>no</answer>"   -> error "repeated <answer>"
    """
    error = _unreadable(text) or _tag_error(text)
    if error:
        return Parsed(None, "", error)
    think, think_end, answer, answer_end = (text.find(tag) for tag in TAGS)
    if not think < think_end < answer < answer_end:
        return Parsed(None, "", "tags out of order")
    reasoning = text[think + len("<think>") : think_end]
    outside = text[:think], text[think_end + len("</think>") : answer], text[answer_end + len("</answer>") :]
    if any(part.strip(_WHITESPACE) for part in outside):
        return Parsed(None, "", "text outside the tags")
    if not any(map(str.isalnum, reasoning)):
        return Parsed(None, "", "no reasoning")
    verdict = _verdict(text[answer + len("<answer>") : answer_end], labels, ranked)
    if verdict is None:
        return Parsed(None, "", "not a ranking" if ranked else "not a label")
    return Parsed(verdict, reasoning.strip(), "")


def _tag_error(text: str) -> str:
    folded = _ascii_lower(text)
    for tag in TAGS:
        if tag not in text:
            return f"missing {tag}"
        if folded.count(tag) > 1:
            return f"repeated {tag}"
    return ""


def parse_lenient(text: str, labels: tuple[str, ...], *, ranked: bool = False) -> Parsed:
    """Finds the verdict of an answer that may break the form; an answer without a verdict counts as wrong, never as a guess.

    The parser reads the text after the last `</think>`, or all of it. If that part has an `<answer>` (the last closed one,
    else the last open one), its content decides: a label or invalid. If not, the first of these that is a label decides:
    the last line, with or without "answer:" before it; the last `[...]`; the last closed `<answer>` anywhere. Here a label
    may have full-width letters and punctuation around it, and tags may be in capitals.

        "<think>parts ordered</think>\n**Yes.**"                      -> verdict 1, reasoning "parts ordered"
        "<think>is it <answer>yes</answer>?</think><answer>no"        -> verdict 0
        "yes or no"                                                   -> error "no answer"
    """
    error = _unreadable(text)
    if error:
        return Parsed(None, "", error)
    folded = _ascii_lower(text)
    think_end = folded.rfind("</think>")
    tail = folded[think_end + len("</think>") :] if think_end >= 0 else folded
    answer = _between(tail, "<answer>", "</answer>")
    if answer is None and "<answer>" in tail:
        answer = tail.rpartition("<answer>")[2]
    if answer is not None:
        found, error = [answer], "not a ranking" if ranked else "not a label"
    else:
        found = [_last_line(tail), _between(tail, "[", "]"), _between(folded, "<answer>", "</answer>")]
        error = "no answer"
    verdicts = [_lenient_verdict(word, labels, ranked) for word in found if word is not None]
    verdict = next((index for index in verdicts if index is not None), None)
    if verdict is None:
        return Parsed(None, "", error)
    start = folded.find("<think>")
    start = start + len("<think>") if start >= 0 else 0
    return Parsed(verdict, text[start : max(think_end, start)].strip(), "")


def _between(text: str, start_tag: str, end_tag: str) -> str | None:
    """The text between the last `end_tag` and the nearest `start_tag` before it."""
    before, found, _ = text.rpartition(end_tag)
    _, started, inner = before.rpartition(start_tag)
    return inner if found and started else None


def _last_line(text: str) -> str:
    line = text.rstrip().rpartition("\n")[2]
    return line.rpartition("answer:")[2]


def _lenient_verdict(word: str, labels: tuple[str, ...], ranked: bool) -> int | tuple[int, ...] | None:
    word = word.strip()
    if len(word) > (_MAX_RANKING_CHARS if ranked else _MAX_LABEL_CHARS):
        return None
    return _verdict(unicodedata.normalize("NFKC", word).strip(string.punctuation + string.whitespace), labels, ranked)


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
    truth = Truth(task.kind, asked.words, label, asked.template, facts=_facts_of(example, asked.names))
    if task.kind == "pointwise_score":
        return truth._replace(score=float(example.label.score), low=float(task.labels[0]), high=float(task.labels[-1]))
    if task.kind == "listwise":
        if len(example.label.ranks) != len(asked.words):
            raise UserError(f"task {task.name!r}: label.ranks is {example.label.ranks}, must be {len(asked.words)} ranks")
        return truth._replace(ranks=dense(example.label.ranks))
    return truth


def _facts_of(example: JudgeExample, shown_as: tuple[str, ...]) -> dict:
    """All that is known about an example except its images, as plain values; texts name the candidates as shown."""
    names = ("example_id", "dataset", "group_id", "task", "criterion", "kind", "instruction", "raw", "rationale")
    facts = {name: getattr(example, name) for name in names}
    facts |= {name: name_candidates(facts[name], shown_as) for name in ("instruction", "rationale")}
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


def plain_words(task: Task, example: JudgeExample) -> tuple[str, ...]:
    """The answer words of an example in the task's own labels, in which a record stores a verdict; of a list, A, B, .."""
    return LETTERS[: len(candidates_of(example))] if task.kind == "listwise" else task.labels


def as_asked(text: str, task: Task, example: JudgeExample) -> str:
    """A whole answer that a record stores, in the words of the question: {A}, {B}, .. become the names shown, and the verdict in
    the task's own label becomes the word that the question asks for. A text without a verdict stays as it is.

        "<think>{A} is sharp</think><answer>{A}</answer>"    -> "<think>X is sharp</think><answer>X</answer>", names X and Y
        "<think>soft edges</think><answer>no</answer>"       -> "..<answer>False</answer>", where True or False is asked
    """
    asked = task.ask(example.question, example.example_id)
    before, opened, rest = text.rpartition("<answer>")
    word, closed, after = rest.partition("</answer>")
    if names_candidates(word, len(candidates_of(example))) or not (opened and closed):
        return name_candidates(text, asked.names)
    ranked = task.kind == "listwise"
    verdict = _verdict(word, plain_words(task, example), ranked)
    if verdict is not None and (ranked or verdict < len(asked.words)):
        word = ranking_text(verdict, asked.words) if ranked else asked.words[verdict]
    return name_candidates(before, asked.names) + opened + word + closed + after
