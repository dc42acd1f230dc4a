"""Questions in the forms that callers write them, to records that the model can be asked."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.judge.pictures import ArrayLike, Picture, as_array, pixels_of
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.asking import example_about, one_text_each

_FIELDS = ("image", "images", "instruction", "text", "texts", "task")
# Fields of rows.jsonl that do not change what is asked: such a row is a question too.
_PASSED_OVER = (
    "id", "kind", "criterion", "label", "scale", "allow_tie", "split", "group", "rationale", "chosen", "rejected", "raters",
    "license", "terms", "meta",
)  # fmt: skip
_FORMS = "give (pictures, instruction) or (pictures, instruction, texts), with the pictures in a list, or a dict"


class OwnQuestion(NamedTuple):
    """A question about the caller's own pictures. task: "" where the caller names one for all questions."""

    images: Sequence[Picture]
    instruction: str = ""
    texts: Sequence[str] = ()
    task: str = ""


def listed(questions: Any) -> Iterable[Any]:
    """Questions one by one: a batch of pictures [n, h, w, 3] is n questions, a lone picture or dict is one."""
    if isinstance(questions, (str, os.PathLike, bytes, Image.Image, Mapping)):
        return [questions]
    if isinstance(questions, ArrayLike):
        array = as_array(questions)
        return list(array) if array.ndim == 4 else [array]
    if not isinstance(questions, Iterable):
        raise UserError(f"{questions!r:.60} is no list of questions: {_FORMS}")
    return questions


def with_instructions(images: Any, instruction: str | Sequence[str]) -> Iterator[OwnQuestion]:
    """A question for each element of `images`, a picture or a list of them. Raises UserError if the numbers differ."""
    images = [*listed(images)]
    texts = one_text_each(instruction, len(images), "elements of images")
    return (OwnQuestion(as_pictures(image), text) for image, text in zip(images, texts, strict=True))


def as_pictures(images: Any) -> Sequence[Picture]:
    return images if isinstance(images, (list, tuple)) else [images]


def read_question(raw: Any, several: bool) -> OwnQuestion:
    """A question that was written as a picture, a tuple, a list or a dict. Raises UserError for another form.

    several: whether the task takes several pictures. Then `("a.jpg", "b.jpg")` are two pictures, else one and an instruction.
    """
    if isinstance(raw, OwnQuestion):
        return raw
    if isinstance(raw, Mapping):
        return _of_dict(raw)
    if not isinstance(raw, (list, tuple)):
        return OwnQuestion([raw])
    if not raw:
        raise UserError(f"it is empty: {_FORMS}")
    first, *rest = raw
    grouped = isinstance(first, (list, tuple))
    if not rest:
        return OwnQuestion(as_pictures(first))
    texts_last = len(rest) == 2 and isinstance(rest[0], str) and isinstance(rest[1], (list, tuple))
    if not texts_last and not grouped and (several or not isinstance(rest[0], str)):
        return OwnQuestion(raw)
    if len(rest) > 2:
        raise UserError(f"it has {len(raw)} parts: {_FORMS}")
    return OwnQuestion(as_pictures(first), *rest)


def _of_dict(raw: Mapping) -> OwnQuestion:
    """`text` is the instruction; beside one, and in `texts`, it is what the task judges."""
    if strays := [name for name in raw if name not in (*_FIELDS, *_PASSED_OVER)]:
        raise UserError(unknown("field", str(strays[0]), _FIELDS))
    given = {name: value for name, value in raw.items() if value is not None}
    if "image" in given and "images" in given:
        raise UserError("it has both image and images: give one of them")
    text = given.get("text")
    texts = given.get("texts", () if text is None or "instruction" not in given else [text])
    instruction = given.get("instruction", "" if text is None else text)
    return OwnQuestion(as_pictures(given.get("image", given.get("images", ()))), instruction, texts, given.get("task", ""))


def question_example(
    images: Sequence[Picture], instruction: str, texts: Sequence[str] = (), *, task: Task, number: int
) -> JudgeExample:
    """One question as a record with a placeholder label, its images as pixels uint8 [h, w, 3]. Raises UserError if it does not
    fit the task or an image cannot be read.
    """
    return example_about([pixels_of(image) for image in images], instruction, texts, task=task, number=number)


def find_task(name: str | None, known: Mapping[str, Task], trained: Sequence[str]) -> Task:
    """The task of that name. Raises UserError, which names the tasks that the judge was trained on first."""
    if not name:
        raise UserError(f"--task is missing: name a task, e.g. --task={(*trained, 'technical')[0]}{_own(trained)}")
    if not isinstance(name, str):
        raise UserError(f"task = {name!r:.60} is a {type(name).__name__}: give the name of a task")
    if name in known:
        return known[name]
    if not trained:
        hint = "; the model's folder has no judge.json, which knows a run's own tasks: copy it from the exported judge"
        raise UserError(f"{unknown('task', name, known)}{hint}")
    near = difflib.get_close_matches(name, trained, 1) or difflib.get_close_matches(name, known, 1)
    hint = f", did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown task {name!r}{hint}{_own(trained)}")


def _own(trained: Sequence[str]) -> str:
    return f"; this judge was trained on {', '.join(trained)}" if trained else ""


def warnings_about(task: Task, trained: Sequence[str], instruction: str) -> list[str]:
    """What a caller should know of a question: that the judge never learned its task, or that its instruction is not asked."""
    said = [untrained(task.name, trained)]
    if instruction.strip() and not task.shows_instruction:
        said.append(f"the task {task.name!r} shows no instruction: what was given is not asked")
    return [*filter(None, said)]


def untrained(name: str, trained: Sequence[str]) -> str:
    """A warning about a task that the judge was not trained on, or "". Nothing is known of a folder without judge.json."""
    if not trained or name in trained:
        return ""
    return f"this judge was never trained on the task {name!r}, its verdicts may mean nothing; its tasks are {', '.join(trained)}"
