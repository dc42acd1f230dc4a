"""A trained judge in your own program: `Judge.from_pretrained(folder).judge(images=.., task=..)`."""

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.config_check import mesh_shape
from mtjudge_jax.data.rows import DEVICE_KEYS, Row, RowFormat, bad_row, prompt_row, stack_rows
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.eval.batches import Judging, judge_batch
from mtjudge_jax.hosts.exchange import gather, my_rows
from mtjudge_jax.jax_setup import check_platform
from mtjudge_jax.judge.pictures import Picture
from mtjudge_jax.judge.questions import (
    OwnQuestion,
    as_pictures,
    find_task,
    listed,
    question_example,
    read_question,
    untrained,
    with_instructions,
)
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config
from mtjudge_jax.policy.judge_file import judge_config, judge_tasks, mesh_of
from mtjudge_jax.policy.model import Model, eval_format, model_folder, open_model, read_params
from mtjudge_jax.policy.programs import stage_key
from mtjudge_jax.records import BadRecord, JudgeExample
from mtjudge_jax.tasks import Task
from mtjudge_jax.types import Params

_EXTRA_TOKENS = 64  # a user's instruction may be longer than any in training
_EXTRA_PATCHES = 2  # times: a small or very long picture is rounded up to more patches than in training
_THREADS = min(8, os.cpu_count() or 1)  # that decode and resize pictures
_DTYPES = ("float32", "bfloat16")


class Verdict(NamedTuple):
    verdict: str | None  # one of the task's labels; None if the answer could not be read, or the question not asked
    reasoning: str
    probabilities: dict[str, float] | None  # of each label, after this reasoning
    text: str  # the whole answer
    error: str  # why there is no verdict, else ""
    probability: float | None  # of the verdict
    parse: str  # "strict": exactly the required form; "lenient": a verdict in another form; "invalid": no verdict
    score_expected: float | None = None  # the mean grade; of a task without grades, the probability of its second label


class _Row(NamedTuple):
    """A question as the model is asked it."""

    number: int
    example: JudgeExample
    task: Task
    fmt: RowFormat
    row: Row

    @property
    def program(self) -> tuple:
        """Rows with equal programs go through the same compiled programs, and can be in one batch if the task is the same."""
        return self.fmt.prompt_tokens, self.fmt.patch_count, self.fmt.completion_tokens, len(self.task.labels)


class Judge:
    """A loaded model that judges. Made by `from_pretrained`. Several threads may use it at a time."""

    def __init__(self, model: Model, params: Params, how: Judging, trained: Sequence[str] = ()):
        self._model, self._params, self._how = model, params, how
        self.trained_tasks = tuple(trained)  # of the run that trained the model; () if its folder has no judge.json
        self._compiled: set[tuple] = set()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike,
        *,
        batch: int = 8,
        dtype: str | None = None,
        mesh: Mapping[str, int] | str | None = None,
    ) -> "Judge":
        """Loads a Hugging Face folder of type qwen3_vl from a disk or a bucket (gs://bucket/folder), never from the hub.

        batch: most questions judged at a time; fewer take the next power of two. dtype: "float32" or "bfloat16", of weights and
        computation, by default the one in config.json (float32 for float16, which it holds exactly). mesh: devices along axes,
        as {"fsdp": 4} or "fsdp=4"; by default all devices share the weights. The sizes of a question are those of the folder's
        judge.json, if it has one.
        """
        check_platform()
        if batch < 1:
            raise ConfigError(f"batch = {batch} must be at least 1")
        cfg = judge_config(folder, batch=batch)
        model_cfg = load_config(model_folder(cfg.model.path))
        cfg.model.dtype = _dtype_of(model_cfg) if dtype is None else dtype
        if cfg.model.dtype not in _DTYPES:
            raise ConfigError(f"dtype = {dtype!r}: give {' or '.join(map(repr, _DTYPES))}")
        cfg.mesh = _all_devices(model_cfg) if mesh is None else mesh_of(mesh)
        shards = _shards(mesh_shape(cfg.mesh, jax.device_count()))
        cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = -(-batch // shards) * shards
        model = open_model(cfg)
        fmt = eval_format(model, cfg)
        how = Judging(model.programs, fmt, cfg.rollout.prompts, np.zeros(1, np.float32), cfg.reward.alpha, cfg.seed)
        return cls(model, read_params(model, cfg), how, judge_tasks(cfg.model.path))

    def judge(
        self, *, images: Picture | Sequence[Picture], task: str, instruction: str = "", texts: Sequence[str] = ()
    ) -> Verdict:
        """Judges one question. `images` is one picture, or those of a pair or a list: a path, encoded bytes, a PIL image or a
        uint8 array [h, w, 3] or [3, h, w], never a URL.

        texts: the candidates, if the task judges texts; the images are then what the texts are about. task: one of the package,
        or of the run that trained the model. Raises UserError for an unknown task, a wrong number of images, a missing
        instruction, a text that is no Unicode and an unreadable image.
        """
        (found,) = self._judge([OwnQuestion(as_pictures(images), instruction, texts)], task)
        if isinstance(found, UserError):
            raise found
        return found

    def judge_all(
        self,
        questions: Iterable[Any] | None = None,
        *,
        task: str | None = None,
        images: Iterable[Any] | None = None,
        instruction: str | Sequence[str] = "",
    ) -> list[Verdict]:
        """Judges many questions in batches; returns the verdicts in their order.

        A question is a picture, a tuple (pictures, instruction) or (pictures, instruction, texts), or a dict with `image` or
        `images`, `instruction` (or `text`), `texts` and `task`. For a task of pairs, ("a.jpg", "b.jpg") is one too. Instead,
        `images` holds the pictures of each question and `instruction` one text, or one for each. An array [n, h, w, 3] is n
        pictures.

        A question that cannot be asked gets a verdict None with the reason in `error`, beginning with its number, and a warning.
        Raises UserError for an unknown task and for questions in no such form at all.
        """
        if (questions is None) == (images is None):
            raise UserError("judge_all takes questions or images: give one of them")
        asked = with_instructions(images, instruction) if questions is None else listed(questions)
        if task is not None:
            self._task(task)  # also where there is no question
        found = self._judge(asked, task)
        failed = {i: f"question {i}: {one}" for i, one in enumerate(found) if isinstance(one, UserError)}
        if failed:
            first = next(iter(failed.values()))
            warnings.warn(f"{len(failed)} of {len(found)} questions were not judged: {first}", stacklevel=2)
        return [Verdict(None, "", None, "", failed[i], None, "invalid") if i in failed else one for i, one in enumerate(found)]

    def _task(self, name: str | None) -> Task:
        return find_task(name, self._how.fmt.tasks, self.trained_tasks)

    def _judge(self, questions: Iterable[Any], task: str | None) -> list[Verdict | UserError]:
        """A verdict for each question, or why it cannot be asked. Threads prepare the next batches while one is judged."""
        found: dict[int, Verdict | UserError] = {}
        waiting: dict[tuple, list[_Row]] = {}
        most, begun, warned = self._how.batch, set(), set()
        with ThreadPoolExecutor(_THREADS) as pool:
            for number, row in enumerate(_in_order(pool, self._prepare, enumerate(questions), task, ahead=2 * most)):
                if isinstance(row, UserError):
                    found[number] = row
                    continue
                if row.task.name not in warned and (text := untrained(row.task.name, self.trained_tasks)):
                    warnings.warn(text, stacklevel=3)
                warned.add(row.task.name)
                rows = waiting.setdefault((row.program, row.task.name), [])
                rows.append(row)
                if len(rows) == most:
                    found |= self._judge_rows(rows, most)
                    begun.add(row.program)
                    rows.clear()
            for rows in filter(None, waiting.values()):
                found |= self._judge_rows(rows, self._size_for(rows, rows[0].program in begun))
        return [found[number] for number in sorted(found)]

    def _prepare(self, numbered: tuple[int, Any], task_name: str | None) -> _Row | UserError:
        """Decodes the images and makes the row, in the smallest room that holds the question."""
        number, raw = numbered
        own = raw.get("task") if isinstance(raw, Mapping) else None
        if own is None and task_name is None:
            raise UserError(f"question {number} has no task: give judge_all a task, or each question one")
        try:
            task = self._task(task_name if own is None else own)
            asked = read_question(raw, several=task.kind in ("pairwise", "listwise"))
            example = question_example(asked.images, asked.instruction, asked.texts, task=task, number=number)
            return self._row_of(example, task, number)
        except UserError as error:
            return error

    def _row_of(self, example: JudgeExample, task: Task, number: int) -> _Row:
        parts = task.ask(example.question, example.example_id).parts
        for fmt in _rooms(self._how.fmt, len(example.images)):
            try:
                return _Row(number, example, task, fmt, prompt_row(parts, example.images, fmt, name="it"))
            except BadRecord as error:
                if error.reason not in ("prompt_too_long", "too_many_patches"):
                    raise
                too_large = error
        remedy = str(too_large).replace("raise data.", "raise ").replace("in the config", "in the model's judge.json")
        raise UserError(remedy)

    def _size_for(self, rows: list[_Row], begun: bool) -> int:
        """Of a batch that is not full: the next power of two. Behind full batches, a size that need not be compiled."""
        program, most = rows[0].program, self._how.batch
        shards = _shards(self._how.programs.mesh.shape)
        sizes = [size for size in _ladder(shards, most) if size >= len(rows)]
        return next((size for size in sizes if not begun or (program, size) in self._compiled), most)

    def _judge_rows(self, rows: list[_Row], size: int) -> dict[int, Verdict]:
        """The verdicts of at most `size` rows of one task and room, by their numbers."""
        task, fmt = rows[0].task, rows[0].fmt
        filler = bad_row(fmt, example_id="", task="", error="")
        held = [{**row.row, "uid": np.uint32(row.example.uid)} for row in rows] + [filler] * (size - len(rows))
        part = my_rows(size)
        batch = stack_rows([{key: row[key] for key in DEVICE_KEYS} | {"error": np.str_("")} for row in held[part]])
        how = self._how._replace(fmt=fmt)
        settings = {"key": stage_key(how.seed, 0, "evaluate"), "order": "", "probabilities": True}
        lines = judge_batch(self._params, batch, [row.example for row in rows][part], task, how, **settings)
        self._compiled.add((rows[0].program, size))
        verdicts = [Verdict(*(line[key] for key in Verdict._fields)) for line in chain(*gather(lines))]
        return {row.number: verdict for row, verdict in zip(rows, verdicts, strict=True)}


def _rooms(fmt: RowFormat, images: int) -> list[RowFormat]:
    """The sizes a question may be judged in, smallest first: those of the run, which hold what the run was trained on, and for
    what it was not, larger ones for each of the images.
    """
    images = max(1, images)
    return [
        fmt,
        fmt._replace(
            prompt_tokens=(fmt.prompt_tokens + _EXTRA_TOKENS) * images,
            patch_count=fmt.patch_count * _EXTRA_PATCHES * images,
            completion_tokens=fmt.completion_tokens * images,
        ),
    ]


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


def _ladder(shards: int, most: int) -> list[int]:
    """Sizes of a batch: shards times a power of two, and the largest. _ladder(1, 12) -> [1, 2, 4, 8, 12]."""
    return [shards * 2**power for power in range(math.ceil(math.log2(most / shards)))] + [most]


def _shards(shape: Mapping[str, int]) -> int:
    """Devices over which a batch is spread."""
    return shape["data"] * shape["fsdp"] * shape["expert"]


def _all_devices(model: Qwen3VLConfig) -> MeshConfig:
    """Every device holds its part of the weights: of the heads, as far as devices divide them, else by fsdp. Heads come first
    because a batch need not be spread over them.
    """
    local, devices = jax.local_device_count(), jax.device_count()
    tensor = math.gcd(model.text.num_kv_heads, model.text.num_heads, model.vision.num_heads, local)
    return MeshConfig(data=1, fsdp=devices // tensor, tensor=tensor)


def _dtype_of(model: Qwen3VLConfig) -> str:
    raw = [model.raw, model.raw.get("text_config", {})]
    named = [found[key] for found in raw for key in ("dtype", "torch_dtype") if found.get(key)]
    return "bfloat16" if named and named[0] == "bfloat16" else "float32"
