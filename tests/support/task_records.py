"""A record of every task, as the readers make them."""

from data_fixtures import encoded, noise

from mtjudge_jax.records import Candidate, JudgeExample, Label, check_example
from mtjudge_jax.tasks import TASKS

PICTURES = tuple(encoded(noise(i, 32, 32)) for i in range(4))


TEXT_TASKS = ("vl_rewardbench", "multimodal_rewardbench", "mllm_pair", "mllm_batch", "mllm_score")


def record(name: str, number: int = 0, tasks=TASKS, **changes) -> JudgeExample:
    """A record as the readers give it: pictures, or texts about one picture."""
    task = tasks[name]
    count = {"pairwise": 2, "listwise": 4}.get(task.kind, 1)
    texts, edit = name in TEXT_TASKS, name == "genai_edit"
    images = PICTURES[:1] if texts else PICTURES[: count + edit]
    label = {
        "pointwise_binary": Label(binary=number % 2, score=2.5),
        "pointwise_score": Label(score=1.0 + number % 5),
        "pairwise": Label(winner=number % 2),
        "listwise": Label(ranks=(2, 1, 4, 2)),
    }[task.kind]
    fields = {
        "context_images": int(texts or edit),
        "candidates": tuple(Candidate(0, f"text {i}", "MAKER") for i in range(count)) if texts else (),
        "allow_tie": task.kind == "pairwise" and len(task.labels) == 3,
        "score_min": 1.0 if task.kind == "pointwise_score" else None,
        "score_max": 5.0 if task.kind == "pointwise_score" else None,
        "label": label,
    }
    made = JudgeExample(
        f"{name}/{number}", "set", "test", f"g{number}", name, name, task.kind, "a red cup", images, **fields | changes
    )
    check_example(made)
    return made


def say(word: str, reasoning: str = "a") -> str:
    return f"<think>{reasoning}</think><answer>{word}</answer>"
