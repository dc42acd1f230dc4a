"""What a judge task is: the words of its question, the answers it may get, and which of them is true."""

import dataclasses
import hashlib
import math
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import KINDS, TIE, Candidate, JudgeExample, Label, Question, candidates_of, counted, reordered
from mtjudge_jax.tasks.wording import IMAGE, LETTERS, RANKING_FORM, TIE_WORD, Wordings, listing, order_of, parts_of

# Ends the demo's questions, so one answer form is learned by all tasks and carries over to tasks never trained on.
CONTRACT = "Think, then answer yes or no."
NO_YES = ("no", "yes")
IMAGES_OF_KIND = {"pointwise_binary": 1, "pairwise": 2}
INSTRUCTION_SLOT = "{instruction}"
RANKING = ("ranking",)  # the one label of a list: its right answer differs from example to example


class Asked(NamedTuple):
    """A question as it is put: `parts` are texts and IMAGE, `words` the answer word of each label index, of a list the
    name of each candidate shown; `template` is the wording's name and hash.
    """

    parts: list[str | None]
    words: tuple[str, ...]
    template: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about one picture or text (`pointwise_binary`, `pointwise_score`), two (`pairwise`) or more (`listwise`).

    `labels[i]` is the word of label index i in results: `Label.binary` (1 = the class that the question names),
    `Label.winner` (1 = the second is better, a third label is a tie), or `Label.score` less the lowest grade. `metric` is
    the key of the task's headline number in its score. `ood` marks a task that is evaluated and never trained on. `single`
    names the pointwise task that asks for the same of each picture of a pair, "" where there is none.

    A task has one `template`, shown below its pictures, with its labels as answer words; or `wordings`, which say what
    stands where and which words answer. `max_images` is its image budget, 0 = what the kind takes. `entry` is what a task of
    the user's own was made from.
    """

    name: str
    kind: str
    template: str = ""
    labels: tuple[str, ...] = NO_YES
    metric: str = "macro_f1"
    ood: bool = False
    single: str = ""
    wordings: Wordings | None = None
    max_images: int = 0
    entry: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"task {self.name!r}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.wordings is None and self.kind not in IMAGES_OF_KIND:
            raise UserError(f"task {self.name!r}: kind {self.kind!r} needs wordings, one template is for one or two pictures")
        if self.kind in ("listwise", "pointwise_score") and any(form.flipped for form in self.wordings.forms):
            raise UserError(f"task {self.name!r}: a {self.kind} question has no opposite, leave out its flipped wordings")
        if self.kind == "listwise":
            if self.labels != RANKING:
                raise UserError(f"task {self.name!r}: the labels of a list are {RANKING}, not {self.labels}")
            return
        sets = [self.labels, *(self.wordings.words if self.wordings else ())]
        sets += [form.words for form in self.wordings.forms if form.words] if self.wordings else []
        for words in sets:
            check_words(self.name, words)
            if len(words) != len(self.labels):
                raise UserError(f"task {self.name!r}: {words} must be {len(self.labels)} words, one a label of {self.labels}")

    @property
    def template_hash(self) -> str:
        """16 hex digits that change with any wording, choice of wordings or answer; saved beside results made with them."""
        if self.wordings is None:
            return hashed(self.kind, self.template, *self.labels)
        plain = dataclasses.replace(self.wordings, seed=0)
        return hashed(self.kind, repr(plain), *self.labels)

    def ask(self, question: Question, example_id: str = "") -> Asked:
        """The prompt of a question. Raises ValueError if its kind, candidates, number of images or instruction does not fit."""
        self._check(question)
        if self.wordings is None:
            # Not str.format: braces in an instruction are text, not fields.
            text = self.template.replace(INSTRUCTION_SLOT, question.instruction)
            return Asked([IMAGE] * len(question.images) + [text], self.labels, f"{self.name}@{self.template_hash}")
        number, form, words, answers = self.wordings.choose(example_id)
        names = words[: len(candidates_of(question))] if self.kind in ("pairwise", "listwise") else ()
        if self.kind == "pairwise" and not question.allow_tie:
            answers = answers[:2]
        elif self.kind == "listwise":
            answers = names
        legal = RANKING_FORM.format(names=listing(names, "and")) if self.kind == "listwise" else listing(answers)
        parts = parts_of(question, self.wordings, form, names=names, answers=legal)
        form_hash = hashed(self.kind, self.wordings.rubric, repr(form), *answers)
        return Asked(parts, answers, f"{self.name}/{number}@{form_hash}")

    def question_text(self, question: Question, example_id: str = "") -> str:
        """The question in words; where pictures stand between them, `[image]`. Raises ValueError as `ask` does."""
        parts = self.ask(question, example_id).parts
        return "".join("[image]" if part is IMAGE else part for part in (parts if self.wordings else parts[-1:]))

    @property
    def sample(self) -> str:
        """How a question reads, with INSTRUCTION_SLOT where its instruction stands, and `[image]` between texts."""
        if self.wordings is None:
            return self.template
        count = {"pairwise": 2, "listwise": 3}.get(self.kind, 1)
        texts = 0 < self.max_images < count or self.wordings.noun == "Answer"
        images, context, candidates = ((b"",), 1, (Candidate(0, "..."),) * count) if texts else ((b"",) * count, 0, ())
        low, high = (float(self.labels[0]), float(self.labels[-1])) if self.kind == "pointwise_score" else (None, None)
        tie, told = len(self.labels) == 3, (self.name, "", self.kind, INSTRUCTION_SLOT)
        return self.question_text(Question(*told, images, context, candidates, tie and self.kind == "pairwise", low, high))

    def _check(self, question: Question) -> None:
        if question.kind != self.kind:
            raise UserError(f"task {self.name!r} asks {self.kind} questions, got {question.kind!r}: ask another task")
        got = len(question.images)
        if self.wordings is None:
            needed = IMAGES_OF_KIND[self.kind]
            if got != needed:
                raise UserError(f"task {self.name!r} needs exactly {needed} image(s), the question has {got}")
        needs = self.wordings.instruction if self.wordings else INSTRUCTION_SLOT in self.template
        if needs and not question.instruction.strip():
            raise UserError(f"task {self.name!r} needs an instruction, the question's is empty: fill the field")
        if self.wordings is None:
            return
        if self.max_images and got > self.max_images:
            raise UserError(f"task {self.name!r} takes at most {self.max_images} image(s), the question has {got}")
        candidates, held = candidates_of(question), question.context_images
        held += sum(candidate.images for candidate in candidates)
        if held != got:
            raise UserError(f"the question has {got} image(s), its context and candidates say {held}")
        least, most = {"pairwise": (2, 2), "listwise": (2, len(LETTERS))}.get(self.kind, (1, 1))
        if not least <= len(candidates) <= most:
            raise UserError(f"task {self.name!r} judges {counted(least, most)}, the question has {len(candidates)}")
        if self.kind == "pointwise_score":
            grades = (question.score_min, question.score_max)
            if grades != (float(self.labels[0]), float(self.labels[-1])):
                known = f"{self.labels[0]} to {self.labels[-1]}"
                raise UserError(f"task {self.name!r} has the grades {known}, the question {grades}")
        if self.kind == "pairwise" and question.allow_tie and len(self.labels) < 3:
            raise UserError(f"task {self.name!r} knows no tie, the question allows one: take a task with allow_tie")

    def label_index(self, label: Label) -> int:
        """Index in `labels` of the true answer. Raises ValueError if this kind's field is not set or out of range.

        A grade between two whole ones is the upper one from the half on: 3.5 of 1 to 5 is "4".
        """
        if self.kind == "listwise":
            if not label.ranks:
                raise UserError(f"task {self.name!r}: label.ranks is {label.ranks}, must have a rank for each candidate")
            return 0
        field = {"pairwise": "winner", "pointwise_score": "score"}.get(self.kind, "binary")
        value = index = {"winner": label.winner, "score": label.score, "binary": label.binary}[field]
        if self.kind == "pairwise" and value == TIE and len(self.labels) == 3:
            return 2
        if self.kind == "pointwise_score" and value is not None:
            index = math.floor(value - float(self.labels[0]) + 0.5) if math.isfinite(value) else -1
        most = 1 if self.kind == "pairwise" else len(self.labels) - 1
        if index is None or not 0 <= index <= most:
            raise UserError(f"task {self.name!r}: label.{field} is {value}, must be {self._range(most)}")
        return int(index)

    def _range(self, most: int) -> str:
        return f"{self.labels[0]} to {self.labels[-1]}" if self.kind == "pointwise_score" else f"0 to {most}"

    def displayed(self, example: JudgeExample) -> JudgeExample:
        """The example with its candidates in the order shown: by a hash of (id, seed), so that no place means better."""
        if self.wordings is None or self.kind not in ("pairwise", "listwise"):
            return example
        if example.label.ranks is not None and len(example.label.ranks) != len(candidates_of(example)):
            raise UserError(f"{example.example_id}: label.ranks is {example.label.ranks}, must be one rank a candidate")
        return reordered(example, order_of(example.example_id, len(candidates_of(example)), self.wordings.seed))


def check_words(name: str, words: tuple[str, ...]) -> None:
    """Raises ValueError unless they can be told apart: the parser compares in ASCII lower case."""
    folded = {word.lower() for word in words}
    if len(words) < 2 or len(folded) < len(words) or not all(w.isascii() and w.strip() for w in folded):
        raise UserError(f"task {name!r}: labels {words} must be two or more different ASCII words")


def hashed(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def pair_words(*, tie: bool) -> tuple[tuple[str, ...], ...]:
    """What two candidates may be called, the plain way first."""
    return tuple((*pair, TIE_WORD) if tie else pair for pair in (("A", "B"), ("1", "2"), ("X", "Y")))
