"""The only token log-probability: training, old policy, reference, evaluation and the tests of parity all call it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.types import Array, Params, PromptBatch

BANNED = -1e30


class TokenLogp(NamedTuple):
    logp: Array  # float32 [Q, G, C]
    entropy: Array  # float32 [Q, G, C], of the distribution the token was drawn from; no gradient


def sampling_logits(hidden: Array, head: Array, allowed: Array, temperature: Array | float) -> Array:
    """hidden [..., D], head [V, D] -> float32 [..., V], what is sampled from: ids not allowed can never come up.

    The same function makes the sampler's distribution and the one that is trained, so their log-probabilities agree.
    """
    logits = jnp.einsum("...d,vd->...v", hidden, head, preferred_element_type=jnp.float32)
    return jnp.where(allowed, logits / temperature, BANNED)


def completion_logp(
    params: Params, cfg: Qwen3VLConfig, prompts: PromptBatch, tokens: Array, *, allowed: Array, temperature: float, remat: str, chunk: int
) -> TokenLogp:
    """Log-probability of each completion token given its prompt and its past. tokens int32 [Q, G, C].

    The head is applied to `chunk` tokens at a time and again in the backward pass: no [.., V] array over all tokens exists.
    """
    hidden = vlm.completion_hidden(params, cfg, prompts, tokens, remat=remat)
    head = vlm.output_head(params, cfg)

    def chunk_logp(hidden: Array, targets: Array) -> TokenLogp:
        logits = sampling_logits(hidden, head, allowed, temperature)
        normaliser = jax.nn.logsumexp(logits, -1)
        target = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        fixed = jax.lax.stop_gradient(logits)
        mean = (jax.nn.softmax(fixed) * jnp.where(allowed, fixed, 0)).sum(-1)
        return TokenLogp(target - normaliser, jax.lax.stop_gradient(normaliser) - mean)

    rows, count = tokens.shape[0], tokens.shape[1] * tokens.shape[2]
    flat = (hidden.reshape(rows, count, -1), tokens.reshape(rows, count))
    columns = max(1, chunk // rows)  # chunked along the completions, so that rows keep their shard
    if columns >= count:
        out = chunk_logp(*flat)
    else:
        out = _in_chunks(chunk_logp, flat, columns)
    return TokenLogp(*(x.reshape(tokens.shape) for x in out))


def _in_chunks(fn, flat, columns: int) -> TokenLogp:
    rows, count = flat[1].shape
    pieces = -(-count // columns)
    padding = pieces * columns - count

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(rows, pieces, columns, *x.shape[2:]), 1, 0)

    out = jax.lax.map(jax.checkpoint(lambda piece: fn(*piece)), tuple(split(x) for x in flat))
    return TokenLogp(*(jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :count] for x in out))
