"""The wordings of a task that has several: which one an example is asked in, and the prompt it makes."""

import dataclasses
import hashlib
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import Question, candidates_of

TEMPLATES = ("first", "train", "held_out", "all")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
TIE_WORD = "TIE"
IMAGE = None  # a part of a prompt that is a picture; the others are texts
RANKING_FORM = "{names} in their order, best first, with > between two or = where they are equal"


class Form(NamedTuple):
    """One wording of a question. `flipped` asks for the opposite class; a `held_out` one is never trained on."""

    text: str
    flipped: bool = False
    held_out: bool = False
    words: tuple[str, ...] = ()  # of the label indices in this wording; () = the task's own, in turn where flipped


@dataclasses.dataclass(frozen=True)
class Wordings:
    """All forms of a task and what is chosen among by config. What an example gets is a hash of (its id, seed)."""

    forms: tuple[Form, ...]
    words: tuple[tuple[str, ...], ...]  # alternatives for the label words, the plain ones first
    rubric: str = ""  # stands above the material
    instruction: str = ""  # what the instruction is called in the prompt: "Prompt", "Question"; "" = it is not shown
    noun: str = "Image"  # what a candidate is called
    context: str = "Picture"  # what an image of the question is called
    templates: str = "train"
    vary_polarity: bool = False
    vary_words: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.templates not in TEMPLATES:
            raise UserError(f"templates {self.templates!r} is not one of {', '.join(TEMPLATES)}")
        if not self.forms or self.forms[0].held_out or self.forms[0].flipped:
            raise UserError("the first wording must be a plain one that may be trained on")

    def choose(self, example_id: str) -> tuple[int, Form, tuple[str, ...], tuple[str, ...]]:
        """Of an example: number, form, label words and the answers they are given in (of a flipped form the first two
        change places). The same for its two orders, which have one id.
        """
        wanted = {"first": (False,), "train": (False,), "held_out": (True,), "all": (False, True)}[self.templates]
        open_to = [n for n, f in enumerate(self.forms) if f.held_out in wanted and (self.vary_polarity or not f.flipped)]
        if not open_to:
            raise UserError(f"no wording of {self.forms[0].text!r} is {self.templates}: hold one out, or ask for all")
        number = open_to[0 if self.templates == "first" else spin(f"{self.seed}/form/{example_id}", len(open_to))]
        form = self.forms[number]
        words = self.words[spin(f"{self.seed}/words/{example_id}", len(self.words)) if self.vary_words else 0]
        return number, form, words, form.words or ((words[1], words[0], *words[2:]) if form.flipped else words)


def spin(text: str, count: int) -> int:
    """0 to count - 1 by a hash of `text`: the same in every process and Python."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") % count


def order_of(example_id: str, count: int, seed: int) -> tuple[int, ...]:
    """A permutation of `count` candidates by a hash of (id, seed): the old index of each place shown."""
    places = list(range(count))
    for last in range(count - 1, 0, -1):  # Fisher and Yates
        other = spin(f"{seed}/order/{last}/{example_id}", last + 1)
        places[last], places[other] = places[other], places[last]
    return tuple(places)


def contract(answers: str) -> str:
    """Ends every question in the words of a large model, so that one answer form is learned by all tasks."""
    return (
        "First reason step by step inside <think> and </think>. "
        f"Then give only the final answer, {answers}, inside <answer> and </answer>."
    )


def listing(words: tuple[str, ...], last: str = "or") -> str:
    """`A, B or TIE`; `1, 2, 3, 4 or 5`; of more than seven the ends: `a whole number from 0 to 10`."""
    if len(words) > 7 and words[0].lstrip("-").isdigit():
        return f"a whole number from {words[0]} to {words[-1]}"
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def parts_of(question: Question, wordings: Wordings, form: Form, *, names: tuple[str, ...], answers: str) -> list[str | None]:
    """The prompt: texts and, as IMAGE, the places of the question's images in their order.

    names: what each candidate is called, () where there is one. answers: the legal answers in words.
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
    return merged([*out, f"\n{form.text} {contract(answers)}"])


def merged(parts: list[str | None]) -> list[str | None]:
    """Neighbouring texts as one: only between images does a text end."""
    out: list[str | None] = []
    for part in parts:
        if part is not IMAGE and out and out[-1] is not IMAGE:
            out[-1] += part
        elif part != "":
            out.append(part)
    return out
