"""The shortest time that each phase of a step can take on a chip, and what bounds it.

A roofline: matrix products, memory and links each run at the maker's peak, at the same time and without a gap. No run is as fast.
"""

from typing import NamedTuple

from mtjudge_jax.config import Config, answers_learned, offline
from mtjudge_jax.plan.programs import phases_of, rounds_of
from mtjudge_jax.plan.slices import Slice
from mtjudge_jax.plan.xla.compiled import Compiled
from mtjudge_jax.plan.xla.costs import COLLECTIVES, Costs, scaled


class StepPhase(NamedTuple):
    """A phase of a step on one device. The seconds are 0 if the chip's figures are unknown."""

    name: str
    costs: Costs
    compute: float
    memory: float
    links: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        return max((self.compute, "compute"), (self.memory, "memory"), (self.links, "links"))[1]


def step_phases(cfg: Config, compiled: dict[str, Compiled], place: Slice) -> list[StepPhase]:
    """The phases that compiled, in the order of a step: prefill, decode, logp, update."""
    out = []
    for name, calls in phases_of(cfg).items():
        counted = compiled[name].counted
        if counted is None:
            continue
        if name == "rollout":
            out.append(timed("prefill", scaled(counted.fixed, calls), place))
            out.append(timed("decode", scaled(counted.loop, calls * (cfg.rollout.completion_tokens - 1)), place))
        else:
            out.append(timed(name, scaled(counted.fixed, calls), place))
    return out


def timed(name: str, costs: Costs, place: Slice) -> StepPhase:
    """The phase of these costs on a chip of the place."""
    if place.chip is None:
        return StepPhase(name, costs, 0.0, 0.0, 0.0)
    sent = sum(costs[kind] for kind in COLLECTIVES)
    return StepPhase(name, costs, costs["flops"] / place.chip.flops, costs["hbm"] / place.chip.hbm, sent / place.links)


def tokens_a_step(cfg: Config) -> int:
    """Tokens per step, with every prompt and every answer at full length."""
    if offline(cfg):
        return cfg.update.prompts * (cfg.data.prompt_tokens + answers_learned(cfg) * cfg.rollout.completion_tokens)
    prompts, answers = rounds_of(cfg) * cfg.rollout.prompts, cfg.rollout.group_size * cfg.rollout.completion_tokens
    return prompts * (cfg.data.prompt_tokens + answers)
