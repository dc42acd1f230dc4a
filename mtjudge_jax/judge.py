"""A trained judge to use: `Judge.from_pretrained(folder).judge(images=.., task=..)`, or `mtjudge judge` on the command line."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from mtjudge_jax.command import judge_flags, run_command
from mtjudge_jax.config import Config, ConfigError
from mtjudge_jax.data.images import check_depth, decode
from mtjudge_jax.data.records import BadRecord, JudgeExample, Label
from mtjudge_jax.evaluate import Judging, judge
from mtjudge_jax.paths import as_path
from mtjudge_jax.policy import JUDGE_FILE, Model, open_model, read_params
from mtjudge_jax.tasks import get_task
from mtjudge_jax.tasks.parse import parse_strict
from mtjudge_jax.types import Params

EXTRA_TOKENS = 64  # a user's instruction may be longer than any in training
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")
Picture = str | os.PathLike | bytes | Image.Image


class Verdict(NamedTuple):
    verdict: str | None  # one of the task's label words; None where the answer could not be read
    reasoning: str
    probabilities: dict[str, float] | None  # of each label word after this reasoning
    text: str  # the whole answer
    error: str  # why there is no verdict, or ""
    probability: float | None  # of the verdict
    parse: str  # "strict": the whole form; "lenient": a verdict in another form; "invalid": no verdict


class Judge:
    """A model folder ready to judge. Made by `from_pretrained`."""

    def __init__(self, model: Model, params: Params, how: Judging):
        self._model, self._params, self._how = model, params, how

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, *, batch: int = 8) -> "Judge":
        """Loads a Hugging Face folder of type qwen3_vl, of a disk or a bucket (gs://bucket/folder); no hub is asked.

        batch: questions judged at a time. Sizes come from the folder's judge.json where training left one.
        """
        cfg = judge_config(folder, batch=batch)
        cfg.data.prompt_tokens += EXTRA_TOKENS
        cfg.data.patches *= 2  # a small or very long picture is rounded up, past the area that training saw
        model = open_model(cfg)
        how = Judging(model.stages, model.fmt, cfg.rollout.prompts, np.zeros(1, np.float32), cfg.reward.alpha, cfg.seed)
        return cls(model, read_params(model, cfg), how)

    def judge(self, *, images: Picture | Sequence[Picture], task: str, instruction: str = "") -> Verdict:
        """One question: `images` is one picture, or the two of a pair; a path, encoded bytes or a PIL image, never a URL.

        Raises ValueError for an unknown task, a wrong number of images, a missing instruction or an unreadable image.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        return self.judge_all([(images, instruction)], task=task)[0]

    def judge_all(self, questions: Sequence[tuple[Sequence[Picture], str]], *, task: str) -> list[Verdict]:
        """Many (images, instruction) of one task, in their order."""
        examples = [question_example(*question, task=task, number=i) for i, question in enumerate(questions)]
        rows = judge(self._params, examples, self._how, step=0, probabilities=True) if examples else []
        for row in rows:
            if row["unusable"]:
                raise ValueError(f"{row['example_id']}: {row['error']}")
        return [verdict_of(row, task) for row in rows]


def verdict_of(row: dict, task: str) -> Verdict:
    """The verdict of a prediction line."""
    parse = "invalid" if row["verdict"] is None else "lenient"
    if parse_strict(row["text"], get_task(task).labels).verdict is not None:
        parse = "strict"
    kept = ("verdict", "reasoning", "probabilities", "text", "error", "probability")
    return Verdict(*(row[key] for key in kept), parse)


def question_example(images: Sequence[Picture], instruction: str, *, task: str, number: int) -> JudgeExample:
    """One question as a record; its label is not looked at. Raises ValueError where it does not fit the task."""
    kind = get_task(task).kind
    label = Label(winner=0) if kind == "pairwise" else Label(binary=0)
    encoded = tuple(encode(image) for image in images)
    example = JudgeExample(f"question {number}", "user", "test", "", task, task, kind, instruction, encoded, label)
    get_task(task).question_text(example.question)
    return example


def best_of(folder: str | os.PathLike) -> str | os.PathLike:
    """The best/ of a workdir, any other folder as it is. Raises ConfigError for a workdir that has none yet."""
    path = as_path(folder)
    if (path / "best" / "config.json").is_file():
        return path / "best"
    if (path / "metrics.jsonl").is_file():
        raise ConfigError(f"{path} is the workdir of a run that has no best/ yet: give a model folder, or train on")
    return folder


def judge_config(folder: str | os.PathLike, *, batch: int) -> Config:
    """The settings that judging with a folder needs; its judge.json tells the sizes it was trained with."""
    cfg = Config()
    folder = best_of(folder)
    cfg.model.path = os.fspath(folder)
    devices = jax.device_count()
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = -(-batch // devices) * devices  # a share for each
    path = as_path(folder) / JUDGE_FILE
    if path.is_file():
        try:
            sizes = json.loads(path.read_text())
            cfg.data.prompt_tokens, cfg.data.patches = sizes["prompt_tokens"], sizes["patches"]
            cfg.rollout.completion_tokens = sizes["completion_tokens"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error!r}): copy it again, or remove it to judge with the defaults") from error
    return cfg


def encode(image: Picture) -> bytes:
    """The bytes of an image file. Raises BadRecord, which names the file, for what cannot be read."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        check_depth(image)
        file = io.BytesIO()
        plain = image if image.mode in PNG_MODES else image.convert("RGB")
        plain.save(file, "PNG", exif=image.getexif())  # which may hold a rotation
        return file.getvalue()
    path = os.fspath(image)
    if "://" in path:
        raise BadRecord("image_path", f"{path!r} looks like a URL: download it and give the file")
    if not os.path.isfile(path):
        raise BadRecord("image_path", f"no file {path!r}")
    return Path(path).read_bytes()


def main() -> None:
    question = question_example(IMAGE.value, INSTRUCTION.value, task=TASK.value, number=0)
    for path, data in zip(IMAGE.value, question.images, strict=True):  # before the model is read
        try:
            decode(data)
        except BadRecord as error:
            raise ValueError(f"{path}: {error}") from error
    judge = Judge.from_pretrained(MODEL.value, batch=1)
    verdict = judge.judge(images=question.images, task=TASK.value, instruction=INSTRUCTION.value)
    if JSON.value:
        print(json.dumps(verdict._asdict()))
        return
    print(f"verdict    {verdict.verdict or 'none: ' + verdict.error}")
    print(f"reasoning  {verdict.reasoning}")
    if verdict.probabilities:
        print("           " + ", ".join(f"{word} {p:.1%}" for word, p in verdict.probabilities.items()))


if __name__ == "__main__":
    MODEL, IMAGE, TASK, INSTRUCTION, JSON = judge_flags()
    run_command(main)
