"""The config of a model: both spellings of the file, the published sizes, and what is refused."""

import copy
import json
from dataclasses import replace
from math import prod

import jax.numpy as jnp
import pytest
import tiny
from flax.traverse_util import flatten_dict
from places import GOLDENS
from transformers import Qwen3VLConfig, Qwen3VLMoeConfig

from mtjudge_jax.errors import ConfigError
from mtjudge_jax.models.hf.table import model_weights
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import AdapterConfig, MoeConfig, from_hf, load_config
from mtjudge_jax.models.qwen3_vl.presets import PRESETS, preset

GOLDEN = GOLDENS / "qwen3_vl"
# Unique parameters; bytes of all tensors and their number where the published index says them.
PUBLISHED = {
    "2b": (2_127_532_032, 4_255_064_064, None),
    "4b": (4_437_815_808, 8_875_631_616, 713),
    "8b": (8_767_123_696, 17_534_247_392, None),
    "32b": (33_357_390_064, 66_714_780_128, 1058),
    "30b-a3b": (31_070_754_032, 62_141_508_064, None),
    "235b-a22b": (235_670_022_896, None, None),
}


def golden() -> dict:
    return json.loads((GOLDEN / "config.json").read_text())


def edited(raw: dict, path: str, value: object = None) -> dict:
    """A copy with raw[a][b] = value for the path "a/b"; without the key where value is None."""
    raw = copy.deepcopy(raw)
    *parents, last = path.split("/")
    node = raw
    for key in parents:
        node = node[key]
    node.pop(last, None)
    return raw if value is None else (node.update({last: value}) or raw)


# published sizes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_counted_to_the_last_weight(name):
    count, size, tensors = PUBLISHED[name]
    numbers = sum(prod(weight.shape) for weight in model_weights(preset(name)))
    assert numbers == count
    assert 2 * numbers == (size or 2 * count)  # in bfloat16
    assert tensors in (None, sum(len(weight.names) for weight in model_weights(preset(name))))


def test_presets_are_the_published_six():
    assert PRESETS.keys() == PUBLISHED.keys()
    assert preset("30b-a3b").text.moe == MoeConfig(num_experts=128, experts_per_token=8, intermediate_size=768)
    cfg = preset("235b-a22b")
    assert (cfg.text.rope_theta, cfg.text.mrope_section, cfg.eos_token_id) == (5e6, (24, 20, 20), 151645)
    assert [preset(name).text.tie_word_embeddings for name in PRESETS] == [True, True, False, False, False, False]
    assert {name: preset(name).vision.head_dim for name in ("4b", "8b")} == {"4b": 64, "8b": 72}
    with pytest.raises(ConfigError, match=r"unknown size '30b-a3', did you mean '30b-a3b'\? \(published: 2b, 4b"):
        preset("30b-a3")


CONFIGS = [*map(preset, PRESETS), load_config(GOLDEN), tiny.config(moe=True), tiny.config(moe=True, tied=True)]


@pytest.mark.parametrize("cfg", CONFIGS)
def test_the_table_declares_the_tree_the_model_declares(cfg):
    model = flatten_dict(vlm.abstract_params(cfg), sep="/")
    assert {weight.path: weight.shape for weight in model_weights(cfg)} == {path: leaf.shape for path, leaf in model.items()}
    assert all(leaf.dtype == jnp.float32 for leaf in model.values())


# spellings


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_5_spells_the_same_config(name):
    hub = PRESETS[name]
    family = Qwen3VLMoeConfig if "a" in name else Qwen3VLConfig
    respelt = family(**copy.deepcopy(hub))
    for raw in (respelt.to_dict(), json.loads(respelt.to_json_string())):
        text = raw["text_config"]
        assert "rope_theta" not in text and "rope_scaling" not in text  # else this tests nothing
        assert ("num_local_experts" in text) == ("a" in name) and "num_experts" not in text
        assert raw["vision_config"]["model_type"] != hub["vision_config"]["model_type"]
        assert from_hf(raw) == from_hf(hub)
        assert hash(from_hf(raw)) == hash(from_hf(hub))


def test_rope_parameters_win_over_the_old_spelling():
    old = {"rope_theta": 1e4, "rope_scaling": {"mrope_section": [6, 1, 1], "mrope_interleaved": True, "rope_type": "default"}}
    both = golden() | {"text_config": golden()["text_config"] | old}
    assert from_hf(both) == from_hf(golden())
    alone = from_hf(edited(both, "text_config/rope_parameters"))
    assert (alone.text.rope_theta, alone.text.mrope_section) == (1e4, (6, 1, 1))


def test_tying_follows_the_top_level():
    nested = edited(golden(), "text_config/tie_word_embeddings", True)
    assert not from_hf(nested).text.tie_word_embeddings
    assert from_hf(edited(golden(), "tie_word_embeddings", True)).text.tie_word_embeddings
    # Mixtures: the class default of the nested value is true, the published models are not tied.
    respelt = Qwen3VLMoeConfig(**edited(PRESETS["30b-a3b"], "text_config/tie_word_embeddings")).to_dict()
    assert respelt["text_config"]["tie_word_embeddings"] and not from_hf(respelt).text.tie_word_embeddings


@pytest.mark.parametrize(
    "path",
    [
        "quantization_config",
        "tie_word_embeddings",
        *(f"text_config/{key}" for key in ("hidden_act", "attention_bias", "decoder_sparse_step", "mlp_only_layers")),
        *(f"text_config/{key}" for key in ("norm_topk_prob", "num_local_experts", "intermediate_size", "rope_parameters")),
        *(f"vision_config/{key}" for key in ("hidden_act", "in_channels", "rope_parameters", "model_type")),
    ],
)
def test_null_counts_as_absent(path):
    raw = copy.deepcopy(PRESETS["30b-a3b"])
    section, _, key = path.rpartition("/")
    (raw[section] if section else raw)[key] = None
    assert from_hf(raw) == from_hf(edited(PRESETS["30b-a3b"], path))
    if key != "intermediate_size":
        assert from_hf(raw) == preset("30b-a3b")


def test_adapters_are_part_of_the_config_and_not_of_the_file():
    cfg = preset("8b")
    adapted = replace(cfg, lora=AdapterConfig(rank=8, alpha=16.0, targets=("q", "v")))
    assert cfg.lora is None and adapted != cfg and hash(adapted) != hash(cfg)
    assert replace(cfg, raw={}) == cfg


# refusals


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
        ("text_config/intermediate_size", None, "intermediate_size is missing"),
        ("vision_config", None, "vision_config is missing"),
        ("vision_config/out_hidden_size", 48, "out_hidden_size 48 differs from text_config.hidden_size 32"),
        ("vision_config/deepstack_visual_indexes", [1, 3, 6], r"\(1, 3, 6\) must increase and be within 0..5"),
        ("vision_config/deepstack_visual_indexes", [3, 1, 4], "must increase"),
        ("vision_config/num_position_embeddings", 50, "50 is not a square"),
        ("image_token_id", 128, "image_token_id 128 is outside the vocabulary of 128"),
        ("quantization_config", {"quant_method": "fp8"}, "quantised by 'fp8' cannot be trained; take unquantised"),
        ("model_type", "qwen3_vl_moe", "num_experts is missing"),
        ("model_type", "llava", "'llava' is not supported; supported: qwen3_vl, qwen3_vl_moe"),
        ("model_type", None, "None is not supported"),
    ],
)
def test_a_config_that_cannot_be_computed_is_refused(path, value, message):
    with pytest.raises(ValueError, match=message):
        from_hf(edited(golden(), path, value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder_sparse_step", 2, "decoder_sparse_step is 2, only 1 is supported"),
        ("mlp_only_layers", [0], r"mlp_only_layers is \[0\], only \[\] is supported"),
        ("norm_topk_prob", False, "norm_topk_prob is False, only True is supported"),
        ("num_experts", None, "num_experts is missing"),
        ("moe_intermediate_size", None, "moe_intermediate_size is missing"),
        ("num_experts_per_tok", 129, r"num_experts_per_tok 129 must be within 1..128 \(num_experts\)"),
        ("num_experts_per_tok", 0, "num_experts_per_tok 0 must be within 1..128"),
    ],
)
def test_a_mixture_that_cannot_be_computed_is_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        from_hf(edited(PRESETS["30b-a3b"], f"text_config/{key}", value))


def test_a_folder_without_a_usable_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        load_config(tmp_path)
