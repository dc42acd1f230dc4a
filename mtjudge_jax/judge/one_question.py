"""`mtjudge judge`: judges one question from the command line."""

import json
import sys
import warnings
from collections.abc import Sequence

from mtjudge_jax.config import get_tasks
from mtjudge_jax.judge.judge import Judge
from mtjudge_jax.judge.questions import find_task, question_example
from mtjudge_jax.policy.judge_file import judge_config, judge_tasks
from mtjudge_jax.policy.model import model_folder
from mtjudge_jax.tasks import Task


def print_verdict(
    model: str,
    images: Sequence[str],
    *,
    task: str | None,
    instruction: str,
    as_json: bool,
    dtype: str | None,
    mesh: list[str],
    samples: int,
    both_orders: bool,
) -> None:
    """Judges and prints the verdict. A question that cannot be asked raises UserError, before the weights are read."""
    cfg = judge_config(model, batch=1)
    folder = model_folder(cfg.model.path, said="--model=")  # read judge.json first: it defines the run's own tasks
    asked = find_task(task, get_tasks(cfg), judge_tasks(folder))
    pixels = question_example(images, instruction, task=asked, number=0).images
    judge = Judge.from_pretrained(model, batch=1, dtype=dtype, mesh=mesh or None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        votes = {"samples": samples, "both_orders": both_orders}
        verdict = judge.judge(images=pixels, task=asked.name, instruction=instruction, **votes)
    for text in dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning):
        print(f"warning: {text}", file=sys.stderr)
    if as_json:
        print(json.dumps(verdict._asdict()))
        return
    print(f"verdict    {verdict.verdict or 'none: ' + verdict.error}{_winner(verdict.verdict, asked)}")
    print(f"reasoning  {verdict.reasoning}")
    if verdict.probabilities:
        print("           " + ", ".join(f"{word} {p:.1%}" for word, p in verdict.probabilities.items()))
    if verdict.agreement is not None:
        print(f"agreement  {verdict.agreement:.0%} of the answers")
    if verdict.score_expected is not None and asked.kind == "pointwise_score":
        print(f"expected   {verdict.score_expected:.2f}, the mean grade under these probabilities")


def _winner(verdict: str | None, task: Task) -> str:
    """Which candidate a verdict about a pair means, where its word alone may not tell."""
    if task.kind != "pairwise" or verdict not in task.labels or verdict in ("first", "second"):
        return ""
    return (", the first is better", ", the second is better", "")[task.labels.index(verdict)]
