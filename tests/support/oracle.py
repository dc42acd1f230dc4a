"""The reference: transformers' own Qwen3-VL on CPU, dense or mixture of experts, tiny and random. Needs torch.

Every parameter is randomised, norms and biases too: with transformers' own initialisation (norms one, biases zero) half of
the mistakes a port can make change nothing. Image inputs are laid out by hand from the prompt rows, because the processors
that would do it need torchvision.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from transformers import (
    AutoConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from mtjudge_jax.types import PromptBatch

torch.set_num_threads(1)  # what is tiny is faster so, above all beside other work

IMAGE, VIDEO, VISION_START, VISION_END, PAD = 120, 121, 122, 123, 0
# Taps with gaps and two decoder layers more than taps, so a tap counted wrongly lands on another layer. No two sizes that a
# port could confuse are equal: heads x head size is not the width, a head of the tower is not a head of the decoder.
GAPS = {
    "text": {
        "vocab_size": 128, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16,
    },
    "vision": {"depth": 6, "hidden_size": 24, "intermediate_size": 44, "num_heads": 2, "deepstack_visual_indexes": [1, 3, 4]},
    "section": [4, 2, 2],
    "positions": 49,
}  # fmt: skip
# The opposite corner: as many taps as decoder layers, every block tapped, other head sizes and sections.
PLAIN = {
    "text": {
        "vocab_size": 128, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 3, "head_dim": 24,
    },
    "vision": {"depth": 3, "hidden_size": 32, "intermediate_size": 40, "num_heads": 4, "deepstack_visual_indexes": [0, 1, 2]},
    "section": [6, 3, 3],
    "positions": 36,
}  # fmt: skip
# The same two with experts. D, F and 2 F differ, as in every published model: a file's layout is told by its shapes.
EVERY_LAYER = {"decoder_sparse_step": 1, "mlp_only_layers": []}
GAPS_MOE = GAPS | {
    "text": GAPS["text"] | EVERY_LAYER | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 18}
}
PLAIN_MOE = PLAIN | {
    "text": PLAIN["text"] | EVERY_LAYER | {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
}

Config = Qwen3VLConfig | Qwen3VLMoeConfig
Model = Qwen3VLForConditionalGeneration | Qwen3VLMoeForConditionalGeneration
CLASSES = {
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
    "qwen3_vl_moe": (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration),
}


def config(sizes: dict[str, Any], *, tied: bool) -> Config:
    """A tiny config; `sizes` is GAPS or PLAIN, or one of them with experts."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True, "mrope_section": sizes["section"]}
    text = sizes["text"] | {
        "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "rope_parameters": rope, "tie_word_embeddings": tied,
        "pad_token_id": PAD,
    }  # fmt: skip
    vision = sizes["vision"] | {
        "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": sizes["positions"],
        "out_hidden_size": sizes["text"]["hidden_size"],
    }  # fmt: skip
    made, _ = CLASSES["qwen3_vl_moe" if "num_experts" in sizes["text"] else "qwen3_vl"]
    return made(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, dtype="float32", image_token_id=IMAGE,
        video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
    )  # fmt: skip


def model(cfg: Config, seed: int) -> Model:
    """A float32 model with every parameter random; the same seed gives the same weights, tied or not, with experts or not."""
    net = _plain(CLASSES[cfg.model_type][1](cfg).float())
    with torch.no_grad():
        for name, parameter in sorted(net.named_parameters()):
            key = [seed, *name.encode()]
            noise = np.random.default_rng(key).standard_normal(parameter.shape).astype(np.float32)
            parameter.copy_(torch.from_numpy(_scaled(name, noise)))
    return net


def _scaled(name: str, noise: np.ndarray) -> np.ndarray:
    if noise.ndim == 1:
        return 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    if name.endswith("mlp.gate.weight"):
        return noise * 3 * noise.shape[1] ** -0.5  # logits of a standard deviation of 3: the choices are clear ones
    if ".experts." in name:
        return noise * noise.shape[2] ** -0.5  # (experts, out, in)
    return noise * min(0.15, float(np.prod(noise.shape[1:])) ** -0.5)


def load(folder: Path) -> Model:
    """from_pretrained, which must find every tensor and nothing else; experts in the hub's layout or in transformers' own."""
    made = CLASSES[AutoConfig.from_pretrained(folder).model_type][1]
    net, report = made.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return _plain(net)


def _plain(net: Model) -> Model:
    """The implementations that are written out in the model's own file."""
    net.set_attn_implementation("eager")
    if net.config.model_type == "qwen3_vl_moe":
        net.set_experts_implementation("eager")
    return net.eval()


def quiet_tower(net: Model, factor: float = 1e-3) -> Model:
    """Shrinks what enters the tower until the epsilon of its LayerNorms is felt."""
    with torch.no_grad():
        visual = net.model.visual
        for parameter in (visual.patch_embed.proj.weight, visual.patch_embed.proj.bias, visual.pos_embed.weight):
            parameter.mul_(factor)
    return net


def batch(prompts: list[list[int | tuple[int, int]]], cfg: Config, *, length: int, patches: int, seed: int) -> PromptBatch:
    """Prompt rows. A prompt is a list of token ids and, where an image stands, its grid (height, width) in patches.

    [5, (4, 2), 6] becomes 5 <start> pad pad <end> 6 with 8 random patches. Positions are transformers' own.
    """
    rng = np.random.default_rng(seed)
    count = len(prompts)
    out = PromptBatch(
        tokens=np.full((count, length), PAD, np.int32),
        valid=np.zeros((count, length), bool),
        positions=np.zeros((count, length, 3), np.int32),
        next_position=np.zeros(count, np.int32),
        image_index=np.full((count, length), -1, np.int32),
        patches=np.zeros((count, patches, 768), np.uint8),
        patch_hw=np.zeros((count, patches, 2), np.int32),
        patch_grid=np.ones((count, patches, 2), np.int32),
        patch_segment=np.zeros((count, patches), np.int32),
        uid=np.arange(count, dtype=np.uint32),
    )
    for row, prompt in enumerate(prompts):
        ids, at = [], 0
        for number, grid in enumerate([part for part in prompt if isinstance(part, tuple)], 1):
            here = slice(at, at + grid[0] * grid[1])
            out.patches[row, here] = rng.integers(0, 256, (grid[0] * grid[1], 768))
            out.patch_hw[row, here] = merge_order(*grid)
            out.patch_grid[row, here] = grid
            out.patch_segment[row, here] = number
            at = here.stop
        for part in prompt:
            ids += [VISION_START, *[IMAGE] * (part[0] * part[1] // 4), VISION_END] if isinstance(part, tuple) else [part]
        out.tokens[row, length - len(ids) :] = ids
        out.valid[row, length - len(ids) :] = True
    is_image = out.tokens == IMAGE
    out.image_index[is_image] = (np.cumsum(is_image, 1) - 1)[is_image]
    net = CLASSES[cfg.model_type][1](cfg)
    positions, delta = net.model.get_rope_index(**_text_inputs(out), image_grid_thw=grids(out))
    out.positions[:] = positions.permute(1, 2, 0).numpy()
    out.next_position[:] = out.valid.sum(1) + delta[:, 0].numpy()
    return out


def merge_order(height: int, width: int) -> np.ndarray:
    """(row, column) of each patch in the order of the tower: block by block of 2 x 2."""
    return np.array(
        [
            (row + i, col + j)
            for row in range(0, height, 2)
            for col in range(0, width, 2)
            for i in range(2)
            for j in range(2)
        ]
    )


def grids(rows: PromptBatch) -> torch.Tensor:
    """[images, 3]: (1, height, width) of every image, row after row."""
    found = []
    for row in range(len(rows.tokens)):
        for number in range(1, rows.patch_segment[row].max(initial=0) + 1):
            found.append([1, *rows.patch_grid[row][rows.patch_segment[row] == number][0]])
    return torch.tensor(np.array(found, np.int64).reshape(-1, 3))


def _text_inputs(rows: PromptBatch, tokens: np.ndarray | None = None, mask: np.ndarray | None = None) -> dict[str, torch.Tensor]:
    """Ids, mask and token types; `tokens` and `mask` go on where the prompt ends."""
    ids = rows.tokens if tokens is None else np.concatenate([rows.tokens, tokens], 1)
    valid = rows.valid if mask is None else np.concatenate([rows.valid, mask], 1)
    return {
        "input_ids": torch.tensor(ids, dtype=torch.long),
        "attention_mask": torch.tensor(valid, dtype=torch.long),
        "mm_token_type_ids": torch.tensor(ids == IMAGE, dtype=torch.int32),
    }


def inputs(rows: PromptBatch, tokens: np.ndarray | None = None, mask: np.ndarray | None = None) -> dict[str, torch.Tensor]:
    """What transformers' forward takes. A still image fills both frames of a patch: (C, 256) -> (C, T, 256)."""
    used = rows.patches[rows.patch_segment > 0].astype(np.float32)
    if not len(used):
        return _text_inputs(rows, tokens, mask)
    pixels = (used / np.float32(255.0) - np.float32(0.5)) / np.float32(0.5)
    pixels = np.repeat(pixels.reshape(-1, 3, 1, 256), 2, axis=2).reshape(-1, 1536)
    return _text_inputs(rows, tokens, mask) | {"pixel_values": torch.from_numpy(pixels), "image_grid_thw": grids(rows)}


def logits(net: Model, rows: PromptBatch) -> np.ndarray:
    """float32 [Q, P, V]."""
    with torch.no_grad():
        return net(**inputs(rows), use_cache=False).logits.numpy()


def repeat(rows: PromptBatch, times: int) -> PromptBatch:
    """Each row `times` times in a row, as a trainer without a shared prompt lays them out."""
    return jax.tree.map(lambda field: np.repeat(field, times, 0), rows)


def completion_logp(net: Model, rows: PromptBatch, tokens: np.ndarray, mask: np.ndarray) -> torch.Tensor:
    """Log-probabilities of completions [Q, G, C], every completion with its own copy of the prompt, differentiable."""
    count, group, length = tokens.shape
    flat = inputs(repeat(rows, group), tokens.reshape(-1, length), mask.reshape(-1, length))
    scores = net(**flat, use_cache=False).logits[:, -length - 1 : -1].log_softmax(-1)
    picked = scores.gather(-1, torch.tensor(tokens.reshape(-1, length, 1), dtype=torch.long))
    return picked.reshape(count, group, length)


def gradients(
    net: Model, rows: PromptBatch, tokens: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """(log-probabilities, mean negative log-likelihood over the mask, its gradient by tensor name)."""
    net.zero_grad()
    logp = completion_logp(net, rows, tokens, mask)
    loss = -(logp * torch.tensor(mask)).sum() / int(mask.sum())
    loss.backward()
    return logp.detach().numpy(), loss.item(), {name: p.grad.numpy().copy() for name, p in net.named_parameters()}


def greedy(net: Model, rows: PromptBatch, steps: int) -> tuple[np.ndarray, float]:
    """Greedy continuations int32 [Q, steps] in words alone, without a cache, and the least lead over the next best.

    The control tokens, from IMAGE on, are left out: transformers refuses an image token without an image.
    """
    tokens, lead = np.zeros((len(rows.tokens), 0), np.int32), np.inf
    for _ in range(steps):
        with torch.no_grad():
            scores = net(**inputs(rows, tokens, np.ones_like(tokens, bool)), use_cache=False).logits[:, -1, :IMAGE]
        best = scores.topk(2)
        lead = min(lead, float((best.values[:, 0] - best.values[:, 1]).min()))
        tokens = np.concatenate([tokens, best.indices[:, :1].numpy().astype(np.int32)], 1)
    return tokens, lead


def generate(
    net: Model, rows: PromptBatch, *, steps: int, eos: int | None, banned: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """transformers' own greedy `generate`: tokens int32 [Q, steps], PAD behind `eos`, and each row's least lead over the next."""
    out = net.generate(
        **inputs(rows), do_sample=False, max_new_tokens=steps, eos_token_id=eos, pad_token_id=PAD, suppress_tokens=banned,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens = out.sequences[:, rows.tokens.shape[1] :].numpy().astype(np.int32)
    best = torch.stack(out.scores, 1).topk(2).values
    lead = (best[..., 0] - best[..., 1]).numpy()
    lead[tokens == PAD] = np.inf
    return np.pad(tokens, [(0, 0), (0, steps - tokens.shape[1])], constant_values=PAD), lead.min(1)


@contextmanager
def router_gaps(net: Model) -> Iterator[list[float]]:
    """Gathers, a call of a router, the least difference of its logits between the last expert chosen and the next; of a dense
    model, nothing."""
    gaps: list[float] = []

    def see(router, _, output) -> None:
        best = output[0].detach().topk(router.top_k + 1).values
        gaps.append(float((best[:, -2] - best[:, -1]).min()))

    layers = net.model.language_model.layers if net.config.model_type == "qwen3_vl_moe" else ()
    hooks = [layer.mlp.gate.register_forward_hook(see) for layer in layers]
    yield gaps
    for hook in hooks:
        hook.remove()
