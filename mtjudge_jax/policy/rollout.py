"""Samples G answers per prompt: the prompt runs once, its cache is stored once, each answer has a short cache of its own."""

import jax
import jax.numpy as jnp

from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.rl.logp import sampling_logits
from mtjudge_jax.types import Array, Params, PromptBatch, Rollout


def sample(
    params: Params,
    cfg: Qwen3VLConfig,
    prompts: PromptBatch,
    key: Array,
    *,
    temperature: Array,
    allowed: Array,
    length: int,
    eos: int,
    pad: int,
    backend: Backend = vlm.REFERENCE,
) -> Rollout:
    """Draws answers of at most `length` tokens.

    key: of this rollout. The draw of answer g at token t depends only on (key, uid of the example, g, t), not on the prompt's
    place in the batch, its device or its neighbours. temperature float32 [G], one per answer; 0 takes the likeliest token and
    gives its log-probability at temperature 1. allowed bool [V].
    """
    group = temperature.shape[0]
    head = vlm.output_head(params, cfg)
    divisor = jnp.where(temperature > 0, temperature, 1.0)[None, :, None]
    answers = jnp.arange(group)
    keys = jax.vmap(lambda uid: jax.vmap(lambda g: jax.random.fold_in(jax.random.fold_in(key, uid), g))(answers))(prompts.uid)

    def draw(hidden: Array, at: Array) -> tuple[Array, Array]:
        """hidden [Q, G, D] -> token [Q, G] and its log-probability."""
        logits = sampling_logits(hidden, head, allowed, divisor)
        noise = jax.vmap(jax.vmap(lambda k: jax.random.gumbel(jax.random.fold_in(k, at), logits.shape[-1:])))(keys)
        token = jnp.argmax(logits + jnp.where(temperature > 0, 1.0, 0.0)[None, :, None] * noise, -1).astype(jnp.int32)
        logp = jnp.take_along_axis(logits, token[..., None], -1)[..., 0] - jax.nn.logsumexp(logits, -1)
        return token, logp

    last, prompt_cache = vlm.prefill(params, cfg, prompts, backend=backend)
    shape = (prompts.tokens.shape[0], group)
    blank = (jnp.full((*shape, length), pad, jnp.int32), jnp.zeros((*shape, length)), jnp.zeros((*shape, length), bool))

    def write(state, token, logp, at):
        """Writes the token of each answer; an answer that has ended gets padding."""
        tokens, logps, mask, done = state
        put = lambda array, value: jax.lax.dynamic_update_index_in_dim(array, value, at, 2)  # noqa: E731
        tokens = put(tokens, jnp.where(done, pad, token))
        return tokens, put(logps, jnp.where(done, 0.0, logp)), put(mask, ~done), done | (token == eos)

    token, logp = draw(jnp.broadcast_to(last[:, None], (*shape, last.shape[-1])), jnp.int32(0))
    state = write((*blank, jnp.zeros(shape, bool)), token, logp, jnp.int32(0))

    def unfinished(loop) -> Array:
        at, state, _ = loop
        return (at < length) & ~state[3].all()

    def step(loop):
        at, state, own = loop
        previous = jax.lax.dynamic_index_in_dim(state[0], at - 1, 2, keepdims=False)
        hidden, own = vlm.decode(params, cfg, prompts, tokens=previous, at=at - 1, prompt=prompt_cache, own=own, backend=backend)
        return at + 1, write(state, *draw(hidden, at), at), own

    own = vlm.empty_cache(cfg, prompt_cache, group, length - 1)
    _, (tokens, logps, mask, done), _ = jax.lax.while_loop(unfinished, step, (jnp.int32(1), state, own))
    return Rollout(tokens, mask, logps, ~done)
