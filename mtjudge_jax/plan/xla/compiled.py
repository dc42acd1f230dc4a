"""Compiles the programs of a run and says what each holds on a device and does there."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax

from mtjudge_jax.plan.programs import SAMPLING, Setup, caches, device_bytes, lower, phases_of, rollout_batch
from mtjudge_jax.plan.xla import costs, parse
from mtjudge_jax.plan.xla.kernels import splash_work

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
AT_ONCE = 2  # programs that compile side by side, each a thread of XLA's and 2 to 4 GB


class Memory(NamedTuple):
    """Bytes on a device while a program runs, as XLA counts them."""

    arguments: int
    temporary: int
    results: int  # that do not lie in the memory of an argument
    code: int


class Compiled(NamedTuple):
    phase: str
    memory: Memory | None  # None: XLA refused it, it does not fit
    needed: int  # bytes it asked for when it refused
    counted: costs.Counted | None
    seconds: float


def compile_all(setup: Setup, phases: list[str]) -> dict[str, Compiled]:
    """Traces one after the other, since Python holds a lock there, and compiles side by side."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = {phase: pool.submit(compile_one, setup, phase, lower(setup, phase)) for phase in phases}
        return {phase: job.result() for phase, job in jobs.items()}


def compile_one(setup: Setup, phase: str, lowered: jax.stages.Lowered) -> Compiled:
    """Raises what XLA raises, unless that is that the memory does not suffice."""
    began = time.perf_counter()
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = refused(str(error))
        if needed is None:
            raise
        return Compiled(phase, None, needed, None, time.perf_counter() - began)
    stats = program.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = Memory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, results, stats.generated_code_size_in_bytes)
    counted = costs.count(parse.parse(program.as_text()), kernel_work=splash_work, taken=1 / setup.mesh.shape["expert"])
    return Compiled(phase, memory, 0, counted, time.perf_counter() - began)


def refused(text: str) -> int | None:
    """Bytes that a program would take, out of XLA's message that there are not so many; None of any other message."""
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    found = re.search(r"(?:Used|\() ?([\d.]+)([KMGT])", text)
    return int(float(found.group(1)) * UNITS[found.group(2)]) if found else 0


def resident(setup: Setup) -> dict[str, int]:
    """Bytes that lie on a device from the first step to the last, whichever program runs."""
    frozen = device_bytes(setup.frozen)
    return {
        "parameters": device_bytes(setup.state.params) + frozen,
        "optimizer": device_bytes(setup.state.opt_state),
        "reference": device_bytes(setup.reference) - frozen if setup.reference else 0,  # frozen weights are the policy's too
    }


def memory_rows(setup: Setup, compiled: dict[str, Compiled], phase: str) -> dict[str, int]:
    """What lies on a device while a program runs; the sum is the peak. Of XLA's temporaries, what is known by its shape is
    named, the rest are activations and gathered weights."""
    rows, one = resident(setup), compiled[phase]
    if one.memory is None:
        return rows | {"refused": max(0, one.needed - rows["parameters"] - (rows["optimizer"] if phase == "update" else 0))}
    taken = rows["parameters"] + (rows["optimizer"] if phase == "update" else 0)
    rows["batch"] = max(0, one.memory.arguments - taken) + waiting(setup, phase)
    left = one.memory.temporary
    for name, size in known_temporaries(setup, phase).items():
        rows[name] = min(size, left)
        left -= rows[name]
    rows["activations"] = left
    rows["results"] = one.memory.results
    rows["programs"] = sum(c.memory.code for c in compiled.values() if c.memory)
    return rows


def waiting(setup: Setup, phase: str) -> int:
    """The parts of a rollout batch that are there and that the program does not take."""
    cfg = setup.cfg
    if cfg.stage == "sft" or (phase == "rollout" and phases_of(cfg)["rollout"] == 1):
        return 0
    whole = device_bytes(rollout_batch(setup, cfg.rollout.prompts))
    if phase == "rollout":  # a further round has what is kept of those before beside it
        return device_bytes(rollout_batch(setup, cfg.rollout.prompts)[:3])
    if phase == "logp":
        return whole - device_bytes(rollout_batch(setup, cfg.rollout.prompts)[:2])
    return whole if phases_of(cfg)["update"] > 1 else 0


def known_temporaries(setup: Setup, phase: str) -> dict[str, int]:
    params = setup.state.params
    size = device_bytes(params)
    casts = setup.cfg.model.dtype != setup.cfg.model.param_dtype
    half = {"bfloat16": 1, "float32": 2}
    rows = {"gradients": size} if phase == "update" else {}
    if casts:
        rows["cast"] = size * half[setup.cfg.model.dtype] // half[setup.cfg.model.param_dtype]
    return rows | ({"caches": device_bytes(caches(setup, phase))} if phase in SAMPLING else {})


def peak(rows: dict[str, int]) -> int:
    return sum(rows.values())
