"""What a judge task is: the wordings of its question, the answers it may get, and which of them is true."""

import dataclasses
import hashlib
import math
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import (
    KINDS,
    SHORT_KINDS,
    TIE,
    Candidate,
    JudgeExample,
    Label,
    Question,
    candidates_of,
    counted,
    name_candidates,
    reordered,
)

TEMPLATES = ("first", "train", "held_out", "all")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
TIE_WORD = "TIE"
IMAGE = None  # a part of a prompt that is a picture; all other parts are texts
RANKING_FORM = "{names} in their order, best first, with > between two or = where they are equal"


class Form(NamedTuple):
    """One wording of a question. A `flipped` one asks for the opposite class; a `held_out` one is evaluation-only."""

    text: str
    flipped: bool = False
    held_out: bool = False
    words: tuple[str, ...] = ()  # answer words by label index; () = the task's own, exchanged if flipped


@dataclasses.dataclass(frozen=True)
class Wordings:
    """All forms of a task, and what the config chooses from. A hash of (id, seed) decides what an example gets."""

    forms: tuple[Form, ...]
    words: tuple[tuple[str, ...], ...]  # alternative label words, the plain ones first
    rubric: str = ""  # shown above the material
    instruction: str = ""  # the prompt's name for the instruction: "Prompt", "Question"; "" = not shown
    noun: str = "Image"  # the prompt's name for a candidate
    context: str = "Picture"  # the prompt's name for an image of the question
    templates: str = "train"
    vary_polarity: bool = False
    vary_words: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.templates not in TEMPLATES:
            raise UserError(f"templates {self.templates!r} is not one of {', '.join(TEMPLATES)}")
        if not self.forms or self.forms[0].held_out or self.forms[0].flipped:
            raise UserError("the first wording must be neither flipped nor held out")

    def choose(self, example_id: str) -> tuple[int, Form, tuple[str, ...], tuple[str, ...]]:
        """For an example: the number of its form, the form, its label words, and its answer words (a flipped form exchanges
        the first two). The two orders of a pair have one id, so they get the same.
        """
        wanted = {"first": (False,), "train": (False,), "held_out": (True,), "all": (False, True)}[self.templates]
        open_to = [n for n, f in enumerate(self.forms) if f.held_out in wanted and (self.vary_polarity or not f.flipped)]
        if not open_to:
            raise UserError(f"no wording of {self.forms[0].text!r} is {self.templates}: hold one out, or use templates 'all'")
        number = open_to[0 if self.templates == "first" else _spin(f"{self.seed}/form/{example_id}", len(open_to))]
        form = self.forms[number]
        words = self.words[_spin(f"{self.seed}/words/{example_id}", len(self.words)) if self.vary_words else 0]
        return number, form, words, form.words or ((words[1], words[0], *words[2:]) if form.flipped else words)


def _spin(text: str, count: int) -> int:
    """0 to count - 1 by a hash of `text`: the same in every process and version of Python."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % count


def order_of(example_id: str, count: int, seed: int) -> tuple[int, ...]:
    """A permutation of `count` candidates by a hash of (id, seed): the old index of each place shown."""
    places = list(range(count))
    for last in range(count - 1, 0, -1):  # Fisher and Yates
        other = _spin(f"{seed}/order/{last}/{example_id}", last + 1)
        places[last], places[other] = places[other], places[last]
    return tuple(places)


def _contract(answers: str) -> str:
    """The end of every question for a large model, so that all tasks learn one answer form."""
    return (
        "First reason step by step inside <think> and </think>. "
        f"Then give only the final answer, {answers}, inside <answer> and </answer>."
    )


def listing(words: tuple[str, ...], last: str = "or") -> str:
    """`A, B or TIE`; `1, 2, 3, 4 or 5`; more than seven numbers by their ends: `a whole number from 0 to 10`."""
    if len(words) > 7 and words[0].lstrip("-").isdigit():
        return f"a whole number from {words[0]} to {words[-1]}"
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def parts_of(question: Question, wordings: Wordings, form: Form, *, names: tuple[str, ...], answers: str) -> list[str | None]:
    """The prompt: texts, with IMAGE in the place of each of the question's images, in their order.

    names: of each candidate, () for a single one. answers: the legal answers in words.
    """
    out: list[str | None] = [f"{wordings.rubric}\n\n" if wordings.rubric else ""]
    if wordings.instruction:
        out[-1] += f"{wordings.instruction}: {question.instruction}\n"
    for number in range(question.context_images):
        many = f" {number + 1}" if question.context_images > 1 else ""
        out += [f"{wordings.context}{many}: ", IMAGE, "\n"]
    for number, candidate in enumerate(candidates_of(question)):
        out.append(f"{wordings.noun} {names[number]}: " if names else f"{wordings.noun}: ")
        out += [IMAGE] * candidate.images + [f"{candidate.text}\n"]
    return _merged([*out, f"\n{form.text} {_contract(answers)}"])


def _merged(parts: list[str | None]) -> list[str | None]:
    """The parts with neighbouring texts joined."""
    out: list[str | None] = []
    for part in parts:
        if part is not IMAGE and out and out[-1] is not IMAGE:
            out[-1] += part
        elif part != "":
            out.append(part)
    return out


# Ends the demo's questions: one answer form for all tasks of a kind carries over to tasks never trained on.
CONTRACTS = {
    "pointwise_binary": "Think, then answer yes or no.",
    "pairwise": "Think, then answer first or second.",
    "pointwise_score": "Think, then answer with a grade from 1 to 5.",
    "listwise": "Think, then answer with the order of A, B, C and D.",
}
NO_YES = ("no", "yes")
_PLACES = ("first", "second")  # names of the candidates of a pair that is asked by a template
_IMAGES_OF_KIND = {"pointwise_binary": 1, "pairwise": 2, "pointwise_score": 1}  # that a template takes; of a list: max_images
INSTRUCTION_SLOT = "{instruction}"
RANKING = ("ranking",)  # the one label of a list, whose right answer differs from example to example


class Asked(NamedTuple):
    """A question as it is asked. `parts` are texts and IMAGE; `words` are the answer words by label index, for a list the
    names of the candidates shown; `template` is the wording's name and hash. `names` are those of the candidates of a pair or
    a list, in the order shown.
    """

    parts: list[str | None]
    words: tuple[str, ...]
    template: str
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about one picture or text (`pointwise_binary`, `pointwise_score`), two (`pairwise`) or more (`listwise`).

    `labels[i]` is the word of label index i in results: `Label.binary` (1 = the class that the question names),
    `Label.winner` (1 = the second is better, a third label is a tie), or `Label.score` minus the lowest grade. `metric` is
    the key of the task's headline number in its score. `ood` marks an evaluation-only task. `single` names the pointwise
    task that asks the same about each picture of a pair, or is "".

    A task has either one `template`, shown below its pictures, with its labels as answer words, or `wordings`, which say
    how the prompt is laid out and which words answer. `max_images` is its image budget, 0 = what the kind takes; a list with a
    template takes just so many. `max_pixels` and
    `min_pixels` are its own limits of a picture, 0 = the run's. A user's own task was made from `entry`.
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
    max_pixels: int = 0
    min_pixels: int = 0
    entry: dict = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"task {self.name!r}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.wordings is None and self.kind == "listwise" and not 2 <= self.max_images <= len(LETTERS):
            needs = f"needs wordings, or with a template the number of pictures: max_images is {self.max_images}"
            raise UserError(f"task {self.name!r}: kind 'listwise' {needs}, must be 2 to {len(LETTERS)}")
        flipped = self.wordings is not None and any(form.flipped for form in self.wordings.forms)
        if self.kind in ("listwise", "pointwise_score") and flipped:
            raise UserError(f"task {self.name!r}: a {self.kind} question has no opposite: leave out its flipped wordings")
        if self.kind == "listwise":
            if self.labels != RANKING:
                raise UserError(f"task {self.name!r}: the labels of a list must be {RANKING}, not {self.labels}")
            return
        sets = [self.labels, *(self.wordings.words if self.wordings else ())]
        sets += [form.words for form in self.wordings.forms if form.words] if self.wordings else []
        for words in sets:
            check_words(self.name, words)
            if len(words) != len(self.labels):
                raise UserError(f"task {self.name!r}: {words} must be {len(self.labels)} words, one per label of {self.labels}")

    @property
    def template_hash(self) -> str:
        """16 hex digits that change with any wording, choice of wordings or answer; saved with the results."""
        if self.wordings is None:
            return _hashed(self.kind, self.template, *self.labels)
        plain = dataclasses.replace(self.wordings, seed=0)
        return _hashed(self.kind, repr(plain), *self.labels)

    def ask(self, question: Question, example_id: str = "") -> Asked:
        """The prompt of a question. Raises UserError if its kind, candidates, number of images or instruction does not fit."""
        self._check(question)
        if self.wordings is None:
            # Not str.format: braces in an instruction are text, not fields.
            names = {"pairwise": _PLACES, "listwise": LETTERS[: self.max_images]}.get(self.kind, ())
            text = self.template.replace(INSTRUCTION_SLOT, name_candidates(question.instruction, names))
            words = names if self.kind == "listwise" else self.labels
            return Asked([IMAGE] * len(question.images) + [text], words, f"{self.name}@{self.template_hash}", names)
        number, form, words, answers = self.wordings.choose(example_id)
        names = words[: len(candidates_of(question))] if self.kind in ("pairwise", "listwise") else ()
        question = question._replace(instruction=name_candidates(question.instruction, names))
        if self.kind == "pairwise" and not question.allow_tie:
            answers = answers[:2]
        elif self.kind == "listwise":
            answers = names
        legal = RANKING_FORM.format(names=listing(names, "and")) if self.kind == "listwise" else listing(answers)
        parts = parts_of(question, self.wordings, form, names=names, answers=legal)
        form_hash = _hashed(self.kind, self.wordings.rubric, repr(form), *answers)
        return Asked(parts, answers, f"{self.name}/{number}@{form_hash}", names)

    def question_text(self, question: Question, example_id: str = "") -> str:
        """The question in words, with `[image]` for pictures between them. Raises UserError as `ask` does."""
        parts = self.ask(question, example_id).parts
        return "".join("[image]" if part is IMAGE else part for part in (parts if self.wordings else parts[-1:]))

    @property
    def sample(self) -> str:
        """How a question reads, with INSTRUCTION_SLOT for its instruction and `[image]` for pictures between texts."""
        return self.template if self.wordings is None else self.question_text(self.sample_question(INSTRUCTION_SLOT))

    @property
    def shows_instruction(self) -> bool:
        """Whether a question holds its record's instruction."""
        return bool(self.wordings.instruction) if self.wordings else INSTRUCTION_SLOT in self.template

    def sample_question(self, instruction: str, text: str = "...") -> Question:
        """A question of the usual form: of one thing, a pair or a list of three, without bytes in its images. Where the task
        judges texts, each is `text`, about one picture. Room for more pictures than a pair or one thing has is for its context.
        """
        count = {"pairwise": 2, "listwise": 3 if self.wordings else self.max_images}.get(self.kind, 1)
        texts = self.wordings is not None and (0 < self.max_images < count or self.wordings.noun == "Answer")
        context = 1 if texts else max(0, self.max_images - count) if self.kind != "listwise" else 0
        images, candidates = ((b"",), (Candidate(0, text),) * count) if texts else ((b"",) * (context + count), ())
        low, high = (float(self.labels[0]), float(self.labels[-1])) if self.kind == "pointwise_score" else (None, None)
        tie, about = len(self.labels) == 3, (self.name, "", self.kind, instruction)
        return Question(*about, images, context, candidates, tie and self.kind == "pairwise", low, high)

    def _check(self, question: Question) -> None:
        if question.kind != self.kind:
            short = {kind: name for name, kind in SHORT_KINDS.items()}.get(question.kind, question.kind)
            named = f"got {question.kind!r}" + (f" ({short!r} in rows and entries)" if short != question.kind else "")
            change = f', or write "kind": "{short}" in its entry of data.custom_tasks' if self.entry else ""
            raise UserError(f"task {self.name!r} asks {self.kind} questions, {named}: choose another task{change}")
        got = len(question.images)
        if self.wordings is None:
            needed = _IMAGES_OF_KIND.get(self.kind, self.max_images)
            if got != needed:
                raise UserError(f"task {self.name!r} needs exactly {needed} image(s), the question has {got}")
        if self.shows_instruction and not question.instruction.strip():
            remedy = "give it, in the field instruction or by --instruction"
            raise UserError(f"task {self.name!r} needs an instruction, the question has none: {remedy}")
        if self.wordings is not None:
            self._check_candidates(question, got)
        if self.kind == "pointwise_score":
            grades = (question.score_min, question.score_max)
            if grades != (float(self.labels[0]), float(self.labels[-1])):
                known = f"{self.labels[0]} to {self.labels[-1]}"
                own = "none" if None in grades else f"{grades[0]:g} to {grades[1]:g}"
                remedy = "make score_min and score_max of the task and of the row (or its scale) equal"
                raise UserError(f"task {self.name!r} has the grades {known}, the question {own}: {remedy}")
        if self.wordings is not None and self.kind == "pairwise" and question.allow_tie and len(self.labels) < 3:
            remedy = 'write "allow_tie": True in its entry of data.custom_tasks' if self.entry else "use a task with allow_tie"
            raise UserError(f"task {self.name!r} has no tie, the question allows one: {remedy}")

    def _check_candidates(self, question: Question, got: int) -> None:
        """Of a question with wordings: its images and candidates."""
        if self.max_images and got > self.max_images:
            raise UserError(f"task {self.name!r} takes at most {self.max_images} image(s), the question has {got}")
        candidates, held = candidates_of(question), question.context_images
        held += sum(candidate.images for candidate in candidates)
        if held != got:
            raise UserError(f"the question has {got} image(s), its context and candidates need {held}")
        least, most = {"pairwise": (2, 2), "listwise": (2, len(LETTERS))}.get(self.kind, (1, 1))
        if not least <= len(candidates) <= most:
            raise UserError(f"task {self.name!r} judges {counted(least, most)}, the question has {len(candidates)}")

    def label_index(self, label: Label) -> int:
        """Index in `labels` of the true answer. Raises UserError if this kind's field is not set or out of range.

        A half grade rounds up: 3.5 on a scale of 1 to 5 is "4".
        """
        if self.kind == "listwise":
            if not label.ranks:
                raise UserError(f"task {self.name!r}: label.ranks is {label.ranks}, must hold a rank for each candidate")
            return 0
        field = {"pairwise": "winner", "pointwise_score": "score"}.get(self.kind, "binary")
        value = index = {"winner": label.winner, "score": label.score, "binary": label.binary}[field]
        if self.kind == "pairwise" and value == TIE and len(self.labels) == 3:
            return 2
        if self.kind == "pointwise_score" and value is not None:
            index = math.floor(value - float(self.labels[0]) + 0.5) if math.isfinite(value) else -1
        most = 1 if self.kind == "pairwise" else len(self.labels) - 1
        if index is None or not 0 <= index <= most:
            legal = f"{self.labels[0]} to {self.labels[-1]}" if self.kind == "pointwise_score" else f"0 to {most}"
            raise UserError(f"task {self.name!r}: label.{field} is {value}, must be {legal}")
        return int(index)

    def displayed(self, example: JudgeExample) -> JudgeExample:
        """The example with its candidates in the order shown: by a hash of (id, seed), so that no position means better."""
        if self.wordings is None or self.kind not in ("pairwise", "listwise"):
            return example
        if example.label.ranks is not None and len(example.label.ranks) != len(candidates_of(example)):
            raise UserError(f"{example.example_id}: label.ranks is {example.label.ranks}, must hold a rank for each candidate")
        return reordered(example, order_of(example.example_id, len(candidates_of(example)), self.wordings.seed))


def check_words(name: str, words: tuple[str, ...]) -> None:
    """Raises UserError if two labels are equal to the parser, which compares in ASCII lower case."""
    folded = {word.lower() for word in words}
    if len(words) < 2 or len(folded) < len(words) or not all(w.isascii() and w.strip() for w in folded):
        raise UserError(f"task {name!r}: labels {words} must be two or more different ASCII words")


def without_contract(text: str) -> str:
    """A demo's question without the demand that ends it; any other text as it is, without spaces at its ends."""
    for contract in CONTRACTS.values():
        text = text.removesuffix(contract)
    return text.strip()


def _hashed(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def pair_words(*, tie: bool) -> tuple[tuple[str, ...], ...]:
    """The names that two candidates may have, the plain ones first."""
    return tuple((*pair, TIE_WORD) if tie else pair for pair in (("A", "B"), ("1", "2"), ("X", "Y")))
