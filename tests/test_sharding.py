"""The one parameter table against every published size, and batches on a mesh."""

import re

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from mtjudge_jax import sharding
from mtjudge_jax.config import ConfigError, MeshConfig
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, from_hf
from mtjudge_jax.sharding import BATCH_AXES, RULES, local_rows, make_mesh, param_spec, path_name, shard_batch, tree_shardings

# hidden, mlp, layers, heads, tied; width, mlp, blocks and taps of the tower; parameters
SIZES = {
    "2B": (2048, 6144, 28, 16, True, 1024, 4096, 24, [5, 11, 17], 2_127_532_032),
    "4B": (2560, 9728, 36, 32, True, 1024, 4096, 24, [5, 11, 17], 4_437_815_808),
    "8B": (4096, 12288, 36, 32, False, 1152, 4304, 27, [8, 16, 24], 8_767_123_696),
    "32B": (5120, 25600, 64, 64, False, 1152, 4304, 27, [8, 16, 24], 33_357_390_064),
}


def published(size: str) -> Qwen3VLConfig:
    d, f, layers, heads, tied, c, mlp, blocks, taps, _ = SIZES[size]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {"vocab_size": 151_936, "hidden_size": d, "intermediate_size": f, "num_hidden_layers": layers, "head_dim": 128}
    text |= {"num_attention_heads": heads, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_parameters": rope}
    vision = {
        "depth": blocks,
        "hidden_size": c,
        "intermediate_size": mlp,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": d,
    }
    vision |= {
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": taps,
    }
    ids = {"image_token_id": 151_655, "video_token_id": 151_656, "vision_start_token_id": 151_652, "vision_end_token_id": 151_653}
    return from_hf({"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, "tie_word_embeddings": tied, **ids})


def leaves(size: str) -> dict[str, tuple[int, ...]]:
    return {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(vlm.abstract_params(published(size)))}


@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_has_exactly_one_line(size):
    shapes = leaves(size)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == SIZES[size][-1]
    lines = {path: [pattern for pattern, _ in RULES if re.search(pattern, path)] for path in shapes}
    assert {path: found for path, found in lines.items() if len(found) != 1} == {}


def test_every_line_has_a_parameter():
    """Of the untied model; a line that matches nothing is a misspelt one."""
    paths = leaves("8B")
    assert [pattern for pattern, _ in RULES if not any(re.search(pattern, path) for path in paths)] == []


def test_a_line_too_few_or_too_many_is_an_error(monkeypatch):
    mesh = make_mesh(MeshConfig(2, 2, 1, 2))
    with pytest.raises(ValueError, match=r"'text/layers/z_ldf' has 0 lines"):
        param_spec("text/layers/z_ldf", (2, 4, 8), mesh)
    monkeypatch.setattr(sharding, "RULES", (*RULES, (r"norm_d$", P())))
    with pytest.raises(ValueError, match=r"'text/norm_d' has 2 lines"):
        param_spec("text/norm_d", (4,), mesh)


def test_misspelt_line_is_found(monkeypatch):
    """The check above, on a table with a line that matches nothing."""
    monkeypatch.setitem(globals(), "RULES", (*RULES, (r"text/layers/query_ldnh$", P())))
    with pytest.raises(AssertionError):
        test_every_line_has_a_parameter()


@pytest.mark.parametrize("size", SIZES)
def test_a_device_holds_its_share_of_every_size(size):
    """(data 2, fsdp 2, tensor 2): a device holds a quarter of the parameters, 1 % more at most, for what stays whole."""
    mesh = make_mesh(MeshConfig(2, 2, 1, 2))
    abstract = vlm.abstract_params(published(size))
    where = tree_shardings(abstract, mesh)
    held = sum(
        int(np.prod(s.shard_shape(x.shape))) for x, s in zip(jax.tree.leaves(abstract), jax.tree.leaves(where), strict=True)
    )
    assert 0.25 <= held / SIZES[size][-1] < 0.2525


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
    for x, want in zip(placed, rows, strict=True):
        assert x.addressable_shards[0].data.shape == (8 // shards, *want.shape[1:])
        assert np.array_equal(local_rows(x, mesh), want)


@pytest.mark.parametrize(
    "shape", [(3, 1, 1, 1), (2, 2, 2, 2), (-1, -1, 1, 1), (-1, 3, 1, 1), (0, 1, 1, 8), (-2, 1, 1, 1), (4, 1, 1, 1)]
)
def test_a_mesh_that_the_devices_do_not_fill_is_refused(shape):
    with pytest.raises(ConfigError, match=r"^mesh[^\n]*$"):
        make_mesh(MeshConfig(*shape))
