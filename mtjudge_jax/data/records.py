"""The one record of a judging question, and its bytes in an ArrayRecord file."""

import dataclasses
import hashlib
from typing import NamedTuple

import msgpack

SCHEMA_VERSION = 1
KINDS = ("pointwise_binary", "pairwise")


class Label(NamedTuple):
    """What is known to be true. Exactly one field is set, by the kind of the example."""

    binary: int | None = None  # pointwise_binary: 1 = the class in the question, else 0
    score: float | None = None  # pointwise_score
    winner: int | None = None  # pairwise: index of the better candidate


class Question(NamedTuple):
    """All that a prompt may be made of: the label and the rationale are not here, so they cannot leak."""

    task: str
    criterion: str
    kind: str
    instruction: str
    images: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class JudgeExample:
    """One judging question with its label.

    `images` are encoded files (PNG, JPEG or WebP) in the candidates' native order. `group_id` is the unit of leakage
    and of the bootstrap (a source photograph, a prompt): a group is never in two splits. `rationale` is a gold
    reasoning for SFT, empty where there is none.
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

    @property
    def question(self) -> Question:
        return Question(self.task, self.criterion, self.kind, self.instruction, self.images)

    @property
    def uid(self) -> int:
        """Stable 32-bit hash of the id; seeds the sampler, so samples do not depend on the batch layout."""
        return int.from_bytes(hashlib.sha256(self.example_id.encode()).digest()[:4], "little")


class BadRecord(ValueError):
    """A record that cannot be used; `reason` is a short name to count by, `example_id` says which one where it is known.

    The text is "reason: detail".
    """

    def __init__(self, reason: str, detail: str, example_id: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.example_id = example_id

    def __reduce__(self):  # the default would call __init__ with one argument, and fail in another process
        return BadRecord, (self.reason, str(self).removeprefix(f"{self.reason}: "), self.example_id)


def pack(example: JudgeExample) -> bytes:
    fields = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
    fields["label"] = example.label._asdict()
    fields["sha256"] = [hashlib.sha256(image).digest() for image in example.images]
    return msgpack.packb({"schema_version": SCHEMA_VERSION, **fields})


def unpack(data: bytes) -> JudgeExample:
    """Raises BadRecord (`unreadable_record`, `schema_version`, `image_hash`) instead of returning damaged content."""
    try:
        fields = msgpack.unpackb(data)
        version, hashes = fields.pop("schema_version"), fields.pop("sha256")
        fields["label"] = Label(**fields["label"])
        example = JudgeExample(**{**fields, "images": tuple(fields["images"])})
    except Exception as e:  # msgpack raises a dozen types on damaged bytes
        raise BadRecord("unreadable_record", f"{type(e).__name__}: {e}") from e
    if version != SCHEMA_VERSION:
        raise BadRecord("schema_version", f"record has version {version}, this code reads {SCHEMA_VERSION}")
    if [hashlib.sha256(image).digest() for image in example.images] != hashes:
        raise BadRecord("image_hash", f"{example.example_id}: image bytes differ from the hash stored at preparation")
    return example


def swapped(example: JudgeExample) -> JudgeExample:
    """The pairwise example with its two candidates, and so its winner, exchanged. The id stays."""
    if example.kind != "pairwise" or len(example.images) != 2 or example.label.winner not in (0, 1):
        raise ValueError(f"{example.example_id} is no pairwise example of two images with a winner; nothing to swap")
    label = Label(winner=1 - example.label.winner)
    return dataclasses.replace(example, images=example.images[::-1], label=label)
