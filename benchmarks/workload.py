"""The model, the prompts and the step that `grpo_step.py` times."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtjudge_jax.config import Config, LossConfig, ModelConfig, OptimConfig, RolloutConfig, UpdateConfig
from mtjudge_jax.data.images import patch_coordinates
from mtjudge_jax.data.rows import rope_positions
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, from_hf
from mtjudge_jax.policy.programs import Programs, make_programs, stage_key
from mtjudge_jax.policy.update import init_state, make_update
from mtjudge_jax.rl import loss as formulas
from mtjudge_jax.rl.loss import grpo_loss
from mtjudge_jax.rl.optim import make_optimizer
from mtjudge_jax.rl.rooms import Rooms
from mtjudge_jax.rl.streams import place_answers
from mtjudge_jax.sharding import make_mesh, shard_batch, tree_shardings
from mtjudge_jax.train.grpo import make_take
from mtjudge_jax.types import Array, Params, PromptBatch, TrainBatch, TrainState

PAD, EOS, IMAGE, VIDEO, VISION_START, VISION_END, FIRST_TEXT = 0, 2, 6, 7, 3, 4, 10


@dataclass
class Work:
    """What a step needs and what it changes (`state`)."""

    cfg: Config
    programs: Programs
    update: Callable
    take: Callable
    prompts: PromptBatch
    reference: Params
    state: TrainState
    parameters: int
    mask: np.ndarray  # bool [Q, G, C], the tokens that count
    rooms: Rooms | None = None


class Ids(NamedTuple):
    """Stands in for a tokenizer: text ids only, so that no answer ends early."""

    ends: tuple[int, ...]
    pad: int

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        return np.arange(vocab_size) >= FIRST_TEXT


def build(args: argparse.Namespace) -> Work:
    model_cfg, cfg = model_config(args), run_config(args)
    mesh = make_mesh(cfg.mesh)
    programs = make_programs(cfg, model_cfg, Ids((EOS,), PAD), mesh)
    optimizer = make_optimizer(cfg.optim, cfg.steps)
    params = vlm.init_params(model_cfg, seed=0)
    params = jax.device_put(params, tree_shardings(params, mesh))
    state = init_state(params, optimizer, mesh)
    loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=programs.logp_fn, on_policy=args.updates == 1)
    update = make_update(state, loss, optimizer, mesh, cfg)
    take = make_take(args.updates, mesh)
    prompts = shard_batch(random_prompts(args), mesh)
    parameters = sum(x.size for x in jax.tree.leaves(params))
    return Work(cfg, programs, update, take, prompts, params, state, parameters, drawn_mask(args))


def run_step(work: Work, number: int, *, clock: Callable[[], float], padded: bool = False) -> dict[str, float]:
    """One step as `train` makes it, with a toy reward. Seconds of each stage; leaves the new state in `work`.

    `padded`: every answer is computed at full length, whatever it holds.
    """
    laps = [clock()]

    def lap(*outputs: Any) -> None:
        jax.block_until_ready(outputs)
        laps.append(clock())

    cfg, programs, params = work.cfg, work.programs, work.state.params
    temperature = np.full(cfg.rollout.group_size, cfg.rollout.temperature, np.float32)
    out = programs.sample(params, work.prompts, stage_key(cfg.seed, number, "sample"), temperature, cfg.rollout.completion_tokens)
    lap(out)
    if not out.mask.all():
        raise ValueError(f"step {number}: answers of {out.mask.sum(-1)} tokens; must be full, they are cut afterwards")
    mask = shard_batch(work.mask, programs.mesh)
    places = place_answers(work.prompts, mask | padded, programs.mesh)
    updates = cfg.rollout.prompts // cfg.update.prompts
    old_logp = programs.logp(params, work.prompts, out.tokens, places) if updates > 1 else out.logp
    lap(old_logp)
    ref_logp = programs.logp(work.reference, work.prompts, out.tokens, places)
    lap(ref_logp)
    advantages = formulas.group_advantages(toy_reward(out.tokens), std=cfg.loss.advantage_std, eps=cfg.loss.advantage_eps)
    batch = TrainBatch(work.prompts, out.tokens, mask, advantages, old_logp, ref_logp, places)
    for i in range(updates):
        work.state, metrics = work.update(work.state, {}, batch if updates == 1 else work.take(batch, i))
    lap(work.state, metrics)
    if not metrics["finite"]:
        raise FloatingPointError(f"step {number}: loss {metrics['loss']}, must be finite")
    seconds = dict(zip(("rollout", "old_logp", "ref_logp", "update"), np.diff(laps).tolist(), strict=True))
    return seconds | {"step": laps[-1] - laps[0], "real": float(mask[..., :-1].sum() / places.size)}


def drawn_mask(args: argparse.Namespace) -> np.ndarray:
    """bool [Q, G, C]: full answers, or lengths drawn from a lognormal distribution with the mean `share` of the limit."""
    shape = (args.prompts, args.G)
    lengths = np.full(shape, args.new)
    if args.share < 1:
        drawn = np.random.default_rng(2).lognormal(np.log(args.share * args.new) - args.sigma**2 / 2, args.sigma, shape)
        lengths = np.clip(np.rint(drawn), 1, args.new)
    return np.arange(args.new) < lengths[..., None]


def toy_reward(tokens: Array) -> Array:
    """[Q, G, C] -> [Q, G]."""
    return (tokens % 7).sum(-1).astype(jnp.float32)


def run_config(args: argparse.Namespace) -> Config:
    per_update = args.prompts // args.updates
    return Config(
        model=ModelConfig(remat=args.remat, head_chunk=args.head_chunk),
        rollout=RolloutConfig(prompts=args.prompts, group_size=args.G, completion_tokens=args.new),
        loss=LossConfig(kl_coef=0.04),
        optim=OptimConfig(lr=1e-6),
        update=UpdateConfig(prompts=per_update, micro_prompts=args.micro or per_update),
    )


def model_config(args: argparse.Namespace) -> Qwen3VLConfig:
    """Qwen3-VL's shape at the given widths; three DeepStack taps at the end of the tower."""
    side = args.head_dim // 2 * 5 // 16  # the published 24/20/20 of 64, scaled
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
    text = {
        "vocab_size": args.vocab,
        "hidden_size": args.hidden,
        "intermediate_size": args.mlp,
        "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads,
        "num_key_value_heads": args.kv_heads,
        "head_dim": args.head_dim,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope | {"mrope_section": [args.head_dim // 2 - 2 * side, side, side]},
    }
    vision = {
        "depth": args.vis_depth,
        "hidden_size": args.vis_hidden,
        "intermediate_size": 4 * args.vis_hidden,
        "num_heads": args.vis_heads,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": args.hidden,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": list(range(max(args.vis_depth - 3, 0), args.vis_depth)),
    }
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    ids |= {"vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    return from_hf({"model_type": "qwen3_vl", "tie_word_embeddings": True, "text_config": text, "vision_config": vision} | ids)


def random_prompts(args: argparse.Namespace) -> PromptBatch:
    """Random text and a random image each, all of the same length, in the layout of `data/rows.py`."""
    rng = np.random.default_rng(1)
    patches, grid = (args.image // 16) ** 2, args.image // 16
    image = [VISION_START, *[IMAGE] * (patches // 4), VISION_END]
    count, length = args.prompts, args.text_tokens + patches // 4
    text = rng.integers(FIRST_TEXT, args.vocab, (count, length - len(image)))
    tokens = np.concatenate([text[:, :1], np.tile(image, (count, 1)), text[:, 1:]], 1).astype(np.int32)
    positions, after = rope_positions(tokens[0].tolist(), image_id=IMAGE, grids=[(grid, grid)], merge=2)
    is_image = tokens == IMAGE
    return PromptBatch(
        tokens=tokens,
        valid=np.ones((count, length), bool),
        positions=np.tile(positions, (count, 1, 1)),
        next_position=np.full(count, after, np.int32),
        image_index=np.where(is_image, np.cumsum(is_image, 1) - 1, -1).astype(np.int32),
        patches=rng.integers(0, 256, (count, patches, 768), dtype=np.uint8),
        patch_hw=np.tile(patch_coordinates((grid, grid), merge=2), (count, 1, 1)),
        patch_grid=np.full((count, patches, 2), grid, np.int32),
        patch_segment=np.ones((count, patches), np.int32),
        uid=np.arange(count, dtype=np.uint32),
    )
