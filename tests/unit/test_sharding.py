"""The one parameter table against every published size, and batches on a mesh."""

import dataclasses
import re
from functools import partial

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from mtjudge_jax import sharding
from mtjudge_jax.config import MeshConfig
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import AdapterConfig
from mtjudge_jax.models.qwen3_vl.presets import PRESETS, preset
from mtjudge_jax.sharding import (
    BATCH_AXES,
    RULES,
    local_rows,
    make_mesh,
    param_spec,
    path_name,
    put_rows,
    shard_batch,
    take_rows,
    tree_shardings,
)

ADAPTERS = AdapterConfig(8, 16.0, ("q", "k", "v", "o", "gate", "up", "down"))
CONFIGS = {name: preset(name) for name in PRESETS} | {"8b with adapters": dataclasses.replace(preset("8b"), lora=ADAPTERS)}


def leaves(name: str) -> dict[str, tuple[int, ...]]:
    return {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(vlm.abstract_params(CONFIGS[name]))}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_exactly_one_line(name):
    lines = {path: [pattern for pattern, _ in RULES if re.search(pattern, path)] for path in leaves(name)}
    assert {path: found for path, found in lines.items() if len(found) != 1} == {}


def test_every_line_has_a_parameter():
    """Of an untied model with adapters and one with experts; a line that matches nothing is a misspelt one."""
    paths = leaves("8b with adapters") | leaves("30b-a3b")
    assert [pattern for pattern, _ in RULES if not any(re.search(pattern, path) for path in paths)] == []


def test_a_line_too_few_or_too_many_is_an_error(monkeypatch):
    mesh = make_mesh(MeshConfig(2, 2, 1, 2))
    with pytest.raises(ValueError, match=r"'text/layers/z_ldf' matches 0 lines"):
        param_spec("text/layers/z_ldf", (2, 4, 8), mesh)
    monkeypatch.setattr(sharding, "RULES", (*RULES, (r"norm_d$", P())))
    with pytest.raises(ValueError, match=r"'text/norm_d' matches 2 lines"):
        param_spec("text/norm_d", (4,), mesh)


def test_misspelt_line_is_found(monkeypatch):
    """The check above, on a table with a line that matches nothing."""
    monkeypatch.setitem(globals(), "RULES", (*RULES, (r"text/layers/query_ldnh$", P())))
    with pytest.raises(AssertionError):
        test_every_line_has_a_parameter()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 2, 2, 2)])
def test_a_device_holds_its_share_of_every_size(name, shape):
    """Of what fsdp and tensor shard a quarter, 1 % more at most, for what stays whole; experts are also apart on `expert`."""
    mesh = make_mesh(MeshConfig(*shape))
    abstract = vlm.abstract_params(CONFIGS[name])
    where = tree_shardings(abstract, mesh)
    sizes = {path_name(path): x.size for path, x in jax.tree_util.tree_leaves_with_path(abstract)}
    held = sum(
        int(np.prod(s.shard_shape(x.shape))) for x, s in zip(jax.tree.leaves(abstract), jax.tree.leaves(where), strict=True)
    )
    experts = sum(size for path, size in sizes.items() if "/experts_" in path)
    share = (sum(sizes.values()) - experts) / 4 + experts / (4 * shape[2])
    assert share <= held < 1.01 * share


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = make_mesh(MeshConfig(1, 2, 1, 4))
    assert param_spec("text/layers/k_ldkh", (2, 32, 8, 16), mesh) == P(None, "fsdp", "tensor", None)
    assert param_spec("text/layers/k_ldkh", (2, 32, 2, 16), mesh) == P(None, "fsdp", None, None)
    assert param_spec("text/layers/k_ldkh", (2, 31, 2, 16), mesh) == P(None, None, None, None)


def test_scalars_and_counts_are_replicated():
    mesh = make_mesh(MeshConfig(2, 2, 1, 2))
    tree = {"count": np.int32(0), "mu": tiny.params(tiny.config(blocks=1))}
    where = tree_shardings(tree, mesh)
    assert where["count"].is_fully_replicated
    assert where["mu"]["text"]["layers"]["q_ldnh"].spec == P(None, "fsdp", "tensor", None)


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (2, 2, 1, 2), (2, 1, 2, 2), (1, 1, 1, 8), (-1, 2, 1, 1)])
def test_a_batch_goes_to_the_mesh_and_back(shape):
    """Rows are split over data, fsdp and expert, whole on tensor; the group of a prompt stays together."""
    mesh = make_mesh(MeshConfig(*shape))
    assert int(np.prod(list(mesh.shape.values()))) == 8
    rows = tiny.prompts(8)
    placed = shard_batch(rows, mesh)
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    for x, want in zip(jax.tree.leaves(placed), jax.tree.leaves(rows), strict=True):
        assert x.addressable_shards[0].data.shape == (8 // shards, *want.shape[1:])
        assert np.array_equal(local_rows(x, mesh), want)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (8, 1, 1, 1), (2, 2, 1, 2), (2, 1, 2, 2), (1, 1, 1, 8)])
def test_rows_travel_to_the_devices_that_ask_for_them_and_back(shape):
    """Bit for bit, in any order, a row twice too."""
    mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
    rng = np.random.default_rng(0)
    host = {
        "logp": rng.normal(size=(16, 3)).astype(np.float32),
        "mask": rng.integers(0, 2, (16, 5)) == 1,
        "patches": rng.integers(0, 256, (16, 2, 4), np.uint8),
        "uid": rng.integers(2**31, 2**32, 16, np.uint32),
    }
    host["logp"][3, 1] = np.nan  # a broken number is seen where its row went, and nowhere else
    for rows in (rng.permutation(16)[:8], np.array([15, 0, 0, 7, 3, 3, 8, 1])):
        batch, asked = shard_batch((host, rows.astype(np.int32)), mesh)
        taken = jax.jit(partial(take_rows, mesh=mesh))(batch, asked)
        for name, whole in host.items():
            assert taken[name].dtype == whole.dtype
            np.testing.assert_array_equal(taken[name], whole[rows])
    rows = rng.permutation(16)[:8].astype(np.int32)
    whole, new = np.zeros((16, 3), np.float32), rng.normal(size=(8, 3)).astype(np.float32)
    got = jax.jit(partial(put_rows, mesh=mesh))(*shard_batch((whole, rows, new), mesh))
    whole[rows] = new
    assert np.array_equal(got, whole)


@pytest.mark.parametrize(
    "shape", [(3, 1, 1, 1), (2, 2, 2, 2), (-1, -1, 1, 1), (-1, 3, 1, 1), (0, 1, 1, 8), (-2, 1, 1, 1), (4, 1, 1, 1)]
)
def test_a_mesh_that_the_devices_do_not_fill_is_refused(shape):
    with pytest.raises(ConfigError, match=r"^mesh[^\n]*$"):
        make_mesh(MeshConfig(*shape))
