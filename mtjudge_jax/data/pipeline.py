"""Records to batches: the elastic training iterator, and the fixed order of an evaluation."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from mtjudge_jax.config import Config, in_both_orders
from mtjudge_jax.data.adaptive import AdaptiveMixture
from mtjudge_jax.data.mixture import Draw, fixed_mixture, open_pools
from mtjudge_jax.data.rows import Row, RowFormat, stack_rows, to_row
from mtjudge_jax.data.sources import open_split
from mtjudge_jax.records import BadRecord, JudgeExample


class Shard(NamedTuple):
    """The part of each global batch that one process makes: block `index` of `count` equal blocks."""

    index: int = 0
    count: int = 1


def train_iterator(
    folder: str | os.PathLike, fmt: RowFormat, cfg: Config, shard: Shard, *, threads: int = 2
) -> grain.DatasetIterator | AdaptiveMixture:
    """An endless iterator over this process's part of each global batch of the train split, dicts of arrays.

    The global batch is `update.prompts` for SFT, else `rollout.prompts`. `get_state()` is a dict that fits in JSON and is
    the same on every shard; `set_state()` takes it on any number of shards: shard i has the i-th block of the global batch,
    so its rows one after the other are the same batch on any number of shards. `close()` ends the reader threads. The
    mixture "mt_grpo" must learn from every batch before the next is asked for, see `AdaptiveMixture`. Where pairs are
    trained in both orders, rows 2i and 2i + 1 of a task of pairs are one pair in its two orders.

    The state says nothing about the data: compare `fingerprint`, seed and mixture before restoring it. `cfg` has passed
    `config_check.check`.
    """
    batch = cfg.update.prompts if cfg.stage == "sft" else cfg.rollout.prompts
    each, rest = divmod(batch, shard.count)
    if each < 1 or rest or not 0 <= shard.index < shard.count:
        raise ValueError(f"shard {shard.index} of {shard.count} for {batch} prompts: the shards must divide the global batch")
    if in_both_orders(cfg) and each % 2:
        raise ValueError(f"both orders of a pair need an even number of prompts on a shard, not {each}")
    sources = {name: open_split(folder, "train", name) for name in cfg.data.tasks}

    def row_of(draw: Draw) -> Row:
        return to_row(draw.record, draw.task, fmt, other_order=draw.other_order)

    if cfg.data.mixture == "mt_grpo":
        balance = cfg.data.balance_labels
        pools = {k: open_pools(v, fmt.tasks[k], seed=cfg.seed, balance_labels=balance) for k, v in sources.items()}
        part = slice(shard.index * each, (shard.index + 1) * each)
        return AdaptiveMixture(pools, row_of, cfg, batch=batch, part=part, threads=threads)
    draws = fixed_mixture(sources, fmt.tasks, cfg)
    elastic = grain.experimental.ElasticIterator(
        _InBlocks(draws, batch, shard.count).map(row_of),
        batch,
        grain.sharding.ShardOptions(shard.index, shard.count),
        # An element is a whole batch here, so the default buffer of 500 would be gigabytes.
        read_options=grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads),
    )
    return iter(elastic)


class _InBlocks(grain.MapDataset):
    """Each global batch in the order that gives shard i its i-th block: ElasticIterator deals row j to shard j % shards."""

    def __init__(self, draws: grain.MapDataset, batch: int, shards: int):
        super().__init__(draws)
        self._draws, self._batch, self._shards = draws, batch, shards

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, index: int) -> Draw:
        start, row = index - index % self._batch, index % self._batch
        return self._draws[start + row % self._shards * (self._batch // self._shards) + row // self._shards]


def eval_batches(
    examples: Sequence[JudgeExample], *, batch: int, fmt: RowFormat, part: slice = slice(None)
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `batch` rows in the order of `examples`; filler rows of weight 0 without an error complete the last one.

    part: which rows of each batch to make, those of this process.
    """
    filler = to_row(BadRecord("padding", ""), "", fmt) | {"error": np.str_("")}
    for start in range(0, len(examples), batch):
        chunk = [*examples[start : start + batch], *[None] * (start + batch - len(examples))]
        yield stack_rows([filler if example is None else to_row(example, example.task, fmt) for example in chunk[part]])
