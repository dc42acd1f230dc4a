"""GPUs by name in `mtjudge plan`: their figures, how many, the memory that JAX takes, what XLA is told, and tokamax's kernels."""

import importlib.util
import os
from unittest import mock

import pytest

from mtjudge_jax.errors import ConfigError
from mtjudge_jax.models.chips import GPUS, Chip, chip_of
from mtjudge_jax.plan import slices
from mtjudge_jax.plan.slices import Slice, gpu_description, memory_share, named_place, without_a_tpu
from mtjudge_jax.plan.table import gpu_notes, memory_table
from mtjudge_jax.plan.xla import costs, kernels, parse


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)


@pytest.mark.parametrize("name,devices,host,flops,hbm,links", [
    ("a100-40:8", 8, 8, 312e12, 1555e9, 300e9),
    ("a100-80", 1, 1, 312e12, 2039e9, 300e9),
    ("h100:4", 4, 4, 989e12, 3350e9, 450e9),
    ("h100-pcie:2", 2, 2, 756e12, 2000e9, 64e9),
    ("h200:16", 16, 8, 989e12, 4800e9, 450e9),
    ("b200:8", 8, 8, 2250e12, 8000e9, 900e9),
    ("l40s:4", 4, 4, 362e12, 864e9, 32e9),
    ("l4:1", 1, 1, 121e12, 300e9, 32e9),
    ("rtx4090:2", 2, 2, 165.2e12, 1008e9, 32e9),
])  # fmt: skip
def test_gpus_are_as_their_maker_says(name, devices, host, flops, hbm, links):
    place = named_place(name)
    assert (place.devices, place.host_devices) == (devices, host)
    assert (place.chip.flops, place.chip.hbm, place.links) == (flops, hbm, links)
    published = {"a100-40": 40, "h200": 141, "b200": 180, "l40s": 48, "l4": 24, "rtx4090": 24}.get(place.chip.name, 80)
    assert place.chip.memory == int(0.75 * place.chip.total)
    assert 0.95 * published * 1e9 < place.chip.total < 1.074 * published * 1e9, "GB or GiB, without what CUDA reserves"


def test_a_gpu_of_this_machine_has_the_figures_of_its_name():
    kinds = {"NVIDIA A100-SXM4-40GB": "a100-40", "NVIDIA A100-SXM4-80GB": "a100-80", "NVIDIA H100 80GB HBM3": "h100"}
    kinds |= {
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H200": "h200",
        "NVIDIA L40S": "l40s",
        "NVIDIA L4": "l4",
        "NVIDIA B200": "b200",
    }
    assert {kind: chip_of(kind).name for kind in kinds} == kinds
    assert chip_of("NVIDIA Tesla T4") is None


@pytest.mark.parametrize("name,message", [
    ("a100:4", r"unknown topology 'a100:4': write a100-40:4 or a100-80:4"),
    ("h100:0", r"topology 'h100:0': write h100:N with N from 1 to 8, or a multiple of 8"),
    ("h100:12", r"topology 'h100:12': write h100:N"),
    ("h100:two", r"topology 'h100:two': write h100:N"),
    ("h100:", r"topology 'h100:': write h100:N"),
    ("h1000:4", r"unknown topology 'h1000:4'.*known are v4: .*; and GPUs, e\.g\. h100:4, of a100-40, a100-80, h100, "),
])  # fmt: skip
def test_a_wrong_name_or_number_is_one_line(name, message):
    with pytest.raises(ConfigError, match=message):
        named_place(name)


def test_the_share_of_memory_is_that_of_the_environment(monkeypatch):
    assert memory_share({}) == 0.75, "JAX's own"
    assert memory_share({"XLA_CLIENT_MEM_FRACTION": ".92"}) == 0.92
    assert memory_share({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}) == 0.5, "its older name"
    for wrong in ("0", "1.2", "92%"):
        with pytest.raises(ConfigError, match=rf"XLA_CLIENT_MEM_FRACTION = '{wrong}': write the share"):
            memory_share({"XLA_CLIENT_MEM_FRACTION": wrong})
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    place = named_place("h100:16")
    assert place.chip.memory == int(0.9 * 84942979072)
    assert gpu_notes(place).startswith(
        "JAX takes 90% of the 84.94 GB that CUDA reports; for another share set XLA_CLIENT_MEM_FRACTION"
    )
    assert "2 machines of 8" in gpu_notes(place) and "machines" not in gpu_notes(named_place("h100:8"))


def test_what_xla_is_told_of_a_gpu():
    text = gpu_description(GPUS["h100"])
    for part in (
        "device_memory_size: 84942979072",
        "core_count: 132",
        "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES",
    ):
        assert part in text
    assert "feature_extension" not in gpu_description(GPUS["a100-80"]) and "major: 8 minor: 9" in gpu_description(GPUS["l40s"])
    assert all(chip.gpu.arch in slices._ARCHS for chip in GPUS.values())


def test_a_missing_compiler_is_named_with_what_to_install():
    with mock.patch.object(importlib.util, "find_spec", lambda name: None), mock.patch.dict(os.environ, clear=True):
        with pytest.raises(ConfigError, match=r"--topology=h100:4 needs XLA's compiler for GPUs, .*pip install -e '\.\[cuda\]'"):
            without_a_tpu(["h100:4"])
        with pytest.raises(ConfigError, match=r"--topology=v5e:4x4 needs XLA's compiler for TPUs .*pip install -e '\.\[tpu\]'"):
            without_a_tpu(["v5e:4x4"])
        assert "JAX_PLATFORMS" not in os.environ


def test_a_peak_has_something_to_compare_it_with():
    """On a CPU too: the devices share the machine's memory."""
    rows = {"parameters": 10**9}
    with mock.patch("mtjudge_jax.plan.table.memory_rows", lambda *_: rows):
        here = memory_table(None, {"update": None}, Slice("this machine (cpu)", None, (2,))).splitlines()[-1]
        there = memory_table(None, {"update": None}, Slice("test", Chip("t", "t", 4 * 10**9, 1, 1, 1), (2,))).splitlines()[-1]
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    assert here.split() == ["of", f"{half / 1e9:.2f}", "(shared", "memory)", f"{1e9 / half:.0%}"]
    assert there.split() == ["of", "4.00", "25%"]


ATTENTION = (
    r"{\"op\":{\"__type\":\"tokamax._src.ops.attention.pallas_mosaic_gpu%s.Flash\"},\"arguments\":{\"k\":\"bf16[2,512,8,128]\","
)
ATTENTION += r"\"mask\":{\"bool_mask\":\"bool[2,1,256,512]\",\"is_causal\":%s},\"q\":\"bf16[2,256,32,128]\"}}"
EXPERTS = r"{\"op\":{\"__type\":\"tokamax._src.ops.ragged_dot.pallas_mosaic_gpu.Ragged\"},\"arguments\":{%s}}"


@pytest.mark.parametrize("text,results,products", [
    (ATTENTION % ("", "false"), 3, 2),
    (ATTENTION % ("", "true"), 1, 1),  # half of the pairs
    (ATTENTION % ("_vjp", "false"), 1, 3),
    (ATTENTION % ("_vjp", "false"), 2, 4),
    (ATTENTION % ("_vjp", "false"), 3, 7),
])  # fmt: skip
def test_the_work_of_flash_attention_on_a_gpu(text, results, products):
    kernel = kernels.Kernel("x", f"jit(f)/tokamax:{text}/mpmd_map", [], results)
    assert kernels.kernel_work(kernel) == (2 * products * 2 * 256 * 32 * 512 * 128, 0)


@pytest.mark.parametrize("shapes", [
    r'\"lhs\":\"bf16[640,64]\",\"rhs\":\"bf16[8,64,32]\"',
    r'\"lhs\":\"bf16[640,32]\",\"rhs\":\"bf16[8,64,32]\"',  # the rows' gradient
    r'\"lhs\":\"bf16[640,64]\",\"rhs\":\"bf16[640,32]\"',  # that of the weights
])  # fmt: skip
def test_the_work_of_experts_on_a_gpu(shapes):
    kernel = kernels.Kernel("x", f"jit(f)/tokamax:{EXPERTS % shapes}/mpmd_map", [])
    assert kernels.kernel_work(kernel) == (2 * 640 * 64 * 32, 0)


def test_products_that_cublas_computes_are_counted():
    """As XLA writes them for a GPU; a kernel's name holds escaped quotes."""
    text = r"""HloModule test

ENTRY %main (a: bf16[16,64], b: bf16[64,32]) -> bf16[16,32] {
  %a = bf16[16,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %gemm = (bf16[16,32]{1,0}, s8[4096]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={CONFIG}
  %out = bf16[16,32]{1,0} get-tuple-element(%gemm), index=0
  %sort = bf16[16,32]{1,0} custom-call(%out), custom_call_target="__cub$DeviceRadixSort"
  ROOT %k = bf16[16,32]{1,0} custom-call(%sort), custom_call_target="mosaic_gpu_v2", metadata={op_name="f/x:{\"y\":\"z\"}"}
}
"""
    config = '"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}'
    text = text.replace("CONFIG", config)
    seen = []
    counted = costs.count(parse.parse_program(text), kernel_work=lambda kernel: seen.append(kernel.op_name), taken=1.0)
    assert counted.fixed["flops"] == 2 * 16 * 64 * 32
    assert counted.unknown == {"k": 1} and seen == [r"f/x:{\"y\":\"z\"}"]
