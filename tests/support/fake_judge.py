"""A judge without a model: the brighter a picture, the better. It reads questions as the real one does."""

import threading

from mtjudge_jax.errors import UserError
from mtjudge_jax.judge.engine import Answered, AskedAs
from mtjudge_jax.judge.questions import OwnQuestion, find_task, question_example
from mtjudge_jax.tasks import TASKS, Task
from mtjudge_jax.tasks.verdicts import Reply


class FakeJudge:
    """asked: what each go was asked. Hold `gate` to let the next go wait."""

    trained_tasks = ("technical", "pairwise_technical", "alignment")

    def __init__(self):
        self.asked: list[tuple[int, AskedAs]] = []
        self.gate = threading.Lock()

    def task(self, name: str) -> Task:
        return find_task(name, TASKS, self.trained_tasks)

    def ask(self, questions: list[OwnQuestion], asked: AskedAs) -> list[Answered]:
        self.asked.append((len(questions), asked))
        with self.gate:
            return [self._answer(number, question, asked) for number, question in enumerate(questions)]

    def _answer(self, number: int, question: OwnQuestion, asked: AskedAs) -> Answered:
        task = self.task(question.task)
        if asked.both_orders and task.kind != "pairwise":
            return UserError(f"both_orders is for pairs, task {task.name!r} asks {task.kind} questions: leave it out")
        try:
            example = question_example(question.images, question.instruction, question.texts, task=task, number=number)
        except UserError as error:
            return error
        light = [float(image.mean()) / 255 for image in example.images]
        if "crash" in question.instruction:
            raise RuntimeError("a bug")
        good = light[0] if len(light) == 1 else (1 + light[1] - light[0]) / 2
        shares = dict(zip(task.labels, (1 - good, good), strict=True))
        said = max(shares, key=shares.get)
        reply = Reply(said, "it is bright", f"<think>it is bright</think><answer>{said}</answer>", "", "strict", shares)
        return [reply] * (asked.samples * (1 + asked.both_orders)), task


def png(light: float, size: int = 16) -> bytes:
    """An even picture so bright, 0 to 1."""
    import io

    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), round(255 * light), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
