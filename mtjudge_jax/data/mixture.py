"""Which record comes next: pools of records, fixed mixtures of them, and the mixture that follows what the steps measured."""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import grain
import numpy as np

from mtjudge_jax.data.rows import Row
from mtjudge_jax.data.sources import RecordSource
from mtjudge_jax.errors import UserError
from mtjudge_jax.records import BadRecord, JudgeExample
from mtjudge_jax.rl import mt_grpo
from mtjudge_jax.tasks.base import Task

FIXED = ("uniform", "proportional", "temperature", "weights")


class Drawn(NamedTuple):
    """One draw from the mixture; `turned`: to be shown with the candidates of its pair exchanged."""

    task: str
    record: JudgeExample | BadRecord
    turned: bool = False


class Adapting(NamedTuple):
    """How the weights of `mt_grpo` follow the steps, see config.DataConfig."""

    lam: float = 0.6
    beta: float = 1.0
    max_oversample: float = 4.0
    rho_decay: float = 0.9


class _Pool:
    """Some records of one source, as a data source of its own."""

    def __init__(self, task: str, source: RecordSource, indices: np.ndarray):
        self._task, self._source, self._indices = task, source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Drawn:
        return Drawn(self._task, self._source[int(self._indices[index])])


def mixture(
    sources: Mapping[str, RecordSource],
    *,
    tasks: Mapping[str, Task],
    seed: int,
    balance_labels: bool = True,
    mode: str = "uniform",
    temperature: float = 1.0,
    weights: Sequence[float] = (),
    both_orders: bool = False,
) -> grain.MapDataset:
    """An endless, shuffled, deterministic sequence of `Drawn` records of several tasks.

    A pool is a task, or a (task, label) with `balance_labels`; each is shuffled anew every time it has been seen whole.
    "uniform" draws from the pools in turn, so k * pools consecutive draws hold exactly k of each pool: batches of such a
    size are exactly balanced. The others weigh each task (its labels still equally): "proportional" by its number n of
    records, "temperature" by n^(1/temperature), "weights" by `weights`, one a source.

    With `both_orders` all of this is of two draws at a time: draws 2i and 2i + 1 are of one pool, and of a task of pairs they
    are one record, the second time turned. So a batch of even size holds both orders of its pairs, and the shares of the tasks
    stay what they are without.
    """
    if mode not in FIXED:
        raise UserError(f"mixture {mode!r} is not one of {', '.join(FIXED)}")
    if mode == "weights" and len(weights) != len(sources):
        raise UserError(f"{len(weights)} mixture weights for {len(sources)} tasks: give one each")
    mixed, shares = [], []
    for number, (task, source) in enumerate(sources.items()):
        pools = open_pools(task, source, tasks[task], seed=seed, balance_labels=balance_labels)
        share = {
            "uniform": len(pools),  # pools in turn: a task of more labels comes more often
            "proportional": len(source),
            "temperature": len(source) ** (1 / temperature),
            "weights": weights[number] if mode == "weights" else 0,
        }[mode]
        mixed += [in_twos(pool, pairs=tasks[task].kind == "pairwise") for pool in pools] if both_orders else pools
        shares += [share / len(pools)] * len(pools)
    drawn = grain.MapDataset.mix(mixed, shares)
    return _OneByOne(drawn) if both_orders else drawn


def in_twos(pool: grain.MapDataset, *, pairs: bool) -> grain.MapDataset:
    """Two draws at a time: the next two, or of pairs the next one in both orders."""
    return pool.map(lambda drawn: (drawn, drawn._replace(turned=True))) if pairs else pool.batch(2, batch_fn=tuple)


class _OneByOne(grain.MapDataset):
    """The draws of a mixture of two at a time."""

    def __init__(self, twos: grain.MapDataset):
        super().__init__(twos)
        self._twos = twos

    def __len__(self) -> int:
        return min(2 * len(self._twos), sys.maxsize)

    def __getitem__(self, index: int) -> Drawn:
        return self._twos[index // 2][index % 2]


def open_pools(
    task: str, source: RecordSource, entry: Task, *, seed: int, balance_labels: bool
) -> list[grain.MapDataset]:
    """A task's endless shuffled pools: one a label, or one of all. Raises ValueError for a label without a record."""
    groups = _label_groups(source, entry) if balance_labels else {"all": np.arange(len(source))}
    for label, indices in groups.items():
        if len(indices) == 0:
            raise UserError(f"task {task} has no record with label {label!r}: set balance_labels=False or leave the task out")
    return [
        grain.MapDataset.source(_Pool(task, source, indices)).seed(_pool_seed(seed, task, label)).shuffle().repeat()
        for label, indices in groups.items()
    ]


def _pool_seed(seed: int, task: str, label: str) -> int:
    """Different for pools of equal size, which else would be shuffled alike and show the same photographs together."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{task}/{label}".encode()).digest()[:4], "little")


def _label_groups(source: RecordSource, task: Task) -> dict[str, np.ndarray]:
    """Indices of the records by label word. One pass over the records; no image is decoded.

    A record without a readable label is dealt to the labels in turn: drawn later, it is counted as bad.
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


class AdaptiveMixture:
    """Endless batches whose share of each task follows what the steps measured; this process's part of each.

    Batch t is a function of (seed, the state after step t - 1): task counts are drawn by a generator of (seed, t), each task
    goes on in its own endless shuffled stream (its labels in turn, where there is a pool a label), and the rows are shuffled
    by (seed, t). So hosts agree without a word, as long as each is told the same measurements. No batch is drawn before
    `learn` was told of the one before; from then on its rows are made in threads. Until then `more` draws further ones for the
    same step, of the tasks that are short of prompts with a gradient.

    The state is JSON: per task its position and logit, its running no-gradient rate and its last mean reward (None before the
    first); and the number of batches drawn.
    """

    def __init__(
        self,
        pools: Mapping[str, Sequence[grain.MapDataset]],
        make_row: Callable[[Drawn], Row],
        *,
        global_batch: int,
        part: slice,
        seed: int,
        how: Adapting,
        threads: int,
    ):
        self._pools, self._make_row, self._batch, self._part, self._seed = pools, make_row, global_batch, part, seed
        self._how, self._threads = how, ThreadPoolExecutor(max(1, threads))
        self._state = {"step": 0, "tasks": {name: _fresh() for name in pools}}
        self._waiting, self._pending = False, None
        self._wanted, self._round = np.zeros(len(pools), np.int64), 0

    def get_state(self) -> dict:
        return _copy(self._state)

    def set_state(self, state: dict) -> None:
        if set(state["tasks"]) != set(self._pools):
            raise UserError(f"the saved mixture is of {', '.join(state['tasks'])}, this one of {', '.join(self._pools)}")
        ordered = {name: state["tasks"][name] for name in self._pools}  # a checkpoint sorts names, the draws follow the pools
        self._state, self._waiting, self._pending = _copy({**state, "tasks": ordered}), False, None

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __next__(self) -> dict[str, np.ndarray]:
        if self._waiting:
            raise RuntimeError(f"batch {self._state['step']} was not learned from: the next one's weights are not known")
        after, wanted, rows = self._pending or self._begin()
        batch = stack_rows([row.result() for row in rows])
        self._state, self._waiting, self._pending = after, True, None
        self._wanted, self._round = wanted, 0
        return batch

    def wanted(self) -> dict[str, int]:
        """How many prompts with a gradient the present step should have, by task: the whole batch together."""
        return dict(zip(self._pools, self._wanted.tolist(), strict=True))

    def more(self, found: Mapping[str, int]) -> dict[str, np.ndarray]:
        """One more batch for the present step, of the tasks of which fewer than wanted were `found`, over-sampled as the first.

        Raises RuntimeError where no batch is being learned from, ValueError where nothing is missing.
        """
        if not self._waiting:
            raise RuntimeError("no batch is being learned from: ask for the first one of the step by next()")
        missing = np.maximum(self._wanted - np.array([found.get(name, 0) for name in self._pools]), 0)
        if not missing.any():
            raise UserError(f"found {dict(found)} is all that is wanted, {self.wanted()}: learn from it")
        after = _copy(self._state)
        rows = self._draw(after, missing, (self._seed, after["step"] - 1, 1, self._round + 1))
        batch = stack_rows([row.result() for row in rows])
        self._state, self._round = after, self._round + 1
        return batch

    def learn(self, measured: Mapping[str, Mapping[str, float]], improvement: Mapping[str, float] | None = None) -> dict:
        """Moves the weights by a step's mean `reward` and share of `zero_variance` prompts by task, and by `improvement`: the
        change of each task's objective, 0 where it has none; None takes the change of its mean reward since it was last seen.

        A task that had no usable prompt keeps its rate and its reward (0 before the first: it is drawn more) and did not
        improve. A number that is not finite leaves all as it was. Returns, by task, what the next batch is drawn by.
        """
        tasks, names = _copy(self._state)["tasks"], list(self._pools)
        gains = np.zeros(len(names))
        for i, name in enumerate(names):
            if (seen := measured.get(name)) is None:
                continue
            task, reward = tasks[name], float(seen["reward"])
            before = reward if task["reward"] is None else task["reward"]
            gains[i] = reward - before if improvement is None else improvement.get(name, 0.0)
            task["reward"] = reward
            task["rho"] = mt_grpo.running_rate(task["rho"], float(seen["zero_variance"]), self._how.rho_decay)
        logits, rewards = (np.array([tasks[name][key] or 0.0 for name in names]) for key in ("logit", "reward"))
        if np.isfinite(gains).all() and np.isfinite(rewards).all():
            moved = mt_grpo.next_logits(logits, improvement=gains, reward=rewards, lam=self._how.lam, beta=self._how.beta)
            for name, logit in zip(names, moved.tolist(), strict=True):
                tasks[name]["logit"] = logit
            self._state["tasks"] = tasks
        self._waiting, self._pending = False, self._begin()
        shown = zip(names, self._weights().tolist(), gains.tolist(), strict=True)
        return {
            name: {"weight": weight, "no_gradient": self._state["tasks"][name]["rho"], "improvement": gain}
            for name, weight, gain in shown
        }

    def _weights(self) -> np.ndarray:
        return mt_grpo.task_weights(np.array([task["logit"] for task in self._state["tasks"].values()]))

    def _begin(self) -> tuple[dict, np.ndarray, list[Future]]:
        """The state after the next batch, what is wanted of each task, and this process's rows of it in the making."""
        after, step = _copy(self._state), self._state["step"]
        wanted = mt_grpo.wanted_counts(self._weights(), self._batch, seed=self._seed, step=step)
        rows = self._draw(after, wanted, (self._seed, step, 1))
        after["step"] += 1
        return after, wanted, rows

    def _draw(self, after: dict, wanted: np.ndarray, seed: tuple[int, ...]) -> list[Future]:
        """This process's rows, in the making, of a batch in the ratio of `wanted`; moves the positions in `after`."""
        rates = np.array([task["rho"] for task in after["tasks"].values()])
        counts = mt_grpo.allocate(wanted, mt_grpo.oversampling(rates, self._how.max_oversample), self._batch)
        draws = []
        for (name, task), count in zip(after["tasks"].items(), counts.tolist(), strict=True):
            draws += [(name, task["position"] + i) for i in range(count)]
            task["position"] += count
        order = np.random.default_rng(seed).permutation(self._batch)[self._part]
        return [self._threads.submit(self._row, *draws[i]) for i in order]

    def _row(self, name: str, position: int) -> Row:
        pools = self._pools[name]
        return self._make_row(pools[position % len(pools)][position // len(pools)])


def _fresh() -> dict:
    """Even weights, and no over-sampling before there is a rate to justify it."""
    return {"position": 0, "logit": 0.0, "rho": 0.0, "reward": None}


def _copy(state: dict) -> dict:
    return {"step": state["step"], "tasks": {name: dict(task) for name, task in state["tasks"].items()}}


def stack_rows(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows of equal keys and shapes to one batch."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
