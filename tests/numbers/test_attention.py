"""Every attention backend against plain attention in float64: values and gradients, for each layout of tokens."""

import functools
import importlib.util
import sys
import types
from dataclasses import asdict, dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.models.attention import attend, attend_grouped, chunked, splash, tokamax
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.sharding import batch_sharding, make_mesh


@dataclass(frozen=True, eq=False)
class Case:
    """Rows of tokens: `segments` [Q, T] of self-attention, or of the prompt in front of bins of answers."""

    segments: np.ndarray
    causal: bool
    heads: tuple[int, int, int]  # N, K, H
    answers: np.ndarray | None = None  # int32 [Q, B, W], the number of the answer at each place, 0 where there is none
    group: int = 100  # answers to a prompt

    @property
    def length(self) -> int:
        return self.segments.shape[1] + (0 if self.answers is None else self.answers[0].size)


def padded(length: int, *real: int) -> np.ndarray:
    """Rows of `length` that end in `real` tokens."""
    return np.array([[0] * (length - n) + [1] * n for n in real], np.int32)


def images(*rows: tuple[int, ...], length: int) -> np.ndarray:
    """Rows of images of so many patches, padding behind."""
    return np.array([np.repeat(range(len(row) + 1), (*row, length - sum(row))) for row in rows], np.int32)


def bins(*rows: tuple[tuple[int, ...], ...], width: int) -> np.ndarray:
    """Rows of bins of answers of so many tokens, numbered through a row."""
    out = np.zeros((len(rows), len(rows[0]), width), np.int32)
    for into, row in zip(out, rows, strict=True):
        number = 0
        for filled, lengths in zip(into, row, strict=True):
            numbers = np.repeat(np.arange(number + 1, number + 1 + len(lengths)), lengths)
            filled[: len(numbers)], number = numbers, number + len(lengths)
    return out


def equal(rows: int, group: int, own: int) -> np.ndarray:
    """A bin for each of `group` answers of `own` tokens."""
    return bins(*[((own,),) * group] * rows, width=own)


CASES = {
    "prompt": Case(padded(150, 150, 9), True, (4, 1, 16)),
    "prompt of real heads": Case(padded(70, 33, 70), True, (4, 1, 128)),
    "images": Case(images((64, 16, 50), (140,), length=150), False, (2, 2, 64)),
    "images of odd heads": Case(images((24, 6), (0,), length=40), False, (2, 2, 72)),
    "one completion": Case(padded(40, 40, 11), True, (4, 1, 16), equal(2, 1, 25)),
    "three completions": Case(padded(57, 57, 1), True, (8, 2, 16), equal(2, 3, 37)),
    "completions of real heads": Case(padded(13, 13, 5), True, (4, 1, 128), equal(2, 3, 30)),
    "packed": Case(padded(57, 57, 1), True, (8, 2, 16), bins(((20, 1, 16), (37,), ()), ((3, 9, 2), (30,), (1, 1)), width=37)),
    "three prompts share a stream": Case(
        images((9, 30, 12), (5, 1, 20), length=57), True, (8, 2, 16),
        bins(((20, 1, 16), (30, 4), (1, 33)), ((3, 9, 2), (), (30, 1, 5)), width=37), group=2,
    ),
    "a row of three long prompts": Case(
        images((130, 20, 150), length=310), True, (2, 1, 128),
        bins(((100, 40), (60, 80), (150,), (10, 3)), width=160), group=2,
    ),
    "prompts whose answers share a bin": Case(
        images((40, 60), (3, 70), length=110), True, (4, 1, 16),
        bins(((40, 50, 3),), ((1, 2, 70),), width=97), group=1,
    ),
    "packed into one bin": Case(padded(21, 20, 3), True, (4, 1, 16), bins(((40, 50, 3),), ((1, 2, 70),), width=97)),
}
NO_TOKAMAX = pytest.mark.skipif(importlib.util.find_spec("tokamax") is None, reason="tokamax is not installed")
BACKENDS = ("xla", "chunked", "splash", pytest.param("tokamax", marks=NO_TOKAMAX))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, the last not full, without many tokens."""
    monkeypatch.setattr(chunked, "BLOCK", 32)


def sees(case: Case) -> np.ndarray:
    """Who sees whom, bool [Q, T, T], token by token from the definition."""
    rows, prompt = case.segments.shape

    def one(row: int, i: int, j: int) -> bool:
        if i < prompt:
            return j < prompt and case.segments[row, i] == case.segments[row, j] and (j <= i or not case.causal)
        mine, other = (case.answers[row].ravel()[x - prompt] for x in (i, max(j, prompt)))
        if not mine:
            return i == j  # a place without an answer: what it sees is never read
        return case.segments[row, j] == (mine - 1) // case.group + 1 if j < prompt else mine == other and j <= i

    tokens = range(case.length)
    return np.array([[[one(row, i, j) for j in tokens] for i in tokens] for row in range(rows)])


@functools.cache
def operands(case: Case) -> dict[str, np.ndarray]:
    """Random q, k, v, and the cotangent o of the output, zero on padding, which nobody reads; `real` says what is not padding."""
    n, k, h = case.heads
    rng = np.random.default_rng(case.length)
    heads = {"q": n, "k": k, "v": k, "o": n}
    out = {name: rng.normal(size=(len(case.segments), case.length, count, h)).astype(np.float32) for name, count in heads.items()}
    own = [] if case.answers is None else [case.answers.reshape(len(case.segments), -1)]
    real = (np.concatenate([case.segments, *own], 1) > 0)[..., None, None]
    return out | {"o": out["o"] * real, "real": real}


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


def compute(case: Case, backend: Backend, dtype=jnp.float32) -> dict[str, np.ndarray]:
    """The same by a backend, at the case's operands."""
    x, scale = operands(case), case.heads[2] ** -0.5
    args = [jnp.asarray(x[name], dtype) for name in "qkvo"]
    if backend.mesh is not None:
        args = jax.device_put(args, batch_sharding(backend.mesh))

    @tiny.jit
    def both(q, k, v, o):
        out, back = jax.vjp(functools.partial(forward, case, backend, scale), q, k, v)
        return dict(zip(("out", "q", "k", "v"), (out, *back(o)), strict=True))

    return jax.tree.map(lambda x: np.asarray(x, np.float32), both(*args))


def forward(case: Case, backend: Backend, scale: float, q, k, v):
    segments = jnp.asarray(case.segments)
    if case.answers is None:
        return attend(q, k, v, segments=segments, causal=case.causal, scale=scale, backend=backend)
    answers = jnp.asarray(case.answers)
    return attend_grouped(q, k, v, prompts=segments, answers=answers, group=case.group, scale=scale, backend=backend)


def gaps(case: Case, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative largest differences at real tokens."""
    real = operands(case)["real"]
    assert {name: x.shape for name, x in got.items()} == {name: x.shape for name, x in want.items()}
    assert all(np.isfinite(x).all() for x in got.values())
    return {name: tiny.relative(got[name] * real, want[name] * real) for name in want}


@functools.cache
def expected(case: Case) -> dict[str, np.ndarray]:
    x = operands(case)
    return plain(*(x[name] for name in "qkvo"), sees(case), case.heads[2] ** -0.5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_plain_attention(backend, name):
    case = CASES[name]
    found = gaps(case, compute(case, Backend(attention=backend)), expected(case))
    assert max(found.values()) < 3e-6, found


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_is_as_near_as_it_can_be(backend):
    """Scores, sums and gradients are in float32; only what goes in, the weights of a product and what comes out are rounded."""
    case = CASES["completions of real heads"]
    found = gaps(case, compute(case, Backend(attention=backend), jnp.bfloat16), expected(case))
    assert max(found.values()) < 0.02, found


# A mesh of 8: rows over data, fsdp and expert; heads over tensor, which divides the key heads, or does not.
MESHES = {"rows and heads": (MeshConfig(2, 1, 2, 2), 4, (8, 2, 16)), "heads repeated": (MeshConfig(1, 2, 1, 4), 2, (8, 2, 16))}


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("backend", ["splash", pytest.param("tokamax", marks=NO_TOKAMAX)])
def test_sharded_equals_unsharded(backend, name):
    config, rows, heads = MESHES[name]
    case = Case(padded(20, *range(5, 5 + rows)), True, heads, bins(*[((2, 3), (7,))] * rows, width=7))
    whole = compute(case, Backend(attention=backend))
    found = gaps(case, compute(case, Backend(attention=backend, mesh=make_mesh(config))), whole)
    assert max(found.values()) < 1e-6, found


@pytest.mark.parametrize(
    ("config", "rows", "heads", "message"),
    [
        (MeshConfig(4, 1, 2, 1), 6, (4, 1, 16), "6 rows cannot be spread over data .* = 8 shards of the mesh: make the rows"),
        (MeshConfig(1, 1, 1, 8), 1, (4, 1, 16), "4 attention heads cannot be spread over mesh.tensor = 8: set mesh.tensor to"),
    ],
)
def test_what_a_mesh_does_not_divide_is_refused(config, rows, heads, message):
    case = Case(padded(20, *[20] * rows), True, heads)
    with pytest.raises(ValueError, match=message):
        forward(case, Backend(attention="splash", mesh=make_mesh(config)), 1.0, *(operands(case)[name] for name in "qkv"))


def temporary_bytes(backend: str, length: int, group: int) -> int:
    """Memory that a compiled forward and backward of one row takes beside its operands and results."""
    prompt = length // 2 if group else length
    case = Case(np.ones((1, prompt), np.int32), True, (2, 1, 16), equal(1, group, prompt // group) if group else None)

    def both(q, k, v, o):
        return jax.vjp(functools.partial(forward, case, Backend(attention=backend), 0.25), q, k, v)[1](o)

    of = lambda heads: jax.ShapeDtypeStruct((1, length, heads, 16), jnp.float32)  # noqa: E731
    return tiny.jit(both).lower(of(2), of(1), of(1), of(2)).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("group", [0, 4])
def test_memory_in_blocks_grows_with_the_length_not_its_square(group, monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 128)
    short, long = (temporary_bytes("chunked", length, group) for length in (2048, 8192))
    assert long < 4.5 * short
    assert long < 0.05 * temporary_bytes("xla", 8192, group)


def test_splash_never_visits_blocks_of_other_completions():
    """Of 5 * 5 blocks: the prompt's own, and two for each of four completions, its own and the prompt's."""
    kernel = splash.make_kernel(("grouped", 512, 512), 5 * 512, 1, True)
    assert int((kernel.fwd_mask_info.block_mask > 0).sum()) == 9
    assert int((kernel.dq_mask_info.block_mask > 0).sum()) == int((kernel.dkv_mask_info.block_mask > 0).sum()) == 9


def test_splash_never_visits_blocks_of_other_prompts():
    """Two prompts of one block each, two answers to each in bins of one block: of 6 * 6 blocks 15 would hold something
    if there were one prompt. Here each prompt sees itself, and each answer its prompt and itself."""
    kernel = splash.make_kernel(("grouped", 1024, 512), 6 * 512, 1, True)
    assert int((kernel.fwd_mask_info.block_mask > 0).sum()) == 3 + 4 * 3
    prompts = jnp.repeat(jnp.array([1, 2, 1, 1, 2, 2]), 512)
    some = splash._meeting(kernel, prompts, 512)
    for info in (some.fwd_mask_info, some.dq_mask_info, some.dkv_mask_info):
        assert int((info.block_mask > 0).sum()) == 2 + 4 * 2


def test_splash_mask_of_a_long_stream():
    """Indices and starts that share a number stay apart up to the longest stream; one token more is refused."""
    length, prompt, own = splash.LONGEST, 1000, 700
    mask = splash.GroupedMask(length, prompt, own)
    for i in (0, 999, 1000, 32767, 32768, 65535):
        seen = mask[i : i + 1, 0:length][0]
        start = 0 if i < prompt else prompt + (i - prompt) // own * own
        j = np.arange(length)
        np.testing.assert_array_equal(seen, (j <= i) & ((j < prompt) | (j >= start)))
    q = jnp.zeros((1, length + 1, 1, 8))
    with pytest.raises(ValueError, match=r"65537 tokens a row exceed the 65536 .* set model\.attention to chunked"):
        splash.attend(q, q, q, segments=jnp.ones((1, length + 1), jnp.int32), layout=("causal",), scale=1.0, mesh=None)


@pytest.mark.parametrize(("length", "block"), [(1, 128), (150, 128), (480, 512), (513, 128), (700, 384), (2044, 512)])
def test_splash_blocks_fill_up_little(length, block):
    assert splash.block_size(length) == block


LAYOUTS = {"full": lambda length: ("full",), "causal": lambda length: ("causal",), "grouped": lambda length: grouped(length)}


def grouped(length: int) -> tuple:
    """A prompt of half the tokens and as many answers as divide the rest, at most 8."""
    own = length - length // 2
    return "grouped", length // 2, own // next(group for group in range(8, 0, -1) if own % group == 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splash_takes_every_length(layout, monkeypatch):
    """Blocks divide what they cover and pad no more than they must, for each length to 8,192 and each layout."""
    made = []
    monkeypatch.setattr(splash.kernels, "make_splash_mha", lambda mask, *, block_sizes, **_: made.append((mask, block_sizes)))
    for length in range(1, 8193):
        splash.make_kernel.__wrapped__(LAYOUTS[layout](length), length, 2, True)
        mask, blocks = made.pop()
        covered = splash.padded_length(length)
        assert mask.shape == (2, covered, covered) and 0 <= covered - length < max(128, 1 + length // 8), length
        assert {covered % block for name, block in asdict(blocks).items() if name.startswith("block")} == {0}, (length, blocks)


@pytest.mark.parametrize("group,length", [(0, 1764), (0, 3136), (4, 640 + 4 * 256), (8, 768 + 8 * 128), (20, 512 + 20 * 64)])
def test_splash_is_lowered_for_a_tpu_where_padding_changes_the_block(group, length, monkeypatch):
    """Rows that `plan` and `train` failed on: 42 x 42 and 56 x 56 patches, prompts and their answers."""
    monkeypatch.setattr(splash, "platform_of", lambda mesh: "tpu")
    prompt = {4: 640, 8: 768, 20: 512}.get(group, length)
    answers = equal(1, group, (length - prompt) // group) if group else None
    case = Case(np.ones((1, prompt), np.int32), bool(group), (2, 1, 64), answers)
    of = lambda heads: jax.ShapeDtypeStruct((1, length, heads, 64), jnp.bfloat16)  # noqa: E731
    back = lambda q, k, v: jax.vjp(functools.partial(forward, case, Backend(attention="splash"), 0.1), q, k, v)[1](q)  # noqa: E731
    text = jax.jit(back).trace(of(2), of(1), of(1)).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3


@pytest.mark.parametrize("name", ["prompt of real heads", "images of odd heads", "three completions", "one completion", "packed"])
def test_tokamax_gets_whole_tiles(name, monkeypatch):
    """Its kernel for Hopper refuses a mask of 255 keys: "must have size smaller or a multiple of its tiling 8"."""
    sizes = []

    def product(q, k, v, *, mask, **_):
        assert k.shape == v.shape and mask.shape[-2:] == (q.shape[-3], k.shape[-3])
        sizes.append(mask.shape[-2:])
        return q

    monkeypatch.setattr(tokamax, "import_tokamax", lambda *_: types.SimpleNamespace(dot_product_attention=product))
    case = CASES[name]
    out = forward(case, Backend(attention="tokamax"), 1.0, *(operands(case)[x] for x in "qkv"))
    assert out.shape == operands(case)["q"].shape
    assert sizes and all(size % 64 == 0 for both in sizes for size in both), sizes


@pytest.mark.parametrize("attention", ["chunked", "splash"])
def test_the_whole_model_is_the_same(attention):
    """Hidden states and the gradient of every weight, through scanned layers that the backward pass computes again."""
    got = whole_model(Backend(attention=attention, remat="full"))
    assert tiny.relative(got, whole_model(Backend())) < 2e-5


@functools.cache
def whole_model(backend: Backend):
    cfg, rows = tiny.config(blocks=1), tiny.prompts(3)
    tokens, mask = tiny.answers(3, 2, 5)
    places = tiny.packed(mask)
    weights = np.random.default_rng(1).normal(size=(3, places[0].size, 32)).astype(np.float32)
    weights *= places.reshape(3, -1, 1) >= 0

    def loss(params):
        last, hidden, _ = vlm.completion_hidden(params, cfg, rows, tokens, places, backend=backend)
        return (hidden * weights).sum() + last.sum(), (last, jnp.where(places.reshape(3, -1, 1) < 0, 0, hidden))

    return tiny.jit(jax.grad(loss, has_aux=True))(tiny.params(cfg))


def test_a_stream_that_is_not_prompt_and_bins_is_refused():
    case = replace(CASES["three completions"], answers=equal(2, 5, 22))
    with pytest.raises(ValueError, match=r"a stream of 168 tokens, which must be a prompt of 57 \+ 5 bins of 22"):
        forward(case, Backend(), 1.0, *(operands(CASES["three completions"])[name] for name in "qkv"))


def test_an_unknown_backend_and_a_missing_library_are_named(monkeypatch):
    case = CASES["prompt"]
    args = [operands(case)[name] for name in "qkv"]
    with pytest.raises(ValueError, match="unknown attention 'flash': known are xla, chunked, splash, tokamax"):
        forward(case, Backend(attention="flash"), 1.0, *args)
    monkeypatch.setitem(sys.modules, "tokamax", None)
    with pytest.raises(ValueError, match=r"cannot be imported here: pip install -e '\.\[tokamax\]', or set it to chunked"):
        forward(case, Backend(attention="tokamax"), 1.0, *args)
