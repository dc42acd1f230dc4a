"""The published sizes of Qwen3-VL, from the `config.json` of each on the hub: shapes without a download.

Instruct and Thinking share one architecture. Source: Qwen/Qwen3-VL-*-Instruct on the hub; 235B: pytorch/torchtitan.
"""

from typing import Any

from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.models.qwen3_vl.config import DENSE_TYPE, MOE_TYPE, Qwen3VLConfig, from_hf

_TOKENS = {
    "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
}  # fmt: skip
_TEXT = {
    "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
    "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 262144, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6, "rope_theta": 5_000_000, "use_cache": True, "vocab_size": 151936,
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
}  # fmt: skip
_EXPERTS = {
    "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "num_experts": 128,
    "num_experts_per_tok": 8, "num_key_value_heads": 4,
}  # fmt: skip
_VISION = {
    "hidden_act": "gelu_pytorch_tanh", "in_channels": 3, "initializer_range": 0.02, "num_heads": 16,
    "num_position_embeddings": 2304, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
_SMALL_TOWER = _VISION | {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
_LARGE_TOWER = _VISION | {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}


def _dense(width: int, mlp: int, *, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    """A model with one mlp per layer. The two sizes whose embedding is also the head have the small vision tower."""
    text = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    return _whole(DENSE_TYPE, _TEXT | text, _SMALL_TOWER if tied else _LARGE_TOWER, tied=tied)


def _mixture(width: int, expert: int, *, layers: int, heads: int) -> dict[str, Any]:
    """A model with 128 experts per layer, 8 per token. `intermediate_size` is in the files, and no layer uses it."""
    text = {"hidden_size": width, "moe_intermediate_size": expert, "num_hidden_layers": layers, "num_attention_heads": heads}
    text |= {"intermediate_size": 3 * width}
    return _whole(MOE_TYPE, _TEXT | _EXPERTS | text, _LARGE_TOWER, tied=False)


def _whole(model_type: str, text: dict[str, Any], vision: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    """A whole config.json. As on the hub, vision_config repeats the model's type."""
    return {
        "architectures": ["Qwen3VLMoeForConditionalGeneration" if model_type == MOE_TYPE else "Qwen3VLForConditionalGeneration"],
        "model_type": model_type,
        "tie_word_embeddings": tied,
        "text_config": text | {"model_type": f"{model_type}_text", "dtype": "bfloat16", "tie_word_embeddings": tied},
        "vision_config": vision | {"model_type": model_type, "out_hidden_size": text["hidden_size"]},
        **_TOKENS,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "2b": _dense(2048, 6144, layers=28, heads=16, tied=True),
    "4b": _dense(2560, 9728, layers=36, heads=32, tied=True),
    "8b": _dense(4096, 12288, layers=36, heads=32, tied=False),
    "32b": _dense(5120, 25600, layers=64, heads=64, tied=False),
    "30b-a3b": _mixture(2048, 768, layers=48, heads=32),
    "235b-a22b": _mixture(4096, 1536, layers=94, heads=64),
}


def preset(name: str) -> Qwen3VLConfig:
    """The config of a published size. Raises ConfigError for another name, with the nearest one."""
    if name not in PRESETS:
        raise ConfigError(f"{unknown('size', name, PRESETS)} (published: {', '.join(PRESETS)})")
    return from_hf(PRESETS[name])
