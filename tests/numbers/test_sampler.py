"""The sampler whose lanes follow the answers that live, against all answers side by side to the end."""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import Config, MeshConfig, RolloutConfig
from mtjudge_jax.policy import sampler
from mtjudge_jax.policy.programs import Programs, make_programs, place_prompts
from mtjudge_jax.sharding import make_mesh, tree_shardings
from mtjudge_jax.types import Params, Rollout

ROWS, GROUP, LENGTH = 16, 5, 24
TEMPERATURE = np.array([0.0, 0.7, 0.7, 1.0, 1.3], np.float32)
MESHES = {
    "one device": MeshConfig(1, 1, 1, 1),
    "2 data, 2 fsdp, 2 tensor": MeshConfig(2, 2, 1, 2),
    "2 data, 4 expert": MeshConfig(2, 1, 4, 1),
}
ENDS = {"often": (7, 20, 33, 50), "seldom": (20,), "never": (tiny.VOCABULARY,), "at once": tuple(np.flatnonzero(tiny.ALLOWED))}


class Ids(NamedTuple):
    ends: tuple[int, ...]
    pad: int = tiny.PAD

    def allowed_mask(self, vocab_size: int) -> np.ndarray:
        return tiny.ALLOWED


@pytest.fixture(autouse=True, scope="module")
def short_ladders():
    """Of a device's lanes down to one, and of 4 and 9 columns."""
    with pytest.MonkeyPatch.context() as patch:
        halves = lambda count: tuple(dict.fromkeys(math.ceil(count / 2**n) for n in range(10)))  # noqa: E731
        patch.setattr(sampler, "lane_ladder", halves)
        patch.setattr(sampler, "column_ladder", lambda count: (4, 9, count))
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def world(ends: str, mesh: str = "one device", micro: int = 0, moe: bool = False) -> tuple[Programs, Params]:
    model_cfg, cfg = tiny.config(blocks=1, moe=moe), Config(rollout=RolloutConfig(ROWS, GROUP, LENGTH, micro))
    where = MESHES[mesh]
    devices = jax.devices()[: math.prod((where.data, where.fsdp, where.expert, where.tensor))]
    programs = make_programs(cfg, model_cfg, Ids(ENDS[ends]), make_mesh(where, devices))
    params = tiny.params(model_cfg)
    return programs, jax.device_put(params, tree_shardings(params, programs.mesh))


def drawn(ends: str, *where, how: str = "sample", rows: int = ROWS, seed: int = 3) -> Rollout:
    programs, params = world(ends, *where)
    prompts = place_prompts(tiny.prompts(rows)._asdict(), programs.mesh)
    return jax.device_get(getattr(programs, how)(params, prompts, jax.random.key(seed), TEMPERATURE, LENGTH))


@functools.cache
def plain(ends: str, moe: bool = False, seed: int = 3) -> Rollout:
    programs, params = world(ends, "one device", 0, moe)
    prompts = place_prompts(tiny.prompts(ROWS)._asdict(), programs.mesh)
    return jax.device_get(programs.sample_at_once(params, prompts, jax.random.key(seed), TEMPERATURE, LENGTH))


def assert_same(got: Rollout, want: Rollout) -> None:
    for name in ("tokens", "mask", "truncated"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
    gap = np.abs(got.logp - want.logp); print('gap', gap.max(), gap[want.mask].mean(), (gap/np.maximum(1,np.abs(want.logp))).max())
    assert gap.max() < 1e-5


@pytest.mark.parametrize("micro", [0, 4, 8])
@pytest.mark.parametrize("ends", ENDS)
def test_the_answers_are_those_of_all_side_by_side(ends, micro):
    got, want = drawn(ends, "one device", micro), plain(ends)
    lengths = want.mask.sum(-1)
    assert {"often": np.ptp(lengths) > 15, "seldom": np.ptp(lengths) > 15, "never": lengths.min() == LENGTH}.get(ends, True)
    assert_same(got, want); print(world(ends, "one device", micro)[0].traces, world(ends, "one device", micro)[0].work, want.mask.sum()-80)
