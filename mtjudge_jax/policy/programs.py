"""The programs that a run executes on its devices, each jitted once for the mesh and the shapes; the sampler among them."""

import collections
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtjudge_jax.config import Config
from mtjudge_jax.data.rows import DEVICE_KEYS
from mtjudge_jax.data.tokenizer import Tokenizer
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.hosts.exchange import gather
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.policy.lanes import Context, draw_and_keep
from mtjudge_jax.policy.sampler import Notes, make_sampler
from mtjudge_jax.policy.trainable import cast
from mtjudge_jax.rl.logp import (
    EVERY,
    Filter,
    TokenLogp,
    bins_ladder,
    completion_logp,
    lay_out,
    least_rung,
    sampling_logits,
)
from mtjudge_jax.sharding import batch_sharding, local_rows, shard_batch
from mtjudge_jax.types import Array, Params, PromptBatch, Rollout

_WORTH_PACKING = 256  # tokens that the answers to a prompt may have together


class Programs(NamedTuple):
    """Jitted functions. `traces` counts how often each was traced, by shapes: it should be once."""

    sample: Callable[..., Rollout]  # (params, prompts, key, temperature [G], length, filter = EVERY); see sampler.py
    sample_at_once: Callable[..., Rollout]  # the same answers as one program, all lanes to the last end; before the filter a 0
    sample_and_keep: Callable[..., tuple[Rollout, Context]]  # that with how many answers' caches in place of the 0
    branch_logp: Callable[..., Array]  # (params, prompts, context, tokens [Q, G, T, W], at [Q, G]) -> [Q, G, T, W - 1]
    logp: Callable[..., Array]  # (params, prompts, tokens [Q, G, C], places [Q, B, W]) -> [Q, G, C]
    reference_logp: Callable[..., Array]  # the same for the reference policy, which has no adapters
    logp_fn: Callable  # the same with entropy, not jitted, for a loss to call
    traces: collections.Counter
    work: collections.Counter  # of `sample`: the steps of its lanes so far
    mesh: Mesh
    tokenizer: Tokenizer


def make_programs(cfg: Config, model_cfg: Qwen3VLConfig, tokenizer: Tokenizer, mesh: Mesh) -> Programs:
    allowed = np.asarray(tokenizer.allowed_mask(model_cfg.text.vocab_size))
    backend = backend_of(cfg, mesh)
    logp_fn = bound_logp(model_cfg, cfg, allowed, backend)
    reference_fn = bound_logp(dataclasses.replace(model_cfg, lora=None), cfg, allowed, backend) if model_cfg.lora else logp_fn
    drawing = {"allowed": allowed, "eos": tokenizer.ends, "pad": tokenizer.pad, "backend": backend}
    traces, work = collections.Counter(), collections.Counter()

    def sample_pieces(
        params: Params, prompts: PromptBatch, key: Array, temperature: Array, length: int, keep: int = 0, only: Filter = EVERY
    ):
        traces[f"sample {prompts.tokens.shape} x {temperature.shape[0]} x {length}{'' if only == EVERY else f', {only}'}"] += 1
        weights = cast(params, cfg.model.dtype)

        def draw(prompts: PromptBatch) -> Rollout | tuple[Rollout, Context]:
            settings = drawing | {"temperature": temperature, "length": length, "only": only}
            drawn, context = draw_and_keep(weights, model_cfg, prompts, key, **settings)
            return (drawn, context._replace(answers=jax.tree.map(lambda x: x[:, :, :keep], context.answers))) if keep else drawn

        return in_pieces(draw, (prompts,), cfg.rollout.micro_prompts or prompts.tokens.shape[0])

    def branch_logp(params: Params, prompts: PromptBatch, context: Context, tokens: Array, at: Array) -> Array:
        traces[f"branches {prompts.tokens.shape} of {tokens.shape}"] += 1
        weights = cast(params, cfg.model.dtype)
        prompt, past = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), context)
        where = {"tokens": tokens[..., :-1], "at": at, "prompt": prompt, "past": past}
        hidden = vlm.branch_hidden(weights, model_cfg, prompts, **where, backend=backend)
        logits = sampling_logits(hidden, vlm.output_head(weights, model_cfg), allowed, cfg.rollout.temperature)
        picked = jnp.take_along_axis(logits, tokens[..., 1:, None], -1)[..., 0]
        return picked - jax.nn.logsumexp(logits, -1)

    def jitted_logp(name: str, fn: Callable) -> Callable:
        def logp(params: Params, prompts: PromptBatch, tokens: Array, places: Array) -> Array:
            traces[f"{name} {prompts.tokens.shape} of {tokens.shape} in {places.shape}"] += 1
            return in_pieces(lambda *piece: fn(params, *piece).logp, (prompts, tokens, places), cfg.update.micro_prompts)

        return jax.jit(logp, out_shardings=rows)

    rows = batch_sharding(mesh)
    logp = jitted_logp("logp", logp_fn)
    reference_logp = jitted_logp("logp of the reference", reference_fn) if model_cfg.lora else logp
    at_once = jax.jit(sample_pieces, static_argnums=(4, 5, 6), out_shardings=rows)
    sample = make_sampler(cfg, model_cfg, drawing, mesh, at_once, Notes(traces, work))
    sample_and_keep = jax.jit(sample_pieces, static_argnums=(4, 5, 6), out_shardings=(rows, None))
    branches = jax.jit(branch_logp, out_shardings=rows)
    sampling = (sample, at_once, sample_and_keep)
    return Programs(*sampling, branches, logp, reference_logp, logp_fn, traces, work, mesh, tokenizer)


def bound_logp(model_cfg: Qwen3VLConfig, cfg: Config, allowed: Array, backend: Backend) -> Callable:
    """`(params, prompts, tokens, places) -> TokenLogp` with the run's settings. All programs and losses of a run use it."""

    settings = {"temperature": cfg.rollout.temperature, "chunk": cfg.model.head_chunk, "backend": backend}
    settings["entropy_gradient"] = cfg.stage == "grpo" and cfg.loss.entropy_coef > 0

    def logp_fn(params: Params, prompts, tokens: Array, places: Array) -> TokenLogp:
        return completion_logp(cast(params, cfg.model.dtype), model_cfg, prompts, tokens, places, allowed=allowed, **settings)

    return logp_fn


def backend_of(cfg: Config, mesh: Mesh) -> Backend:
    """Resolves model.attention and model.experts for the mesh's devices. Raises ConfigError for what they cannot run."""
    platform = mesh.devices.flat[0].platform
    attention, experts = cfg.model.attention, cfg.model.experts
    if attention == "auto":
        attention = {"cpu": "xla", "tpu": "splash"}.get(platform, "tokamax")
    if experts == "auto":
        experts = {"cpu": "dense", "tpu": "ragged"}.get(platform, "tokamax")
    for name, value in (("model.attention", attention), ("model.experts", experts)):
        if value == "splash" and platform == "gpu":
            raise ConfigError(f"{name} = 'splash' runs on a TPU, these devices are {platform}: use tokamax or chunked")
        if value == "tokamax" and importlib.util.find_spec("tokamax") is None:
            other = "chunked" if name == "model.attention" else "dense"
            raise ConfigError(f"{name} = 'tokamax' is not installed: pip install -e '.[tokamax]', or set {name}={other}")
    return Backend(attention, experts, cfg.model.remat, mesh if mesh.size > 1 else None)


def in_pieces(fn: Callable, args: tuple, size: int):
    """Runs fn on `size` prompts at a time, so that only their activations or caches exist at once."""
    pieces = max(1, args[0].tokens.shape[0] // size)
    if pieces == 1:
        return fn(*args)
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 0, 1), args)
    out = jax.lax.map(lambda piece: fn(*piece), split)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), out)


def place_prompts(batch: Mapping[str, np.ndarray], mesh: Mesh) -> PromptBatch:
    """The device part of a batch of rows, sharded over the mesh."""
    return shard_batch(PromptBatch(**{key: batch[key] for key in DEVICE_KEYS}), mesh)


def place_answers(mask: Array, mesh: Mesh) -> Array:
    """The places of the batch's answers in the stream of training, int32 [Q, B, W], sharded over the mesh; mask bool [Q, G, C].

    The bins are the least that hold every row of every process; for answers as short as the demo's the largest, because further
    compilations would cost more than they save.
    """
    mine, (group, length) = local_rows(mask, mesh).sum(-1, dtype=np.int32), mask.shape[1:]
    rungs = bins_ladder(group, length)
    rung = max(gather(least_rung(mine, length))) if group * length >= _WORTH_PACKING else -1
    return shard_batch(lay_out(mine, length, rungs[rung]), mesh)


def decode_texts(programs: Programs, out: Rollout) -> list[list[str]]:
    """This process's answers as text, Q lists of G."""
    tokenizer = programs.tokenizer
    tokens, mask = local_rows(out.tokens, programs.mesh), local_rows(out.mask, programs.mesh)
    return [[tokenizer.decode_answer(t[m]) for t, m in zip(*group, strict=True)] for group in zip(tokens, mask, strict=True)]


def stage_key(seed: int, step: int, stage: str, again: int = 0) -> Array:
    """The random key of a stage of a step. It is derived, never stored, so a resumed run draws the same. `again`: how often the
    stage has already run in this step, because an example may be drawn twice."""
    number = ("sample", "evaluate").index(stage)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number)
    return jax.random.fold_in(key, again) if again else key
