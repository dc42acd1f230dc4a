"""Which record comes next: the shuffled pools of each task, and the fixed mixtures of them."""

import hashlib
import sys
from collections.abc import Mapping
from typing import NamedTuple

import grain
import numpy as np

from mtjudge_jax.config import Config, in_both_orders
from mtjudge_jax.data.sources import RecordSource
from mtjudge_jax.errors import UserError
from mtjudge_jax.records import BadRecord, JudgeExample
from mtjudge_jax.tasks.base import Task


class Draw(NamedTuple):
    """One draw from a mixture. other_order: show the two candidates of this pair in the other order."""

    task: str
    record: JudgeExample | BadRecord
    other_order: bool = False


class _Pool:
    """Some records of one source, as a data source of its own."""

    def __init__(self, task: str, source: RecordSource, indices: np.ndarray):
        self._task, self._source, self._indices = task, source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Draw:
        return Draw(self._task, self._source[int(self._indices[index])])


def open_pools(source: RecordSource, task: Task, *, seed: int, balance_labels: bool) -> list[grain.MapDataset]:
    """A task's endless shuffled pools: one for each label, or one for all records.

    Raises UserError for a label without a record.
    """
    groups = _label_groups(source, task) if balance_labels else {"all": np.arange(len(source))}
    pools = []
    for label, indices in groups.items():
        if len(indices) == 0:
            raise UserError(
                f"task {task.name} has no record with label {label!r}: set data.balance_labels=False or leave the task out"
            )
        # A seed for each pool: two pools of equal size and seed would be shuffled alike and show the same photographs together.
        pool_seed = int.from_bytes(hashlib.sha256(f"{seed}/{task.name}/{label}".encode()).digest()[:4], "little")
        pools.append(grain.MapDataset.source(_Pool(task.name, source, indices)).seed(pool_seed).shuffle().repeat())
    return pools


def _label_groups(source: RecordSource, task: Task) -> dict[str, np.ndarray]:
    """Indices of the records by label word. One pass over the records; no image is decoded.

    Records without a readable label are dealt to the labels in turn: when drawn, they are counted as bad.
    """
    groups: dict[str, list[int]] = {word: [] for word in task.labels}
    for index in range(len(source)):
        record = source[index]
        try:
            label = index % len(task.labels) if isinstance(record, BadRecord) else task.label_index(record.label)
        except ValueError:
            label = index % len(task.labels)
        groups[task.labels[label]].append(index)
    return {word: np.array(indices, np.int64) for word, indices in groups.items()}


def fixed_mixture(sources: Mapping[str, RecordSource], tasks: Mapping[str, Task], cfg: Config) -> grain.MapDataset:
    """An endless, shuffled, deterministic sequence of `Draw`s from several tasks, by `cfg.data.mixture`.

    A pool is a task, or a (task, label) with `balance_labels`; each pool is shuffled anew after every pass over it.
    "uniform" draws from the pools in turn, so k * pools consecutive draws hold exactly k of each pool: batches of such a
    size are exactly balanced. The other mixtures weight each task (its labels still equally): "proportional" by its number
    n of records, "temperature" by n^(1/temperature), "weights" by `cfg.data.mixture_weights`, one for each source.

    A run that needs pairs in both orders draws two at a time: draws 2i and 2i + 1 are from one pool, and for a task of
    pairs they are one record in its two orders. So a batch of even size holds both orders of its pairs, and the share of
    each task does not change.
    """
    data, both_orders = cfg.data, in_both_orders(cfg)
    mixed, shares = [], []
    for number, (name, source) in enumerate(sources.items()):
        pools = open_pools(source, tasks[name], seed=cfg.seed, balance_labels=data.balance_labels)
        share = {
            "uniform": len(pools),  # pools in turn: a task with more labels comes more often
            "proportional": len(source),
            "temperature": len(source) ** (1 / data.mixture_temperature),
            "weights": data.mixture_weights[number] if data.mixture == "weights" else 0,
        }[data.mixture]
        if both_orders:
            pools = [_in_twos(pool, pairs=tasks[name].kind == "pairwise") for pool in pools]
        mixed += pools
        shares += [share / len(pools)] * len(pools)
    draws = grain.MapDataset.mix(mixed, shares)
    return _OneByOne(draws) if both_orders else draws


def _in_twos(pool: grain.MapDataset, *, pairs: bool) -> grain.MapDataset:
    """Two draws at a time: the next two records, or for pairs the next record in both orders."""
    return pool.map(lambda draw: (draw, draw._replace(other_order=True))) if pairs else pool.batch(2, batch_fn=tuple)


class _OneByOne(grain.MapDataset):
    """The draws of a mixture that draws two at a time."""

    def __init__(self, twos: grain.MapDataset):
        super().__init__(twos)
        self._twos = twos

    def __len__(self) -> int:
        return min(2 * len(self._twos), sys.maxsize)

    def __getitem__(self, index: int) -> Draw:
        return self._twos[index // 2][index % 2]
