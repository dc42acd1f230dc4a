"""A user's own task, made from an entry in the config without any code."""

import dataclasses
import math
import re

from mtjudge_jax.errors import UserError
from mtjudge_jax.records import KINDS, SHORT_KINDS, lone_surrogate
from mtjudge_jax.tasks.base import LETTERS, NO_YES, RANKING, TIE_WORD, Form, Task, Wordings, check_words, pair_words

_METRICS = ("macro_f1", "accuracy")
_MAX_GRADES = 101
_SLOT = re.compile(r"\{[a-z_]+\}")


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """`data.custom_tasks = ({"name": "blur", "kind": "pointwise_binary", "question": "Is the image blurred?"},)`."""

    name: str  # letters, digits and _
    kind: str  # binary | graded | pairwise | listwise, or the long names pointwise_binary ..
    question: str
    criterion: str = ""  # "The criterion is: ..", before the question
    rubric: str = ""  # in place of that sentence
    labels: tuple[str, ...] = ()  # answer words: of the classes 0 and 1 of a binary task, of the two candidates of a pair
    metric: str = ""  # macro_f1 | accuracy: which score the tables show; "" = that of its kind
    instruction: str = ""  # the prompt's name for the records' instruction; "" hides it
    noun: str = "Image"  # what a candidate of a pair or a list is called
    allow_tie: bool = False  # of a pair
    score_min: int = 1  # whole grades of a graded task
    score_max: int = 5
    paraphrases: tuple[str, ...] = ()  # more wordings of the question
    held_out: tuple[str, ...] = ()  # wordings for evaluation only
    flipped: tuple[str, ...] = ()  # wordings of a binary task or a pair that ask for the opposite class
    ood: bool = False  # for evaluation only
    max_images: int = 0  # most candidates of a list; 0 = any number
    max_pixels: int = 0  # in place of data.max_pixels, for the pictures of this task; 0 = that
    min_pixels: int = 0  # in place of data.min_pixels


def custom_task(raw: dict, known: tuple[str, ...]) -> Task:
    """The task of an entry. Raises UserError for an invalid entry."""
    entry = _read_entry(raw)
    where = f"data.custom_tasks: {entry.name!r}"
    if entry.name in known:
        raise UserError(f"{where} is the name of another task: choose a new one")
    if not entry.name.isidentifier():
        raise UserError(f"{where} must be letters, digits and _: folders and columns are named after it")
    if entry.kind not in KINDS:
        raise UserError(f"{where}: kind {entry.kind!r} is not one of {', '.join((*KINDS, *SHORT_KINDS))}")
    if not entry.question.strip():
        raise UserError(f"{where}: its question is empty")
    for text in (entry.question, *entry.paraphrases, *entry.flipped, *entry.held_out):
        if slot := _SLOT.search(text):
            remedy = 'leave it out and set "instruction": "Description", which shows each row\'s text under that name'
            raise UserError(f"{where}: {slot[0]} in {text!r:.80} would be asked as it is: {remedy}")
    if entry.metric and entry.metric not in _METRICS:
        raise UserError(f"{where}: metric {entry.metric!r} is not one of {', '.join(_METRICS)}")
    labels, words = _labels(entry, where)
    forms = [Form(text) for text in (entry.question, *entry.paraphrases)]
    forms += [Form(text, flipped=True) for text in entry.flipped] + [Form(text, held_out=True) for text in entry.held_out]
    rubric = entry.rubric or (f"The criterion is: {entry.criterion}." if entry.criterion else "")
    label = entry.instruction.strip().removesuffix(":").rstrip()  # the prompt writes its own colon
    wordings = Wordings(tuple(forms), words, rubric, label, entry.noun)
    metric = entry.metric or ("macro_f1" if entry.kind == "pointwise_binary" else "accuracy")
    if min(entry.max_pixels, entry.min_pixels) < 0 or 0 < entry.max_pixels < entry.min_pixels:
        pixels = f"max_pixels = {entry.max_pixels} and min_pixels = {entry.min_pixels}"
        raise UserError(f"{where}: {pixels} must be areas with min_pixels <= max_pixels, or 0 for those of data")
    pictures = {"max_images": entry.max_images, "max_pixels": entry.max_pixels, "min_pixels": entry.min_pixels}
    return Task(entry.name, entry.kind, "", labels, metric, entry.ood, wordings=wordings, **pictures, entry=raw)


def _read_entry(raw: dict) -> TaskEntry:
    """An entry with every field of the right type. Raises UserError that names the first wrong field."""
    fields = {f.name: f for f in dataclasses.fields(TaskEntry)}
    if not isinstance(raw, dict):
        raise UserError(f"data.custom_tasks: {raw!r} is a {type(raw).__name__}, it must be a dict with {', '.join(fields)}")
    name = raw.get("name", "an entry without name")
    for key, value in raw.items():
        if key not in fields:
            raise UserError(f"data.custom_tasks: {name!r} has the unknown field {key!r}: known are {', '.join(fields)}")
        kind = fields[key].type
        texts = kind == tuple[str, ...]
        right = isinstance(value, (tuple, list)) and all(isinstance(v, str) for v in value) if texts else type(value) is kind
        if not right:
            wanted = "a list of str" if texts else kind.__name__
            raise UserError(f"data.custom_tasks: {name!r}: {key} = {value!r} is a {type(value).__name__}, it must be {wanted}")
        for text in value if texts else [value] * (kind is str):
            if found := lone_surrogate(text):
                raise UserError(f"data.custom_tasks: {name!r}: {key} is no Unicode text: {found}; write it anew in UTF-8")
    if missing := [key for key in ("name", "kind", "question") if key not in raw]:
        raise UserError(f"data.custom_tasks: {name!r} has no {', '.join(missing)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return TaskEntry(**given | {"kind": SHORT_KINDS.get(raw["kind"], raw["kind"])})


def _labels(entry: TaskEntry, where: str) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The label words in results, and the alternative answer words."""
    if entry.labels and entry.kind in ("pointwise_score", "listwise"):
        raise UserError(f"{where}: a {entry.kind} task has no labels of its own: leave them out")
    if entry.labels and (len(entry.labels) != 2 or any("<" in word or len(word) > 60 for word in entry.labels)):
        raise UserError(f"{where}: labels {entry.labels} must be two short words without <")
    if entry.labels:
        check_words(entry.name, entry.labels)
    if entry.kind == "pointwise_binary":
        labels = entry.labels or NO_YES
        return labels, (labels,)
    if entry.kind == "pairwise":
        words = pair_words(tie=entry.allow_tie)
        own = (*entry.labels, TIE_WORD) if entry.labels and entry.allow_tie else entry.labels
        return own or words[0], (own,) if own else words
    if entry.kind == "listwise":
        return RANKING, (LETTERS,)
    low, high = entry.score_min, entry.score_max
    if not 1 <= high - low < _MAX_GRADES or not math.isfinite(low):
        raise UserError(f"{where}: score_min {low} and score_max {high} must be 1 to {_MAX_GRADES - 1} grades apart")
    grades = tuple(str(grade) for grade in range(low, high + 1))
    return grades, (grades,)
