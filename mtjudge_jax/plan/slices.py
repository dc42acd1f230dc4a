"""The TPU slices that exist, GPUs by name, and what compiling for them needs. The shapes: docs.cloud.google.com/tpu/docs, read in
November 2026; the memory and the multiprocessors of GPUs: see models/chips.py.
"""

import importlib.util
import os
from collections.abc import Mapping
from math import prod
from typing import NamedTuple

from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.models.chips import GPUS, TPUS, Chip

# Per multiprocessor: shared memory, the most of it that a block may have, floating point units, threads.
_ARCHS = {
    (8, 0): (167936, 166912, 64, 2048),
    (8, 9): (102400, 101376, 128, 1536),
    (9, 0): (233472, 232448, 128, 2048),
    (10, 0): (233472, 232448, 128, 2048),
}

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SLICES: dict[str, tuple[str, ...]] = {
    "v4": _CUBES[:8],
    "v5e": _FLAT,
    "v5p": (*_CUBES, "16x16x24"),
    "v6e": _FLAT,
    "tpu7x": _CUBES,
}


class Slice(NamedTuple):
    """A slice of TPUs, a number of GPUs, or the devices of this machine."""

    name: str
    chip: Chip | None  # None: a device without published figures
    shape: tuple[int, ...]  # chips along each axis; this machine has one axis

    @property
    def devices(self) -> int:
        return prod(self.shape) * (self.chip.a_chip if self.chip else 1)

    @property
    def host_devices(self) -> int:
        """Devices of one process, which drives all chips of its host; this machine is one process."""
        return min(self.devices, self.chip.host * self.chip.a_chip) if ":" in self.name else self.devices

    @property
    def links(self) -> float:
        """Bytes per second, one way, of the device with the fewest links: at the end of an axis without a ring, half of them."""
        if not self.chip.axes:
            return self.chip.links
        whole = self.chip.rings == 4 and all(size % 4 == 0 for size in self.shape)  # cubes of 4x4x4: every axis is a ring
        ends = [2 if whole or (size % self.chip.rings == 0 and self.chip.rings != 4) else 1 for size in self.shape if size > 1]
        return self.chip.links * sum(ends) / (2 * self.chip.axes)


def known_slices() -> list[str]:
    return [f"{chip}:{shape}" for chip, shapes in SLICES.items() for shape in shapes]


def tpu_slice(name: str) -> Slice:
    """The slice named `v5p:4x4x4`, or by Google Cloud's name `v5p-128`.

    Google Cloud's names count the cores of v4, v5p and tpu7x, two per chip, and the chips of `v6e-64` and `v5litepod-64`
    (here also `v5e-64`). Raises ConfigError that lists the known slices.
    """
    chip, _, shape = name.replace("v5litepod-", "v5e-", 1).partition(":")
    if not shape and "-" in name:
        chip, _, count = chip.partition("-")
        sizes = {str(prod(map(int, s.split("x"))) * TPUS[chip].cores): s for s in SLICES.get(chip, ())}
        shape = sizes.get(count, "")
    if chip not in SLICES or shape not in SLICES[chip]:
        known = known_slices()
        hint = unknown("topology", name, known)
        lists = "; ".join(f"{chip}: {' '.join(shapes)}" for chip, shapes in SLICES.items())
        raise ConfigError(f"{hint.partition(': known are')[0]}; known are {lists}; and GPUs, e.g. h100:4, of {', '.join(GPUS)}")
    return Slice(f"{chip}:{shape}", TPUS[chip], tuple(map(int, shape.split("x"))))


def named_place(name: str) -> Slice:
    """A slice of TPUs by its name, or GPUs: `h100:4`, `l40s` for one, `h200:16` for two machines of eight.

    Raises ConfigError for an unknown name, and for a number of GPUs that does not fill its machines.
    """
    gpu, colon, count = name.partition(":")
    if gpu not in GPUS:
        same = [known for known in GPUS if known.startswith(f"{gpu}-")]
        if same:
            raise ConfigError(f"unknown topology {name!r}: write {' or '.join(f'{known}{colon}{count}' for known in same)}")
        return tpu_slice(name)
    chip, number = GPUS[gpu], int(count) if count.isdecimal() else not colon
    if number < 1 or (number > chip.host and number % chip.host):
        raise ConfigError(f"topology {name!r}: write {gpu}:N with N from 1 to {chip.host}, or a multiple of {chip.host}")
    share = memory_share(os.environ)
    return Slice(f"{gpu}:{int(number)}", chip._replace(memory=int(share * chip.total)), (int(number),))


def memory_share(env: Mapping[str, str]) -> float:
    """The part of a GPU's memory that JAX takes for programs, as these variables of the environment say; without them 75 %."""
    given = env.get("XLA_CLIENT_MEM_FRACTION") or env.get("XLA_PYTHON_CLIENT_MEM_FRACTION") or "0.75"
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"XLA_CLIENT_MEM_FRACTION = {given!r}: write the share of a GPU's memory, above 0 and at most 1")
    return share


def gpu_description(chip: Chip) -> str:
    """The GPU for XLA's compiler, which needs none that way: a GpuTargetConfigProto as text."""
    shared, block, units, threads = _ARCHS[chip.gpu.arch]
    major, minor = chip.gpu.arch
    own = f"{major} minor: {minor}" + (" feature_extension: ACCELERATED_FEATURES" if major > 8 else "")
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: {threads} core_count: {chip.gpu.cores} fpus_per_core: {units} block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {int(chip.hbm)} l2_cache_size: {chip.gpu.cache * 2**20}
  clock_rate_ghz: {chip.gpu.clock} device_memory_size: {chip.total} shared_memory_per_block_optin: {block}
  cuda_compute_capability {{ major: {own} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{chip.kind}"
"""


# With these, libtpu compiles without opening a chip and without asking a metadata server about this machine.
_WITHOUT_A_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


def has_module(name: str) -> bool:
    """Whether a module is installed, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def without_a_tpu(topologies: list[str]) -> None:
    """Checks the names and sets the environment that compiling for TPUs or GPUs that are not here needs. Raises ConfigError."""
    for name in topologies:
        chip = named_place(name).chip
        if chip.gpu and not any(map(has_module, ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"))):
            raise ConfigError(
                f"--topology={name} needs XLA's compiler for GPUs, which is not installed: pip install -e '.[cuda]'"
            )
        if not chip.gpu and not has_module("libtpu"):
            raise ConfigError(
                f"--topology={name} needs XLA's compiler for TPUs (libtpu), which is not installed: pip install -e '.[tpu]'"
            )
    if topologies:
        os.environ.update(_WITHOUT_A_TPU)
