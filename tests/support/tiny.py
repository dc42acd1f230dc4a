"""A tiny random Qwen3-VL, prompts for it and answers, and the plain reference: every answer with a prompt of its own."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.data.images import patch_coordinates
from mtjudge_jax.data.rows import rope_positions
from mtjudge_jax.data.tokenizer import Tokenizer
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, from_hf
from mtjudge_jax.rl.streams import Bins, bins_ladder, lay_out, least_bins
from mtjudge_jax.sharding import make_mesh, path_name, tree_shardings
from mtjudge_jax.types import Array, Params, PromptBatch

VOCABULARY, IMAGE, VISION_START, VISION_END, VIDEO, EOS, PAD = 64, 60, 61, 62, 63, 59, 58
CONTROL = (PAD, IMAGE, VISION_START, VISION_END, VIDEO)  # ids that must never be sampled
ALLOWED = ~np.isin(np.arange(VOCABULARY), CONTROL)
PROMPT_TOKENS, PATCHES = 24, 40
# Grids in patches of the images of a prompt, and how many words it has; the third has no image, all are padded on the left.
LAYOUTS = (([(4, 4)], 5), ([(2, 4), (6, 2)], 7), ([], 9), ([(4, 2), (2, 2), (4, 6)], 6))
# What is tested here compiles longer than it runs. Newer versions of XLA do not have the second option.
QUICK = {"xla_backend_optimization_level": 0} | ({"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {})
jit = functools.partial(jax.jit, compiler_options=QUICK)
# No two sizes alike and none twice another: a checkpoint's layout is told by its shapes.
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "decoder_sparse_step": 1, "mlp_only_layers": []}
SCALE = {"vision/patch_pc": 0.1, "text/layers/router_lde": 3}  # of weights that need another: choices of experts must be clear


def config(
    *, tied: bool = False, layers: int = 2, blocks: int = 2, vocabulary: int = VOCABULARY, moe: bool = False
) -> Qwen3VLConfig:
    """Width 32, 4 heads over 2 key-value heads; a DeepStack tap after every block but the last, or after the only one.

    With `moe` each layer has 8 experts of width 20, 2 a token, in place of its mlp.
    """
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "head_dim": 16}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_parameters": rope}
    text |= MOE if moe else {}
    vision = {"depth": blocks, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 16}
    vision |= {"temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 16}
    vision |= {"deepstack_visual_indexes": list(range(max(1, blocks - 1)))}
    ids = {"image_token_id": IMAGE, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
    ids |= {"video_token_id": VIDEO, "eos_token_id": EOS, "tie_word_embeddings": tied}
    return from_hf({"model_type": "qwen3_vl_moe" if moe else "qwen3_vl", "text_config": text, "vision_config": vision, **ids})


def mesh_of(shape: tuple[int, int, int, int]) -> Mesh:
    """A mesh of the first devices: data, fsdp, expert, tensor."""
    return make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])


def placed(params: Params, mesh: Mesh) -> Params:
    """The parameters on the mesh, each sharded as in a run."""
    return jax.device_put(params, tree_shardings(params, mesh))


def params(cfg: Qwen3VLConfig, seed: int = 0) -> Params:
    """Every weight random; norms and biases too, which hide mistakes while they are one and zero."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        name = path_name(path)
        noise = 0.1 * rng.normal(size=leaf.shape)
        if "bias" not in name:
            noise = 1 + noise if "norm" in name else 2 * noise * SCALE.get(name, 1)
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(one, vlm.abstract_params(cfg))


class Words:
    """The part of a Codec that the programs need: 64 ids, five of them control."""

    def text_ids(self) -> list[int]:
        return [*range(VOCABULARY)]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def tokenizer() -> Tokenizer:
    names = (PAD, EOS, IMAGE, VISION_START, VISION_END, VOCABULARY)
    return Tokenizer(None, Words(), *names, tuple((str(i), i) for i in CONTROL))


def prompts(rows: int = 4, seed: int = 0) -> PromptBatch:
    """`rows` prompts that go through LAYOUTS in turn, with random words and pixels; numpy arrays."""
    rng = np.random.default_rng(seed)
    made = [_row(*LAYOUTS[i % len(LAYOUTS)], rng) for i in range(rows)]
    stacked = {name: np.stack([row[name] for row in made]) for name in made[0]}
    return PromptBatch(**stacked, uid=rng.integers(1, 2**32, rows, dtype=np.uint32))


def _row(grids: list[tuple[int, int]], words: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    ids = [token for h, w in grids for token in (VISION_START, *[IMAGE] * (h * w // 4), VISION_END)]
    ids += rng.integers(0, PAD, words).tolist()
    start = PROMPT_TOKENS - len(ids)
    pad = lambda x, value: np.pad(x, [(start, 0), *[(0, 0)] * (np.ndim(x) - 1)], constant_values=value)  # noqa: E731
    positions, following = rope_positions(ids, image_id=IMAGE, grids=grids, merge=2)
    tokens = pad(np.array(ids, np.int32), PAD)
    is_image = tokens == IMAGE
    hw, grid, segment = np.zeros((PATCHES, 2), np.int32), np.ones((PATCHES, 2), np.int32), np.zeros(PATCHES, np.int32)
    at = 0
    for number, (h, w) in enumerate(grids, 1):
        part = slice(at, at + h * w)
        hw[part], grid[part], segment[part], at = patch_coordinates((h, w), 2), (h, w), number, at + h * w
    return {
        "tokens": tokens,
        "valid": np.arange(PROMPT_TOKENS) >= start,
        "positions": pad(positions, 0),
        "next_position": np.int32(following),
        "image_index": np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32),
        "patches": rng.integers(0, 256, (PATCHES, 768), dtype=np.uint8) * (segment > 0)[:, None].astype(np.uint8),
        "patch_hw": hw,
        "patch_grid": grid,
        "patch_segment": segment,
    }


def answers(rows: int, group: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens int32 [Q, G, C] of allowed ids, and a mask: lengths from 1 to C, padding behind."""
    rng = np.random.default_rng(seed)
    tokens = rng.choice(np.flatnonzero(ALLOWED), (rows, group, length)).astype(np.int32)
    mask = np.arange(length) < rng.integers(1, length + 1, (rows, group))[..., None]
    return np.where(mask, tokens, PAD).astype(np.int32), mask


def packed(mask: np.ndarray) -> np.ndarray:
    """The places of answers in the least bins that hold them, as a run takes them. mask bool [Q, G, C], the tokens there are."""
    lengths, (group, length) = mask.sum(-1), mask.shape[1:]
    return lay_out(lengths, length, least_bins(lengths, length, bins_ladder(group, length)))


def full(tokens: np.ndarray) -> np.ndarray:
    """The places of answers of full length: each has its own bin. tokens [Q, G, C]."""
    _, group, length = tokens.shape
    return lay_out(np.full(tokens.shape[:2], length), length, Bins(group, length - 1))


def unshared_logits(params: Params, cfg: Qwen3VLConfig, rows: PromptBatch, tokens: Array) -> Array:
    """Logits that predict each token of tokens [Q, G, C], float32 [Q, G, C, V]: the plain forward over Q * G whole texts.

    The prompt, its images included, stands in front of every answer again; one causal attention, nothing is shared.
    """
    q, g, c = tokens.shape
    again = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), g, 0), rows)
    own = jnp.asarray(tokens).reshape(q * g, c)
    behind = jnp.broadcast_to((again.next_position[:, None] + jnp.arange(c))[..., None], (q * g, c, 3))
    texts = again._replace(
        tokens=jnp.concatenate([again.tokens, own], 1),
        valid=jnp.concatenate([again.valid, jnp.ones_like(own, bool)], 1),
        positions=jnp.concatenate([again.positions, behind], 1),
        image_index=jnp.concatenate([again.image_index, jnp.full_like(own, -1)], 1),
    )
    out = vlm.logits(params, cfg, texts)
    before = rows.tokens.shape[1]
    return out[:, before - 1 : -1].reshape(q, g, c, -1)


def unshared_logp(params: Params, cfg: Qwen3VLConfig, rows: PromptBatch, tokens: Array, temperature: float) -> Array:
    """Log-probability of each token among the allowed ids, [Q, G, C], from `unshared_logits`."""
    logits = jnp.where(ALLOWED, unshared_logits(params, cfg, rows, tokens) / temperature, -jnp.inf)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(tokens)[..., None], -1)[..., 0]


def relative(got, want) -> float:
    """Largest difference over the largest entry of `want`; of trees, the worst leaf. NaN counts as infinite."""

    def one(got, want) -> float:
        gap, size = np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)).max(), np.abs(np.asarray(want)).max()
        return float("inf") if np.isnan(gap) else float(gap / size) if size else float(gap)

    return max(jax.tree.leaves(jax.tree.map(one, got, want)))
