"""The longest row that splash attention takes."""

import jax
import jax.numpy as jnp
import pytest

from mtjudge_jax.errors import UserError
from mtjudge_jax.models.attention import splash


def test_splash_takes_as_many_tokens_as_it_counts(monkeypatch):
    """Where it counts to 128, a row of 128 tokens is computed and one of 129 is refused."""
    monkeypatch.setattr(splash, "LONGEST", 128)

    def shape_of_result(length: int) -> tuple[int, ...]:
        row = jax.ShapeDtypeStruct((1, length, 1, 16), jnp.float32)
        segments = jax.ShapeDtypeStruct((1, length), jnp.int32)
        attend = lambda q, segments: splash.attend(q, q, q, segments=segments, layout=("causal",), scale=1.0, mesh=None)  # noqa: E731
        return jax.eval_shape(attend, row, segments).shape

    assert shape_of_result(128) == (1, 128, 1, 16)
    with pytest.raises(UserError, match="129 tokens a row exceed the 128 that splash can count"):
        shape_of_result(129)
