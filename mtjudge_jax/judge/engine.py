"""Questions in, answers out: the room that each needs, the batches they go in, and what has been compiled for them."""

import math
import os
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from mtjudge_jax.data.images import TOO_LARGE
from mtjudge_jax.data.rows import DEVICE_KEYS, Row, RowFormat, bad_row, prompt_row, stack_rows
from mtjudge_jax.errors import UserError
from mtjudge_jax.eval.batches import Judging
from mtjudge_jax.eval.probabilities import branches_of
from mtjudge_jax.hosts.exchange import gather, my_rows
from mtjudge_jax.judge.answering import answer_batch, compile_batch
from mtjudge_jax.judge.questions import OwnQuestion, find_task, question_example, read_question, warnings_about
from mtjudge_jax.policy.model import Model
from mtjudge_jax.policy.programs import stage_key
from mtjudge_jax.records import BadRecord, JudgeExample, swapped
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.verdicts import Reply, turned
from mtjudge_jax.types import Params

THREADS = min(8, os.cpu_count() or 1)  # that decode and resize pictures
_EXTRA_TOKENS = 64  # a user's instruction may be longer than any in training
_EXTRA_PATCHES = 2  # times: a small or very long picture is rounded up to more patches than training had room for


class AskedAs(NamedTuple):
    """What is asked beside the questions."""

    task: str | None  # None where each question names its own
    samples: int = 1  # answers; one is the likeliest, several are drawn
    both_orders: bool = False  # of a pair
    seed: int = 0

    @property
    def orders(self) -> int:
        return 1 + self.both_orders


Answered = tuple[list[Reply], Task] | UserError  # a question's answers, or why it cannot be asked


class Call(NamedTuple):
    """What a caller wants to know: questions, how they are asked, and what their answers say. The questions name their task, so
    that those of several calls can be asked together.
    """

    questions: list[OwnQuestion]
    asked: AskedAs
    finish: Callable[[Sequence[Answered]], Any]  # given an answer to each question, in their order


class _Row(NamedTuple):
    """A question as the model is asked it."""

    number: int  # of the question, times the number of orders, plus that of the order
    example: JudgeExample
    task: Task
    fmt: RowFormat
    row: Row

    @property
    def program(self) -> tuple:
        """Rows with equal programs go through the same compiled programs, and can be in one batch if the task is the same."""
        return self.fmt.prompt_tokens, self.fmt.patch_count, self.fmt.completion_tokens, len(self.task.labels)


class Engine:
    """What every way of judging stands on. Several threads may use it at a time."""

    def __init__(self, model: Model, params: Params, how: Judging, temperature: float, trained: Sequence[str] = ()):
        self._model, self._params, self._how, self._temperature = model, params, how, temperature
        self.trained_tasks = tuple(trained)  # of the run that trained the model; () if its folder has no judge.json
        self._compiled: set[tuple] = set()
        self._warm = False

    def warm_up(self, *, tasks: Sequence[str] = (), samples: int = 1) -> None:
        """Compiles all that calls about these tasks will need (default: the tasks that the model was trained on, or all known
        ones), and judges every later batch at full size, so that no later call compiles. samples: as in those calls.
        """
        known = [self.task(name) for name in tasks or self.trained_tasks or self._how.fmt.tasks]
        known += [self._how.fmt.tasks[task.single] for task in known if task.single]
        most, rooms = self._how.batch, {}
        for task in known:
            for count in {"pairwise": (2,), "listwise": range(2, max(2, task.max_images) + 1)}.get(task.kind, (1,)):
                for fmt in _rooms(self._how.fmt, count):
                    rooms.setdefault((fmt.prompt_tokens, fmt.patch_count, fmt.completion_tokens), {})[branches_of(task)] = fmt
        temperature = self._temperatures(samples)
        for room in rooms.values():
            for branches, fmt in room.items():
                filler = stack_rows([{key: bad_row(fmt, example_id="", task="", error="")[key] for key in DEVICE_KEYS}] * most)
                compile_batch(self._params, filler, branches, self._how._replace(fmt=fmt, temperature=temperature))
        self._warm = True

    def _temperatures(self, samples: int) -> np.ndarray:
        """The likeliest answer, or several that are drawn."""
        return np.zeros(1, np.float32) if samples == 1 else np.full(samples, self._temperature, np.float32)

    def task(self, name: str | None) -> Task:
        """The task of that name; raises UserError for an unknown one."""
        return find_task(name, self._how.fmt.tasks, self.trained_tasks)

    def ask(self, questions: Iterable[Any], asked: AskedAs) -> list[Answered]:
        """The answers to each question, or why it cannot be asked. Threads prepare the next batches while one is judged."""
        if asked.samples < 1:
            raise UserError(f"samples = {asked.samples} must be at least 1")
        found: dict[int, list[Reply] | UserError] = {}
        tasks: dict[int, Task] = {}
        waiting: dict[tuple, list[_Row]] = {}
        most, begun, warned = self._how.batch, set(), set()
        shown = ((number * asked.orders + order, raw) for number, raw in enumerate(questions) for order in range(asked.orders))
        with ThreadPoolExecutor(THREADS) as pool:
            for number, row in enumerate(_in_order(pool, self._prepare, shown, asked, ahead=2 * most)):
                if isinstance(row, UserError):
                    found[number] = row
                    continue
                tasks[number] = row.task
                for text in warnings_about(row.task, self.trained_tasks, row.example.instruction):
                    if text not in warned:
                        warnings.warn(text, stacklevel=3)
                    warned.add(text)
                rows = waiting.setdefault((row.program, row.task.name), [])
                rows.append(row)
                if len(rows) == most:
                    found |= self._judge_rows(rows, most, asked)
                    begun.add(row.program)
                    rows.clear()
            for rows in filter(None, waiting.values()):
                found |= self._judge_rows(rows, self._size_for(rows, rows[0].program in begun), asked)
        return [_together(found, tasks, number, asked) for number in range(0, len(found), asked.orders)]

    def _prepare(self, numbered: tuple[int, Any], asked_for: AskedAs) -> _Row | UserError:
        """Decodes the images and makes the row, in the smallest room that holds the question."""
        place, raw = numbered
        (number, order), task_name = divmod(place, asked_for.orders), asked_for.task
        if isinstance(raw, UserError):  # a line of a file that is no question
            return raw
        own = raw.get("task") if isinstance(raw, Mapping) else (raw.task or None) if isinstance(raw, OwnQuestion) else None
        if own is None and task_name is None:
            raise UserError(f"question {number} has no task: give judge_all a task, or each question one")
        try:
            task = self.task(task_name if own is None else own)
            if asked_for.both_orders and task.kind != "pairwise":
                raise UserError(f"both_orders is for pairs, task {task.name!r} asks {task.kind} questions: leave it out")
            asked = read_question(raw, several=task.kind in ("pairwise", "listwise"))
            example = question_example(asked.images, asked.instruction, asked.texts, task=task, number=number)
            return self._row_of(swapped(example) if order else example, task, place)
        except UserError as error:
            return error

    def _row_of(self, example: JudgeExample, task: Task, number: int) -> _Row:
        parts = task.ask(example.question, example.example_id).parts
        for fmt in _rooms(self._how.fmt, len(example.images)):
            try:
                return _Row(number, example, task, fmt, prompt_row(parts, example.images, fmt, name="it", task=task))
            except BadRecord as error:
                if error.reason not in TOO_LARGE:
                    raise
                too_large = error
        remedy = str(too_large).replace("data.", "").replace("in the config", "in the model's judge.json")
        raise UserError(remedy)

    def _size_for(self, rows: list[_Row], begun: bool) -> int:
        """Of a batch that is not full: the next power of two. Behind full batches, a size that need not be compiled."""
        program, most = rows[0].program, self._how.batch
        if self._warm:
            return most
        sizes = [size for size in _ladder(shards(self._how.programs.mesh.shape), most) if size >= len(rows)]
        return next((size for size in sizes if not begun or (program, size) in self._compiled), most)

    def _judge_rows(self, rows: list[_Row], size: int, asked: AskedAs) -> dict[int, list[Reply]]:
        """The answers to at most `size` rows of one task and room, by their numbers."""
        task, fmt = rows[0].task, rows[0].fmt
        filler = bad_row(fmt, example_id="", task="", error="")
        held = [{**row.row, "uid": _content(row)} for row in rows] + [filler] * (size - len(rows))
        part = my_rows(size)
        batch = stack_rows([{key: row[key] for key in DEVICE_KEYS} for row in held[part]])
        how = self._how._replace(fmt=fmt, temperature=self._temperatures(asked.samples))
        key = stage_key(asked.seed, 0, "evaluate")
        answers = answer_batch(self._params, batch, [row.example for row in rows][part], task, how, key=key)
        self._compiled.add((rows[0].program, size))
        return {row.number: of_row for row, of_row in zip(rows, chain(*gather(answers)), strict=True)}


def _together(
    found: Mapping[int, list[Reply] | UserError], tasks: Mapping[int, Task], number: int, asked: AskedAs
) -> Answered:
    """The answers to a question in all its orders, those of the second order turned back."""
    shown = [found[number + order] for order in range(asked.orders)]
    if failed := [one for one in shown if isinstance(one, UserError)]:
        return failed[0]
    task = tasks[number]
    return [*shown[0], *(turned(answer, task) for answers in shown[1:] for answer in answers)], task


def _content(row: _Row) -> np.uint32:
    """A hash of what is asked, which seeds the sampler: equal questions draw equal answers."""
    return np.uint32(zlib.crc32(row.row["patches"].tobytes(), zlib.crc32(row.row["tokens"].tobytes())))


def _rooms(fmt: RowFormat, images: int) -> list[RowFormat]:
    """The sizes a question may be judged in, smallest first: those of the run, which hold what the run was trained on, and for
    longer texts and more pictures, larger ones for each of the images. Pictures have the limit of training.

    First come the sizes that hold them as that limit leaves them, which is what other programs do with the exported limit; then
    those in which a picture that rounding makes too large is made smaller still. A judge of an older version was trained on what
    fitted as it was, so its sizes first make no picture smaller.
    """
    images = max(1, images)
    larger = fmt._replace(
        prompt_tokens=(fmt.prompt_tokens + _EXTRA_TOKENS) * images,
        patch_count=fmt.patch_count * _EXTRA_PATCHES * images,
        completion_tokens=fmt.completion_tokens * images,
    )
    rooms = [fmt, larger]
    return [room._replace(exact=True) for room in rooms] + rooms


def _in_order(pool: ThreadPoolExecutor, call: Callable, items: Iterable[Any], *given: Any, ahead: int) -> Iterator[Any]:
    """`call(item, *given)` of each item, in order; at most `ahead` of them wait to be taken."""
    waiting: deque = deque()
    try:
        for item in items:
            waiting.append(pool.submit(call, item, *given))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for job in waiting:
            job.cancel()


def _ladder(least: int, most: int) -> list[int]:
    """Sizes of a batch: `least` times a power of two, and the largest. _ladder(1, 12) -> [1, 2, 4, 8, 12]."""
    return [least * 2**power for power in range(math.ceil(math.log2(most / least)))] + [most]


def shards(shape: Mapping[str, int]) -> int:
    """Devices over which a batch is spread."""
    return shape["data"] * shape["fsdp"] * shape["expert"]
