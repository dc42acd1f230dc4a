"""Attention in halves: each half gives its output and its log-sum-exp, and halves over different keys are merged exactly.

This is the executable reference, for any mask. Each other backend has the same functions and passes the same tests.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtjudge_jax.types import Array

Segments = tuple[Array, Array]
MASKED = -1e30  # finite: a query without any key gets a uniform average instead of NaN, and is never read


def _attend_heads(q: Array, k: Array, v: Array, mask: Array, *, scale: float) -> tuple[Array, Array]:
    """Grouped-query attention over one set of keys. The axes of each operand are ordered so that its product is a plain matrix
    product.

    q [..., K, N/K, T, H], query heads by the key head they share; k [..., K, H, S]; v [..., K, S, H]; mask bool,
    broadcastable to [..., K, N/K, T, S], True where a query may look. Returns the output [..., K, N/K, T, H] in q's dtype and
    the log-sum-exp of the scores, float32 [..., K, N/K, T].
    """
    scores = jnp.einsum("...kgth,...khs->...kgts", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(mask, scores, MASKED)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("...kgts,...ksh->...kgth", (weights / total).astype(v.dtype), v)
    return out, (top + jnp.log(total))[..., 0]


def _attend_masked(q: Array, k: Array, v: Array, mask: Array, *, scale: float) -> tuple[Array, Array]:
    """The same with the axes as tokens have them: q [..., T, N, H]; k, v [..., S, K, H]; mask broadcastable to [..., T, S].

    Returns the output [..., T, N, H] and the log-sum-exp, float32 [..., T, N].
    """
    *lead, t, n, h = q.shape
    q = jnp.moveaxis(q.reshape(*lead, t, k.shape[-2], -1, h), -4, -2)
    out, lse = _attend_heads(q, jnp.moveaxis(k, -3, -1), jnp.moveaxis(v, -3, -2), mask[..., None, None, :, :], scale=scale)
    return jnp.moveaxis(out, -2, -4).reshape(*lead, t, n, h), jnp.moveaxis(lse, -1, -3).reshape(*lead, t, n)


def attend_half(q: Array, k: Array, v: Array, segments: Segments | None, *, causal: bool, scale: float) -> tuple[Array, Array]:
    """One half: `_attend_masked` with the mask made of segments and order.

    segments: int32 [..., T] of the queries and [..., S] of the keys; a query sees the keys of an equal segment. None: it sees
    all keys. causal: no query sees a key with a larger index.
    """
    mask = jnp.ones((q.shape[-3], k.shape[-3]), bool)
    mask = jnp.tril(mask) if causal else mask
    mask = mask if segments is None else mask & (segments[0][..., :, None] == segments[1][..., None, :])
    return _attend_masked(q, k, v, mask, scale=scale)


def prompt_of(answers: Array, group: int | None) -> Array:
    """The number of each answer's prompt, from 1; 0 where the answer's number is 0. group: answers of a prompt; None: of one."""
    return jnp.minimum(answers, 1) if group is None else (answers - 1) // group + 1


def merge(a: Array, lse_a: Array, b: Array, lse_b: Array) -> Array:
    """The output over the union of two disjoint sets of keys, from the output [..., H] and log-sum-exp [...] over each."""
    share = jax.nn.sigmoid(lse_a - lse_b)[..., None].astype(a.dtype)
    return a * share + b * (1 - share)


class Places(NamedTuple):
    """Where the answers of D devices' prompts are among B lanes in any order; a device has M prompts of G answers."""

    lane: Array  # int32 [D, M * G], the lane of each answer; any lane for an answer that has none
    answer: Array  # int32 [D, B], the answer of each lane: the prompt's place times G, and which of its answers


def attend_decode(
    q: Array,
    k: Array,
    v: Array,
    *,
    past: tuple[Array, Array],
    prompt: tuple[Array, Array],
    masks: tuple[Array, Array],
    places: Places | None,
    scale: float,
) -> Array:
    """Attention of one new token per lane, q [D, B, N, H], to its prompt, its past and itself, k, v [D, B, K, H].

    past: keys [D, B, K, H, C] and values [D, B, K, C, H]. They do not hold the new token yet, so that no step copies the cache.
    prompt: keys [D, M, K, H, P] and values [D, M, K, P, H]. masks: bool [D, B, C], True on a lane's own tokens, and bool
    [D, M, P], True on real prompt tokens. places: None where the lanes are the prompts' answers in order, B = M * G.

    A prompt's keys are read once for all its answers: their queries are brought together, which are small, and the outputs are
    brought back to the lanes.
    """
    devices, lanes, n, h = q.shape
    q = q.reshape(devices, lanes, k.shape[2], -1, h)
    past_mask, prompt_mask = masks
    asked = q if places is None else _pick(q, places.lane)
    asked = asked.reshape(devices, prompt_mask.shape[1], -1, *q.shape[2:])
    out_p, lse_p = _attend_heads(jnp.moveaxis(asked, 2, 4), *prompt, prompt_mask[:, :, None, None, None], scale=scale)
    out_p, lse_p = (jnp.moveaxis(x, 4, 2).reshape(devices, -1, *y.shape[2:]) for x, y in ((out_p, q), (lse_p, q[..., 0])))
    out_p, lse_p = (out_p, lse_p) if places is None else (_pick(out_p, places.answer), _pick(lse_p, places.answer))
    out_c, lse_c = _attend_heads(q[..., None, :], *past, past_mask[:, :, None, None, None], scale=scale)
    itself = jnp.einsum("dbkxh,dbkh->dbkx", q, k, preferred_element_type=jnp.float32) * scale
    out = merge(out_c[..., 0, :], lse_c[..., 0], v[..., None, :], itself)
    return merge(out_p, lse_p, out, jnp.logaddexp(lse_c[..., 0], itself)).reshape(devices, lanes, n, h)


def _pick(x: Array, index: Array) -> Array:
    """x [D, B, ..], index int32 [D, J] -> [D, J, ..], on each device its own."""
    return jax.vmap(lambda x, index: x.at[index].get(mode="promise_in_bounds"))(x, index)


def attend_branches(
    q: Array,
    k: Array,
    v: Array,
    *,
    branches: int,
    past: tuple[Array, Array],
    prompt: tuple[Array, Array],
    masks: tuple[Array, Array],
    scale: float,
) -> Array:
    """Attention of T = `branches` short continuations of each of G cached completions: q [Q, G, T * W, N, H]; k, v with K heads.

    past: keys [Q, G, K, H, C] and values [Q, G, K, C, H]; prompt: keys [Q, K, H, P] and values [Q, K, P, H]. masks: bool
    [Q, G, C] and [Q, G, P], True where the branches of a completion look. A token sees these, its own branch's past and itself.
    """
    rows, group, count = q.shape[:3]
    heads = q.reshape(rows, group, count, k.shape[-2], -1, q.shape[-1])
    past_mask, prompt_mask = masks
    wide = jnp.moveaxis(heads.reshape(rows, group * count, *heads.shape[3:]), 1, 3)  # [Q, K, N/K, G * T * W, H]
    seen = jnp.repeat(prompt_mask, count, axis=1)[:, None, None]
    out_p, lse_p = _attend_heads(wide, *prompt, seen, scale=scale)
    out_p, lse_p = (jnp.moveaxis(x, 3, 1).reshape(*q.shape[:4], *x.shape[4:]) for x in (out_p, lse_p))
    narrow = jnp.moveaxis(heads, 2, 4)  # [Q, G, K, N/K, T * W, H]
    out_c, lse_c = _attend_heads(narrow, *past, past_mask[:, :, None, None, None], scale=scale)
    out_c, lse_c = (jnp.moveaxis(x, 4, 2).reshape(*q.shape[:4], *x.shape[5:]) for x in (out_c, lse_c))
    split = [x.reshape(rows, group, branches, -1, *x.shape[3:]) for x in (q, k, v)]
    out, lse = attend_half(*split, None, causal=True, scale=scale)
    out, lse = out.reshape(q.shape), lse.reshape(lse_c.shape)
    return merge(out_p, lse_p, merge(out_c, lse_c, out, lse), jnp.logaddexp(lse_c, lse))
