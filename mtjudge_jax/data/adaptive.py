"""The mixture of MT-GRPO: the share of each task follows what the training steps measured."""

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from mtjudge_jax.config import Config
from mtjudge_jax.data.rows import Draw, Row, stack_rows
from mtjudge_jax.errors import UserError
from mtjudge_jax.rl import mt_grpo


class AdaptiveMixture:
    """Endless batches whose share of each task follows what the steps measured; this process's part of each batch.

    Batch t is a function of (seed, the state after step t - 1): task counts are drawn by a generator of (seed, t), each task
    continues its own endless shuffled stream (its labels in turn, if each label has a pool), and the rows are shuffled by
    (seed, t). So hosts agree without communication, as long as each one learns the same measurements. No batch is drawn
    before `learn` has had the measurements of the one before; from then on threads make its rows. Until then `more` draws
    further batches for the same step, from the tasks that are short of prompts with a gradient.

    The state is JSON: the number of batches drawn and, for each task, its position and logit, its running no-gradient rate
    and its last mean reward (None before the first).
    """

    def __init__(
        self,
        pools: Mapping[str, Sequence[Sequence[Draw]]],  # endless, shuffled
        make_row: Callable[[Draw], Row],
        cfg: Config,
        *,
        batch: int,
        part: slice,
        threads: int,
    ):
        self._pools, self._make_row, self._batch, self._part = pools, make_row, batch, part
        self._cfg, self._seed, self._threads = cfg.data, cfg.seed, ThreadPoolExecutor(max(1, threads))
        # Even weights, and no over-sampling before there is a rate to justify it.
        fresh = {"position": 0, "logit": 0.0, "rho": 0.0, "reward": None}
        self._state = {"step": 0, "tasks": {name: dict(fresh) for name in pools}}
        self._waiting, self._pending = False, None
        self._wanted, self._round = np.zeros(len(pools), np.int64), 0

    def get_state(self) -> dict:
        return copy.deepcopy(self._state)

    def set_state(self, state: dict) -> None:
        if set(state["tasks"]) != set(self._pools):
            saved, here = ", ".join(state["tasks"]), ", ".join(self._pools)
            raise UserError(f"the saved mixture is of {saved}, this one of {here}: continue with the same data.tasks")
        ordered = {name: state["tasks"][name] for name in self._pools}  # a checkpoint sorts names, the draws follow the pools
        self._state, self._waiting, self._pending = copy.deepcopy({**state, "tasks": ordered}), False, None

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
        """How many prompts with a gradient the present step should have, by task; together the whole batch."""
        return dict(zip(self._pools, self._wanted.tolist(), strict=True))

    def more(self, found: Mapping[str, int]) -> dict[str, np.ndarray]:
        """One more batch for the present step, from the tasks with fewer than wanted `found`, over-sampled like the first.

        Raises RuntimeError if no batch is being learned from, ValueError if nothing is missing.
        """
        if not self._waiting:
            raise RuntimeError("no batch is being learned from: ask for the first one of the step by next()")
        missing = np.maximum(self._wanted - np.array([found.get(name, 0) for name in self._pools]), 0)
        if not missing.any():
            raise ValueError(f"found {dict(found)} is all that is wanted, {self.wanted()}: learn from it")
        after = copy.deepcopy(self._state)
        rows = self._draw(after, missing, (self._seed, after["step"] - 1, 1, self._round + 1))
        batch = stack_rows([row.result() for row in rows])
        self._state, self._round = after, self._round + 1
        return batch

    def learn(self, measured: Mapping[str, Mapping[str, float]], improvement: Mapping[str, float] | None = None) -> dict:
        """Moves the weights by what a step measured for each task.

        measured: its mean `reward` and its share of `zero_variance` prompts. improvement: the change of its objective, 0 if
        it has none; None takes the change of its mean reward since the task was last seen.

        A task without a usable prompt keeps its rate and its reward (0 before the first: it is drawn more) and did not
        improve. A number that is not finite leaves all weights as they were. Returns what each task is drawn by next.
        """
        tasks, names = copy.deepcopy(self._state)["tasks"], list(self._pools)
        gains = np.zeros(len(names))
        for i, name in enumerate(names):
            if (seen := measured.get(name)) is None:
                continue
            task, reward = tasks[name], float(seen["reward"])
            before = reward if task["reward"] is None else task["reward"]
            gains[i] = reward - before if improvement is None else improvement.get(name, 0.0)
            task["reward"] = reward
            task["rho"] = mt_grpo.running_rate(task["rho"], float(seen["zero_variance"]), self._cfg.mt_grpo_rho_decay)
        logits, rewards = (np.array([tasks[name][key] or 0.0 for name in names]) for key in ("logit", "reward"))
        if np.isfinite(gains).all() and np.isfinite(rewards).all():
            lam, beta = self._cfg.mt_grpo_lambda, self._cfg.mt_grpo_beta
            moved = mt_grpo.next_logits(logits, improvement=gains, reward=rewards, lam=lam, beta=beta)
            for name, logit in zip(names, moved.tolist(), strict=True):
                tasks[name]["logit"] = logit
            self._state["tasks"] = tasks
        self._waiting, self._pending = False, self._begin()
        drawn_by = zip(names, self._weights().tolist(), gains.tolist(), strict=True)
        return {
            name: {"weight": weight, "no_gradient": self._state["tasks"][name]["rho"], "improvement": gain}
            for name, weight, gain in drawn_by
        }

    def _weights(self) -> np.ndarray:
        return mt_grpo.task_weights(np.array([task["logit"] for task in self._state["tasks"].values()]))

    def _begin(self) -> tuple[dict, np.ndarray, list[Future]]:
        """Returns the state after the next batch, what is wanted of each task, and this process's rows, being made."""
        after, step = copy.deepcopy(self._state), self._state["step"]
        wanted = mt_grpo.wanted_counts(self._weights(), self._batch, seed=self._seed, step=step)
        rows = self._draw(after, wanted, (self._seed, step, 1))
        after["step"] += 1
        return after, wanted, rows

    def _draw(self, after: dict, wanted: np.ndarray, seed: tuple[int, ...]) -> list[Future]:
        """This process's rows, being made, of a batch in the ratio of `wanted`; moves the positions in `after`."""
        rates = np.array([task["rho"] for task in after["tasks"].values()])
        counts = mt_grpo.allocate(wanted, mt_grpo.oversampling(rates, self._cfg.mt_grpo_max_oversample), self._batch)
        draws = []
        for (name, task), count in zip(after["tasks"].items(), counts.tolist(), strict=True):
            draws += [(name, task["position"] + i) for i in range(count)]
            task["position"] += count
        order = np.random.default_rng(seed).permutation(self._batch)[self._part]
        return [self._threads.submit(self._row, *draws[i]) for i in order]

    def _row(self, name: str, position: int) -> Row:
        pools = self._pools[name]
        return self._make_row(pools[position % len(pools)][position // len(pools)])
