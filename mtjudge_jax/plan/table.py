"""The plan as text: its heading, two tables and a summary."""

import os

import numpy as np

from mtjudge_jax.config import Config
from mtjudge_jax.plan import analytic
from mtjudge_jax.plan.natural import Natural, real_tokens
from mtjudge_jax.plan.programs import Setup, phases_of, rounds_of
from mtjudge_jax.plan.roofline import StepPhase, tokens_a_step
from mtjudge_jax.plan.slices import Slice
from mtjudge_jax.plan.xla.compiled import Compiled, memory_rows, peak
from mtjudge_jax.plan.xla.costs import COLLECTIVES
from mtjudge_jax.policy.flops import layer_weights
from mtjudge_jax.train.monitor.messages import step_text

_TITLES = {
    "parameters": "parameters",
    "optimizer": "optimizer",
    "reference": "reference policy",
    "batch": "batch",
    "gradients": "gradients",
    "cast": "weights cast to model.dtype",
    "caches": "key-value caches",
    "activations": "activations, gathered weights",
    "results": "results",
    "programs": "program code",
    "refused": "refused by XLA, which needed",
}
_PHASES = {"rollout": "rollout", "logp": "log-prob.", "update": "update", "evaluation": "evaluation"}
_WIDTH = 34


def plan_heading(setup: Setup, place: Slice, name: str) -> str:
    count, cfg = analytic.weights(setup.model_cfg, setup.cfg), setup.cfg
    total, trained = sum(count.values()), count[True, True] + count[True, False]
    text = setup.model_cfg.text
    active = layer_weights(text) + 2 * text.hidden_size * text.vocab_size
    mesh = ", ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    lines = [
        f"{name}: {_number(total)} parameters, {_number(active)} active per token, {_number(trained)} trained",
        f"{place.name}: {place.devices} device{'s' * (place.devices > 1)}, mesh {mesh}",
        step_text(cfg),
    ]
    return "\n".join(lines)


def _number(count: float) -> str:
    """31_070_754_032 -> "31.07 billion", 940_000 -> "0.94 million"."""
    return f"{count / 1e9:.2f} billion" if count >= 1e8 else f"{count / 1e6:.2f} million"


def memory_table(setup: Setup, compiled: dict[str, Compiled], place: Slice) -> str:
    columns = {phase: memory_rows(setup, compiled, phase) for phase in compiled}
    lines = [row("GB per device", [_PHASES[phase] for phase in columns])]
    for name, title in _TITLES.items():
        values = [rows.get(name) for rows in columns.values()]
        if any(values):
            lines.append(row(f"  {title}", ["" if value is None else f"{value / 1e9:.2f}" for value in values]))
    peaks = [peak(rows) for rows in columns.values()]
    lines.append(row("  peak", [f"{value / 1e9:.2f}" for value in peaks]))
    limit, whose = (place.chip.memory, "") if place.chip else (_machine_memory() / place.devices, " (shared memory)")
    if place.chip or "(cpu)" in place.name:
        lines.append(row(f"  of {limit / 1e9:.2f}{whose}", [f"{value / limit:.0%}" for value in peaks]))
    return "\n".join(lines)


def _machine_memory() -> int:
    """Bytes of this machine's memory, which the devices of a CPU share."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_notes(place: Slice) -> str:
    """What the figures of GPUs mean: their limit, and what they leave out."""
    chip = place.chip
    lines = [
        f"JAX takes {chip.memory / chip.total:.0%} of the {chip.total / 1e9:.2f} GB that CUDA reports; for another share set "
        "XLA_CLIENT_MEM_FRACTION here and for the run.",
        "Compiled by XLA's compiler for this GPU, without one: sizes are what it would take, not measured. NCCL and CUDA take "
        "1 to 2 GB of the rest.",
    ]
    if place.devices > place.host_devices:
        machines = place.devices // place.host_devices
        lines.append(f"{machines} machines of {place.host_devices}: links count as if the network were NVLink.")
    return "\n".join(lines)


def costs_table(setup: Setup, phases: list[StepPhase], place: Slice) -> str:
    cfg, calls = setup.cfg, phases_of(setup.cfg)
    rounds = rounds_of(cfg)
    own = {name: n / place.devices * calls.get(name, rounds) for name, n in analytic.flops(setup.model_cfg, cfg).items()}
    times = {"prefill": rounds, "decode": rounds * (cfg.rollout.completion_tokens - 1)} | calls
    return _costs_table(phases, place, times, own)


def _costs_table(phases: list[StepPhase], place: Slice, times: dict[str, float], own: dict[str, float]) -> str:
    """times: calls of each phase. own: operations that the model requires, by phase; may be empty."""
    total = lambda values: [*values, sum(values)]  # noqa: E731
    lines = [
        row("per step and device", [*[_PHASES.get(p.name, p.name) for p in phases], "sum"]),
        row("  calls", [f"{times[p.name]:,.0f}" for p in phases]),
        _amounts("  matrix products, {}FLOP", [p.costs["flops"] for p in phases]),
    ]
    if own:
        shares = [f"{own[p.name] / p.costs['flops']:.0%}" for p in phases if p.costs["flops"]]
        lines.append(row("  share that the model requires", shares))
    lines.append(_amounts("  memory traffic, {}B", [p.costs["hbm"] for p in phases]))
    for kind in COLLECTIVES:
        if any(p.costs[kind] for p in phases):
            lines.append(_amounts(f"  {kind}, {{}}B sent", [p.costs[kind] for p in phases]))
    if place.chip is None:
        return "\n".join(lines)
    for title, values in (
        ("  matrix products, s", [p.compute for p in phases]),
        ("  memory, s", [p.memory for p in phases]),
        ("  links, s", [p.links for p in phases]),
        ("  roofline, s", [p.seconds for p in phases]),
    ):
        lines.append(row(title, [f"{value:.2f}" for value in total(values)]))
    lines.append(row("  bound by", [p.bound for p in phases]))
    return "\n".join(lines)


def _amounts(title: str, values: list[float]) -> str:
    """A row of amounts and their sum, in the largest unit in which the sum is at least 10."""
    values = [*values, sum(values)]
    unit, by = next(
        (u, by) for u, by in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1)) if values[-1] >= 10 * by or by == 1
    )
    return row(title.format(unit), [f"{value / by:,.1f}" for value in values])


def row(title: str, values: list[str]) -> str:
    return (f"{title:{_WIDTH}s}" + "".join(f"{value:>12s}" for value in values)).rstrip()


def summary(cfg: Config, phases: list[StepPhase], place: Slice) -> str:
    if place.chip is None:
        return (
            "No times: this device has no published figures. For TPUs or GPUs use --topology, e.g. --topology=v5p:4x4x4 or "
            "--topology=h100:4.\nOn a CPU attention keeps all scores. On a TPU or GPU a kernel does not: peaks are lower there."
        )
    seconds = sum(p.seconds for p in phases)
    rate = tokens_a_step(cfg) / seconds
    rounds = rounds_of(cfg)
    rollouts = f" with {rounds} rollouts, the most that MT-GRPO may take," if rounds > 1 else ""
    return (
        f"A step{rollouts} takes at least {seconds:.1f} s ({rate:,.0f} tokens/s), and the config's {cfg.steps:,} steps take "
        f"at least {cfg.steps * seconds / 3600:.1f} hours.\nThis is a roofline from the maker's peak figures, not a measurement: "
        "no run is this fast.\nIt has every answer at full length and leaves out evaluation, data loading and saving."
    )


def lengths_text(cfg: Config, natural: Natural, place: Slice) -> str:
    """What the lengths are, what a step computes of them, its costs and its time."""
    lengths, mean, how = natural.lengths, natural.learned, natural.decoded
    spread = lambda x: f"{x.mean():,.0f} ({np.quantile(x, 0.95):,.0f})"  # noqa: E731
    prompt, patches, answer = (f"{share:.0%}" for share in mean.real)
    sizes = f"{mean.prompt:,.0f} tokens ({prompt} real), {mean.patches:,.0f} patches ({patches} real)"
    lines = [
        "At these lengths, in the mean (95 % below): "
        f"prompts of {spread(lengths.prompt)} tokens and {spread(lengths.patches)} patches, answers of {spread(lengths.answers)}",
        f"  learning computes a prompt as {sizes} and {mean.answer:,.0f} places an answer ({answer} real),",
        f"  {mean.together} prompt{'s' * (mean.together > 1)} of a device at a time",
    ]
    if how:
        steps = f"{sum(how.steps.values()):,.0f} steps"
        lines.append(f"  decoding takes {steps}; {how.live:.0%} of the lanes' steps have a live answer")
    if not natural.phases:
        return "\n".join(lines)
    calls, rounds = phases_of(cfg), rounds_of(cfg)
    times = calls | ({"prefill": rounds, "decode": rounds * sum(how.steps.values())} if how else {})
    lines += ["", _costs_table(natural.phases, place, times, {})]
    if place.chip:
        prompts = cfg.update.prompts if how is None else rounds * cfg.rollout.prompts
        rate = prompts * real_tokens(lengths) / natural.seconds
        hours = cfg.steps * natural.seconds / 3600
        lines += ["", (
            f"A step of these lengths takes at least {natural.seconds:.1f} s ({rate:,.0f} real tokens/s), and the config's "
            f"{cfg.steps:,} steps take at least {hours:.1f} hours."
        )]  # fmt: skip
    return "\n".join(lines)


def short(mesh: dict[str, int]) -> str:
    """`fsdp 8 expert 8`: the mesh without its axes of one device."""
    return " ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
