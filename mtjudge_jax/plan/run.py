"""`mtjudge plan` after the environment is set: finds the model and the devices, compiles the programs and prints the plan."""

import importlib.metadata
import json
import logging
import math
import sys
import time
from pathlib import Path

import jax
from jax.experimental import topologies

from mtjudge_jax.config import Config, to_dict
from mtjudge_jax.config_check import check
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.models.chips import chip_of
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config
from mtjudge_jax.models.qwen3_vl.presets import PRESETS, preset
from mtjudge_jax.paths import as_path
from mtjudge_jax.plan import search, table
from mtjudge_jax.plan.lengths import draw_lengths, read_spreads
from mtjudge_jax.plan.natural import Natural, at_lengths, real_tokens
from mtjudge_jax.plan.roofline import StepPhase, step_phases, tokens_a_step
from mtjudge_jax.plan.slices import Slice, gpu_description, has_module, named_place
from mtjudge_jax.plan.xla.compiled import memory_rows
from mtjudge_jax.plan.xla.costs import COLLECTIVES
from mtjudge_jax.policy.model import DEMO_BASE, model_folder, row_format
from mtjudge_jax.train.record_check import check_records
from mtjudge_jax.types import Lengths

_LEVEL = "O1"  # XLA's optimization level: compiles in a quarter of the time, with the same memory within 1 % (30B-A3B, v5p:4x4x4)

_MOST_SHARE = 0.92  # of a GPU's memory for XLA; CUDA, NCCL and libraries need the rest


def model_of(cfg: Config, name: str) -> tuple[Qwen3VLConfig, str]:
    """The model's sizes and its name: from --model, else from the folder model.path, else from the size in that path's name."""
    if name:
        return preset(name), name
    folder = DEMO_BASE if cfg.model.path == "demo" else Path(cfg.model.path)
    if (folder / "config.json").is_file():
        return load_config(folder), cfg.model.path
    words = folder.name.lower().removeprefix("qwen3-vl-")
    sizes = [size for size in sorted(PRESETS, key=len, reverse=True) if words == size or words.startswith(f"{size}-")]
    if not sizes:
        raise ConfigError(
            f"model.path = {cfg.model.path!r} is not a folder with a config.json on this machine, and its name contains no "
            f"published size: give --model={'|'.join(PRESETS)}"
        )
    return preset(sizes[0]), f"{sizes[0]} (the size in the name of {cfg.model.path}, which is not on this machine)"


def place_of(topology: str) -> tuple[Slice, list[jax.Device]]:
    """The named slice or GPUs, which need not exist, or the devices of this machine for ""."""
    if topology:
        place = named_place(topology)
        if place.chip.gpu:
            shape = f"1x{place.devices // place.host_devices}x{place.host_devices}"  # as XLA writes it: hosts x GPUs of each
            jax.devices()  # jax finds its plugins
            settings = {"topology": shape, "target_config": gpu_description(place.chip)}
            return place, list(topologies.get_topology_desc(platform="cuda", topology_name="", **settings).devices)
        cores = {"chip_config_name": place.chip.config} if place.chip.config else {}
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=place.name, **cores).devices)
        return place, devices
    devices = jax.devices()
    chip = chip_of(devices[0].device_kind)
    if chip and devices[0].platform != "cpu":
        limit = (devices[0].memory_stats() or {}).get("bytes_limit", chip.memory)
        chip = chip._replace(memory=limit, axes=0, a_chip=1)
    return Slice(f"this machine ({devices[0].device_kind})", chip, (len(devices),)), devices


def lengths_of_run(cfg: Config, given: list[str], data: str) -> Lengths | None:
    """The lengths of --lengths and --data; None without either. Raises ConfigError where one says what the other measures."""
    if not given and not data:
        return None
    spreads, measured = read_spreads(given, cfg), []
    if data:
        if twice := sorted({"prompt", "patches"} & spreads.keys()):
            raise ConfigError(f"--lengths gives {', '.join(twice)}, and --data measures them: give one of the two")
        measured = check_records(cfg, as_path(data), row_format(cfg, model_folder(cfg.model.path))).sizes
    return draw_lengths(cfg, spreads, measured)


def run(
    cfg: Config, *, model_name: str, names: list[str], lengths: list[str], data: str, sweep: bool, tries: int, as_json: bool
) -> None:
    """Prints the plan of each slice in `names`. Raises ConfigError if the config cannot be planned."""
    if model_name and not cfg.model.path:
        cfg.model.path = model_name
    check(cfg)
    if sweep and (lengths or data):
        raise ConfigError("--sweep ranks by the longest prompts and answers: leave out --lengths and --data")
    model, name = model_of(cfg, model_name)
    drawn = lengths_of_run(cfg, lengths, data)
    began = time.perf_counter()
    if names:
        jax.config.update("jax_platforms", "cpu")  # a config file may have imported jax before the environment was set
        jax.config.update("jax_optimization_level", _LEVEL)
        logging.getLogger("absl").setLevel(logging.ERROR)  # tokamax warns that its kernels are not tuned for these shapes
    places = [place_of(topology) for topology in names or [""]]
    say = lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)  # noqa: E731
    if sweep:
        return _print_sweep(search.sweep(cfg, model, places, tries, say), as_json)
    for place, devices in places:
        plan = search.compile_plan(cfg, model, place, devices)
        natural = None if drawn is None or plan.failing else at_lengths(plan, model, devices, drawn)
        if as_json:
            print(json.dumps(_as_dict(plan) | ({} if natural is None else {"lengths": _lengths_dict(natural)})))
            continue
        _print_plan(plan, name)
        if natural is not None:
            print(f"\n{table.lengths_text(cfg, natural, place)}")
        if plan.failing:
            _print_repair(plan, model, tries)
        print(f"(compiled in {time.perf_counter() - began:.0f} s by {_versions()}, {time.strftime('%Y-%m-%d')})\n")


def _print_repair(plan: search.Plan, model: Qwen3VLConfig, tries: int) -> None:
    search_hint = "Compiling variants:" if tries else "Use --tries=6 to search for settings that fit."
    if share := _share_that_fits(plan):
        remedy = f"The run fits with XLA_CLIENT_MEM_FRACTION={share:.2f} before its command"
        return print(f"Does not fit: {', '.join(plan.failing)}. {remedy}")
    print(f"Does not fit: {', '.join(plan.failing)}. {search_hint}")
    changes = search.repair(plan, model, tries, print) if tries else None
    if changes:
        print(f"The run fits with {search.flags(changes)}")
    elif tries:
        print("No variant fits: take a larger slice, shorter prompts or answers, or a larger --tries.")


def _share_that_fits(plan: search.Plan) -> float | None:
    """The share of a GPU's memory with which the run fits, where JAX takes less and the rest of the GPU can give it."""
    chip, peak = plan.place.chip, max(plan.peaks.values())
    share = math.ceil(100 * peak / chip.total) / 100 if chip.total else 1.0
    return share if share <= _MOST_SHARE else None


def _print_plan(plan: search.Plan, name: str) -> None:
    setup, place = plan.setup, plan.place
    phases = step_phases(setup.cfg, plan.compiled, place)
    print(table.plan_heading(setup, place, name), end="\n\n")
    print(table.memory_table(setup, plan.compiled, place), end="\n\n")
    if place.chip and place.chip.gpu and ":" in place.name:
        print(table.gpu_notes(place), end="\n\n")
    if phases:
        print(table.costs_table(setup, phases, place), end="\n\n")
    for one in plan.compiled.values():
        if one.counted and one.counted.unknown:
            print(f"The counts of {one.phase} lack the matrix products of these kernels: {', '.join(one.counted.unknown)}")
    if not plan.failing:
        print(("Fits. " if place.chip else "") + table.summary(setup.cfg, phases, place))


def _print_sweep(plans: list[search.Plan], as_json: bool) -> None:
    if as_json:
        return print(json.dumps([_as_dict(plan) for plan in plans]))
    print(table.row("slice and mesh, fastest first", ["fits", "peak GB", "of GB", "step s", "tokens/s"]))
    for plan in plans:
        title = f"{plan.place.name} {table.short(dict(plan.setup.mesh.shape))}"
        seconds, limit = plan.seconds, plan.place.chip.memory if plan.place.chip else 0
        rate = f"{tokens_a_step(plan.setup.cfg) / seconds:,.0f}" if seconds else ""
        peaks = max(plan.peaks.values()) / 1e9
        values = ["no" if plan.failing else "yes", f"{peaks:.1f}", f"{limit / 1e9:.1f}", f"{seconds:.1f}", rate]
        print(table.row(title, values))
    if plans and not plans[0].failing:
        print(f"The flags of the first row: {search.mesh_flags(plans[0])}")
    print(f"({_versions()}, {time.strftime('%Y-%m-%d')}; the seconds are rooflines, not measurements)")


def _as_dict(plan: search.Plan) -> dict:
    """Every figure of the tables, in bytes, operations and seconds."""
    phases = step_phases(plan.setup.cfg, plan.compiled, plan.place)
    return {
        "topology": plan.place.name,
        "devices": plan.place.devices,
        "mesh": dict(plan.setup.mesh.shape),
        "fits": not plan.failing,
        "memory": {phase: memory_rows(plan.setup, plan.compiled, phase) for phase in plan.compiled},
        "limit": plan.place.chip.memory if plan.place.chip else None,
        "phases": _phases_dict(phases),
        "seconds": plan.seconds,
        "tokens": tokens_a_step(plan.setup.cfg),
        "compile_seconds": {phase: one.seconds for phase, one in plan.compiled.items()},
        "config": to_dict(plan.setup.cfg),
        "versions": _versions(),
    }


def _phases_dict(phases: list[StepPhase]) -> dict[str, dict]:
    return {
        p.name: {"flops": p.costs["flops"], "hbm": p.costs["hbm"], "seconds": p.seconds, "bound": p.bound}
        | {kind: p.costs[kind] for kind in COLLECTIVES}
        for p in phases
    }


def _lengths_dict(natural: Natural) -> dict:
    """What a step computes at the lengths of --lengths and --data."""
    how = natural.decoded
    steps = [[*at, count] for at, count in how.steps.items()] if how else []  # lanes, columns, how many
    return {
        "learned": natural.learned._asdict(),
        "decoded": {"steps": steps, "live": how.live, "room": how.room._asdict()} if how else None,
        "phases": _phases_dict(natural.phases),
        "seconds": natural.seconds,
        "tokens": real_tokens(natural.lengths),
    }


def _versions() -> str:
    """Of jax and of XLA's compilers that are installed."""
    compilers = {"libtpu": "libtpu", "jax_plugins.xla_cuda13": "jax-cuda13-plugin", "jax_plugins.xla_cuda12": "jax-cuda12-plugin"}
    installed = [package for module, package in compilers.items() if has_module(module)]
    return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ["jax", *installed])
