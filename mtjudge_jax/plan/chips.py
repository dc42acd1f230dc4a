"""The makers' figures for chips, and the TPU slices that exist.

Sources for TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in November 2026, for memory, peak in bfloat16,
memory bandwidth, shapes of slices, and the bidirectional bandwidth of the links (one way is half of it); arXiv 2304.01433 for
the links of v4, six of 50 GB/s; jax-ml.github.io/scaling-book/tpus for the axes that close into rings. The memory that a program
may use is the limit in XLA's message when a program asks for more.
Sources for GPUs: NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM; dense bfloat16, NVLink one way.
"""

import importlib.util
import os
from math import prod
from typing import NamedTuple

from mtjudge_jax.errors import ConfigError, unknown

GIB = 2**30


class Chip(NamedTuple):
    """One device as JAX counts devices. All figures are the maker's peaks: no program reaches all of them."""

    name: str
    kind: str  # JAX's name, `device_kind`
    memory: int  # bytes that XLA lets a program use; the runtime takes the rest of the published size
    flops: float  # bfloat16 operations per second
    hbm: float  # bytes per second
    links: float  # bytes per second, one way, over all links together
    axes: int = 0  # axes of the torus of its links; 0: a switch
    rings: int = 0  # an axis closes into a ring if its length is a multiple of this
    a_chip: int = 1  # JAX devices per chip
    cores: int = 1  # cores per chip that Google Cloud's names count: v5p-64 has 32 chips; 1: the names count chips
    config: str = ""  # libtpu's name for a chip whose cores form one device, where that is not the default


TPUS: dict[str, Chip] = {
    "v4": Chip("v4", "TPU v4", int(30.75 * GIB), 275e12, 1200e9, 300e9, axes=3, rings=4, cores=2, config="megacore"),
    "v5e": Chip("v5e", "TPU v5 lite", int(15.75 * GIB), 197e12, 819e9, 200e9, axes=2, rings=16),
    "v5p": Chip("v5p", "TPU v5", int(95.74 * GIB), 459e12, 2765e9, 600e9, axes=3, rings=4, cores=2),
    "v6e": Chip("v6e", "TPU v6 lite", int(31.25 * GIB), 918e12, 1638e9, 400e9, axes=2, rings=16),
    "tpu7x": Chip("tpu7x", "TPU7x", int(94.75 * GIB), 2307e12 / 2, 7380e9 / 2, 600e9 / 2, axes=3, rings=4, a_chip=2, cores=2),
}
_GPUS = (
    Chip("A100", "NVIDIA A100", 80 * 10**9, 312e12, 2039e9, 300e9),
    Chip("H200", "NVIDIA H200", 141 * 10**9, 989e12, 4800e9, 450e9),
    Chip("H100", "NVIDIA H100", 80 * 10**9, 989e12, 3350e9, 450e9),
)
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SLICES: dict[str, tuple[str, ...]] = {
    "v4": _CUBES[:8],
    "v5e": _FLAT,
    "v5p": (*_CUBES, "16x16x24"),
    "v6e": _FLAT,
    "tpu7x": _CUBES,
}


_HOST_CHIPS = 4  # chips per host, in libtpu's topologies of all these generations


class Slice(NamedTuple):
    """A slice of TPUs, or the devices of this machine."""

    name: str
    chip: Chip | None  # None: a device without published figures
    shape: tuple[int, ...]  # chips along each axis; this machine has one axis

    @property
    def devices(self) -> int:
        return prod(self.shape) * (self.chip.a_chip if self.chip else 1)

    @property
    def host_devices(self) -> int:
        """Devices of one process: a host of a slice has four chips; this machine is one process."""
        return min(self.devices, _HOST_CHIPS * self.chip.a_chip) if ":" in self.name else self.devices

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
        raise ConfigError(f"{hint.partition(': known are')[0]}; known are {lists}")
    return Slice(f"{chip}:{shape}", TPUS[chip], tuple(map(int, shape.split("x"))))


def chip_of(kind: str) -> Chip | None:
    """The chip with this `device_kind`, or None if its figures are unknown."""
    exact = [chip for chip in TPUS.values() if chip.kind == kind]
    return next(iter(exact), None) or next((chip for chip in _GPUS if kind.startswith(chip.kind)), None)


# With these, libtpu compiles without opening a chip and without asking a metadata server about this machine.
_WITHOUT_A_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


def without_a_tpu(topologies: list[str]) -> None:
    """Checks the slices' names and sets the environment that compiling for them needs. Raises ConfigError."""
    for name in topologies:
        tpu_slice(name)
    if topologies and importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "--topology needs XLA's compiler for TPUs (libtpu), which is not installed: pip install 'mtjudge_jax[tpu]'"
        )
    if topologies:
        os.environ.update(_WITHOUT_A_TPU)
