"""The wordings of a task: which one an example is asked in, and the prompt that it makes."""

import dataclasses
import hashlib
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import Question, candidates_of

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
