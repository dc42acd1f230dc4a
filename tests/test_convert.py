"""Configuration and weights: read from Hugging Face folders, written back bit for bit, refused when they do not fit."""

import copy
import json
import pickle
import shutil
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import from_hf, load_config
from mtjudge_jax.models.qwen3_vl.convert import abstract_params, flatten, load_params, save_hf, to_hf, to_ours, weights

GOLDEN = Path(__file__).parent / "goldens" / "qwen3_vl"
TOWER_S = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
TOWER_L = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
# width, mlp, layers, heads, tied, tower; unique parameters, and tensors in the file where published.
PUBLISHED = {
    "2B": (2048, 6144, 28, 16, True, TOWER_S, 2_127_532_032, None),
    "4B": (2560, 9728, 36, 32, True, TOWER_S, 4_437_815_808, 713),
    "8B": (4096, 12288, 36, 32, False, TOWER_L, 8_767_123_696, None),
    "32B": (5120, 25600, 64, 64, False, TOWER_L, 33_357_390_064, 1058),
}


def hub_config(size: str) -> dict:
    """The config.json of a published model as the hub spells it."""
    width, mlp, layers, heads, tied, tower, _, _ = PUBLISHED[size]
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": tied,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "text_config": {
            "vocab_size": 151936, "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-6,
            "rope_theta": 5_000_000, "hidden_act": "silu", "attention_bias": False, "eos_token_id": 151645,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        },
        "vision_config": tower | {
            "model_type": "qwen3_vl", "num_heads": 16, "patch_size": 16, "temporal_patch_size": 2, "in_channels": 3,
            "spatial_merge_size": 2, "out_hidden_size": width, "num_position_embeddings": 2304,
            "hidden_act": "gelu_pytorch_tanh",
        },
    }  # fmt: skip


def golden_config() -> dict:
    return json.loads((GOLDEN / "config.json").read_text())


def edited(raw: dict, path: str, value: object) -> dict:
    """A copy with raw[a][b] = value for the path "a/b"; the key is removed where value is None."""
    raw = copy.deepcopy(raw)
    *parents, last = path.split("/")
    node = raw
    for key in parents:
        node = node[key]
    node.pop(last, None)
    return raw if value is None else (node.update({last: value}) or raw)


def anywhere(path: str, shape: tuple[int, ...]) -> None:
    return None


def load(folder: Path = GOLDEN, dtype=jnp.float32, sharding_of=anywhere) -> dict:
    return load_params(folder, load_config(folder), dtype=dtype, sharding_of=sharding_of)


def rewrite(tmp_path: Path, change) -> Path:
    """A copy of the golden folder whose tensors went through `change`."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# config


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_are_counted_to_the_last_weight(size):
    *_, count, tensors = PUBLISHED[size]
    cfg = from_hf(hub_config(size))
    leaves = jax.tree.leaves(abstract_params(cfg, dtype=jnp.bfloat16))
    assert sum(prod(leaf.shape) for leaf in leaves) == count
    assert sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) == 2 * count
    if tensors is not None:
        assert sum(len(weight.names) for weight in weights(cfg)) == tensors


def test_the_table_declares_the_tree_the_model_declares():
    for cfg in (from_hf(hub_config("4B")), from_hf(hub_config("8B")), load_config(GOLDEN)):
        ours, model = flatten(abstract_params(cfg)), flatten(vlm.abstract_params(cfg))
        assert {path: (leaf.shape, leaf.dtype) for path, leaf in ours.items()} == {
            path: (leaf.shape, leaf.dtype) for path, leaf in model.items()
        }


def test_both_spellings_of_rope_give_one_config():
    new = golden_config()
    rope = new["text_config"]["rope_parameters"]
    old = edited(edited(new, "text_config/rope_parameters", None), "text_config/rope_theta", rope["rope_theta"])
    old["text_config"]["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert from_hf(old) == from_hf(new)
    assert hash(from_hf(old)) == hash(from_hf(new))
    cfg = from_hf(hub_config("8B"))
    assert (cfg.text.rope_theta, cfg.text.mrope_section, cfg.eos_token_id) == (5e6, (24, 20, 20), 151645)


def test_tying_follows_the_top_level():
    nested = edited(golden_config(), "text_config/tie_word_embeddings", True)
    assert not from_hf(nested).text.tie_word_embeddings
    assert from_hf(edited(golden_config(), "tie_word_embeddings", True)).text.tie_word_embeddings


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("text_config/rope_parameters/rope_theta", None, "rope_theta is missing"),
        ("text_config/rope_parameters/mrope_interleaved", False, "mrope_interleaved is False"),
        ("text_config/rope_parameters/mrope_interleaved", None, "mrope_interleaved is None"),
        ("text_config/rope_parameters/mrope_section", [4, 2, 1], "sums to 7, it must be head_dim / 2 = 8"),
        ("text_config/rope_parameters/mrope_section", [2, 3, 3], "cannot be interleaved over 8"),
        ("text_config/rope_parameters/mrope_section", [8], "needs three sizes"),
        ("text_config/rope_parameters/rope_type", "yarn", "rope_type is 'yarn'"),
        ("text_config/attention_bias", True, "attention_bias is True"),
        ("text_config/hidden_act", "gelu", "hidden_act is 'gelu'"),
        ("text_config/head_dim", None, "head_dim is missing"),
        ("text_config/num_key_value_heads", 3, "4 heads do not divide into 3"),
        ("vision_config", None, "vision_config is missing"),
        ("vision_config/out_hidden_size", 48, "out_hidden_size 48 differs from text_config.hidden_size 32"),
        ("vision_config/deepstack_visual_indexes", [1, 3, 6], r"\(1, 3, 6\) must rise and lie in 0..5"),
        ("vision_config/deepstack_visual_indexes", [3, 1, 4], "must rise"),
        ("vision_config/num_position_embeddings", 50, "50 is not a square"),
        ("image_token_id", 128, "image_token_id 128 lies outside the vocabulary of 128"),
        ("model_type", "qwen3_vl_moe", "num_experts is missing"),
        ("model_type", "llava", "'llava' is not supported; supported: qwen3_vl"),
        ("model_type", None, "None is not supported"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        from_hf(edited(golden_config(), path, value))


def test_a_folder_without_a_usable_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        load_config(tmp_path)


# reading


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


def test_reading_a_part_equals_cutting_the_whole():
    rng = np.random.default_rng(0)
    for weight in weights(load_config(GOLDEN)):
        tensor = np.arange(prod(weight.tensor_shape), dtype=np.float32).reshape(weight.tensor_shape)
        whole = to_ours(weight, tensor, (slice(None),) * len(weight.axes))
        assert np.array_equal(to_hf(weight, whole), tensor)
        for _ in range(4):
            edges = [np.sort(rng.choice(size + 1, 2, replace=False)) for size in weight.layer_shape]
            index = tuple(slice(int(a), int(b)) for a, b in edges)
            assert np.array_equal(to_ours(weight, tensor, index), whole[index]), (weight.path, index)


@pytest.mark.skipif(len(jax.devices()) < 4, reason="needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=4")
def test_sharded_leaves_equal_the_unsharded():
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    specs = {
        "text/layers/q_ldnh": PartitionSpec(None, "fsdp", "tensor", None),
        "text/layers/v_ldkh": PartitionSpec(None, None, None, "tensor"),
        "text/layers/o_lnhd": PartitionSpec(None, "tensor", None, "fsdp"),
        "text/embed_vd": PartitionSpec("tensor", "fsdp"),
        "vision/patch_pc": PartitionSpec("fsdp", "tensor"),
        "vision/blocks/qkv_lc3nh": PartitionSpec(None, "fsdp", None, "tensor"),
    }
    plain = flatten(load())
    sharded = flatten(load(sharding_of=lambda path, _: NamedSharding(mesh, specs.get(path, PartitionSpec()))))
    for path, leaf in sharded.items():
        assert leaf.sharding.spec == specs.get(path, PartitionSpec())
        assert np.array_equal(leaf, plain[path]), path
    with pytest.raises(ValueError, match="layer axis sharded over 'fsdp'"):
        load(sharding_of=lambda path, shape: NamedSharding(mesh, PartitionSpec("fsdp")))


def test_missing_extra_and_misshapen_tensors_are_named_together(tmp_path):
    def change(tensors):
        del tensors["model.visual.blocks.2.attn.qkv.bias"]
        tensors["visual.blocks.2.attn.qkv.bias"] = np.zeros(72, np.float32)
        name = "model.language_model.layers.1.self_attn.q_proj.weight"
        tensors[name] = np.ascontiguousarray(tensors[name].T)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)

    folder = rewrite(tmp_path, change)
    with pytest.raises(ValueError, match="4 problems") as caught:
        load_params(folder, load_config(folder), dtype=jnp.float32, sharding_of=pytest.fail)
    message = str(caught.value)
    assert "missing: model.visual.blocks.2.attn.qkv.bias" in message
    assert "unexpected: visual.blocks.2.attn.qkv.bias" in message
    assert "self_attn.q_proj.weight is (32, 64), the config needs (64, 32)" in message
    assert "lm_head.weight is I8" in message
    assert "old layout" in message


def test_a_tied_config_refuses_a_separate_head(tmp_path):
    folder = rewrite(tmp_path, lambda tensors: None)
    (folder / "config.json").write_text(json.dumps(edited(golden_config(), "tie_word_embeddings", True)))
    with pytest.raises(ValueError, match=r"unexpected: lm_head\.weight") as caught:
        load(folder)
    assert "tie_word_embeddings is true" in str(caught.value)


def test_files_that_are_no_weights_are_refused(tmp_path):
    shutil.copy(GOLDEN / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"pickled weights \(pytorch_model\.bin\)"):
        load(tmp_path)
    weights_file = tmp_path / "model.safetensors"
    weights_file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 717120\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        load(tmp_path)
    weights_file.write_bytes((GOLDEN / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or cut short at 717020 bytes"):
        load(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    for names, error, message in (
        ({"a": "../model.safetensors"}, ValueError, "only safetensors files beside the index"),
        ({"a": "model-00001-of-00002.safetensors"}, FileNotFoundError, "names absent files: model-00001-of-00002"),
        (["a"], ValueError, "not an index"),
    ):
        index.write_text(json.dumps({"weight_map": names}))
        with pytest.raises(error, match=message):
            load(tmp_path)


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
    with pytest.raises(FileExistsError, match="no model folder"):
        save_hf(params, tmp_path / "thesis", source_folder=GOLDEN, dtype=jnp.float32, overwrite=True)


def test_parameters_of_another_model_are_not_written(tmp_path):
    params = load()
    del params["text"]["head_vd"]
    params["text"]["norm_d"] = params["text"]["norm_d"][:-1]
    with pytest.raises(ValueError, match="not those of the source folder's config") as caught:
        save_hf(params, tmp_path / "out", source_folder=GOLDEN, dtype=jnp.float32)
    assert "text/head_vd: has None, needs (128, 32)" in str(caught.value)
    assert "text/norm_d: has (31,), needs (32,)" in str(caught.value)
    assert not any(tmp_path.iterdir())
