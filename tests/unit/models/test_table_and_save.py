"""The table of weights, and models written as Hugging Face folders: bit for bit what was read."""

import json
import shutil
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from places import GOLDENS
from safetensors.numpy import load_file

from mtjudge_jax.errors import UserError
from mtjudge_jax.models.hf import load as loading
from mtjudge_jax.models.hf.folder import Tensor, write_folder
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.models.hf.table import layouts, model_weights, to_hf, to_ours
from mtjudge_jax.models.qwen3_vl.config import from_hf, load_config

GOLDEN = GOLDENS / "qwen3_vl"


def load(folder: Path = GOLDEN, dtype=jnp.float32) -> dict:
    return load_params(folder, load_config(folder), dtype=dtype, sharding_of=lambda path, shape: None)


# the table


def test_every_leaf_is_its_tensor_rearranged():
    params, tensors = load(), load_file(GOLDEN / "model.safetensors")
    layers, cfg = params["text"]["layers"], load_config(GOLDEN)
    name = "model.language_model.layers.3.self_attn.{}_proj.weight"
    d, n, k, h = cfg.text.hidden_size, cfg.text.num_heads, cfg.text.num_kv_heads, cfg.text.head_dim
    q, o = tensors[name.format("q")], tensors[name.format("o")]
    assert np.array_equal(layers["q_ldnh"][3], q.reshape(n, h, d).transpose(2, 0, 1))
    assert np.array_equal(layers["k_ldkh"][3], tensors[name.format("k")].reshape(k, h, d).transpose(2, 0, 1))
    assert np.array_equal(layers["o_lnhd"][3], o.T.reshape(n, h, d))
    assert np.array_equal(layers["down_lfd"][3], tensors["model.language_model.layers.3.mlp.down_proj.weight"].T)
    qkv = tensors["model.visual.blocks.4.attn.qkv.weight"].reshape(3, 2, 12, 24)
    assert np.array_equal(params["vision"]["blocks"]["qkv_lc3nh"][4], qkv.transpose(3, 0, 1, 2))
    patch = tensors["model.visual.patch_embed.proj.weight"]
    assert patch.shape == (24, 3, 2, 16, 16)
    assert np.array_equal(params["vision"]["patch_pc"], patch.reshape(24, 1536).T)
    fc1 = tensors["model.visual.deepstack_merger_list.2.linear_fc1.weight"]
    assert np.array_equal(params["vision"]["deepstack"]["fc1_tmm"][2], fc1.T)
    assert not np.array_equal(fc1, fc1.T)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(tensor.size for tensor in tensors.values())


def test_experts_are_their_tensors_rearranged():
    """The hub's gate_up_proj (E, D, 2 F) has gate before up on its last axis; transformers 5 turns the last two axes."""
    cfg = tiny.config(moe=True)
    e, d, f = cfg.text.moe.num_experts, cfg.text.hidden_size, cfg.text.moe.intermediate_size
    by_path = {weight.path: weight for weight in model_weights(cfg)}
    hub, turned = layouts(by_path["text/layers/experts_gate_up_led2f"])
    assert (hub.tensor_shape, turned.tensor_shape) == ((e, d, 2 * f), (e, 2 * f, d))
    tensor = np.arange(e * d * 2 * f).reshape(e, d, 2 * f)
    ours = to_ours(hub, tensor)
    assert np.array_equal(ours[:, :, 0], tensor[..., :f]) and np.array_equal(ours[:, :, 1], tensor[..., f:])
    assert np.array_equal(to_ours(turned, tensor.transpose(0, 2, 1)), ours)
    hub, turned = layouts(by_path["text/layers/experts_down_lefd"])
    tensor = np.arange(e * d * f).reshape(e, f, d)
    assert np.array_equal(to_ours(hub, tensor), tensor)
    assert np.array_equal(to_ours(turned, tensor.transpose(0, 2, 1)), tensor)
    (router,) = layouts(by_path["text/layers/router_lde"])
    assert router.tensor_shape == (e, d) and router.names[1] == "model.language_model.layers.1.mlp.gate.weight"
    assert "text/layers/gate_ldf" not in by_path


@pytest.mark.parametrize("cfg", [load_config(GOLDEN), tiny.config(moe=True)])
def test_every_layout_is_read_as_it_is_written(cfg):
    for weight in [layout for leaf in model_weights(cfg) for layout in layouts(leaf)]:
        tensor = np.arange(prod(weight.tensor_shape), dtype=np.float32).reshape(weight.tensor_shape)
        ours = to_ours(weight, tensor)
        assert ours.shape == weight.layer_shape and np.shares_memory(ours, tensor)
        assert np.array_equal(to_hf(weight, ours), tensor), weight.path


# writing


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 100_000])
def test_a_round_trip_is_bit_equal(tmp_path, shard_bytes):
    (source := tmp_path / "source").mkdir()
    shutil.copytree(GOLDEN, source, dirs_exist_ok=True)
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"):
        (source / name).write_text(f"{{}} {name}")
    (source / "notes.txt").write_text("not part of a model")
    out = tmp_path / "out"
    save_hf(load(), out, source_folder=source, dtype=jnp.float32, shard_bytes=shard_bytes)
    before = load_file(GOLDEN / "model.safetensors")
    files = sorted(out.glob("*.safetensors"))
    after = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert all((out / name).read_text() == (source / name).read_text() for name in ("tokenizer.json", "chat_template.jinja"))
    assert load_config(out) == load_config(source)
    assert not (out / "notes.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    index = out / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1) == (shard_bytes < 5_000_000_000)
    if index.exists():
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == sum(tensor.nbytes for tensor in before.values())
        assert content["weight_map"].keys() == before.keys()
        biggest = max(tensor.nbytes for tensor in before.values())
        assert all(sum(t.nbytes for t in load_file(file).values()) <= max(shard_bytes, biggest) for file in files)
    again = load(out)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), again, load())))


def test_bfloat16_is_written_as_such_and_read_back(tmp_path):
    out = tmp_path / "out"
    save_hf(load(), out, source_folder=GOLDEN, dtype=jnp.bfloat16)
    before, after = load_file(GOLDEN / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(np.array_equal(after[name], before[name].astype(ml_dtypes.bfloat16)) for name in before)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert from_hf(json.loads((out / "config.json").read_text())) == load_config(GOLDEN)
    params = load(out, dtype=jnp.float32)
    assert params["text"]["embed_vd"].dtype == jnp.float32
    name = "model.language_model.embed_tokens.weight"
    assert np.array_equal(params["text"]["embed_vd"], after[name].astype(np.float32))


def test_an_export_replaces_only_models_and_only_when_asked(tmp_path):
    params, out = load(), tmp_path / "out"
    save_hf(params, out, source_folder=GOLDEN, dtype=jnp.float32)
    with pytest.raises(FileExistsError, match="exists already"):
        save_hf(params, out, source_folder=GOLDEN, dtype=jnp.float32)
    (out / "stale.json").write_text("{}")
    save_hf(params, out, source_folder=out, dtype=jnp.bfloat16, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a model folder"):
        save_hf(params, tmp_path / "thesis", source_folder=GOLDEN, dtype=jnp.float32, overwrite=True)
    run = tmp_path / "run"  # of a config.json too
    (run / "checkpoints" / "8").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"run: exists and is not a model folder \(it has no weights\); give a new folder"):
        save_hf(params, run, source_folder=GOLDEN, dtype=jnp.float32, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_fills_while_an_export_is_written_is_not_replaced(tmp_path, overwrite):
    """As where a run starts in it."""

    def read() -> np.ndarray:
        (tmp_path / "out" / "checkpoints").mkdir(parents=True)
        (tmp_path / "out" / "config.json").write_text("{}")
        return np.zeros(2, np.float32)

    how = {"dtype": np.dtype("float32"), "overwrite": overwrite, "writes": True}
    with pytest.raises(OSError, match="out: exists "):
        write_folder(tmp_path / "out", [Tensor("a", (2,), read)], {"config.json": b"{}"}, **how)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "checkpoints").is_dir()


def test_a_model_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """As the best model of a run that goes on: files of both would make a third model, of the same shapes."""
    params, out = load(), tmp_path / "best"
    save_hf(params, out, source_folder=GOLDEN, dtype=jnp.float32)
    read = loading.read_tensors

    def replaced(stored):
        yield from read(stored)
        save_hf(params, out, source_folder=GOLDEN, dtype=jnp.float32, overwrite=True)

    monkeypatch.setattr(loading, "read_tensors", replaced)
    with pytest.raises(UserError, match="best was replaced by another model while it was read: run the command again"):
        load(out)


def test_parameters_of_another_model_are_not_written(tmp_path):
    params = load()
    del params["text"]["head_vd"]
    params["text"]["norm_d"] = params["text"]["norm_d"][:-1]
    with pytest.raises(ValueError, match=r"do not fit the source folder's config\.json") as caught:
        save_hf(params, tmp_path / "out", source_folder=GOLDEN, dtype=jnp.float32)
    assert "text/head_vd: has None, needs (128, 32)" in str(caught.value)
    assert "text/norm_d: has (31,), needs (32,)" in str(caught.value)
    assert not any(tmp_path.iterdir())
