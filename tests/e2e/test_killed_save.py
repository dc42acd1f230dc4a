"""A process killed in the middle of a save."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from places import ROOT

from mtjudge_jax import checkpoint as ck
from mtjudge_jax.config import CheckpointConfig

KILLED = """
import os, sys
import jax, jax.numpy as jnp
from mtjudge_jax import checkpoint as ck
from mtjudge_jax.config import CheckpointConfig
checkpoints = ck.open_checkpoints(sys.argv[1], CheckpointConfig())
for step in (1, 2):
    state = {"w": jax.random.bits(jax.random.key(step), (2**24,))}
    ck.save(checkpoints, step, state=state, data_state={"at": step}, meta={})
    if step == 1:
        ck.wait(checkpoints)
while not any("tmp" in name for name in os.listdir(sys.argv[1])):
    pass
os.kill(os.getpid(), 9)
"""


def test_kill_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
    root = ROOT
    env = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    assert any("tmp" in p.name for p in tmp_path.iterdir())  # the kill did fall into the save
    checkpoints = ck.open_checkpoints(tmp_path, CheckpointConfig())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1"]
    like = {"w": jax.ShapeDtypeStruct((2**24,), jnp.uint32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}
    got = ck.restore_latest(checkpoints, like)
    assert (got.step, got.data_state) == (1, {"at": 1})
    assert np.array_equal(got.state["w"], jax.random.bits(jax.random.key(1), (2**24,)))
