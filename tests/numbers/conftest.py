"""What several files of numbers share."""

import jax
import pytest


@pytest.fixture(scope="module")
def quick_to_compile():
    """For files whose programs compile longer than they run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
