"""Compiles the programs of a run and returns the memory and the work of each on a device."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax

from mtjudge_jax.config import offline
from mtjudge_jax.plan.programs import SAMPLING, Setup, caches, device_bytes, lower, phases_of, rollout_batch
from mtjudge_jax.plan.xla import costs, parse
from mtjudge_jax.plan.xla.kernels import kernel_work

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_AT_ONCE = 2  # programs that compile at the same time; each takes a thread of XLA's and 2 to 4 GB


class Memory(NamedTuple):
    """Bytes on a device while a program runs, as XLA counts them."""

    arguments: int
    temporary: int
    results: int  # without those that reuse the memory of an argument
    code: int


class Compiled(NamedTuple):
    phase: str
    memory: Memory | None  # None: XLA refused the program, it does not fit
    needed: int  # bytes that a refused program needs, 0 if XLA does not report them
    counted: costs.Counted | None
    seconds: float


def compile_all(setup: Setup, phases: list[str]) -> dict[str, Compiled]:
    """Traces the programs one after another, because tracing holds Python's lock, and compiles them in parallel."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        jobs = {phase: pool.submit(_compile_one, setup, phase, lower(setup, phase)) for phase in phases}
        return {phase: job.result() for phase, job in jobs.items()}


def _compile_one(setup: Setup, phase: str, lowered: jax.stages.Lowered) -> Compiled:
    """Raises what XLA raises, except its error that the memory does not suffice."""
    began = time.perf_counter()
    try:
        options = _options(setup)
        program = lowered.compile(compiler_options=options) if options else lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = refused(str(error))
        if needed is None:
            raise
        return Compiled(phase, None, needed, None, time.perf_counter() - began)
    stats = program.memory_analysis()
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    memory = Memory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, results, stats.generated_code_size_in_bytes)
    counted = costs.count(parse.parse_program(program.as_text()), kernel_work=kernel_work, taken=1 / setup.mesh.shape["expert"])
    return Compiled(phase, memory, 0, counted, time.perf_counter() - began)


def _options(setup: Setup) -> dict[str, object]:
    """For a GPU that is not here, where XLA cannot try which kernel of a product is fastest: all products go to cuBLAS.

    Its own kernels, untried, do not compile for every shape.
    """
    absent = setup.mesh.devices.flat[0].platform == "gpu" and jax.default_backend() != "gpu"
    return {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False} if absent else {}


def refused(text: str) -> int | None:
    """The bytes that a program needs, from XLA's message that they are not available; None for any other message."""
    if "RESOURCE_EXHAUSTED" not in text:
        return None
    found = re.search(r"(?:Used|\() ?([\d.]+)([KMGT])", text)
    return int(float(found.group(1)) * _UNITS[found.group(2)]) if found else 0


def resident(setup: Setup) -> dict[str, int]:
    """Bytes on a device from the first step to the last, whichever program runs."""
    frozen = device_bytes(setup.frozen)
    return {
        "parameters": device_bytes(setup.state.params) + frozen,
        "optimizer": device_bytes(setup.state.opt_state),
        "reference": device_bytes(setup.reference) - frozen if setup.reference else 0,  # shares the frozen weights
    }


def memory_rows(setup: Setup, compiled: dict[str, Compiled], phase: str) -> dict[str, int]:
    """Bytes on a device while a program runs, by kind; their sum is the peak.

    XLA reports its temporaries as one number. The parts whose shapes are known are separate rows; the rest are activations and
    gathered weights.
    """
    rows, one = resident(setup), compiled[phase]
    if one.memory is None:
        return rows | {"refused": max(0, one.needed - rows["parameters"] - (rows["optimizer"] if phase == "update" else 0))}
    taken = rows["parameters"] + (rows["optimizer"] if phase == "update" else 0)
    rows["batch"] = max(0, one.memory.arguments - taken) + _waiting(setup, phase)
    left = one.memory.temporary
    for name, size in _known_temporaries(setup, phase).items():
        rows[name] = min(size, left)
        left -= rows[name]
    rows["activations"] = left
    rows["results"] = one.memory.results
    rows["programs"] = sum(c.memory.code for c in compiled.values() if c.memory)
    return rows


def _waiting(setup: Setup, phase: str) -> int:
    """Bytes of a rollout batch that are on the device while a program runs but are not its arguments."""
    cfg = setup.cfg
    if offline(cfg) or (phase == "rollout" and phases_of(cfg)["rollout"] == 1):
        return 0
    whole = device_bytes(rollout_batch(setup, cfg.rollout.prompts))
    if phase == "rollout":  # a second or third round keeps the batch of the rounds before it
        return device_bytes(rollout_batch(setup, cfg.rollout.prompts)[:3])
    if phase == "logp":
        return whole - device_bytes(rollout_batch(setup, cfg.rollout.prompts)[:2])
    return whole if phases_of(cfg)["update"] > 1 else 0


def _known_temporaries(setup: Setup, phase: str) -> dict[str, int]:
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
