"""What a judge task is: the words of its question and the closed set of its answers."""

import dataclasses
import hashlib

from mtjudge_jax.data.records import Label, Question

# Ends every question, so one answer form is learned by all tasks and carries over to tasks never trained on.
CONTRACT = "Think, then answer yes or no."
NO_YES = ("no", "yes")
IMAGES_OF_KIND = {"pointwise_binary": 1, "pairwise": 2}
INSTRUCTION_SLOT = "{instruction}"


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about one picture (`pointwise_binary`) or two (`pairwise`), with its answer words.

    `labels[i]` is the answer word of label index i, which is `Label.binary` (1 = the class that the question names) or
    `Label.winner` (1 = the second picture is better). `metric` is the key of the task's headline number in its score.
    `ood` marks a task that is evaluated and never trained on.
    """

    name: str
    kind: str
    template: str
    labels: tuple[str, ...] = NO_YES
    metric: str = "macro_f1"
    ood: bool = False
    single: str = ""

    def __post_init__(self):
        if self.kind not in IMAGES_OF_KIND:
            raise ValueError(f"task {self.name!r}: kind {self.kind!r} is not one of {', '.join(IMAGES_OF_KIND)}")
        # The parser compares labels in ASCII lower case, so two labels must differ there.
        folded = {label.lower() for label in self.labels}
        if len(self.labels) < 2 or len(folded) < len(self.labels) or not all(w.isascii() and w.strip() for w in folded):
            raise ValueError(f"task {self.name!r}: labels {self.labels} must be two or more different ASCII words")

    @property
    def template_hash(self) -> str:
        """16 hex digits that change with the wording or the answers; saved beside results made with them."""
        return hashlib.sha256("\0".join((self.kind, self.template, *self.labels)).encode()).hexdigest()[:16]

    def question_text(self, question: Question) -> str:
        """The question in words. Raises ValueError if its kind, number of images or instruction does not fit."""
        if question.kind != self.kind:
            raise ValueError(f"task {self.name!r} asks {self.kind} questions, got {question.kind!r}: ask another task")
        needed, got = IMAGES_OF_KIND[self.kind], len(question.images)
        if got != needed:
            raise ValueError(f"task {self.name!r} needs exactly {needed} image(s), the question has {got}")
        if INSTRUCTION_SLOT not in self.template:
            return self.template
        if not question.instruction.strip():
            raise ValueError(f"task {self.name!r} needs an instruction, the question's is empty: fill the field")
        # Not str.format: braces in an instruction are text, not fields.
        return self.template.replace(INSTRUCTION_SLOT, question.instruction)

    def label_index(self, label: Label) -> int:
        """Index in `labels` of the true answer. Raises ValueError if this kind's field is not set or out of range."""
        field = "winner" if self.kind == "pairwise" else "binary"
        index = label.winner if self.kind == "pairwise" else label.binary
        if index is None or not 0 <= index < len(self.labels):
            raise ValueError(f"task {self.name!r}: label.{field} is {index}, must be 0 to {len(self.labels) - 1}")
        return int(index)
