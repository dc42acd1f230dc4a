"""A rollout that keeps its caches, for the reward part `soft`: the probability of each verdict after each sampled reasoning."""

from collections.abc import Mapping, Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtjudge_jax.eval.probabilities import Sampled, branches_for, word_shares
from mtjudge_jax.policy.programs import Programs, decode_texts
from mtjudge_jax.sharding import batch_sharding
from mtjudge_jax.tasks import Task
from mtjudge_jax.tasks.answer import read_truth
from mtjudge_jax.types import Array, Params, PromptBatch, Rollout

WordShares = list[list[list[float] | None]]  # [Q, G, words of the row], of this process's rows


def sample_with_shares(
    programs: Programs,
    params: Params,
    prompts: PromptBatch,
    truths: Sequence[str],
    *,
    key: Array,
    temperature: np.ndarray,
    length: int,
    pieces: int,
    branches: int,
) -> tuple[Rollout, WordShares]:
    """The answers that `programs.sample` draws, and their word_shares. truths: of this process's rows, "" where not asked.

    `pieces` parts of the batch are drawn one after the other, so that the caches of one part are in memory at a time.
    branches: of branches_over, equal on all processes.
    """
    group, outs, shares = len(temperature), [], []
    words = [read_truth(text).words if text else () for text in truths]
    words = [one if branches_for(len(one)) else () for one in words]  # of a list there are none
    for piece in range(pieces):
        part = _taker(programs.mesh, pieces)(prompts, piece)
        out, context = programs.sample_and_keep(params, part, key, temperature, length, group)
        texts, own = decode_texts(programs, out), words[piece::pieces]
        asked = [of_row if word else [] for of_row, word in zip(texts, own, strict=True)]
        outs.append(out)
        shares.append(word_shares(asked, own, branches, Sampled(part, out, context), params=params, programs=programs))
    rows = [shares[i % pieces][i // pieces] for i in range(len(truths))]
    return (_joiner(programs.mesh)(outs) if pieces > 1 else outs[0]), rows


def branches_over(known: Mapping[str, Task], tasks: Sequence[str]) -> int:
    """How many continuations an answer to any of the tasks needs; 2 where none needs any."""
    return max(2, *(branches_for(len(known[name].labels)) for name in tasks))


@cache
def _taker(mesh: Mesh, pieces: int):
    """Jitted: every `pieces`-th row of a batch, from row `piece` on, so that each device keeps its own."""

    def take(prompts: PromptBatch, piece: Array) -> PromptBatch:
        return jax.tree.map(lambda x: x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:])[:, piece], prompts)

    return jax.jit(take, out_shardings=batch_sharding(mesh))


@cache
def _joiner(mesh: Mesh):
    """Jitted: the parts of `_taker` back to one batch."""

    def join(parts: list[Rollout]) -> Rollout:
        return jax.tree.map(lambda *x: jnp.stack(x, 1).reshape(-1, *x[0].shape[1:]), *parts)

    return jax.jit(join, out_shardings=batch_sharding(mesh))
