"""`mtjudge judge`: judges one question from the command line."""

import json
from collections.abc import Sequence

from mtjudge_jax.config import get_tasks
from mtjudge_jax.data.images import decode_image
from mtjudge_jax.errors import UserError
from mtjudge_jax.judge.judge import Judge, question_example
from mtjudge_jax.policy.judge_file import judge_config
from mtjudge_jax.policy.model import model_folder
from mtjudge_jax.records import BadRecord
from mtjudge_jax.tasks import get_task


def print_verdict(model: str, images: Sequence[str], *, task: str, instruction: str, as_json: bool) -> None:
    """Judges and prints the verdict. A question that cannot be asked raises UserError, before the weights are read."""
    cfg = judge_config(model, batch=1)
    model_folder(cfg.model.path, said="--model=")  # read judge.json first: it defines the run's own tasks
    question = question_example(images, instruction, task=get_task(task, get_tasks(cfg)), number=0)
    for path, data in zip(images, question.images, strict=True):
        try:
            decode_image(data)
        except BadRecord as error:
            raise UserError(f"{path}: {error}") from error
    verdict = Judge.from_pretrained(model, batch=1).judge(images=question.images, task=task, instruction=instruction)
    if as_json:
        print(json.dumps(verdict._asdict()))
        return
    print(f"verdict    {verdict.verdict or 'none: ' + verdict.error}")
    print(f"reasoning  {verdict.reasoning}")
    if verdict.probabilities:
        print("           " + ", ".join(f"{word} {p:.1%}" for word, p in verdict.probabilities.items()))
