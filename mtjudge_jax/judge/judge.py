"""A trained judge in your own program: `Judge.from_pretrained(folder).judge(images=.., task=..)`."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from mtjudge_jax.data.images import check_depth
from mtjudge_jax.errors import UserError
from mtjudge_jax.eval.batches import Judging, judge
from mtjudge_jax.policy.judge_file import judge_config
from mtjudge_jax.policy.model import Model, eval_format, open_model, read_params
from mtjudge_jax.records import BadRecord, Candidate, JudgeExample, Label
from mtjudge_jax.tasks import Task, get_task
from mtjudge_jax.types import Params

_EXTRA_TOKENS = 64  # a user's instruction may be longer than any in training
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
Picture = str | os.PathLike | bytes | Image.Image | np.ndarray
_PICTURE = "a path, encoded bytes, a PIL image or a uint8 array [h, w, 3]"


class Verdict(NamedTuple):
    verdict: str | None  # one of the task's labels; None if the answer could not be read
    reasoning: str
    probabilities: dict[str, float] | None  # of each label, after this reasoning
    text: str  # the whole answer
    error: str  # why there is no verdict, else ""
    probability: float | None  # of the verdict
    parse: str  # "strict": exactly the required form; "lenient": a verdict in another form; "invalid": no verdict


class Judge:
    """A loaded model that judges. Made by `from_pretrained`."""

    def __init__(self, model: Model, params: Params, how: Judging):
        self._model, self._params, self._how = model, params, how

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, *, batch: int = 8) -> "Judge":
        """Loads a Hugging Face folder of type qwen3_vl from a disk or a bucket (gs://bucket/folder), never from the hub.

        batch: questions judged at a time. The longest prompt and answer are those of the folder's judge.json, if it has one.
        """
        cfg = judge_config(folder, batch=batch)
        cfg.data.prompt_tokens += _EXTRA_TOKENS
        cfg.data.patches *= 2  # a small or very long picture is rounded up to more patches than in training
        model = open_model(cfg)
        fmt = eval_format(model, cfg)
        how = Judging(model.programs, fmt, cfg.rollout.prompts, np.zeros(1, np.float32), cfg.reward.alpha, cfg.seed)
        return cls(model, read_params(model, cfg), how)

    def judge(
        self, *, images: Picture | Sequence[Picture], task: str, instruction: str = "", texts: Sequence[str] = ()
    ) -> Verdict:
        """Judges one question. `images` is one picture, or those of a pair or a list: a path, encoded bytes, a PIL image or a
        uint8 array [h, w, 3], never a URL.

        texts: the candidates, if the task judges texts; the images are then what the texts are about. task: one of the package,
        or of the run that trained the model. Raises UserError for an unknown task, a wrong number of images, a missing
        instruction and an unreadable image.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        return self.judge_all([(images, instruction, texts)], task=task)[0]

    def judge_all(self, questions: Sequence[tuple], *, task: str) -> list[Verdict]:
        """Judges many (images, instruction) or (images, instruction, texts) of one task; returns the verdicts in their order."""
        asked = get_task(task, self._how.fmt.tasks)
        examples = [question_example(*question, task=asked, number=i) for i, question in enumerate(questions)]
        rows = judge(self._params, examples, self._how, step=0, probabilities=True) if examples else []
        for row in rows:
            if row["unusable"]:
                raise UserError(f"{row['example_id']}: {row['error']}")
        return [Verdict(*(row[key] for key in Verdict._fields)) for row in rows]


def question_example(
    images: Sequence[Picture], instruction: str, texts: Sequence[str] = (), *, task: Task, number: int
) -> JudgeExample:
    """One question as a record with a placeholder label. Raises UserError if it does not fit the task."""
    encoded = tuple(image_bytes(image) for image in images)
    count = len(texts) or len(images)
    low, high = (float(task.labels[0]), float(task.labels[-1])) if task.kind == "pointwise_score" else (None, None)
    label = {
        "pairwise": Label(winner=0),
        "pointwise_score": Label(score=low),
        "listwise": Label(ranks=tuple(range(1, count + 1))),
    }.get(task.kind, Label(binary=0))
    example = JudgeExample(
        f"question {number}", "user", "test", "", task.name, task.name, task.kind, instruction, encoded, label,
        context_images=len(images) if texts else 0, candidates=tuple(Candidate(0, text) for text in texts),
        allow_tie=task.kind == "pairwise" and len(task.labels) == 3, score_min=low, score_max=high,
    )  # fmt: skip
    task.question_text(example.question)
    return example


def image_bytes(image: Picture) -> bytes:
    """The bytes of an image file. Raises BadRecord, which names the file, if it is missing or no picture."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise BadRecord("image_array", f"an array of {image.dtype} {list(image.shape)} is no picture: give {_PICTURE}")
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        check_depth(image)
        file = io.BytesIO()
        plain = image if image.mode in _PNG_MODES else image.convert("RGB")
        plain.save(file, "PNG", exif=image.getexif())  # which may hold a rotation
        return file.getvalue()
    if not isinstance(image, (str, os.PathLike)):
        raise BadRecord("image_type", f"{image!r:.60} is no picture: give {_PICTURE}")
    path = os.fspath(image)
    if "://" in path:
        raise BadRecord("image_path", f"{path!r} looks like a URL: download it and give the file")
    if not os.path.isfile(path):
        raise BadRecord("image_path", f"no file {path!r}")
    return Path(path).read_bytes()
