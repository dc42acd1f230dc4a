"""The operations of a step with everything at its limit, and rough estimates of a mesh's memory and time.

`flops` is what the counts of the compiled programs are compared with; `estimate` chooses the meshes that are worth compiling.
"""

from math import prod
from typing import NamedTuple

import jax
import numpy as np

from mtjudge_jax.config import Config, answers_learned, has_reference, offline
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.plan.slices import Slice
from mtjudge_jax.policy.flops import forward_flops, head_flops, layer_weights, pair_flops, update_flops, vision_flops
from mtjudge_jax.policy.model import with_adapters
from mtjudge_jax.policy.trainable import is_trained
from mtjudge_jax.sharding import path_name
from mtjudge_jax.types import Lengths


class _Tokens(NamedTuple):
    """Sizes of one prompt with its answers."""

    prompt: int
    group: int
    answer: int

    @property
    def stream(self) -> int:
        """Tokens that training reads: an answer's last token predicts nothing."""
        return self.prompt + self.group * (self.answer - 1)


def _tokens_of(cfg: Config) -> _Tokens:
    return _Tokens(cfg.data.prompt_tokens, answers_learned(cfg), cfg.rollout.completion_tokens)


def full_lengths(cfg: Config) -> Lengths:
    """Of one prompt, with everything at its limit."""
    answers = np.full((1, answers_learned(cfg)), cfg.rollout.completion_tokens)
    return Lengths(np.array([cfg.data.prompt_tokens]), np.array([cfg.data.patches]), answers)


def flops(model: Qwen3VLConfig, cfg: Config) -> dict[str, float]:
    """Operations of one call of each phase on all devices together, without recomputation in the backward pass."""
    lengths, t, text = full_lengths(cfg), _tokens_of(cfg), model.text
    forward = forward_flops(model, lengths)
    out = {"update": update_flops(forward, cfg) * cfg.update.prompts}
    if offline(cfg):
        return out | ({"logp": sum(forward) * cfg.update.prompts} if has_reference(cfg) else {})
    prompts, own = cfg.rollout.prompts, t.answer - 1
    head, pair, layers = head_flops(text), pair_flops(text), 2 * layer_weights(text)
    eyes = sum(vision_flops(model.vision, lengths.patches))
    prefill = eyes + layers * t.prompt + pair * t.prompt**2 / 2 + head * t.group
    decode = t.group * own * (layers + head + pair * (t.prompt + own))  # every step attends to the whole cache
    return {"prefill": prefill * prompts, "decode": decode * prompts, "logp": sum(forward) * prompts} | out


class Estimate(NamedTuple):
    bytes: float  # at the peak of the update or of the rollout, whichever is higher
    seconds: float  # per step
    held: float  # bytes of weights, optimizer and reference, in every program


def weights(model: Qwen3VLConfig, cfg: Config) -> dict[tuple[bool, bool], int]:
    """Counts of parameters by (whether they are trained, whether they belong to an expert)."""
    model = with_adapters(model, cfg)
    out = dict.fromkeys([(a, b) for a in (True, False) for b in (True, False)], 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(vlm.abstract_params(model)):
        name = path_name(path)
        out[is_trained(name, cfg), "experts_" in name] += int(np.prod(leaf.shape))
    return out


def estimate(model: Qwen3VLConfig, cfg: Config, place: Slice, mesh: dict[str, int]) -> Estimate:
    """An estimate within some tens of per cent: good enough to drop meshes that cannot fit or will be slow."""
    count, itemsize = weights(model, cfg), 2 if cfg.model.param_dtype == "bfloat16" else 4
    mean = 2 if cfg.model.dtype == "bfloat16" else 4
    apart = lambda trained: sum(  # noqa: E731
        n / (mesh["fsdp"] * mesh["tensor"] * (mesh["expert"] if experts else 1))
        for (t, experts), n in count.items()
        if t is trained
    )
    own, other = apart(True), apart(False)
    reference = 0 if cfg.lora.rank or not has_reference(cfg) else own * mean
    kept = own * 3 * itemsize + other * mean + reference
    shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    t, text = _tokens_of(cfg), model.text
    rows = cfg.update.micro_prompts / shards
    layer_inputs = text.num_layers * t.stream * text.hidden_size * mean
    layer = sum(count.values()) / text.num_layers / mesh["tensor"] / mesh["expert"] * mean * 2
    logits = cfg.model.head_chunk / shards * text.vocab_size / mesh["tensor"] * 12
    width = 3 * text.intermediate_size
    if text.moe:
        width = text.moe.experts_per_token * (2 * text.hidden_size + 3 * text.moe.intermediate_size)
    work = rows * t.stream * (width + 8 * text.hidden_size) * mean * 2 / mesh["tensor"]
    update = own * (itemsize + mean) + rows * layer_inputs * (1 if cfg.model.remat == "full" else 5) + layer + logits + work
    sampled = (cfg.rollout.micro_prompts or cfg.rollout.prompts) / shards
    numbers = 4 * text.num_layers * text.num_kv_heads * text.head_dim * (t.prompt + t.group * t.answer)  # of one prompt
    cache = numbers * sampled / mesh["tensor"] * mean / 2
    rollout = 0 if offline(cfg) else own * mean + cache + layer
    return Estimate(kept + max(update, rollout), seconds(model, cfg, place, mesh, sum(count.values()), cache), kept)


def seconds(model: Qwen3VLConfig, cfg: Config, place: Slice, mesh: dict[str, int], count: int, cache: float) -> float:
    if place.chip is None:
        return 0.0
    t, text, chip = _tokens_of(cfg), model.text, place.chip
    shards = prod(mesh[axis] for axis in ("data", "fsdp", "expert"))
    experts = 3 * text.hidden_size * text.moe.intermediate_size * text.moe.num_experts * text.num_layers if text.moe else 0
    gathered = 2 * (experts / mesh["expert"] + count - experts) / mesh["tensor"] * (1 - 1 / mesh["fsdp"])
    whole = 2 * count / mesh["tensor"] / (mesh["expert"] if experts else 1)
    pieces = cfg.update.prompts // cfg.update.micro_prompts

    def moved(rows: float) -> float:
        """Bytes sent by a forward pass over `rows` tokens: to the experts and back, and between the parts of a layer."""
        each = (mesh["expert"] - 1) * bool(experts) + 2 * (1 - 1 / mesh["tensor"])
        return text.num_layers * rows * text.hidden_size * 4 * each

    rows = t.stream * cfg.update.micro_prompts / shards
    work = {name: n / place.devices for name, n in flops(model, cfg).items()}
    update = max(work["update"] * 4 / 3 / chip.flops, pieces * (4 * gathered + 2.5 * moved(rows)) / place.links)
    if offline(cfg):
        reference = max(work["logp"] / chip.flops, pieces * (gathered + moved(rows)) / place.links) if has_reference(cfg) else 0
        return update + reference
    total = update * (cfg.rollout.prompts // cfg.update.prompts)
    passes = cfg.rollout.prompts // cfg.update.micro_prompts
    logp = max(2 * work["logp"] / chip.flops, 2 * passes * (gathered + moved(rows)) / place.links)
    turns = t.answer * cfg.rollout.prompts // (cfg.rollout.micro_prompts or cfg.rollout.prompts)
    each = t.group * (cfg.rollout.micro_prompts or cfg.rollout.prompts) / shards
    decode = turns * max(work["decode"] / turns / chip.flops, (whole + cache) / chip.hbm, (gathered + moved(each)) / place.links)
    return total + logp + decode + work["prefill"] / chip.flops
