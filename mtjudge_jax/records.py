"""The record of a judging question, and its bytes in an ArrayRecord file."""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from mtjudge_jax.errors import UserError

SCHEMA_VERSION = 2
KINDS = ("pointwise_binary", "pointwise_score", "pairwise", "listwise")
# Fields that came later: a record without them is written as it always was, and code that does not know them reads it.
_LATER = {"chosen": "", "rejected": "", "pass_rate": None}
SHORT_KINDS = {"binary": "pointwise_binary", "graded": "pointwise_score"}  # accepted in a user's rows and task entries
TERMS = ("open", "research", "gated", "eval_only")
LABEL_WORD = "label "  # begins the label_rule of a binary record of a user, whose own word for the label follows
TIE = -1  # the winner of a tied pair
_SLOT = re.compile(r"\{([A-Z])\}")  # {A} in a text is the first candidate, {B} the second, ..


class Label(NamedTuple):
    """The gold label. The field of the example's kind is set; a binary label may come with a score."""

    binary: int | None = None  # pointwise_binary: 1 = the class in the question, else 0
    score: float | None = None  # pointwise_score: the grade, between the example's score_min and score_max
    winner: int | None = None  # pairwise: index of the better candidate, or TIE
    tie: str = ""  # kind of tie, if known: both_good | both_bad
    ranks: tuple[int, ...] | None = None  # listwise: rank of each candidate, 1 = best, equal ranks are ties


class Candidate(NamedTuple):
    """One of the things judged: a number of the example's images, in their order, and a text."""

    images: int = 1
    text: str = ""
    name: str = ""  # who made it, e.g. a model; never shown


class Question(NamedTuple):
    """All that a prompt may use. The label, the rationale and the makers' names are absent, so they cannot leak."""

    task: str
    criterion: str
    kind: str
    instruction: str
    images: tuple[bytes, ...]
    context_images: int = 0
    candidates: tuple[Candidate, ...] = ()
    allow_tie: bool = False
    score_min: float | None = None
    score_max: float | None = None


@dataclasses.dataclass(frozen=True)
class JudgeExample:
    """One judging question with its label.

    `images` are encoded files (PNG, JPEG or WebP), or pixels uint8 [h, w, 3] in a question that is asked but never stored: first
    the `context_images` that belong to the question (the picture before an edit, the picture that texts are about), then each
    candidate's, in native order. Without `candidates`, each image
    after the context is a candidate. `group_id` is the unit of leakage and of the bootstrap (a source photograph, a prompt):
    a group is never in two splits. `rationale` is a gold reasoning for SFT, or empty. Of a pair or a list, `rationale` and
    `instruction` may name the candidates by {A}, {B}, .. in native order. `raw` is JSON of native fields that
    metrics need (category, source, a mean opinion score); it never reaches a prompt. `label_rule` says how the label was
    derived, `raters` are the single votes. `chosen` and `rejected` are a better and a worse whole answer for DPO, or both empty;
    they name candidates as `rationale` does. `pass_rate` is the share of a model's answers that were right, see sample/.
    """

    example_id: str
    dataset: str
    split: str
    group_id: str
    task: str
    criterion: str
    kind: str
    instruction: str
    images: tuple[bytes, ...]
    label: Label
    rationale: str = ""
    license: str = ""
    terms: str = "open"
    raw: str = ""
    context_images: int = 0
    candidates: tuple[Candidate, ...] = ()
    allow_tie: bool = False
    score_min: float | None = None
    score_max: float | None = None
    label_rule: str = ""
    raters: tuple[float, ...] = ()
    revision: str = ""
    source_split: str = ""
    chosen: str = ""
    rejected: str = ""
    pass_rate: float | None = None
    place: str = dataclasses.field(default="", compare=False)  # source file and row, for messages; not written

    @property
    def question(self) -> Question:
        shown = tuple(candidate._replace(name="") for candidate in self.candidates)
        about = (self.task, self.criterion, self.kind, self.instruction, self.images, self.context_images, shown)
        return Question(*about, self.allow_tie, self.score_min, self.score_max)

    @property
    def uid(self) -> int:
        """Stable 32-bit hash of the id. It seeds the sampler, so samples do not depend on the batch layout."""
        return int.from_bytes(hashlib.sha256(self.example_id.encode()).digest()[:4], "little")


class BadRecord(UserError):
    """An unusable record; `reason` is a short name to count by, `example_id` is the record's id if known.

    The text is "reason: detail".
    """

    def __init__(self, reason: str, detail: str, example_id: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.example_id = example_id

    def __reduce__(self):  # the default calls __init__ with one argument, which fails in another process
        return BadRecord, (self.reason, str(self).removeprefix(f"{self.reason}: "), self.example_id)


def lone_surrogate(text: str) -> str:
    r"""Where a text holds half a character, which no tokenizer takes, as "'\ud83d' at character 5"; "" if it is Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!r} at character {error.start}"
    return ""


def pack(example: JudgeExample) -> bytes:
    fields = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
    fields["label"] = example.label._asdict()
    fields["candidates"] = [candidate._asdict() for candidate in example.candidates]
    fields["sha256"] = [hashlib.sha256(image).digest() for image in example.images]
    del fields["place"]
    fields = {name: value for name, value in fields.items() if name not in _LATER or value != _LATER[name]}
    import msgpack  # not needed by a client of a server

    return msgpack.packb({"schema_version": SCHEMA_VERSION, **fields})


def unpack(data: bytes) -> JudgeExample:
    """Raises BadRecord (`unreadable_record`, `schema_version`, `image_hash`) instead of returning damaged content."""
    import msgpack

    try:
        fields = msgpack.unpackb(data)
        version, hashes = fields.pop("schema_version"), fields.pop("sha256")
        if version != SCHEMA_VERSION:
            text = f"record has version {version}, this code reads {SCHEMA_VERSION}: prepare the data again"
            raise BadRecord("schema_version", text)
        label = fields["label"]
        fields["label"] = Label(**label | {"ranks": None if label["ranks"] is None else tuple(label["ranks"])})
        fields["candidates"] = tuple(Candidate(**candidate) for candidate in fields["candidates"])
        fields |= {name: tuple(fields[name]) for name in ("images", "raters")}
        example = JudgeExample(**fields)
    except BadRecord:
        raise
    except Exception as e:  # msgpack raises a dozen types on damaged bytes
        raise BadRecord("unreadable_record", f"{type(e).__name__}: {e}") from e
    if [hashlib.sha256(image).digest() for image in example.images] != hashes:
        raise BadRecord("image_hash", f"{example.example_id}: image bytes differ from the hash stored at preparation")
    return example


def counted(least: int, most: int) -> str:
    """counted(1, 1) -> "1 candidate"; counted(2, 26) -> "2 to 26 candidates"."""
    number = str(least) if least == most else f"{least} to {most}"
    return f"{number} candidate{'' if most == 1 else 's'}"


def candidates_of(example: JudgeExample | Question) -> tuple[Candidate, ...]:
    """The candidates, one per image if the example lists none."""
    return example.candidates or (Candidate(),) * (len(example.images) - example.context_images)


def name_candidates(text: str, names: Sequence[str]) -> str:
    """`{A} is sharper than {B}` with names ("first", "second") -> `first is sharper than second`; other braces stay."""
    return _SLOT.sub(lambda slot: names[i] if (i := ord(slot[1]) - ord("A")) < len(names) else slot[0], text)


def names_candidates(text: str, count: int) -> bool:
    """Whether `text` names one of `count` candidates by {A}, {B}, .."""
    return any(ord(letter) - ord("A") < count for letter in _SLOT.findall(text))


def holds_in_one_order(example: JudgeExample, texts: Sequence[str] = ("rationale",)) -> bool:
    """Whether the example has a text about several candidates that is only known to hold in the order stored. texts: the fields
    that are looked at, of rationale, chosen and rejected.
    """
    if example.kind not in ("pairwise", "listwise"):
        return False
    held, count = [getattr(example, name) for name in texts], len(candidates_of(example))
    return any(text.strip() and not names_candidates(text, count) for text in held)


def reordered(example: JudgeExample, order: Sequence[int]) -> JudgeExample:
    """The example with its candidates, and with them its label and the names {A}, {B}, .., in another order; the id stays.

    order: the old index of each new place. Two candidates with winner 0, order (1, 0) -> winner 1. Raises UserError if `order` is
    no permutation of the candidates.
    """
    candidates = candidates_of(example)
    if sorted(order) != list(range(len(candidates))):
        raise UserError(f"{example.example_id}: order {tuple(order)} is no permutation of its {len(candidates)} candidates")
    first = example.context_images
    images, at = [], first
    for candidate in candidates:
        images.append(example.images[at : at + candidate.images])
        at += candidate.images
    label = example.label
    if label.winner is not None and label.winner != TIE:
        label = label._replace(winner=list(order).index(label.winner))
    if label.ranks is not None:
        label = label._replace(ranks=tuple(label.ranks[i] for i in order))
    moved = [f"{{{chr(ord('A') + list(order).index(old))}}}" for old in range(len(order))]
    return dataclasses.replace(
        example,
        instruction=name_candidates(example.instruction, moved),
        **{name: name_candidates(getattr(example, name), moved) for name in ("rationale", "chosen", "rejected")},
        images=example.images[:first] + tuple(image for i in order for image in images[i]),
        candidates=tuple(candidates[i] for i in order) if example.candidates else (),
        label=label,
    )


def swapped(example: JudgeExample) -> JudgeExample:
    """The pairwise example with its two candidates, and thus its winner, exchanged. The id stays."""
    if example.kind != "pairwise" or len(candidates_of(example)) != 2 or example.label.winner not in (TIE, 0, 1):
        raise UserError(f"{example.example_id} is no pairwise example of two candidates with a winner or a tie: nothing to swap")
    return reordered(example, (1, 0))


def check_example(example: JudgeExample) -> None:
    """Raises BadRecord `wrong_fields` for the first field that does not fit the kind."""
    counts = {"pointwise_binary": (1, 1), "pointwise_score": (1, 1), "pairwise": (2, 2), "listwise": (2, 26)}
    label, candidates = example.label, candidates_of(example)
    low, high = example.score_min, example.score_max
    least, most = counts.get(example.kind, (0, 0))
    held = example.context_images + sum(candidate.images for candidate in candidates)
    problems = {
        f"kind {example.kind!r} is not one of {', '.join(KINDS)}": example.kind not in KINDS,
        f"terms {example.terms!r} is not one of {', '.join(TERMS)}": example.terms not in TERMS,
        "example_id, dataset, split, group_id and task must not be empty": not all(
            (example.example_id, example.dataset, example.split, example.group_id, example.task)
        ),
        f"{example.kind} takes {counted(least, most)}, the record has {len(candidates)}": not least <= len(candidates) <= most,
        f"{len(example.images)} images, question and candidates need {held}": len(example.images) != held,
        f"label.binary is {label.binary}, must be 0 or 1": example.kind == "pointwise_binary" and label.binary not in (0, 1),
        f"label.score is {label.score}, must be between score_min {low} and score_max {high}": example.kind == "pointwise_score"
        and (label.score is None or low is None or high is None or not low <= label.score <= high),
        f"label.winner is {label.winner}, must be 0 or 1, or {TIE} with allow_tie": example.kind == "pairwise"
        and label.winner not in ((TIE, 0, 1) if example.allow_tie else (0, 1)),
        f"label.ranks is {label.ranks}, must be {len(candidates)} ranks from 1": example.kind == "listwise"
        and (label.ranks is None or len(label.ranks) != len(candidates) or min(label.ranks) != 1),
        **_problems_of_answers(example, len(candidates)),
    }
    for text, wrong in problems.items():
        if wrong:
            raise BadRecord("wrong_fields", f"{example.example_id or 'a record without example_id'}: {text}", example.example_id)


def _problems_of_answers(example: JudgeExample, count: int) -> dict[str, bool]:
    """What may be wrong with the two answers of a record, and whether it is. count: of its candidates."""
    pair = {"chosen": example.chosen.strip(), "rejected": example.rejected.strip()}
    given, missing = ([name for name, text in pair.items() if bool(text) is held] for held in (True, False))
    letters = {chr(ord("A") + place) for place in range(count)} if count > 1 else set()
    bare = {}
    for name, text in pair.items():
        verdict = {word.strip().upper() for word in re.split("[>=]", text.rpartition("<answer>")[2].partition("</answer>")[0])}
        bare[name] = names_candidates(text, count) and "<answer>" in text and bool(verdict & letters)
    return {
        f"{''.join(given)} without {''.join(missing)}: a pair of answers needs both, or neither": len(given) == 1,
        "chosen and rejected are the same text: nothing can be learned": len(given) == 2 and pair["chosen"] == pair["rejected"],
        **{f"{name} names candidates by {{A}} but its verdict by a letter: write {{A}} there too": bare[name] for name in pair},
    }
