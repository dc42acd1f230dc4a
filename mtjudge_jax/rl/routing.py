"""Of a mixture of experts: the update takes the experts that the sampler chose, so that both compute the same function.

A router chooses by small differences. In bfloat16 decoding and training round differently, and a token with another expert has
quite another hidden state. The sampler therefore notes its choices, and the stream of training repeats them; the weights of the
chosen experts are still the router's, so it learns. The reference repeats them too, or equal weights would show a divergence.
Source: Ma et al., "Stabilizing MoE Reinforcement Learning by Aligning Training and Inference Routers" (R3), arXiv 2510.11370.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mtjudge_jax.config import Config
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.models.qwen3_vl.config import TextConfig
from mtjudge_jax.sharding import batch_sharding
from mtjudge_jax.types import NO_CHOICE, Array, PromptBatch, Rollout, Routing


def check_replay(cfg: Config, text: TextConfig) -> None:
    """Raises ConfigError where loss.replay_routing asks for what the model has not."""
    if not cfg.loss.replay_routing:
        return
    if text.moe is None:
        raise ConfigError("loss.replay_routing is True, but the model is dense and has no experts to choose: set it to False")
    if text.moe.num_experts > NO_CHOICE:
        raise ConfigError(
            f"loss.replay_routing keeps choices among at most {NO_CHOICE} experts, the model has {text.moe.num_experts}: "
            "set it to False"
        )


def replaying(prompts: PromptBatch, out: Rollout, mesh: Mesh) -> tuple[PromptBatch, Rollout]:
    """The prompts with the routing of the rollout, which drew from the same prompts in room of their size or less; both as they
    are where the rollout has none.
    """
    if out.routing is None:
        return prompts, out
    return prompts._replace(routing=_widener(mesh)(out.routing, prompts.valid)), out._replace(routing=None)


@functools.cache
def _widener(mesh: Mesh) -> Callable[[Routing, Array], Routing]:
    def widen(routing: Routing, valid: Array) -> Routing:
        missing = ((0, 0), (valid.shape[1] - routing.prompts.shape[1], 0), (0, 0), (0, 0))
        return routing._replace(prompts=jnp.pad(routing.prompts, missing, constant_values=NO_CHOICE))

    return jax.jit(widen, out_shardings=batch_sharding(mesh))
