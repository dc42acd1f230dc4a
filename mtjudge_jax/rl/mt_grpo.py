"""The formulas of MT-GRPO ("Multi-Task GRPO", arXiv 2602.05547), which decide from which tasks the next prompts come.

K tasks have logits xi and weights z = softmax(xi). Each step moves the logits by the rewards it measured. The next batch is
drawn by the weights, with more prompts of a task whose prompts often give no gradient because their G rewards are all equal.
Pure functions of numpy arrays.

    xi = (0, 0), rewards J = (0.2, 0.8), improvements I = (0, 0), lam = 1, beta = 1
    s = I + lam J = (0.2, 0.8);  g = z (s - sum z s) = (-0.15, 0.15);  xi - beta g = (0.15, -0.15): the worse task gains
"""

import numpy as np

__all__ = ["allocate", "next_logits", "oversampling", "running_rate", "select", "task_weights", "wanted_counts"]


def task_weights(logits: np.ndarray) -> np.ndarray:
    """softmax, float64 [K]."""
    e = np.exp(logits - np.max(logits))
    return e / e.sum()


def next_logits(logits: np.ndarray, *, improvement: np.ndarray, reward: np.ndarray, lam: float, beta: float) -> np.ndarray:
    """Logits [K] after a step: s = I + lam J, g = z (s - sum_j z_j s_j), xi - beta g. All [K]."""
    z, s = task_weights(logits), improvement + lam * reward
    return logits - beta * z * (s - z @ s)


def wanted_counts(weights: np.ndarray, batch: int, *, seed: int, step: int) -> np.ndarray:
    """Multinomial(batch, weights), int64 [K], by a generator of (seed, step) alone."""
    return np.random.default_rng((seed, step)).multinomial(batch, weights)


def running_rate(rate: float, measured: float, decay: float) -> float:
    """decay * rate + (1 - decay) * measured."""
    return decay * rate + (1 - decay) * measured


def oversampling(rates: np.ndarray, limit: float) -> np.ndarray:
    """m = min(1 / (1 - rho), M) of no-gradient rates rho in [0, 1]; a rate of 1 gives M."""
    return 1 / np.maximum(1 - rates, 1 / limit)


def allocate(wanted: np.ndarray, factors: np.ndarray, batch: int) -> np.ndarray:
    """Prompts per task, int64 [K], that fill a batch in the ratio wanted * factors; the largest remainders round up.

    The batch has a fixed size, so the ratio of prompts with a gradient is kept, not their number.

        wanted (6, 6), factors (1, 2), batch 12 -> (4, 8)
    """
    share = wanted * factors
    exact = batch * share / share.sum()
    counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(counts - exact, kind="stable")[: batch - counts.sum()]
    counts[rest] += 1
    return counts


def select(
    task: np.ndarray, *, teaches: np.ndarray, usable: np.ndarray, broken: np.ndarray, wanted: np.ndarray, size: int, blocks: int
) -> np.ndarray:
    """Selects which of the N prompts of several rounds to learn from: indices into the arrays [N], int64 [size].

    Arrays [N]: task, the prompt's index in `wanted` [K]; teaches, its rewards are not all equal; usable, its record could be
    read; broken, one of its rewards is not finite. Prompts are selected in this order, the oldest first:
    1. broken ones, so that the step reports them;
    2. those that teach, up to the number wanted of their task;
    3. usable ones that do not teach, which change no task's share of the gradient;
    4. those that teach beyond the number wanted;
    5. the rest.
    They are dealt to `blocks` updates in turn, so that each update gets its part of every task.

        task (0, 0, 0, 1, 1, 1), all usable, all but the last teach, wanted (2, 2), size 4, 2 blocks -> (0, 3, 1, 4)
    """
    before = np.cumsum((task[:, None] == np.arange(len(wanted))) & teaches[:, None], axis=0)[np.arange(len(task)), task]
    beyond = before > wanted[task]
    kind = np.select([broken, ~usable, ~teaches, beyond], [0, 4, 2, 3], 1)
    chosen = np.argsort(kind, kind="stable")[:size]
    chosen = chosen[np.lexsort((chosen, task[chosen], kind[chosen]))]
    return np.concatenate([chosen[block::blocks] for block in range(blocks)])
