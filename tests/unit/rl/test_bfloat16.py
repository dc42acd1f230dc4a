"""Weights kept in bfloat16: an update far smaller than the distance between two of its numbers still moves them, on average."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtjudge_jax.config import OptimConfig
from mtjudge_jax.policy.update import accumulate, apply, round_like
from mtjudge_jax.rl.optim import make_optimizer
from mtjudge_jax.types import TrainState

SIZE = 1 << 14
BELOW, ABOVE = np.float32(0.02001953125), np.float32(0.0201416015625)  # neighbours in bfloat16, 2^-13 apart


class Batch(NamedTuple):
    mask: jax.Array  # [1, 1, 1]
    slope: jax.Array  # [1], of the loss


def slope_loss(params, batch, weights):
    loss = (params["w"].astype(jnp.float32).sum() * batch.slope).sum()
    return loss, {"loss": loss}


def batch(slope: float, rows: int = 1) -> Batch:
    return Batch(jnp.ones((rows, 1, 1), bool), jnp.full(rows, slope, jnp.float32))


def start(dtype, value: float = BELOW, lr: float = 1e-6):
    """A state of one weight repeated SIZE times, and the jitted update."""
    optimizer = make_optimizer(OptimConfig(name="adamw", lr=lr, weight_decay=0.0, max_grad_norm=1e9), 1000)
    params = {"w": jnp.full(SIZE, value, dtype)}
    step = partial(apply, loss_fn=slope_loss, optimizer=optimizer, pieces=1, aggregation="token_mean")
    return TrainState(params, optimizer.init(params), jnp.int32(0)), jax.jit(step)


def second_moment(state: TrainState) -> float:
    return np.asarray(optax.tree.get(state.opt_state, "nu")["w"], np.float64).mean()


def test_rounding_has_the_exact_expectation():
    """A quarter of the way from one number to the next it goes up one time in four, with SIZE draws to 4 sigma."""
    x = jnp.full(SIZE, BELOW + (ABOVE - BELOW) / 4)
    got = np.asarray(round_like(x, jnp.zeros(SIZE, jnp.bfloat16), jnp.int32(3)), np.float32)
    assert set(got.tolist()) == {float(BELOW), float(ABOVE)}
    assert abs((got == ABOVE).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / SIZE)
    minus = np.asarray(round_like(-x, jnp.zeros(SIZE, jnp.bfloat16), jnp.int32(3)), np.float32)
    assert abs((minus == -ABOVE).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / SIZE)


def test_what_bfloat16_can_write_stays_and_float32_is_not_touched():
    exact = jnp.array([0.0, -0.0, 1.0, -2.5, BELOW, jnp.inf, -jnp.inf, jnp.nan, 3e38])
    got = round_like(exact, jnp.zeros(9, jnp.bfloat16), jnp.int32(0)).astype(jnp.float32)
    assert np.array_equal(got, exact.astype(jnp.bfloat16).astype(jnp.float32), equal_nan=True)
    odd = jnp.array([BELOW + 1e-7, 1 / 3])
    assert round_like(odd, odd, jnp.int32(0)) is odd


def test_draws_depend_on_step_and_place_alone():
    x, like = jnp.full(SIZE, BELOW + (ABOVE - BELOW) / 2), jnp.zeros(SIZE, jnp.bfloat16)
    one, other = (round_like((x, x), (like, like), jnp.int32(step)) for step in (1, 2))
    again = jax.jit(round_like)((x, x), (like, like), jnp.int32(1))
    assert np.array_equal(one[0], again[0]) and np.array_equal(one[1], again[1])
    for a, b in ((one[0], one[1]), (one[0], other[0])):  # half of two independent draws agree
        assert abs((a == b).mean() - 0.5) < 4 * 0.5 / np.sqrt(SIZE)


@pytest.mark.parametrize(("dtype", "moved"), [(jnp.float32, 1.0), (jnp.bfloat16, 1e-6 / 2.0**-13)])
def test_a_small_learning_rate_moves_the_mean_as_in_float32(dtype, moved):
    """64 updates of 1e-6 each, less than half of 2^-13: to the nearest, no weight would ever move."""
    state, update = start(dtype)
    shares = []
    for _ in range(64):
        state, metrics = update(state, {}, batch(1.0))
        shares.append(float(metrics["moved"]))
    mean = np.asarray(state.params["w"], np.float64).mean()
    # The standard deviation of the mean of SIZE sums of 64 draws that go up 2^-13 once in 122 times.
    sigma = 2.0**-13 * np.sqrt(64 / 122 / SIZE)
    assert state.params["w"].dtype == dtype and abs(mean - (BELOW - 64e-6)) < (4 * sigma if dtype == jnp.bfloat16 else 5e-8)
    assert abs(np.mean(shares) / moved - 1) < 0.05


def test_the_second_moment_decays():
    """Without a gradient it falls by 0.1 % an update, which is less than half of the distance of two bfloat16 numbers."""
    state, update = start(jnp.bfloat16)
    state, _ = update(state, {}, batch(1.0))
    before = second_moment(state)
    for _ in range(100):
        state, _ = update(state, {}, batch(0.0))
    assert abs(second_moment(state) / before / 0.999**100 - 1) < 0.005


def test_gradients_of_micro_batches_are_summed_in_float32():
    """1 + 255 times 1/512: in bfloat16 each of these would be rounded away."""
    slopes = jnp.array([1.0] + [1 / 512] * 255, jnp.float32)
    many = Batch(jnp.ones((256, 1, 1), bool), slopes)
    grads, _ = accumulate(slope_loss, {"w": jnp.ones(2, jnp.bfloat16)}, {}, many, jnp.ones((256, 1, 1)), 256)
    assert grads["w"].dtype == jnp.float32 and np.allclose(grads["w"], 1 + 255 / 512, rtol=1e-6)
