"""The programs of a run with everything abstract: no weights, no data, and devices that this machine need not have.

They are the same functions that `mtjudge train` jits, lowered with the shapes and shardings of its calls.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtjudge_jax.config import Config, answers_learned, has_reference, offline
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.policy.model import with_adapters
from mtjudge_jax.policy.programs import Programs, make_programs
from mtjudge_jax.policy.trainable import join, split, without_adapters
from mtjudge_jax.policy.update import abstract_state, make_update
from mtjudge_jax.rl.loss import dpo_loss, grpo_loss, sft_loss
from mtjudge_jax.rl.optim import make_optimizer
from mtjudge_jax.rl.streams import bins_ladder
from mtjudge_jax.sharding import BATCH_AXES, batch_sharding, make_mesh, param_sharding, path_name, replicated
from mtjudge_jax.types import DpoBatch, Params, PromptBatch, Routing, SftBatch, TrainBatch, TrainState

SAMPLING, LEARNING = ("rollout", "evaluation"), ("logp", "update")


class Ids:
    """Replaces a tokenizer. Which ids are forbidden does not change the programs; that some are forbidden does."""

    pad, ends = 0, (1, 2)  # the published models end at two tokens

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        return np.arange(vocab_size) > 0


class Setup(NamedTuple):
    """A run as abstract arrays."""

    cfg: Config
    model_cfg: Qwen3VLConfig
    mesh: Mesh
    programs: Programs
    optimizer: Any
    state: TrainState
    frozen: Params
    reference: Params | None  # the reference policy's weights; None where the stage needs none


def make_setup(cfg: Config, model_cfg: Qwen3VLConfig, devices: list[jax.Device]) -> Setup:
    mesh = make_mesh(cfg.mesh, devices)
    model_cfg = with_adapters(model_cfg, cfg)
    optimizer = make_optimizer(cfg.optim, max(1, cfg.steps))

    def placed(path, leaf, dtype: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=param_sharding(path_name(path), leaf.shape, mesh))

    apart = split(vlm.abstract_params(model_cfg), cfg)
    in_dtype = lambda tree, dtype: jax.tree_util.tree_map_with_path(partial(placed, dtype=dtype), tree)  # noqa: E731
    trained, frozen = in_dtype(apart.trained, cfg.model.param_dtype), in_dtype(apart.frozen, cfg.model.dtype)
    if not has_reference(cfg):
        reference = None
    else:  # see policy.reference_of: with adapters the frozen base, else a second copy of the trained weights
        reference = without_adapters(join(frozen, in_dtype(apart.trained, cfg.model.dtype)))
    programs = make_programs(cfg, model_cfg, Ids(), mesh)
    return Setup(cfg, model_cfg, mesh, programs, optimizer, abstract_state(trained, optimizer, mesh), frozen, reference)


def rounds_of(cfg: Config) -> int:
    """The most rollouts per step."""
    return cfg.data.mt_grpo_rounds if cfg.data.mixture == "mt_grpo" else 1


def phases_of(cfg: Config) -> dict[str, int]:
    """The most times that a step runs each program."""
    if offline(cfg):
        return ({"logp": 1} if has_reference(cfg) else {}) | {"update": 1}
    updates = cfg.rollout.prompts // cfg.update.prompts
    objective = cfg.data.mixture == "mt_grpo" and cfg.data.mt_grpo_improvement == "objective"  # a pass before and one after
    logps = (updates > 1 or objective) + has_reference(cfg) + objective
    return {"rollout": rounds_of(cfg)} | ({"logp": logps} if logps else {}) | {"update": updates}


def programs_of(cfg: Config) -> list[str]:
    """The programs that must fit. An evaluation samples beside the optimizer's state, so it must fit too, unless the rollouts
    already sample as many answers (SFT and DPO have no rollouts).
    """
    sampled = cfg.rollout.group_size if cfg.stage == "grpo" else 0
    return [*phases_of(cfg)] + ["evaluation"] * (cfg.eval.samples > sampled)


def lower(setup: Setup, phase: str) -> jax.stages.Lowered:
    """One program as XLA receives it."""
    device = setup.mesh.devices.flat[0]
    # tokamax chooses its kernels by the default device, also for a GPU that is not here
    with jax.default_device(device if device.platform == "gpu" else None):
        return _lower(setup, phase)


def _lower(setup: Setup, phase: str) -> jax.stages.Lowered:
    cfg, programs = setup.cfg, setup.programs
    params = join(setup.frozen, setup.state.params)
    if phase in SAMPLING:
        prompts = _prompt_batch(setup, cfg.rollout.prompts)
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated(setup.mesh))
        temperature = jax.ShapeDtypeStruct((_sampled_answers(cfg, phase),), jnp.float32, sharding=replicated(setup.mesh))
        return programs.sample_at_once.lower(params, prompts, key, temperature, cfg.rollout.completion_tokens)
    if phase == "logp":
        batch = offline_batch(setup) if offline(cfg) else rollout_batch(setup, cfg.rollout.prompts)
        return programs.logp.whole.lower(params, batch.prompts, batch.tokens, batch.places)
    if cfg.stage == "sft":
        batch, loss = offline_batch(setup), partial(sft_loss, logp_fn=programs.logp_fn)
    elif cfg.stage == "dpo":
        batch, loss = offline_batch(setup), partial(dpo_loss, cfg=cfg.dpo, logp_fn=programs.logp_fn)
    else:
        on_policy = cfg.rollout.prompts == cfg.update.prompts
        loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=programs.logp_fn, on_policy=on_policy)
        batch = rollout_batch(setup, cfg.update.prompts)
    return make_update(setup.state, loss, setup.optimizer, setup.mesh, cfg).whole.lower(setup.state, setup.frozen, batch)


def _sampled_answers(cfg: Config, phase: str) -> int:
    """Answers per prompt of a sampling phase."""
    return cfg.eval.samples if phase == "evaluation" else cfg.rollout.group_size


def _prompt_batch(setup: Setup, rows: int) -> PromptBatch:
    array = partial(_array, setup.mesh, rows)
    p, m = setup.cfg.data.prompt_tokens, setup.cfg.data.patches
    vision = setup.model_cfg.vision
    return PromptBatch(
        tokens=array(jnp.int32, p),
        valid=array(jnp.bool_, p),
        positions=array(jnp.int32, p, 3),
        next_position=array(jnp.int32),
        image_index=array(jnp.int32, p),
        patches=array(jnp.uint8, m, 3 * vision.patch_size**2),
        patch_hw=array(jnp.int32, m, 2),
        patch_grid=array(jnp.int32, m, 2),
        patch_segment=array(jnp.int32, m),
        uid=array(jnp.uint32),
    )


def rollout_batch(setup: Setup, rows: int) -> TrainBatch:
    """A batch whose answers all have full length: none takes more places."""
    array, cfg = partial(_array, setup.mesh, rows), setup.cfg.rollout
    sizes = (cfg.group_size, cfg.completion_tokens)
    logp, places = array(jnp.float32, *sizes), array(jnp.int32, *bins_ladder(*sizes)[-1])
    answers = (array(jnp.int32, *sizes), array(jnp.bool_, *sizes), array(jnp.float32, sizes[0]))
    prompts = _prompt_batch(setup, rows)
    if setup.cfg.loss.replay_routing:
        experts = setup.model_cfg.text.num_layers, setup.model_cfg.text.moe.experts_per_token
        of_prompts = array(jnp.uint8, setup.cfg.data.prompt_tokens, *experts)
        prompts = prompts._replace(routing=Routing(of_prompts, array(jnp.uint8, *sizes, *experts)))
    return TrainBatch(prompts, *answers, logp, logp, places)


def offline_batch(setup: Setup) -> SftBatch | DpoBatch:
    """What an update of SFT or DPO takes, with answers of full length."""
    cfg = setup.cfg
    rows, sizes = cfg.update.prompts, (answers_learned(cfg), cfg.rollout.completion_tokens)
    array = partial(_array, setup.mesh, rows)
    whole = (
        _prompt_batch(setup, rows),
        array(jnp.int32, *sizes),
        array(jnp.bool_, *sizes),
        array(jnp.int32, *bins_ladder(*sizes)[-1]),
    )
    return SftBatch(*whole) if cfg.stage == "sft" else DpoBatch(*whole, array(jnp.float32, *sizes))


def _array(mesh: Mesh, rows: int, dtype, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((rows, *sizes), dtype, sharding=batch_sharding(mesh))


def device_bytes(tree: Any) -> int:
    """Bytes of abstract arrays with shardings, on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in leaves)


def caches(setup: Setup, phase: str) -> list[jax.ShapeDtypeStruct]:
    """Keys and values of the prompts that are sampled at a time, and of their answers."""
    cfg, text = setup.cfg, setup.model_cfg.text
    rows = cfg.rollout.micro_prompts or cfg.rollout.prompts
    heads, size, layers = text.num_kv_heads, text.head_dim, text.num_layers
    tensor = "tensor" if heads % setup.mesh.shape["tensor"] == 0 else None
    sharding = NamedSharding(setup.mesh, P(BATCH_AXES, None, tensor))
    tokens = cfg.data.prompt_tokens + _sampled_answers(cfg, phase) * (cfg.rollout.completion_tokens - 1)
    shape = (rows, 2 * layers * tokens, heads, size)
    return [jax.ShapeDtypeStruct(shape, jnp.dtype(cfg.model.dtype), sharding=sharding)]
