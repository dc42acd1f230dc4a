"""The whole model as pure functions of its parameters, in the grouped layout.

The prompt that G answers share is computed and stored once. `prefill` and `decode` are for sampling; `completion_hidden` is the
forward pass of training. Both run the same layers and differ only in which tokens attend to which.
"""

import functools
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mtjudge_jax.models.attention import Places, attend, attend_branches, attend_decode, attend_grouped
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.models.qwen3_vl.moe import ExpertStack, RouterStats, stack_experts
from mtjudge_jax.models.qwen3_vl.text import TextDecoder, lora_shapes
from mtjudge_jax.models.qwen3_vl.vision import VisionTower
from mtjudge_jax.types import Array, Params, PromptBatch, Routing

REFERENCE = Backend()


class Qwen3VL(nnx.Module):
    def __init__(self, cfg: Qwen3VLConfig, *, rngs: nnx.Rngs):
        self.text = TextDecoder(cfg.text, cfg.lora, rngs=rngs)
        self.vision = VisionTower(cfg.vision, rngs=rngs)


class Cache(NamedTuple):
    """Keys (after rotation) and values of all layers, with the axes ordered so that decoding multiplies them without a copy."""

    k: Array  # [L, Q, K, H, P] of prompts, [L, Q, G, K, H, C] of completions
    v: Array  # [L, Q, K, P, H] of prompts, [L, Q, G, K, C, H] of completions


@functools.cache
def _abstract(cfg: Qwen3VLConfig) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Qwen3VL(cfg, rngs=nnx.Rngs(0))))


def abstract_params(cfg: Qwen3VLConfig) -> Params:
    """The parameter tree of `jax.ShapeDtypeStruct` leaves in float32; nothing is allocated."""
    return nnx.to_pure_dict(_abstract(cfg)[1])


def init_params(cfg: Qwen3VLConfig, seed: int) -> Params:
    """A random model, float32."""
    return nnx.to_pure_dict(nnx.state(Qwen3VL(cfg, rngs=nnx.Rngs(seed))))


def init_adapters(cfg: Qwen3VLConfig, seed: int, dtype: str) -> Params:
    """Fresh adapters of `cfg.lora`: A is normal with standard deviation fan_in^-1/2, B is zero, so the model is unchanged."""
    made = {}
    for at, (name, shape) in enumerate(lora_shapes(cfg.text, cfg.lora).items()):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), at), shape) * prod(shape[1:-1]) ** -0.5
        made[name] = noise.astype(dtype) if "_lora_a_" in name else jnp.zeros(shape, dtype)
    return {"text": {"layers": made}}


def bind(params: Params, cfg: Qwen3VLConfig) -> Qwen3VL:
    """The module over the given arrays; for use inside a traced function."""
    graph, state = _abstract(cfg)
    state = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def embed_prompt(model: Qwen3VL, batch: PromptBatch, backend: Backend) -> tuple[Array, Array | None]:
    """Token embeddings with the image tokens inserted, [Q, P, D], and the DeepStack features [T, Q, P, D], zero on text."""
    x = model.text.embed_vd[...][batch.tokens]
    if batch.patches.shape[1] == 0:
        return x, None
    features = model.vision(batch, backend=backend)
    is_image = (batch.image_index >= 0)[..., None]
    index = jnp.maximum(batch.image_index, 0)[..., None]
    x = jnp.where(is_image, jnp.take_along_axis(features.tokens, index, 1), x)
    deepstack = jnp.take_along_axis(features.deepstack, index[None], 2)
    return x, jnp.where(is_image, deepstack, 0)


def prefill(
    params: Params, cfg: Qwen3VLConfig, batch: PromptBatch, *, backend: Backend = REFERENCE, keep_choices: bool = False
) -> tuple[Array, Cache, Array | None]:
    """Runs each prompt once. Returns the hidden state of the last prompt token [Q, D], the prompt's cache and, with
    `keep_choices`, the experts of its tokens, int32 [L, Q, P, k].
    """
    model, scale = bind(params, cfg), cfg.text.head_dim**-0.5
    x, deepstack = embed_prompt(model, batch, backend)

    def attention(q, k, v, _):
        out = attend(q, k, v, segments=batch.valid.astype(jnp.int32), causal=True, scale=scale, backend=backend)
        return out, Cache(jnp.moveaxis(k, 1, -1), jnp.moveaxis(v, 1, -2))

    settings = {"deepstack": deepstack, "real": batch.valid, "backend": backend, "keep_choices": keep_choices}
    x, cache, routed = model.text(x, model.text.rope(batch.positions), attention, **settings)
    return x[:, -1], cache, routed.choice if keep_choices else None


class DecodedAt(NamedTuple):
    """Where answers are that are decoded side by side, B on each of D devices, each at a token of its own."""

    position: Array  # int32 [D, B], of the new token on all three axes
    seen: Array  # bool [D, B, S], which of the first S columns of the own cache hold the answer's earlier tokens
    column: Array  # int32 [], where all write the new token
    places: Places | None  # None where the lanes are the prompts' answers in order


def empty_cache(cfg: Qwen3VLConfig, devices: int, lanes: int, length: int, dtype: jnp.dtype) -> Cache:
    """The answers' own cache: k [L, D, B, K, H, C], v [L, D, B, K, C, H]."""
    layers, heads, size = cfg.text.num_layers, cfg.text.num_kv_heads, cfg.text.head_dim
    return Cache(
        jnp.zeros((layers, devices, lanes, heads, size, length), dtype),
        jnp.zeros((layers, devices, lanes, heads, length, size), dtype),
    )


def resident_experts(params: Params, cfg: Qwen3VLConfig, backend: Backend) -> ExpertStack | None:
    """What `decode` may read the experts from, see moe.stack_experts; None for a dense model."""
    if cfg.text.moe is None:
        return None
    layers = params["text"]["layers"]
    return stack_experts(layers["experts_gate_up_led2f"], layers["experts_down_lefd"], backend)


def decode(
    params: Params,
    cfg: Qwen3VLConfig,
    lanes: DecodedAt,
    *,
    tokens: Array,
    valid: Array,
    prompt: Cache,
    own: Cache,
    backend: Backend = REFERENCE,
    keep_choices: bool = False,
    experts: ExpertStack | None = None,
) -> tuple[Array, Cache, Array | None]:
    """Decodes one token of each lane, tokens int32 [D, B]. Only the first B lanes and the first S columns of `own` are read.

    prompt: k [L, D, M, K, H, P], v [L, D, M, K, P, H] with valid bool [D, M, P]; a prompt's answers read it together.
    Returns hidden states [D, B, D], the own cache with `lanes.column` filled and, with `keep_choices`, the experts of the tokens,
    int32 [L, D, B, k]. experts: the result of `resident_experts`, made once for many tokens.
    """
    model, scale = bind(params, cfg), cfg.text.head_dim**-0.5
    positions = jnp.broadcast_to(lanes.position[..., None], (*tokens.shape, 3))
    masks, (_, count, length) = (lanes.seen, valid), lanes.seen.shape

    def read(cache: Array, layer: Array, axis: int) -> Array:
        """The first lanes and columns of a layer, in one slice, so that no more is read."""
        sizes = list(cache.shape)
        sizes[0], sizes[2], sizes[axis] = 1, count, length
        return jax.lax.dynamic_slice(cache, (layer, *[0] * (cache.ndim - 1)), sizes)[0]

    def attention(q, k, v, state):
        layer, prompt = state
        past = read(own.k, layer, 5), read(own.v, layer, 4)
        out = attend_decode(q, k, v, past=past, prompt=prompt, masks=masks, places=lanes.places, scale=scale)
        return out, (k, v)

    x = model.text.embed_vd[...][tokens]
    states, real = (jnp.arange(cfg.text.num_layers), prompt), jnp.ones(tokens.shape, bool)
    settings = {"deepstack": None, "real": real, "backend": backend, "keep_choices": keep_choices, "experts": experts}
    x, (k, v), routed = model.text(x, model.text.rope(positions), attention, states=states, **settings)
    # One write for all layers, so that the cache stays in place in the sampling loop.
    write = jax.lax.dynamic_update_slice
    at = lanes.column
    own = Cache(write(own.k, k[..., None], (0, 0, 0, 0, 0, at)), write(own.v, v[..., None, :], (0, 0, 0, 0, at, 0)))
    return x, own, routed.choice if keep_choices else None


def branch_hidden(
    params: Params,
    cfg: Qwen3VLConfig,
    batch: PromptBatch,
    *,
    tokens: Array,
    at: Array,
    prompt: Cache,
    past: Cache,
    backend: Backend = REFERENCE,
) -> Array:
    """Hidden states of T continuations of a part of each completion: a third level of the tree of caches.

    tokens int32 [Q, G, T, W] follow a completion's first at - 1 tokens, at int32 [Q, G]. The first of them is the completion's
    own token there, computed again, so hidden state w [Q, G, T, W, D] predicts completion token at + w. Where `at` is 0, that
    first token is the prompt's last. prompt: of `prefill`. past: the completions' cache after `decode`.
    """
    model, scale = bind(params, cfg), cfg.text.head_dim**-0.5
    rows, group, branches, width = tokens.shape
    steps = jnp.tile(jnp.arange(width, dtype=jnp.int32), branches)
    positions = (batch.next_position[:, None] + at - 1)[..., None] + steps
    rope = model.text.rope(jnp.broadcast_to(positions.reshape(rows, -1, 1), (rows, steps.shape[0] * group, 3)))
    length = batch.tokens.shape[1]
    in_prompt = batch.valid[:, None] & ((jnp.arange(length) < length - 1) | (at > 0)[..., None])
    masks = jnp.arange(past.k.shape[-1]) < (at - 1)[..., None], in_prompt

    def attention(q, k, v, state):
        prompt, past = state
        split = [x.reshape(rows, group, branches * width, *x.shape[2:]) for x in (q, k, v)]
        out = attend_branches(*split, branches=branches, past=past, prompt=prompt, masks=masks, scale=scale)
        return out.reshape(q.shape), None

    x = model.text.embed_vd[...][tokens.reshape(rows, -1)]
    x, _, _ = model.text(
        x, rope, attention, states=(prompt, past), deepstack=None, real=jnp.ones(x.shape[:2], bool), backend=backend
    )
    return x.reshape(*tokens.shape, -1)


def completion_hidden(
    params: Params, cfg: Qwen3VLConfig, batch: PromptBatch, tokens: Array, places: Array, *, backend: Backend = REFERENCE
) -> tuple[Array, Array, RouterStats | None]:
    """Runs the stream of training. Returns the hidden states of the prompts' last tokens [Q, k, D], those of all places of the
    bins [Q, B * W, D], and the routers' statistics over the prompts and the places that hold a token.

    tokens int32 [Q, k * G, C]; places int32 [Q, B, W] of `rl.streams.lay_out`. A stream is that of one prompt, k = 1, or of the k
    that `batch.joined` tells apart. With one prompt, P = 3, G = 3, C = 3, answers (a b c), (d) and (e), and two bins of two
    places, the stream and its predictions are

        tokens     p0 p1 p2 | a  b | d  e          the last token of an answer of C tokens predicts nothing and is left out
        predicts       a,d,e| b  c |               the prompt's last hidden state serves every answer

    An answer sees its prompt and its own past; its M-RoPE positions continue from the prompt's end. The backward pass sums over
    the group where the prompt is read. With `batch.routing` each token has the experts that the sampler chose for it.
    """
    model, scale = bind(params, cfg), cfg.text.head_dim**-0.5
    (rows, count, length), p = tokens.shape, batch.tokens.shape[1]
    begins = batch.next_position.reshape(rows, -1)  # of each prompt's answers
    group = count // begins.shape[1]
    x, deepstack = embed_prompt(model, batch, backend)
    flat = places.reshape(rows, -1)
    index = jnp.maximum(flat, 0)
    own = model.text.embed_vd[...][jnp.take_along_axis(tokens.reshape(rows, -1), index, 1)]
    first = jnp.take_along_axis(begins, index // length // group, 1)
    positions = jnp.broadcast_to((first + index % length)[..., None], (*flat.shape, 3))
    rope = model.text.rope(jnp.concatenate([batch.positions, positions], 1))
    answers = places // length + 1  # 0 where places is -1
    number = batch.joined.number if batch.joined else batch.valid.astype(jnp.int32)
    stream = {"prompts": number, "answers": answers, "group": group if batch.joined else None}

    def attention(q, k, v, _):
        return attend_grouped(q, k, v, **stream, scale=scale, backend=backend), None

    real = jnp.concatenate([batch.valid, flat >= 0], 1)
    settings = {"deepstack": deepstack, "real": real, "backend": backend, "choices": _replayed(batch.routing, index)}
    x, _, routed = model.text(jnp.concatenate([x, own], 1), rope, attention, **settings)
    last = jnp.take_along_axis(x, batch.joined.last[..., None], 1) if batch.joined else x[:, p - 1 : p]
    return last, x[:, p:], routed and routed.stats


def _replayed(routing: Routing | None, index: Array) -> Array | None:
    """The experts of the stream of training, [L, Q, P + B * W, k]. index [Q, B * W]: the places' tokens, in [G * C]."""
    if routing is None:
        return None
    answers = routing.answers.reshape(index.shape[0], -1, *routing.answers.shape[3:])
    stream = jnp.concatenate([routing.prompts, jnp.take_along_axis(answers, index[..., None, None], 1)], 1)
    return jnp.moveaxis(stream, 2, 0)


def logits(params: Params, cfg: Qwen3VLConfig, batch: PromptBatch, *, backend: Backend = REFERENCE) -> Array:
    """Logits at every prompt token, float32 [Q, P, V]; for parity tests, not for training."""
    model, scale = bind(params, cfg), cfg.text.head_dim**-0.5
    x, deepstack = embed_prompt(model, batch, backend)

    def attention(q, k, v, _):
        out = attend(q, k, v, segments=batch.valid.astype(jnp.int32), causal=True, scale=scale, backend=backend)
        return out, None

    x, _, _ = model.text(x, model.text.rope(batch.positions), attention, deepstack=deepstack, real=batch.valid, backend=backend)
    return jnp.einsum("qpd,vd->qpv", x, model.text.output_vd, preferred_element_type=jnp.float32)


def output_head(params: Params, cfg: Qwen3VLConfig) -> Array:
    """The output head [V, D]; the embedding itself where the two are tied."""
    return params["text"]["embed_vd" if cfg.text.tie_word_embeddings else "head_vd"]
