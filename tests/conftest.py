"""A fake mesh of 8 CPU devices, exact float32 and a compilation cache that lives on, all set before jax is imported."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

# Compiled programs are kept between runs of the suite; processes that a test starts inherit the folder. `rm -r .cache` is safe.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # newer versions do not have it
    # XLA's older code for fused loops compiles four times as fast: 20 instead of 74 s for test_micro_batches.py's longest test.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tracing is most of what the tests wait for: it leaves few cycles to look for, and nobody reads an operation's origin.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")
os.environ.setdefault("FSSPEC_GCS_TOKEN", "anon")  # read as fsspec is imported; support/bucket.py asks for no name

import jax
import pytest

gc.set_threshold(100_000, 50, 50)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "allow")


@pytest.fixture
def source(tmp_path):
    """A folder to prepare from, for readers that make up their records."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "rows.csv").write_text("one\n")
    return folder
