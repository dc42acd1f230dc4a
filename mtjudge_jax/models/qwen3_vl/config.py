"""The shape of a Qwen3-VL model, read from the `config.json` of a Hugging Face folder.

The file has two spellings, and both are read. The hub's has `rope_theta` and `rope_scaling`; transformers 5 saves both as
`rope_parameters`, and `num_experts` as `num_local_experts`. No value has a default: a missing `rope_theta` would silently
become another number, and every rotary angle would be wrong.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import as_path, read_object

DENSE_TYPE, MOE_TYPE = "qwen3_vl", "qwen3_vl_moe"
_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


@dataclass(frozen=True)
class MoeConfig:
    """Every decoder layer has `num_experts` mlps of width `intermediate_size`; a token goes through `experts_per_token`.

    The router's weights of the chosen experts are renormalised to sum to one, as in every published model.
    """

    num_experts: int
    experts_per_token: int
    intermediate_size: int


@dataclass(frozen=True)
class AdapterConfig:
    """Low-rank adapters on the decoder (Hu et al., arXiv 2106.09685): W + alpha / rank * A B, with B zero at the start."""

    rank: int
    alpha: float
    targets: tuple[str, ...]  # projections of every layer: q, k, v, o, gate, up, down

    def __str__(self) -> str:
        return f"rank {self.rank}, alpha {self.alpha:g}, targets {', '.join(self.targets)}"


@dataclass(frozen=True)
class TextConfig:
    """The language model: `num_layers` decoder layers of width `hidden_size`.

    `mrope_section` counts the rotary frequencies of the (time, height, width) axes; they sum to `head_dim / 2` and are
    interleaved.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    tie_word_embeddings: bool
    moe: MoeConfig | None = None  # None: one mlp of `intermediate_size` per layer


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: `depth` blocks of width `hidden_size`, tapped after the blocks `deepstack_layers` (counted from 0)."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_layers: tuple[int, ...]
    # Of the image processor, not of config.json: what is taken off each colour's value, 0 to 1, and what it is then divided by.
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch: channels x frames x rows x columns (1536 for the published models)."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_size(self) -> int:
        """Width of the patches, side by side, that become one image token."""
        return self.hidden_size * self.spatial_merge_size**2


@dataclass(frozen=True)
class Qwen3VLConfig:
    """A whole model. Hashable, so it can be a static argument of `jax.jit`; `raw`, the file as read, is not compared."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    video_token_id: int
    eos_token_id: int | None
    raw: dict[str, Any] = field(compare=False, repr=False)
    lora: AdapterConfig | None = None


def load_config(folder: str | os.PathLike) -> Qwen3VLConfig:
    """Reads `folder/config.json`. Raises FileNotFoundError where it is missing, UserError where it cannot be used."""
    path = as_path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; give the folder of a Hugging Face model")
    return from_hf(read_object(path, "copy it again from the model's source"))


def from_hf(raw: Mapping[str, Any]) -> Qwen3VLConfig:
    """Builds the config from the contents of a `config.json`.

    Raises UserError for another model family, a missing value, or an option that is not implemented.
    """
    if raw.get("model_type") not in (DENSE_TYPE, MOE_TYPE):  # others could load with plausible shapes and wrong numbers
        raise UserError(f"model_type {raw.get('model_type')!r} is not supported; supported: {DENSE_TYPE}, {MOE_TYPE}")
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method")
        raise UserError(f"quantization_config: weights quantised by {method!r} cannot be trained; take unquantised ones")
    text_raw = _need(raw, "text_config", "config.json")
    vision_raw = _need(raw, "vision_config", "config.json")
    eos = raw.get("eos_token_id", text_raw.get("eos_token_id"))
    if isinstance(eos, list):  # all of them end an answer
        eos = eos[0] if eos else None
    cfg = Qwen3VLConfig(
        text=_text(text_raw, tied=bool(raw.get("tie_word_embeddings", False)), moe=raw["model_type"] == MOE_TYPE),
        vision=_vision(vision_raw),
        **{name: int(_need(raw, name, "config.json")) for name in _TOKENS},
        eos_token_id=None if eos is None else int(eos),
        raw=dict(raw),
    )
    _check_together(cfg)
    return cfg


def _need(raw: Mapping[str, Any], key: str, where: str) -> Any:
    """The value of a required key."""
    if raw.get(key) is None:
        raise UserError(f"{where}: {key} is missing and has no safe default; take the model's own config.json")
    return raw[key]


def _only(raw: Mapping[str, Any], key: str, allowed: object, where: str) -> None:
    """Raises UserError when an optional key has another value than the only one implemented; null counts as absent."""
    value = raw.get(key)
    if value is not None and value != allowed:
        raise UserError(f"{where}: {key} is {value!r}, only {allowed!r} is supported; use a checkpoint with that value")


def _rope(raw: Mapping[str, Any]) -> tuple[float, tuple[int, int, int]]:
    """(theta, section) from either spelling; `rope_parameters` wins where both are present, as in transformers 5."""
    where = "text_config"
    rope = dict(raw.get("rope_scaling") or {}) | dict(raw.get("rope_parameters") or {})
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise UserError(
            f"{where}: rope_theta is missing, also from rope_parameters, and has no safe default; published models use 5e6"
        )
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise UserError(f"{where}: rope_type is {rope_type!r}, only 'default' is supported; remove the rope scaling")
    if rope.get("mrope_interleaved") is not True:
        raise UserError(
            f"{where}: mrope_interleaved is {rope.get('mrope_interleaved')!r}, only true is supported; "
            "chunked sections (Qwen2.5-VL) have the same shapes and other angles"
        )
    section = tuple(int(size) for size in rope.get("mrope_section") or ())
    if len(section) != 3:
        raise UserError(f"{where}: mrope_section is {section}, it needs three sizes (time, height, width)")
    return float(theta), section


def _text(raw: Mapping[str, Any], *, tied: bool, moe: bool) -> TextConfig:
    """The language model. `tied` is the value of the top level; the nested one is a class default in some files."""
    where = "text_config"
    _only(raw, "hidden_act", "silu", where)
    _only(raw, "attention_bias", False, where)
    theta, section = _rope(raw)
    cfg = TextConfig(
        vocab_size=int(_need(raw, "vocab_size", where)),
        hidden_size=int(_need(raw, "hidden_size", where)),
        intermediate_size=int(raw.get("intermediate_size") or 0) if moe else int(_need(raw, "intermediate_size", where)),
        num_layers=int(_need(raw, "num_hidden_layers", where)),
        num_heads=int(_need(raw, "num_attention_heads", where)),
        num_kv_heads=int(_need(raw, "num_key_value_heads", where)),
        head_dim=int(_need(raw, "head_dim", where)),
        rms_norm_eps=float(_need(raw, "rms_norm_eps", where)),
        rope_theta=theta,
        mrope_section=section,
        tie_word_embeddings=tied,
        moe=_moe(raw) if moe else None,
    )
    if 2 * sum(section) != cfg.head_dim:
        raise UserError(
            f"{where}: mrope_section {section} sums to {sum(section)}, it must be head_dim / 2 = {cfg.head_dim / 2:g}"
        )
    # Heights have the frequencies 1, 4, 7, .. and widths 2, 5, 8, ..; the last of each must exist.
    if 3 * section[1] > cfg.head_dim // 2 + 1 or 3 * section[2] > cfg.head_dim // 2:
        raise UserError(f"{where}: mrope_section {section} cannot be interleaved over {cfg.head_dim // 2} frequencies")
    if cfg.num_heads % cfg.num_kv_heads:
        raise UserError(f"{where}: {cfg.num_heads} heads do not divide into {cfg.num_kv_heads} key-value heads")
    return cfg


def _moe(raw: Mapping[str, Any]) -> MoeConfig:
    """The experts. Only models with experts in every layer are supported; all published ones are."""
    where = "text_config"
    _only(raw, "decoder_sparse_step", 1, where)
    _only(raw, "mlp_only_layers", [], where)
    _only(raw, "norm_topk_prob", True, where)
    experts = "num_local_experts" if raw.get("num_local_experts") is not None else "num_experts"
    moe = MoeConfig(
        num_experts=int(_need(raw, experts, where)),
        experts_per_token=int(_need(raw, "num_experts_per_tok", where)),
        intermediate_size=int(_need(raw, "moe_intermediate_size", where)),
    )
    if not 1 <= moe.experts_per_token <= moe.num_experts:
        raise UserError(f"{where}: num_experts_per_tok {moe.experts_per_token} must be within 1..{moe.num_experts} (num_experts)")
    return moe


def _vision(raw: Mapping[str, Any]) -> VisionConfig:
    """The vision tower."""
    where = "vision_config"
    _only(raw, "hidden_act", "gelu_pytorch_tanh", where)
    _only(raw, "in_channels", 3, where)
    _only(raw.get("rope_parameters") or {}, "rope_theta", 10000.0, f"{where}.rope_parameters")
    taps = tuple(int(layer) for layer in _need(raw, "deepstack_visual_indexes", where))
    given = [name for name in VisionConfig.__dataclass_fields__ if name not in ("deepstack_layers", "image_mean", "image_std")]
    sizes = {name: int(_need(raw, name, where)) for name in given}
    cfg = VisionConfig(**sizes, deepstack_layers=taps)
    if cfg.hidden_size % (4 * cfg.num_heads):
        raise UserError(
            f"{where}: hidden_size {cfg.hidden_size} over {cfg.num_heads} heads must leave a multiple of 4 (2-D rotary)"
        )
    if isqrt(cfg.num_position_embeddings) ** 2 != cfg.num_position_embeddings:
        raise UserError(f"{where}: num_position_embeddings {cfg.num_position_embeddings} is not a square: the grid is n x n")
    if list(taps) != sorted(set(taps)) or (taps and not 0 <= taps[0] <= taps[-1] < cfg.depth):
        raise UserError(f"{where}: deepstack_visual_indexes {taps} must increase and be within 0..{cfg.depth - 1}")
    return cfg


def _check_together(cfg: Qwen3VLConfig) -> None:
    """Checks that need both the language model and the vision tower."""
    if cfg.vision.out_hidden_size != cfg.text.hidden_size:
        raise UserError(
            f"vision_config.out_hidden_size {cfg.vision.out_hidden_size} differs from text_config.hidden_size "
            f"{cfg.text.hidden_size}; image tokens could not replace word embeddings"
        )
    if len(cfg.vision.deepstack_layers) > cfg.text.num_layers:
        raise UserError(
            f"{len(cfg.vision.deepstack_layers)} deepstack taps need as many decoder layers, there are {cfg.text.num_layers}"
        )
    for name in _TOKENS:
        token = cfg.raw[name]
        if not 0 <= token < cfg.text.vocab_size:
            raise UserError(f"{name} {token} is outside the vocabulary of {cfg.text.vocab_size} ids")
