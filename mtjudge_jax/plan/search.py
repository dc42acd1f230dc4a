"""Compiles variants of a config: to find settings that fit a slice, and the fastest meshes and slices."""

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax

from mtjudge_jax.config import Config
from mtjudge_jax.config_check import check, mesh_shape
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.plan import analytic
from mtjudge_jax.plan.programs import LEARNING, SAMPLING, Setup, make_setup, programs_of
from mtjudge_jax.plan.roofline import step_phases
from mtjudge_jax.plan.slices import Slice
from mtjudge_jax.plan.xla.compiled import Compiled, compile_all, memory_rows, peak, resident

Changes = dict[str, object]  # values by dotted field name


class Plan(NamedTuple):
    """A config compiled for a slice."""

    setup: Setup
    place: Slice
    compiled: dict[str, Compiled]

    @property
    def peaks(self) -> dict[str, int]:
        return {phase: peak(memory_rows(self.setup, self.compiled, phase)) for phase in self.compiled}

    @property
    def failing(self) -> list[str]:
        """The programs that do not fit, the largest first."""
        limit, peaks = self.place.chip.memory if self.place.chip else float("inf"), self.peaks
        over = [phase for phase, one in self.compiled.items() if one.memory is None or peaks[phase] > limit]
        return sorted(over, key=lambda phase: -peaks[phase])

    @property
    def excess(self) -> int:
        """Bytes beyond the device's memory, summed over the programs that do not fit."""
        return sum(max(0, self.peaks[phase] - self.place.chip.memory) for phase in self.failing) if self.place.chip else 0

    @property
    def crowded(self) -> bool:
        """Whether weights, optimizer and reference alone do not fit, whatever a program needs beside them."""
        return self.place.chip is not None and sum(resident(self.setup).values()) > self.place.chip.memory

    @property
    def seconds(self) -> float:
        return sum(p.seconds for p in step_phases(self.setup.cfg, self.compiled, self.place))


def compile_plan(
    cfg: Config, model: Qwen3VLConfig, place: Slice, devices: list[jax.Device], phases: list[str] | None = None
) -> Plan:
    """Raises ConfigError if the config does not suit the number of devices."""
    check(cfg, len(devices), len({device.process_index for device in devices}))
    setup = make_setup(cfg, model, devices)
    return Plan(setup, place, compile_all(setup, programs_of(cfg) if phases is None else phases))


def changed(cfg: Config, changes: Changes) -> Config:
    cfg = copy.deepcopy(cfg)
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        owner = vars(cfg)[section] if section else cfg
        vars(owner)[field] = value
    return cfg


def flags(changes: Changes) -> str:
    """The changes as command line flags."""
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())


class _Remedy(NamedTuple):
    changes: Changes
    phases: tuple[str, ...]  # the phases whose memory it can reduce
    first: bool = False  # of what every phase holds; tried before all else, but only while that alone does not fit


def remedies(cfg: Config, model: Qwen3VLConfig, place: Slice, failing: list[str], *, crowded: bool = False) -> Iterator[_Remedy]:
    """Changes that reduce memory.

    Where the weights alone do not fit (`crowded`), first the mesh, then what changes what is learned: no other change can help.
    Then one change for each phase in turn, in the order of `failing`, so that a few tries reach every phase. Then changes that
    help every phase, and last those that change what is learned.
    """
    shape = mesh_shape(cfg.mesh, place.devices)
    shards = shape["data"] * shape["fsdp"] * shape["expert"]
    held: list[Changes] = []
    mesh = _leanest_mesh(cfg, model, place, crowded=crowded)
    if mesh != shape:
        held.append({f"mesh.{axis}": size for axis, size in mesh.items()})
    if cfg.model.param_dtype != "bfloat16" and not cfg.lora.rank:
        held.append({"model.param_dtype": "bfloat16"})
    if not cfg.lora.rank and not cfg.model.freeze:
        held.append({"lora.rank": 16})
    if crowded:
        yield from (_Remedy(changes, SAMPLING + LEARNING, first=True) for changes in held)
        shards = mesh["data"] * mesh["fsdp"] * mesh["expert"]
    sampled = cfg.rollout.micro_prompts or cfg.rollout.prompts
    own = {
        SAMPLING: [{"rollout.micro_prompts": size} for size in halves(sampled, shards)],
        LEARNING: [{"update.micro_prompts": size} for size in halves(cfg.update.micro_prompts, shards)]
        + [{"model.remat": "full"}] * (cfg.model.remat != "full")
        + [{"model.head_chunk": 512 * shards}] * (cfg.model.head_chunk > 512 * shards),
    }
    rank = {group: min(failing.index(phase) for phase in group if phase in failing) for group in own if set(group) & set(failing)}
    worst_first = sorted(rank, key=rank.get)
    for turn in itertools.zip_longest(*(own[group] for group in worst_first)):
        yield from (_Remedy(changes, group) for changes, group in zip(turn, worst_first, strict=True) if changes)
    yield from (_Remedy(changes, SAMPLING + LEARNING) for changes in held)


def halves(size: int, shards: int) -> list[int]:
    """At most two smaller numbers of prompts that the shards divide: half of `size`, and the smallest one."""
    smaller = [n for n in (size // 2, shards) if n < size and size % n == 0 and n % shards == 0]
    return list(dict.fromkeys(smaller))


def repair(plan: Plan, model: Qwen3VLConfig, tries: int, say) -> Changes | None:
    """Tries one remedy after another, keeps those that help, and prints a line for each variant that it compiles.

    Returns the changes with which every program fits, without those that proved needless, or None.
    """
    cfg, place, devices = plan.setup.cfg, plan.place, list(plan.setup.mesh.devices.flat)
    kept: Changes = {}
    gains: dict[str, float] = {}  # by field: how many times as much its phases needed before
    failing = left = plan.failing
    now, crowded = plan, plan.crowded
    for remedy in remedies(cfg, model, place, failing, crowded=crowded):
        changes, phases = remedy.changes, remedy.phases
        if not set(phases) & set(left) or (remedy.first and not crowded) or changes.items() <= kept.items():
            continue
        if tries == 0:
            say("  stopped: no tries left, give a larger --tries")
            return None
        both = kept | changes
        try:
            tried = compile_plan(changed(cfg, both), model, place, devices, failing)
        except ConfigError as error:
            say(f"  {flags(both)}: {error}")
            continue
        tries -= 1
        learns = " (changes what is learned)" if {"model.param_dtype", "lora.rank"} & both.keys() else ""
        say(f"  {flags(both)}{learns}: {_fit_text(tried)}")
        gain = max((now.peaks[phase] / tried.peaks[phase] for phase in phases if phase in tried.peaks), default=1.0)
        gains |= {name: gain * gains.get(name, 1.0) for name in changes}
        if not tried.failing:
            if _fits_elsewhere(changed(cfg, both), model, place, devices, failing, say):
                return _without_needless(plan, model, both, changes, gains, tried, say)
        elif tried.excess < now.excess or len(tried.failing) < len(left) or (crowded and not tried.crowded):
            now, kept, left, crowded = tried, both, tried.failing, tried.crowded
    return None


def _without_needless(
    plan: Plan, model: Qwen3VLConfig, changes: Changes, last: Changes, gains: dict[str, float], fits: Plan, say
) -> Changes:
    """The changes without those whose gain there is room for now, each compiled without it and kept where that does not fit."""
    room = plan.place.chip.memory / max(fits.peaks.values())
    for name in [x for x in changes if x not in last and gains[x] <= room and not x.startswith("mesh.")]:
        fewer = {other: value for other, value in changes.items() if other != name}
        cfg, devices = plan.setup.cfg, list(plan.setup.mesh.devices.flat)
        try:
            tried = compile_plan(changed(cfg, fewer), model, plan.place, devices)
        except ConfigError:
            continue
        say(f"  without --config.{name}={changes[name]}: {_fit_text(tried)}")
        changes = changes if tried.failing else fewer
    return changes


def _fits_elsewhere(cfg: Config, model: Qwen3VLConfig, place: Slice, devices: list[jax.Device], done: list[str], say) -> bool:
    rest = [phase for phase in programs_of(cfg) if phase not in done]
    if not rest:
        return True
    plan = compile_plan(cfg, model, place, devices, rest)
    say(f"    the other programs then need {_fit_text(plan)}")
    return not plan.failing


def _fit_text(plan: Plan) -> str:
    limit = plan.place.chip.memory / 1e9
    sizes = ", ".join(f"{phase} {size / 1e9:.1f} GB" for phase, size in plan.peaks.items())
    return f"{sizes} of {limit:.1f} GB: " + ("does not fit" if plan.failing else "fits")


def meshes(cfg: Config, model: Qwen3VLConfig, devices: int, host: int) -> Iterator[dict[str, int]]:
    """All mesh shapes in powers of two that the model's sizes, the batches and the devices of a host allow."""
    powers = [2**n for n in range(devices.bit_length())]
    for data in powers:
        for expert in powers if model.text.moe else [1]:
            for tensor in powers:
                fsdp, rest = divmod(devices, data * expert * tensor)
                shape = {"data": data, "fsdp": fsdp, "expert": expert, "tensor": tensor}
                if rest or not fsdp or host % tensor or tensor > model.text.num_kv_heads or model.text.num_kv_heads % tensor:
                    continue
                if model.text.moe and model.text.moe.num_experts % expert:
                    continue
                if cfg.update.micro_prompts % (data * fsdp * expert) == 0:
                    yield shape


def _estimates(cfg: Config, model: Qwen3VLConfig, place: Slice) -> list[tuple[dict[str, int], analytic.Estimate]]:
    """All meshes with their estimates, the fastest first; those that clearly cannot fit are last."""
    found = [(mesh, analytic.estimate(model, cfg, place, mesh)) for mesh in meshes(cfg, model, place.devices, place.host_devices)]
    room = 1.3 * place.chip.memory if place.chip else float("inf")
    return sorted(found, key=lambda x: (x[1].bytes > room, x[1].seconds))


def _leanest_mesh(cfg: Config, model: Qwen3VLConfig, place: Slice, *, crowded: bool) -> dict[str, int]:
    """The fastest of the meshes that need at most 10 % more memory than the smallest.

    Where the weights alone do not fit, only of those whose weights take at most half of the device, or else the least.
    """
    found = _estimates(cfg, model, place)
    if not found:
        return mesh_shape(cfg.mesh, place.devices)
    if crowded:
        most = max(place.chip.memory / 2, min(estimate.held for _, estimate in found))
        found = [(mesh, estimate) for mesh, estimate in found if estimate.held <= most]
    least = min(estimate.bytes for _, estimate in found)
    return next(mesh for mesh, estimate in found if estimate.bytes <= 1.1 * least)


def sweep(cfg: Config, model: Qwen3VLConfig, places: list[tuple[Slice, list[jax.Device]]], tries: int, say) -> list[Plan]:
    """Compiles the `tries` most promising meshes of all slices. The result has those that fit first, then the fastest first."""
    found = [(e, mesh, place, devices) for place, devices in places for mesh, e in _estimates(cfg, model, place)]
    if not found:
        sizes = ", ".join(str(place.devices) for place, _ in places)
        raise ConfigError(
            f"update.micro_prompts = {cfg.update.micro_prompts} is not divisible by the shards of any mesh of {sizes} devices: "
            "take a multiple of the number of devices"
        )
    found.sort(key=lambda x: (x[0].bytes > 1.3 * x[2].chip.memory if x[2].chip else 0, x[0].seconds))
    plans = []
    for estimate, mesh, place, devices in found[:tries]:
        axes = ", ".join(f"{axis} {size}" for axis, size in mesh.items())
        say(f"compiling {place.name}, mesh {axes}, estimated at {estimate.bytes / 1e9:.0f} GB and {estimate.seconds:.0f} s")
        changes = {f"mesh.{axis}": size for axis, size in mesh.items()}
        plans.append(compile_plan(changed(cfg, changes), model, place, devices))
    return sorted(plans, key=lambda plan: (bool(plan.failing), plan.seconds))


def mesh_flags(plan: Plan) -> str:
    return flags({f"mesh.{axis}": size for axis, size in dataclasses.asdict(plan.setup.cfg.mesh).items()})
