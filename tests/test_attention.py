"""Every attention backend against plain attention in float64: values and gradients, for each layout of tokens."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.models import attention
from mtjudge_jax.models.attention import attend, attend_grouped, chunked
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.sharding import make_mesh


class Case(NamedTuple):
    """Two rows of tokens: `segments` [2, T] of self-attention, or of the prompt in front of `group` completions of `own` tokens."""

    segments: np.ndarray
    causal: bool
    heads: tuple[int, int, int]  # N, K, H
    group: int = 0
    own: int = 0

    @property
    def length(self) -> int:
        return self.segments.shape[1] + self.group * self.own


def padded(length: int, *real: int) -> np.ndarray:
    """Rows of `length` that end in `real` tokens."""
    return np.array([[0] * (length - n) + [1] * n for n in real], np.int32)


def images(*rows: tuple[int, ...], length: int) -> np.ndarray:
    """Rows of images of so many patches, padding behind."""
    return np.array([[n for n, size in enumerate(row, 1) for _ in range(size)] + [0] * (length - sum(row)) for row in rows], np.int32)


CASES = {
    "prompt": Case(padded(150, 150, 9), True, (4, 1, 16)),
    "prompt of real heads": Case(padded(70, 33, 70), True, (4, 1, 128)),
    "images": Case(images((64, 16, 50), (140,), length=150), False, (2, 2, 64)),
    "images of odd heads": Case(images((24, 6), (0,), length=40), False, (2, 2, 72)),
    "one completion": Case(padded(40, 40, 11), True, (4, 1, 16), group=1, own=25),
    "three completions": Case(padded(57, 57, 1), True, (8, 2, 16), group=3, own=37),
    "completions of real heads": Case(padded(13, 13, 5), True, (4, 1, 128), group=3, own=30),
}
BACKENDS = ("xla", "chunked", "splash", "tokamax")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, the last not full, without many tokens."""
    monkeypatch.setattr(chunked, "BLOCK", 32)


def sees(case: Case) -> np.ndarray:
    """Who sees whom, bool [2, T, T], token by token from the definition."""
    prompt = case.segments.shape[1]
    out = np.zeros((2, case.length, case.length), bool)
    for row in range(2):
        for i in range(case.length):
            for j in range(case.length):
                if i < prompt:
                    seen = j < prompt and case.segments[row, i] == case.segments[row, j] and (j <= i or not case.causal)
                elif j < prompt:
                    seen = case.segments[row, j] == 1
                else:
                    seen = (i - prompt) // case.own == (j - prompt) // case.own and j <= i
                out[row, i, j] = seen
    return out


@functools.cache
def operands(name: str) -> dict[str, np.ndarray]:
    """Random q, k, v, and the cotangent of the output, zero on padding, which nobody reads."""
    case = CASES[name]
    n, k, h = case.heads
    rng = np.random.default_rng(len(name))
    out = {key: rng.normal(size=(2, case.length, heads, h)).astype(np.float32) for key, heads in zip("qkvo", (n, k, k, n), strict=True)}
    real = np.pad(case.segments > 0, ((0, 0), (0, case.group * case.own)), constant_values=True)
    return out | {"o": out["o"] * real[..., None, None], "real": real}


def plain(q, k, v, o, mask, scale) -> dict[str, np.ndarray]:
    """Attention and its gradients in float64, the whole score matrix of every head."""
    q, k, v, o = (x.astype(np.float64) for x in (q, k, v, o))
    share = q.shape[2] // k.shape[2]
    again = lambda x: np.repeat(x, share, 2)  # noqa: E731
    fold = lambda x: x.reshape(*x.shape[:2], -1, share, x.shape[-1]).sum(3)  # noqa: E731
    scores = np.where(mask[:, None], np.einsum("qtnh,qsnh->qnts", q, again(k)) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    d_p = np.einsum("qtnh,qsnh->qnts", o, again(v))
    d_s = p * (d_p - (p * d_p).sum(-1, keepdims=True)) * scale
    return {
        "out": np.einsum("qnts,qsnh->qtnh", p, again(v)),
        "q": np.einsum("qnts,qsnh->qtnh", d_s, again(k)),
        "k": fold(np.einsum("qnts,qtnh->qsnh", d_s, q)),
        "v": fold(np.einsum("qnts,qtnh->qsnh", p, o)),
    }


def compute(case: Case, backend: Backend, q, k, v, o) -> dict[str, jax.Array]:
    """The same by a backend."""
    segments, scale = jnp.asarray(case.segments), case.heads[2] ** -0.5

    def forward(q, k, v):
        if not case.group:
            return attend(q, k, v, segments=segments, causal=case.causal, scale=scale, backend=backend)
        prompt = case.segments.shape[1]
        return attend_grouped(q, k, v, prompt=prompt, group=case.group, valid=segments > 0, scale=scale, backend=backend)

    @tiny.jit
    def both(q, k, v, o):
        out, back = jax.vjp(forward, q, k, v)
        return dict(zip(("out", "q", "k", "v"), (out, *back(o)), strict=True))

    return both(q, k, v, o)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_plain_attention(backend, name):
    case, x = CASES[name], operands(name)
    args = [x[key] for key in "qkvo"]
    want = plain(*args, sees(case), case.heads[2] ** -0.5)
    got = compute(case, Backend(attention=backend), *args)
    real = x["real"][..., None, None]
    assert {key: value.shape for key, value in got.items()} == {key: value.shape for key, value in want.items()}
    gaps = {key: tiny.relative(got[key] * real, want[key] * real) for key in want}
    assert max(gaps.values()) < 3e-6, gaps
    for key in "qkv":
        assert np.isfinite(got[key]).all()
