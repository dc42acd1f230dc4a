"""Records to batches: the mixture of tasks, the elastic training iterator and the fixed order of an evaluation."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from mtjudge_jax.data.images import ImageConfig
from mtjudge_jax.data.mixture import FIXED, Adapting, AdaptiveMixture, Drawn, mixture, open_pools, stack_rows
from mtjudge_jax.data.rows import Row, bad_row, make_row, make_target
from mtjudge_jax.data.sources import BadRowCounter, RecordSource, fingerprint, open_split, read_manifest, read_split
from mtjudge_jax.data.tokenizer import Tokenizer
from mtjudge_jax.errors import UserError
from mtjudge_jax.records import BadRecord, JudgeExample, swapped
from mtjudge_jax.tasks.base import Task

__all__ = [
    "MIXTURES",
    "Adapting",
    "BadRowCounter",
    "RecordSource",
    "RowFormat",
    "eval_batches",
    "fingerprint",
    "mixture",
    "open_split",
    "read_manifest",
    "read_split",
    "stack_rows",
    "to_row",
    "train_iterator",
]

MIXTURES = (*FIXED, "mt_grpo")
MAX_ERROR = 300  # characters of an error kept in a row
TURNED = np.uint32(1 << 31)  # the other order of a pair has other random numbers, or its answers would be drawn alike


class RowFormat(NamedTuple):
    """What turns a record into a row of fixed shapes.

    With `target`, a row also has `target` int32 [C] and `target_mask` bool [C]: the tokens of the completion that
    `target(example)` returns, for supervised training. It is called from several threads. With `display`, candidates of a
    pair or a list are shown in an order by hash, never the stored one, which may say which is better.
    """

    tasks: Mapping[str, Task]
    tokenizer: Tokenizer
    image_cfg: ImageConfig
    prompt_tokens: int
    patch_count: int
    completion_tokens: int = 0
    target: Callable[[JudgeExample], str] | None = None
    display: bool = False


def to_row(record: JudgeExample | BadRecord, task: str, fmt: RowFormat, *, turned: bool = False) -> Row:
    """The row of a record, or a row of weight 0 that says why there is none. Never raises on the record's account.

    turned: shows the candidates of a pair in the other order.
    """
    shapes = {"tokenizer": fmt.tokenizer, "image_cfg": fmt.image_cfg}
    shapes |= {"prompt_tokens": fmt.prompt_tokens, "patch_count": fmt.patch_count}
    target = np.full(fmt.completion_tokens, fmt.tokenizer.pad, np.int32)
    target_mask = np.zeros(fmt.completion_tokens, bool)
    try:
        if isinstance(record, BadRecord):
            raise record
        if fmt.display and record.task in fmt.tasks:
            record = displayed(record, fmt.tasks[record.task])
        row = make_row(exchanged(record) if turned else record, tasks=fmt.tasks, **shapes)
        if turned:
            row["uid"] ^= TURNED
        if fmt.target is not None:
            target, target_mask = make_target(fmt.target(record), fmt.tokenizer, fmt.completion_tokens)
    except BadRecord as e:
        row = bad_row(example_id=record.example_id, task=task, error=str(e)[:MAX_ERROR], **shapes)
    if fmt.target is None:
        return row
    return {**row, "target": target, "target_mask": target_mask}


def displayed(example: JudgeExample, task: Task) -> JudgeExample:
    """The example in the order shown. Raises BadRecord `wrong_fields` where it cannot be ordered."""
    try:
        return task.displayed(example)
    except ValueError as e:
        raise BadRecord("wrong_fields", str(e), example.example_id) from e


def exchanged(example: JudgeExample) -> JudgeExample:
    """The pair in its other order. Raises BadRecord `wrong_fields` where it is none."""
    try:
        return swapped(example)
    except ValueError as e:
        raise BadRecord("wrong_fields", str(e), example.example_id) from e


def train_iterator(
    *,
    data: str | os.PathLike,
    split: str,
    task_names: Sequence[str],
    fmt: RowFormat,
    global_batch: int,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
    balance_labels: bool = True,
    mode: str = "uniform",
    temperature: float = 1.0,
    weights: Sequence[float] = (),
    both_orders: bool = False,
    adapting: Adapting | None = None,
    threads: int = 2,
) -> grain.DatasetIterator | AdaptiveMixture:
    """An endless iterator over this process's part of each global batch: dicts of arrays led by global_batch/shard_count.

    `get_state()` is a dict that fits in JSON and is the same on every shard; `set_state()` takes it on any number of
    shards: shard i has the i-th block of the global batch, so that its rows one after the other are the same batch on any
    number of shards. `close()` ends the reader threads. mode: one of MIXTURES, see `mixture` for the fixed ones; "mt_grpo" takes
    `adapting`, and every batch must be learned from before the next is asked for, see `AdaptiveMixture`. With `both_orders`,
    which "mt_grpo" does not take, rows 2i and 2i + 1 of a task of pairs are one pair in its two orders.

    The position says nothing of the data: compare `fingerprint`, seed and mixture before restoring it.
    """
    if global_batch < 1 or shard_count < 1 or global_batch % shard_count:
        raise UserError(f"global batch {global_batch} must be a positive multiple of the {shard_count} data shards")
    if not 0 <= shard_index < shard_count:
        raise UserError(f"shard_index {shard_index} is outside 0..{shard_count - 1}")
    if not task_names:
        raise UserError("no task to train on: task_names is empty")
    if both_orders and (mode not in FIXED or global_batch // shard_count % 2):
        here = f"mixture {mode!r} with {global_batch // shard_count} rows a shard"
        raise UserError(f"both orders need one of {', '.join(FIXED)} and an even number of rows, not {here}")
    sources = {name: open_split(data, split, name) for name in task_names}
    if mode == "mt_grpo":
        each = global_batch // shard_count
        return AdaptiveMixture(
            {k: open_pools(k, v, fmt.tasks[k], seed=seed, balance_labels=balance_labels) for k, v in sources.items()},
            lambda draw: to_row(draw.record, draw.task, fmt),
            global_batch=global_batch,
            part=slice(shard_index * each, (shard_index + 1) * each),
            seed=seed,
            how=adapting or Adapting(),
            threads=threads,
        )
    fixed = {"balance_labels": balance_labels, "mode": mode, "temperature": temperature, "weights": weights}
    drawn = mixture(sources, tasks=fmt.tasks, seed=seed, both_orders=both_orders, **fixed)
    rows = _InBlocks(drawn, global_batch, shard_count).map(lambda draw: to_row(draw.record, draw.task, fmt, turned=draw.turned))
    elastic = grain.experimental.ElasticIterator(
        rows,
        global_batch,
        grain.sharding.ShardOptions(shard_index, shard_count),
        # An element is a whole batch here, so the default buffer of 500 would be gigabytes.
        read_options=grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads),
    )
    return iter(elastic)


class _InBlocks(grain.MapDataset):
    """Each global batch in the order that gives shard i its i-th block: ElasticIterator deals row j to shard j % shards."""

    def __init__(self, drawn: grain.MapDataset, batch: int, shards: int):
        super().__init__(drawn)
        self._drawn, self._batch, self._shards = drawn, batch, shards

    def __len__(self) -> int:
        return len(self._drawn)

    def __getitem__(self, index: int) -> Drawn:
        start, row = index - index % self._batch, index % self._batch
        return self._drawn[start + row % self._shards * (self._batch // self._shards) + row // self._shards]


def eval_batches(
    examples: Sequence[JudgeExample], *, batch: int, fmt: RowFormat, part: slice = slice(None)
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `batch` rows in the order of `examples`; the last is filled up with rows of weight 0 and no error.

    part: which rows of each batch are made, those of this process.
    """
    if batch < 1:
        raise UserError(f"evaluation batch is {batch}, must be at least 1")
    filler = to_row(BadRecord("padding", ""), "", fmt) | {"error": np.str_("")}
    for start in range(0, len(examples), batch):
        chunk = [*examples[start : start + batch], *[None] * (start + batch - len(examples))]
        yield stack_rows([filler if example is None else to_row(example, example.task, fmt) for example in chunk[part]])
