"""What a step is watched by: the gap between sampler and update, a trace, the memory of the devices."""

import gzip
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjudge_jax.config import Config
from mtjudge_jax.config_check import check
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.train.monitor.host_numbers import peak_device_bytes
from mtjudge_jax.train.monitor.profile import Profile
from mtjudge_jax.train.monitor.sampler_gap import gap_numbers


@pytest.mark.parametrize("shape", [(1, 2, 3), (5, 4, 17), (7, 8, 64)])
def test_the_numbers_of_the_gap_are_numpys(shape):
    rng = np.random.default_rng(sum(shape))
    sampler = -rng.exponential(1.0, shape).astype(np.float32)
    update = sampler + rng.normal(0, 0.05, shape).astype(np.float32)
    mask, task = rng.random(shape) < 0.6, rng.integers(0, 3, shape[0]).astype(np.int32)
    mask[0, 0, 0] = True
    update = np.where(mask, update, 99.0)  # what does not count may hold anything
    got = jax.device_get(gap_numbers(*map(jnp.asarray, (sampler, update, mask, task)), tasks=4))
    d = (update - sampler)[mask].astype(np.float64)
    assert got["mean"] == pytest.approx(np.abs(d).mean(), rel=1e-5) and got["max"] == pytest.approx(np.abs(d).max(), rel=1e-5)
    assert got["p99"] == pytest.approx(np.sort(np.abs(d))[int(np.ceil(0.99 * d.size)) - 1], rel=1e-5)
    assert got["k3"] == pytest.approx((np.exp(d) - d - 1).mean(), rel=1e-2, abs=1e-7)
    if d.size > 1:
        assert got["pearson"] == pytest.approx(np.corrcoef(np.exp(sampler[mask]), np.exp(update[mask]))[0, 1], rel=1e-4)
    for number in range(4):
        own = np.abs(update - sampler)[task == number][mask[task == number]]
        assert got["tasks"][number] == pytest.approx(own.mean() if own.size else 0.0, rel=1e-5)


def test_the_gap_of_equal_policies_and_of_no_token():
    logp, task = jnp.full((2, 3, 4), -0.5), jnp.zeros(2, jnp.int32)
    for mask in (jnp.ones(logp.shape, bool), jnp.zeros(logp.shape, bool)):
        got = jax.device_get(gap_numbers(logp, logp, mask, task, tasks=1))
        assert got.pop("pearson") == 1.0 and not any(np.any(value) for value in got.values())


def test_a_trace_of_the_named_steps_alone(tmp_path):
    profile = Profile((2, 3), tmp_path)
    for step in range(1, 6):
        profile.before(step)
        assert profile._open == (2 <= step <= 3)
        jax.jit(lambda x: x * 2, donate_argnums=())(jnp.full(step, 1.0)).block_until_ready()
        profile.after(step)
    (made,) = [path for path in tmp_path.rglob("*.xplane.pb") if path.stat().st_size > 1000]
    (perfetto,) = tmp_path.rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]
    assert made.is_relative_to(tmp_path / "profile") and len(events) > 10
    nothing = Profile((), tmp_path / "other")
    nothing.before(1)
    nothing.close()
    assert not (tmp_path / "other").exists()


def test_a_run_that_goes_on_within_the_named_steps_traces_the_rest(tmp_path):
    profile = Profile((2, 9), tmp_path)
    profile.before(5)
    assert profile._open
    profile.close()
    assert list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", [(3,), (4, 3), (0, 2), (1, 2, 3)])
def test_steps_to_trace_that_make_no_sense_are_refused(steps):
    cfg = Config()
    cfg.model.path, cfg.data.tasks, cfg.log.profile = "demo", ("technical",), steps
    with pytest.raises(ConfigError, match=r"log.profile = .* must be the first and the last step"):
        check(cfg)


def test_the_memory_is_that_of_the_fullest_device():
    devices = [SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak}) for peak in (3, 7, 5)]
    assert peak_device_bytes(devices) == 7
    assert peak_device_bytes([SimpleNamespace(memory_stats=lambda: None)]) is None
