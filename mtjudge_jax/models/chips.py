"""The makers' figures for TPUs and GPUs.

Sources for TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in November 2026, for memory, peak in bfloat16,
memory bandwidth, and the bidirectional bandwidth of the links (one way is half of it); arXiv 2304.01433 for
the links of v4, six of 50 GB/s; jax-ml.github.io/scaling-book/tpus for the axes that close into rings. The memory that a program
may use is the limit in XLA's message when a program asks for more.
Sources for GPUs: NVIDIA's data sheets of A100, H100, H200, HGX B200, L40S and L4, and its whitepaper of the Ada architecture for
RTX 4090. bfloat16 is the dense figure, links are NVLink or, without one, PCIe, one way. Memory is what CUDA reports, and with the
number and the sizes of multiprocessors it is from XLA's own descriptions (openxla/xla, backends/gpu/target_config/specs) or, for
H200, L40S, L4 and RTX 4090, from what CUDA prints there.
"""

from typing import NamedTuple

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
    host: int = 4  # chips per host, in libtpu's topologies of all these generations; GPUs of a machine
    gpu: "Gpu | None" = None  # None: a TPU
    total: int = 0  # bytes of a GPU, of which XLA takes a share; 0: a TPU


class Gpu(NamedTuple):
    """What XLA must know of a GPU to compile for it."""

    arch: tuple[int, int]  # CUDA's compute capability
    cores: int  # multiprocessors
    cache: int  # MiB of level 2
    clock: float  # GHz


TPUS: dict[str, Chip] = {
    "v4": Chip("v4", "TPU v4", int(30.75 * GIB), 275e12, 1200e9, 300e9, axes=3, rings=4, cores=2, config="megacore"),
    "v5e": Chip("v5e", "TPU v5 lite", int(15.75 * GIB), 197e12, 819e9, 200e9, axes=2, rings=16),
    "v5p": Chip("v5p", "TPU v5", int(95.74 * GIB), 459e12, 2765e9, 600e9, axes=3, rings=4, cores=2),
    "v6e": Chip("v6e", "TPU v6 lite", int(31.25 * GIB), 918e12, 1638e9, 400e9, axes=2, rings=16),
    "tpu7x": Chip("tpu7x", "TPU7x", int(94.75 * GIB), 2307e12 / 2, 7380e9 / 2, 600e9 / 2, axes=3, rings=4, a_chip=2, cores=2),
}


def _gpu(name: str, kind: str, memory: int, flops: float, hbm: float, links: float, gpu: Gpu) -> Chip:
    return Chip(name, kind, memory, flops, hbm, links, host=8, gpu=gpu, total=memory)


GPUS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        _gpu("a100-40", "NVIDIA A100-SXM4-40GB", 42331013120, 312e12, 1555e9, 300e9, Gpu((8, 0), 108, 40, 1.41)),
        _gpu("a100-80", "NVIDIA A100", 85100068864, 312e12, 2039e9, 300e9, Gpu((8, 0), 108, 40, 1.41)),
        _gpu("h100", "NVIDIA H100", 84942979072, 989e12, 3350e9, 450e9, Gpu((9, 0), 132, 50, 1.98)),
        _gpu("h100-pcie", "NVIDIA H100 PCIe", 84942979072, 756e12, 2000e9, 64e9, Gpu((9, 0), 114, 50, 1.755)),
        _gpu("h200", "NVIDIA H200", int(139.8 * GIB), 989e12, 4800e9, 450e9, Gpu((9, 0), 132, 50, 1.98)),
        _gpu("b200", "NVIDIA B200", 191514411008, 2250e12, 8000e9, 900e9, Gpu((10, 0), 148, 126, 1.965)),
        _gpu("l40s", "NVIDIA L40S", int(44.4 * GIB), 362e12, 864e9, 32e9, Gpu((8, 9), 142, 96, 2.52)),
        _gpu("l4", "NVIDIA L4", int(22.0 * GIB), 121e12, 300e9, 32e9, Gpu((8, 9), 58, 48, 2.04)),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", int(23.5 * GIB), 165.2e12, 1008e9, 32e9, Gpu((8, 9), 128, 72, 2.52)),
    )
}


def chip_of(kind: str) -> Chip | None:
    """The chip with this `device_kind`, or None if its figures are unknown."""
    exact = [chip for chip in TPUS.values() if chip.kind == kind]
    gpus = sorted((chip for chip in GPUS.values() if kind.startswith(chip.kind)), key=lambda chip: -len(chip.kind))
    return next(iter(exact + gpus), None)
