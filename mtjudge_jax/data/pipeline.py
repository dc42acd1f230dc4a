"""Prepared data to batches: the manifest, the records of each (split, task), which one comes next, the elastic training
iterator, and the fixed order of an evaluation.

The functions that draw import Grain themselves. It is slow to import and brings jax, which `mtjudge prepare` and `mtjudge report`
do not need to read records.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mtjudge_jax.config import Config, in_both_orders, offline
from mtjudge_jax.data.adaptive import AdaptiveMixture
from mtjudge_jax.data.bad_rows import BadRowCounter
from mtjudge_jax.data.bucket_cache import local_copy
from mtjudge_jax.data.rows import Draw, Row, RowFormat, stack_rows, to_row
from mtjudge_jax.data.tf_example import record_in
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, in_bucket
from mtjudge_jax.records import BadRecord, JudgeExample, unpack
from mtjudge_jax.tasks.base import Task

if TYPE_CHECKING:
    import grain

MANIFEST_VERSION = 2  # an entry may name its file; version 1 had none of these and plain records
_READABLE_VERSIONS = (1, 2)


class RecordSource:
    """Random access to the records of a file: `source[i]` is a JudgeExample, or the BadRecord that reading it raised.

    Reading never raises, so a damaged record reaches the counter in the loop instead of killing a reader thread.
    """

    def __init__(self, file: str | os.PathLike):
        self.file = os.fspath(file)
        if not os.path.isfile(self.file):
            raise UserError(f"{self.file} missing; prepare the data first: {_prepare_line(as_path(self.file).parents[1])}")
        # A slow import, which `mtjudge prepare --help` must not wait for.
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            self._records = ArrayRecordDataSource([self.file])
        except Exception as e:
            raise UserError(f"{self.file}: not readable as ArrayRecord ({e}); prepare the data again") from e

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> JudgeExample | BadRecord:
        place = f"{as_path(self.file).stem}[{index}]"
        try:
            return unpack(record_in(self._records[index]))
        except BadRecord as e:
            return BadRecord(e.reason, f"{place}: {e}", place)
        except Exception as e:  # a failed checksum raises RuntimeError, ValueError or IndexError, depending on the damage
            return BadRecord("damaged_record", f"{place}: {type(e).__name__}: {e}", place)

    def __repr__(self) -> str:
        return f"RecordSource({self.file!r})"


def _prepare_line(folder: AnyPath) -> str:
    """The command that makes the data folder; one that holds a user's rows is the source of another folder."""
    rows = next((kind for kind in ("jsonl", "parquet") if not in_bucket(folder) and any(folder.glob(f"*.{kind}"))), None)
    if rows is not None:
        return f"mtjudge prepare --dataset={rows} --source={folder} --out=data/{folder.name}"
    return f"mtjudge prepare --dataset=NAME --source=FOLDER --out={folder}"


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """`manifest.json` of a data folder. Raises UserError if it is missing, damaged or of another version."""
    path = as_path(folder) / "manifest.json"
    if not path.is_file():
        raise UserError(f"{path} missing; prepare the data first: {_prepare_line(path.parent)}")
    try:
        manifest = json.loads(path.read_text())
        version, files = manifest["version"], manifest["files"]
        assert all(isinstance(entry["count"], int) and isinstance(entry["sha256"], str) for entry in files.values())
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}: {e}); prepare the data again") from e
    if version not in _READABLE_VERSIONS:
        reads = " and ".join(map(str, _READABLE_VERSIONS))
        raise UserError(f"{path} has version {version}, this code reads {reads}; prepare the data again")
    return manifest


def _manifest_entry(folder: str | os.PathLike, split: str, task: str) -> dict[str, Any]:
    files = read_manifest(folder)["files"]
    name = f"{split}/{task}"
    if name not in files:
        again = f"; prepare the data again with --{split} above 0, and rows the field `group` or `split`"
        remedy = again if split in ("val", "test") else ""
        splits: dict[str, list[str]] = {}
        for one in sorted(files):
            splits.setdefault(one.partition("/")[0], []).append(one.partition("/")[2])
        has = "; ".join(f"{one} has {', '.join(tasks)}" for one, tasks in splits.items())
        raise UserError(f"{folder} has no records of {name}; {has or 'it has none'}{remedy}")
    return files[name]


def open_split(folder: str | os.PathLike, split: str, task: str) -> RecordSource:
    """The records of one task in one split.

    Raises UserError if manifest and file disagree on their number, or if the records are of another version. ArrayRecord
    reads disks only: a file in a bucket is copied once to this machine, see `local_copy`.
    """
    entry = _manifest_entry(folder, split, task)
    expected, path = entry["count"], as_path(folder) / entry.get("path", f"{split}/{task}.array_record")
    if in_bucket(path) and not path.exists():
        raise UserError(f"{path} missing; prepare the data first: {_prepare_line(as_path(folder))}")
    source = RecordSource(local_copy(path, entry["sha256"]))
    if len(source) != expected:
        raise UserError(f"{path} has {len(source)} records, the manifest says {expected}; prepare the data again")
    first = source[0] if expected else None
    if isinstance(first, BadRecord) and first.reason == "schema_version":  # then every record is: report it once
        raise UserError(f"{path}: {first}")
    return source


def fingerprint(folder: str | os.PathLike, *, tasks: Iterable[str], split: str) -> str:
    """16 hex digits that identify the content a run reads, from the manifest alone. The order of `tasks` does not matter.

    A checkpoint keeps it: Grain would silently continue with other records at the same position.
    """
    entries = [(task, _manifest_entry(folder, split, task)) for task in sorted(tasks)]
    content = [(split, task, entry["count"], entry["sha256"]) for task, entry in entries]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def read_split(folder: str | os.PathLike, split: str, task: str, counter: BadRowCounter | None = None) -> list[JudgeExample]:
    """All readable examples of one task in one split, in file order; unreadable ones are counted and logged.

    Raises TooManyBadRecords as BadRowCounter does.
    """
    counter = BadRowCounter() if counter is None else counter
    examples = []
    source = open_split(folder, split, task)
    for index in range(len(source)):
        record = source[index]
        if isinstance(record, BadRecord):
            counter.add_one(record.example_id, str(record))
        else:
            counter.add_one(record.example_id, "")
            examples.append(record)
    counter.check()
    return examples


def find_examples(folder: str | os.PathLike, split: str, task: str, ids: Iterable[str]) -> tuple[dict[str, JudgeExample], int]:
    """The examples with these ids, and the number of unreadable records met on the way. Raises UserError as `open_split`."""
    wanted, found, unreadable = set(ids), {}, 0
    source = open_split(folder, split, task)
    for index in range(len(source)):
        if len(found) == len(wanted):
            break
        record = source[index]
        if isinstance(record, BadRecord):
            unreadable += 1
        elif record.example_id in wanted:
            found[record.example_id] = record
    return found, unreadable


class Shard(NamedTuple):
    """The part of each global batch that one process makes: block `index` of `count` equal blocks."""

    index: int = 0
    count: int = 1


def train_iterator(
    folder: str | os.PathLike, fmt: RowFormat, cfg: Config, shard: Shard, *, threads: int = 2
) -> "grain.DatasetIterator | AdaptiveMixture":
    """An endless iterator over this process's part of each global batch of the train split, dicts of arrays.

    The global batch is `update.prompts` for SFT and DPO, else `rollout.prompts`. `get_state()` is a dict that fits in JSON and is
    the same on every shard; `set_state()` takes it on any number of shards: shard i has the i-th block of the global batch,
    so its rows one after the other are the same batch on any number of shards. `close()` ends the reader threads. The
    mixture "mt_grpo" must learn from every batch before the next is asked for, see `AdaptiveMixture`. Where pairs are
    trained in both orders, rows 2i and 2i + 1 of a task of pairs are one pair in its two orders.

    The state says nothing about the data: compare `fingerprint`, seed and mixture before restoring it. `cfg` has passed
    `config_check.check`.
    """
    batch = cfg.update.prompts if offline(cfg) else cfg.rollout.prompts
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
    import grain

    draws = fixed_mixture(sources, fmt.tasks, cfg)
    elastic = grain.experimental.ElasticIterator(
        grain.MapDataset.source(_InBlocks(draws, batch, shard.count)).map(row_of),
        batch,
        grain.sharding.ShardOptions(shard.index, shard.count),
        # An element is a whole batch here, so the default buffer of 500 would be gigabytes.
        read_options=grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads),
    )
    return iter(elastic)


class _InBlocks:
    """Each global batch in the order that gives shard i its i-th block: ElasticIterator deals row j to shard j % shards."""

    def __init__(self, draws: Sequence[Draw], batch: int, shards: int):
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


class _Pool:
    """Some records of one source, as a data source of its own."""

    def __init__(self, task: str, source: RecordSource, indices: np.ndarray):
        self._task, self._source, self._indices = task, source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Draw:
        return Draw(self._task, self._source[int(self._indices[index])])


def open_pools(source: RecordSource, task: Task, *, seed: int, balance_labels: bool) -> "list[grain.MapDataset]":
    """A task's endless shuffled pools: one for each label, or one for all records.

    Raises UserError for a label without a record.
    """
    import grain

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


def fixed_mixture(sources: Mapping[str, RecordSource], tasks: Mapping[str, Task], cfg: Config) -> "grain.MapDataset":
    """An endless, shuffled, deterministic sequence of `Draw`s from several tasks, by `cfg.data.mixture`.

    A pool is a task, or a (task, label) with `balance_labels`; each pool is shuffled anew after every pass over it.
    "uniform" draws from the pools in turn, so k * pools consecutive draws hold exactly k of each pool: batches of such a
    size are exactly balanced. The other mixtures weight each task (its labels still equally): "proportional" by its number
    n of records, "temperature" by n^(1/temperature), "weights" by `cfg.data.mixture_weights`, one for each source.

    A run that needs pairs in both orders draws two at a time: draws 2i and 2i + 1 are from one pool, and for a task of
    pairs they are one record in its two orders. So a batch of even size holds both orders of its pairs, and the share of
    each task does not change.
    """
    import grain

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
    return grain.MapDataset.source(_OneByOne(draws)) if both_orders else draws


def _in_twos(pool: "grain.MapDataset", *, pairs: bool) -> "grain.MapDataset":
    """Two draws at a time: the next two records, or for pairs the next record in both orders."""
    return pool.map(lambda draw: (draw, draw._replace(other_order=True))) if pairs else pool.batch(2, batch_fn=tuple)


class _OneByOne:
    """The draws of a mixture that draws two at a time."""

    def __init__(self, twos: Sequence[Sequence[Draw]]):
        self._twos = twos

    def __len__(self) -> int:
        return min(2 * len(self._twos), sys.maxsize)

    def __getitem__(self, index: int) -> Draw:
        return self._twos[index // 2][index % 2]
