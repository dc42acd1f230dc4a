"""What the tests of parity share: the goldens, the models they belong to, and how two results are compared. Needs no torch."""

import dataclasses
import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from places import GOLDENS
from safetensors.numpy import load_file, save_file
from tiny import jit

from mtjudge_jax.data.images import patch_coordinates
from mtjudge_jax.data.rows import DEVICE_KEYS, rope_positions
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.hf.table import model_weights, to_hf
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config
from mtjudge_jax.types import Params, PromptBatch

HERE = GOLDENS
DENSE, MOE = ("untied", "tied", "quiet"), ("moe", "moe_tied")
TOLERANCE = 5e-5  # float32 on both sides; logits have a standard deviation of 0.9
GRADIENT_TOLERANCE = 1e-4  # of the largest entry of each tensor
PAD, CONTROL, VOCABULARY = 0, 120, 128  # ids from CONTROL on are left out of what is decoded
IMAGE, VISION_START, VISION_END = 120, 122, 123


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    """All arrays that make_goldens wrote, by name."""
    with np.load(HERE / "qwen3_vl.npz") as dense, np.load(HERE / "qwen3_vl_moe.npz") as moe:
        return dict(dense) | dict(moe)


def golden_rows() -> PromptBatch:
    return PromptBatch(**{name: jnp.asarray(goldens()[f"rows/{name}"]) for name in DEVICE_KEYS})


@functools.cache
def golden_model(variant: str) -> tuple[Params, Qwen3VLConfig]:
    """The dense variants share one set of weights and so do those with experts, see make_goldens."""
    with tempfile.TemporaryDirectory() as folder:
        source = write_moe(Path(folder), layout="hub") if variant in MOE else HERE / "qwen3_vl"
        cfg = load_config(source)
        flat = flatten_dict(load_params(source, cfg, dtype=jnp.float32, sharding_of=lambda path, shape: None), sep="/")
    if variant.endswith("tied") and variant != "untied":
        cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, tie_word_embeddings=True))
        del flat["text/head_vd"]
    if variant == "quiet":
        flat |= {path: flat[path] * 1e-3 for path in ("vision/patch_pc", "vision/patch_bias_c", "vision/pos_sc")}
    return unflatten_dict(flat, sep="/"), cfg


def write_moe(folder: Path, *, layout: Literal["hub", "transformers"]) -> Path:
    """Writes the golden mixture of experts as a model folder in either layout and returns it; without the output head's tie.

    Stored are the routers and experts alone: all else has the dense golden's weights.
    """
    tensors = load_file(HERE / "qwen3_vl" / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not ("language_model" in name and ".mlp." in name)}
    tensors |= load_file(HERE / "qwen3_vl_moe" / "experts.safetensors")
    cfg = json.loads((HERE / "qwen3_vl_moe" / "config.json").read_text())
    if layout == "hub":
        tensors, cfg = hub_tensors(tensors), hub_config(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(cfg, indent=2))
    return folder


def hub_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as transformers 5 saves them, as the hub has them: experts (E, in, out) instead of (E, out, in)."""
    return {
        name: np.ascontiguousarray(tensor.swapaxes(1, 2)) if ".experts." in name else tensor for name, tensor in tensors.items()
    }


def hub_config(cfg: dict[str, Any]) -> dict[str, Any]:
    """A config as transformers 5 saves it, in the spelling of the hub."""
    text = dict(cfg["text_config"])
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {key: rope[key] for key in ("mrope_interleaved", "mrope_section", "rope_type")}
    if "num_local_experts" in text:
        text |= {"num_experts": text.pop("num_local_experts"), "norm_topk_prob": True}
    vision = {key: value for key, value in cfg["vision_config"].items() if key != "rope_parameters"} | {
        "model_type": cfg["model_type"]
    }
    return cfg | {"text_config": text, "vision_config": vision, "transformers_version": "4.57.0.dev0"}


@functools.cache
def compiled_logits(cfg: Qwen3VLConfig, backend: Backend = Backend()):  # noqa: B008
    return jit(lambda params, rows: vlm.logits(params, cfg, rows, backend=backend))


def difference(got: jax.Array, want: np.ndarray, valid: np.ndarray) -> float:
    """Largest difference over real tokens; NaN counts as infinite."""
    gap = np.abs(np.asarray(got)[np.asarray(valid)] - want)
    return float(np.where(np.isnan(gap), np.inf, gap).max())


def in_hub_layout(params: Params, cfg: Qwen3VLConfig) -> dict[str, np.ndarray]:
    """The tensors of a parameter tree as a model folder has them."""
    flat, by_name = flatten_dict(params, sep="/"), {}
    for weight in model_weights(cfg):
        leaf = np.asarray(flat[weight.path])
        by_name |= {name: to_hf(weight, leaf if weight.stack is None else leaf[i]) for i, name in enumerate(weight.names)}
    return by_name


def assert_gradients(gradient: Params, cfg: Qwen3VLConfig, variant: str) -> None:
    """Norm and sampled entries of every tensor's gradient, in the hub's layout."""
    golden, by_name = goldens(), in_hub_layout(gradient, cfg)
    names = [str(name) for name in golden[f"{variant}/gradient_names"]]
    assert sorted(by_name) == names
    ends = np.cumsum(golden[f"{variant}/gradient_counts"])
    for name, norm, end, count in zip(
        names, golden[f"{variant}/gradient_norms"], ends, golden[f"{variant}/gradient_counts"], strict=True
    ):
        part = slice(end - count, end)
        at, want = golden[f"{variant}/gradient_at"][part], golden[f"{variant}/gradient_values"][part]
        got = by_name[name].reshape(-1)
        assert norm > 0
        assert abs(np.linalg.norm(got.astype(np.float64)) / norm - 1) < GRADIENT_TOLERANCE, name
        assert np.abs(got[at] - want).max() < GRADIENT_TOLERANCE * np.abs(want).max(), name


# prompts to be answered

GRIDS = ((4, 4), (2, 6), (6, 4), (4, 2), (4, 6), (6, 6), (2, 8), (8, 4))  # (height, width) in patches


def question(seed: int) -> list[int | tuple[int, int]]:
    """Up to three images with words around them, drawn from a hash: the same wherever this runs. One in eight is words alone."""
    drawn = iter(hashlib.shake_256(f"question {seed}".encode()).digest(64))
    words = lambda: [1 + next(drawn) % (CONTROL - 1) for _ in range(1 + next(drawn) % 5)]  # noqa: E731
    prompt: list[int | tuple[int, int]] = words()
    for _ in range((0, 1, 1, 2, 2, 3, 3, 3)[next(drawn) % 8]):
        prompt += [GRIDS[next(drawn) % len(GRIDS)], *words()]
    return prompt


def prompt_rows(seeds: list[int]) -> PromptBatch:
    """The questions as one batch, left padded to the longest; positions and patch order are the host code's own."""
    prompts = [question(seed) for seed in seeds]
    grids = [[part for part in prompt if isinstance(part, tuple)] for prompt in prompts]
    ids = [[token for part in prompt for token in _tokens(part)] for prompt in prompts]
    length, patches = max(map(len, ids)), max(sum(h * w for h, w in own) for own in grids)
    rows = [_row(seed, *both, length, patches) for seed, *both in zip(seeds, ids, grids, strict=True)]
    return jax.tree.map(lambda *field: np.stack(field), *rows)


def _tokens(part: int | tuple[int, int]) -> list[int]:
    return [part] if isinstance(part, int) else [VISION_START, *[IMAGE] * (part[0] * part[1] // 4), VISION_END]


def _row(seed: int, ids: list[int], grids: list[tuple[int, int]], length: int, patches: int) -> PromptBatch:
    positions, following = rope_positions(ids, image_id=IMAGE, grids=grids, merge=2)
    sizes = [h * w for h, w in grids]
    count, before = sum(sizes), length - len(ids)
    pad = lambda x, value: np.pad(np.asarray(x, np.int32), [(before, 0), *[(0, 0)] * (np.ndim(x) - 1)], constant_values=value)  # noqa: E731
    tokens = pad(ids, PAD)
    image = tokens == IMAGE
    pixels, hw = np.zeros((patches, 768), np.uint8), np.zeros((patches, 2), np.int32)
    pixels[:count] = np.frombuffer(hashlib.shake_256(f"pixels {seed}".encode()).digest(count * 768), np.uint8).reshape(count, 768)
    hw[:count] = np.concatenate([np.zeros((0, 2), np.int32), *(patch_coordinates(grid, 2) for grid in grids)])
    behind = patches - count
    return PromptBatch(
        tokens=tokens,
        valid=np.arange(length) >= before,
        positions=pad(positions, 0),
        next_position=np.int32(following),
        image_index=np.where(image, np.cumsum(image) - 1, -1).astype(np.int32),
        patches=pixels,
        patch_hw=hw,
        patch_grid=np.repeat(np.array([*grids, (1, 1)], np.int32), [*sizes, behind], 0),
        patch_segment=np.repeat(np.arange(len(grids) + 1, dtype=np.int32) + 1, [*sizes, behind]) * (np.arange(patches) < count),
        uid=np.uint32(seed),
    )
