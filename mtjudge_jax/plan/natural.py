"""The phases of a step at given lengths: compiled at the sizes that the run's rules compute in the mean (see lengths.py).

Learning has prompts, patches and places of answers of the mean size. Decoding is compiled at up to three sizes, and the costs of
a step of it are taken as linear in its lanes, and in their columns. Memory is not asked: a run must have room for its longest.
"""

from math import prod
from typing import NamedTuple

import jax

from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.plan.lengths import Decoded, Learned, decoded, learned
from mtjudge_jax.plan.programs import make_setup, phases_of
from mtjudge_jax.plan.roofline import StepPhase, timed
from mtjudge_jax.plan.search import Changes, Plan, changed
from mtjudge_jax.plan.xla.compiled import compile_all
from mtjudge_jax.plan.xla.costs import Costs, scaled
from mtjudge_jax.policy.programs import column_ladder, decodes_at_once, lane_ladder
from mtjudge_jax.sharding import BATCH_AXES
from mtjudge_jax.types import Lengths


class Natural(NamedTuple):
    """A step at given lengths."""

    lengths: Lengths
    learned: Learned
    decoded: Decoded | None  # None where the stage samples nothing
    phases: list[StepPhase]  # empty where XLA refused a program

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)


def at_lengths(plan: Plan, model: Qwen3VLConfig, devices: list[jax.Device], lengths: Lengths) -> Natural:
    """Compiles what a step of the plan's config computes at these lengths. model: without adapters."""
    cfg, place = plan.setup.cfg, plan.place
    apart = prod(plan.setup.mesh.shape[axis] for axis in BATCH_AXES)
    calls, mean = phases_of(cfg), learned(cfg, lengths, apart)

    def costs(phases: list[str], changes: Changes) -> dict[str, tuple[Costs, Costs]]:
        compiled = compile_all(make_setup(changed(cfg, changes), model, devices), phases)
        return {name: (one.counted.fixed, one.counted.loop) for name, one in compiled.items() if one.counted}

    sizes: Changes = {"data.prompt_tokens": round(mean.prompt), "data.patches": 4 * round(mean.patches / 4)}
    sizes |= {"rollout.completion_tokens": round(mean.answer) + 1, "update.micro_prompts": mean.together * apart}
    learning = [name for name in calls if name != "rollout"]
    found = costs(learning, sizes)
    phases, how = [timed(name, scaled(found[name][0], calls[name]), place) for name in learning if name in found], None
    if "rollout" in calls:
        how = decoded(cfg, lengths, apart)
        at = {point: costs(["rollout"], changes) for point, changes in _points(plan, how, apart).items()}
        if all(at.values()):
            pieces = cfg.rollout.prompts // (cfg.rollout.micro_prompts or cfg.rollout.prompts)
            turns = {point: scaled(one["rollout"][1], 1 / pieces) for point, one in at.items()}
            decode = _summed(turns, how.steps)
            prefill = next(iter(at.values()))["rollout"][0]
            sampling = {"prefill": prefill, "decode": decode}
            phases = [*(timed(name, scaled(one, calls["rollout"]), place) for name, one in sampling.items()), *phases]
    return Natural(lengths, mean, how, phases if len(phases) == len(learning) + 2 * ("rollout" in calls) else [])


def _points(plan: Plan, how: Decoded, apart: int) -> dict[tuple[int, int], Changes]:
    """Changes of the config by (lanes, columns) of the sampler that they compile: all of both, fewer columns, fewer lanes."""
    cfg = plan.setup.cfg.rollout
    held, rows, group = (cfg.micro_prompts or cfg.prompts) // apart, cfg.prompts // apart, cfg.group_size
    room = {"data.prompt_tokens": how.room.prompt, "data.patches": how.room.patches}
    columns = cfg.completion_tokens - 1
    out = {(held * group, columns): room}
    if decodes_at_once(held, rows, group, cfg.completion_tokens):
        return out
    few = column_ladder(columns)[0]
    if few < columns:
        out[held * group, few] = room | {"rollout.completion_tokens": few + 1}
    if len(lane_ladder(held * group)) > 1 and group > 1:
        out[held * (group // 2), columns] = room | {"rollout.group_size": group // 2}
    return out


def _summed(turns: dict[tuple[int, int], Costs], steps: Costs) -> Costs:
    """The costs of so many steps. A step costs w + lanes (a + b columns), through the points that were compiled."""
    (lanes, columns), *_ = turns
    few = min(at for _, at in turns)
    less = min(at for at, _ in turns)
    out = Costs()
    for kind in set().union(*turns.values()):
        whole = turns[lanes, columns][kind]
        b = (whole - turns[lanes, few][kind]) / (lanes * (columns - few)) if few < columns else 0.0
        slope = (whole - turns[less, columns][kind]) / (lanes - less) if less < lanes else b * columns
        a = slope - b * columns
        w = whole - lanes * slope
        out[kind] = sum(count * max(0.0, w + at * (a + b * read)) for (at, read), count in steps.items())
    return out


def real_tokens(lengths: Lengths) -> float:
    """Tokens of prompts and answers of a prompt, in the mean."""
    return float(lengths.prompt.mean() + lengths.answers.sum(1).mean())


