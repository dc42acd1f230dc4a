"""A trained judge to use: `Judge.from_pretrained(folder).judge(images=.., task=..)`, or `mtjudge judge` on the command line."""

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from mtjudge_jax.command import run_command
from mtjudge_jax.config import Config
from mtjudge_jax.data.records import BadRecord, JudgeExample, Label
from mtjudge_jax.evaluate import Judging, judge
from mtjudge_jax.run import JUDGE_FILE, Model, open_model, read_params
from mtjudge_jax.tasks import get_task
from mtjudge_jax.types import Params

EXTRA_TOKENS = 64  # a user's instruction may be longer than any in training
Picture = str | os.PathLike | bytes | Image.Image


class Verdict(NamedTuple):
    verdict: str | None  # one of the task's label words; None where the answer could not be read
    reasoning: str
    probabilities: dict[str, float] | None  # of each label word after this reasoning
    text: str  # the whole answer
    error: str  # why there is no verdict, or ""


class Judge:
    """A model folder ready to judge. Made by `from_pretrained`."""

    def __init__(self, model: Model, params: Params, how: Judging):
        self._model, self._params, self._how = model, params, how

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, *, batch: int = 8) -> "Judge":
        """Loads a Hugging Face folder of type qwen3_vl. Local folders only; nothing is downloaded.

        batch: questions judged at a time. Sizes come from the folder's judge.json where training left one.
        """
        cfg = judge_config(folder, batch=batch)
        cfg.data.prompt_tokens += EXTRA_TOKENS
        model = open_model(cfg)
        how = Judging(model.stages, model.fmt, batch, np.zeros(1, np.float32), cfg.reward.alpha, cfg.seed)
        return cls(model, read_params(model, cfg), how)

    def judge(self, *, images: Picture | Sequence[Picture], task: str, instruction: str = "") -> Verdict:
        """One question: `images` is one picture, or the two of a pair; a path, encoded bytes or a PIL image, never a URL.

        Raises ValueError for an unknown task, a wrong number of images, a missing instruction or an unreadable image.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        return self.judge_all([(images, instruction)], task=task)[0]

    def judge_all(self, questions: Sequence[tuple[Sequence[Picture], str]], *, task: str) -> list[Verdict]:
        """Many (images, instruction) of one task, in their order."""
        kind = get_task(task).kind
        label = Label(winner=0) if kind == "pairwise" else Label(binary=0)  # not looked at
        examples = []
        for i, (images, instruction) in enumerate(questions):
            encoded = tuple(encode(image) for image in images)
            example = JudgeExample(f"question {i}", "user", "test", "", task, task, kind, instruction, encoded, label)
            get_task(task).question_text(example.question)
            examples.append(example)
        rows = judge(self._params, examples, self._how, step=0, probabilities=True)
        for row in rows:
            if row["unusable"]:
                raise ValueError(f"{row['example_id']}: {row['error']}")
        return [Verdict(r["verdict"], r["reasoning"], r["probabilities"], r["text"], r["error"]) for r in rows]


def judge_config(folder: str | os.PathLike, *, batch: int) -> Config:
    """The settings that judging with a folder needs; its judge.json tells the sizes it was trained with."""
    cfg = Config()
    cfg.model.path = os.fspath(folder)
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = batch
    path = Path(folder) / JUDGE_FILE
    if path.is_file():
        sizes = json.loads(path.read_text())
        cfg.data.prompt_tokens, cfg.data.patches = sizes["prompt_tokens"], sizes["patches"]
        cfg.rollout.completion_tokens = sizes["completion_tokens"]
    return cfg


def encode(image: Picture) -> bytes:
    """The bytes of an image file. Raises BadRecord, which names the file, for what cannot be read."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
    path = os.fspath(image)
    if "://" in path:
        raise BadRecord("image_path", f"{path!r} looks like a URL: download it and give the file")
    if not os.path.isfile(path):
        raise BadRecord("image_path", f"no file {path!r}")
    return Path(path).read_bytes()


def main() -> None:
    verdict = Judge.from_pretrained(MODEL.value, batch=1).judge(
        images=IMAGE.value, task=TASK.value, instruction=INSTRUCTION.value
    )
    if JSON.value:
        print(json.dumps(verdict._asdict()))
        return
    print(f"verdict    {verdict.verdict or 'none: ' + verdict.error}")
    print(f"reasoning  {verdict.reasoning}")
    if verdict.probabilities:
        print("           " + ", ".join(f"{word} {p:.1%}" for word, p in verdict.probabilities.items()))


if __name__ == "__main__":
    MODEL = flags.DEFINE_string("model", None, "Hugging Face folder, e.g. runs/demo/best.", required=True)
    IMAGE = flags.DEFINE_multi_string("image", None, "Image file; give it twice for a pair.", required=True)
    TASK = flags.DEFINE_string("task", None, "Task name, e.g. technical or pairwise_safety.", required=True)
    INSTRUCTION = flags.DEFINE_string("instruction", "", "What the picture should show, for tasks that ask: 'a dog'.")
    JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
    run_command(main)
