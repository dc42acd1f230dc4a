"""Makes the demo's base model from nothing: `python -m mtjudge_jax.demo.pretrain.make_base --out=mtjudge_jax/demo/base`.

The base plays the part of a real vision-language model: it learns to describe pictures, to answer neutral questions about them
and to answer in the asked form. Every verdict about what is judged is a coin flip, so it cannot judge. Seeds are fixed; the
folder's README.md records the time and the losses. It runs from a clone only, the wheel leaves this package out.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from absl import app, flags

from mtjudge_jax.types import Params

OUT = flags.DEFINE_string("out", None, "folder to write, a Hugging Face folder of type qwen3_vl", required=True)
STEPS = flags.DEFINE_integer("steps", 1600, "updates")
SEED = flags.DEFINE_integer("seed", 0, "of weights and pictures")
BATCH = flags.DEFINE_integer("batch", 64, "samples per update")
LR = flags.DEFINE_float("lr", 0.01, "peak learning rate of Muon")
CHECK_EVERY = flags.DEFINE_integer("check_every", 400, "updates between measurements on validation pictures")
WORKERS = flags.DEFINE_integer("workers", 1, "processes that draw pictures")

# Pictures per sample of ten updates in turn; separate updates keep the shapes free of padding.
PICTURES = (1, 2, 1, 1, 2, 1, 4, 1, 2, 1)
SHAPES = {1: (50, 36, 18), 2: (54, 72, 28), 4: (84, 144, 44)}  # of these samples: prompt tokens, patches, tokens of an answer
SIZES = {
    "text": {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "vision": {
        "depth": 4,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "deepstack_visual_indexes": [1, 2],
    },
}


def hf_config(tokenizer) -> dict:
    """config.json of the demo model, in the hub's spelling."""
    rope = {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"}
    vocabulary = -(-tokenizer.size // 64) * 64
    text = {
        "model_type": "qwen3_vl_text",
        "vocab_size": vocabulary,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000,
        "rope_scaling": rope,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos,
        "pad_token_id": tokenizer.pad,
        **SIZES["text"],
    }
    vision = {
        "model_type": "qwen3_vl",
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "in_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "num_position_embeddings": 64,
        "out_hidden_size": SIZES["text"]["hidden_size"],
        **SIZES["vision"],
    }
    video = tokenizer.encode("<|video_pad|>")[0]
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": text,
        "vision_config": vision,
        "image_token_id": tokenizer.image,
        "video_token_id": video,
        "vision_start_token_id": tokenizer.vision_start,
        "vision_end_token_id": tokenizer.vision_end,
        "tie_word_embeddings": True,
    }


def alike(params: Params) -> Params:
    """The text model's queries begin as the keys of their group, so that from the start a token attends to others like itself.

    In 400 updates a run without it answered no neutral question better than chance, and one with it, asked more of them, those
    about looks and order in nine of ten. The idea is that of mimetic initialisation (Trockman and Kolter, arXiv 2305.09828).
    """
    layers = params["text"]["layers"]
    repeated = layers["q_ldnh"].shape[2] // layers["k_ldkh"].shape[2]
    return params | {"text": params["text"] | {"layers": layers | {"q_ldnh": layers["k_ldkh"].repeat(repeated, axis=2)}}}


@cache
def _drawing(folder: str):
    """What a worker process needs, loaded once: the training photographs, tokenizer and image settings."""
    from mtjudge_jax.data.image_config import load_image_config
    from mtjudge_jax.data.tokenizer import load_tokenizer
    from mtjudge_jax.demo.scenes import load_pool

    return load_pool("train"), load_tokenizer(folder), load_image_config(folder)


def draw_batch(step: int, *, folder: str, seed: int, batch: int) -> dict[str, np.ndarray]:
    """The rows of one update; depends on (seed, step) only."""
    from mtjudge_jax.data.rows import RowFormat, make_target, prompt_row, stack_rows
    from mtjudge_jax.demo.pretrain.corpus import base_sample

    pool, tokenizer, image_cfg = _drawing(folder)
    pictures = PICTURES[step % len(PICTURES)]
    fmt = RowFormat({}, tokenizer, image_cfg, *SHAPES[pictures])
    rng = np.random.default_rng((seed, step))
    rows = []
    for _ in range(batch):
        sample = base_sample(rng, pool, pictures=pictures, step=step)
        row = prompt_row(sample.question, sample.images, fmt, name=f"step {step}")
        target, mask = make_target(sample.answer, tokenizer, fmt.completion_tokens)
        rows.append({**row, "uid": np.uint32(len(rows)), "target": target, "target_mask": mask})
    return stack_rows(rows)


def batches(draw, steps: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches in order, drawn a few ahead by other processes."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead: list[Future] = [pool.submit(draw, step) for step in range(min(4, steps))]
        for step in range(steps):
            if step + len(ahead) < steps:
                ahead.append(pool.submit(draw, step + len(ahead)))
            yield ahead.pop(0).result()


def train(folder: Path, out: Path) -> None:
    import jax

    from mtjudge_jax.config import Config
    from mtjudge_jax.data.rows import DEVICE_KEYS
    from mtjudge_jax.demo.pretrain.card import write_card
    from mtjudge_jax.demo.pretrain.perception import Perception
    from mtjudge_jax.models.hf.save import save_hf
    from mtjudge_jax.models.qwen3_vl import vlm
    from mtjudge_jax.models.qwen3_vl.config import load_config
    from mtjudge_jax.policy.judge_file import JUDGE_FILE
    from mtjudge_jax.policy.programs import place_prompts
    from mtjudge_jax.policy.update import init_state, make_update
    from mtjudge_jax.rl.loss import sft_loss
    from mtjudge_jax.rl.optim import make_optimizer
    from mtjudge_jax.rl.streams import place_answers
    from mtjudge_jax.sharding import make_mesh, shard_batch
    from mtjudge_jax.types import SftBatch

    cfg = Config(stage="sft", steps=STEPS.value, seed=SEED.value)
    cfg.optim.name, cfg.optim.lr, cfg.optim.schedule, cfg.optim.final_lr_ratio = "muon", LR.value, "cosine", 0.02
    cfg.optim.warmup_steps, cfg.optim.weight_decay, cfg.optim.b2 = 50, 0.0, 0.99
    cfg.update.prompts = cfg.update.micro_prompts = BATCH.value
    cfg.rollout.completion_tokens = SHAPES[1][2]
    model_cfg, mesh = load_config(folder), make_mesh(cfg.mesh)
    perception = Perception(cfg, model_cfg, folder, mesh, SHAPES[1])
    optimizer = make_optimizer(cfg.optim, cfg.steps)
    state = init_state(alike(vlm.init_params(model_cfg, cfg.seed)), optimizer, mesh)
    update = make_update(state, partial(sft_loss, logp_fn=perception.programs.logp_fn), optimizer, mesh, cfg)
    draw = partial(draw_batch, folder=str(folder), seed=cfg.seed, batch=BATCH.value)
    history, losses, began = [], [], time.perf_counter()
    for step, rows in enumerate(batches(draw, cfg.steps, WORKERS.value), start=1):
        tokens, mask = shard_batch((rows["target"][:, None], rows["target_mask"][:, None]), mesh)
        prompts = place_prompts({key: rows[key] for key in DEVICE_KEYS}, mesh)
        state, metrics = update(state, {}, SftBatch(prompts, tokens, mask, place_answers(prompts, mask, mesh)))
        losses.append(metrics["loss"])
        if step % 100 == 0 or step == cfg.steps:
            minutes = (time.perf_counter() - began) / 60
            print(f"step {step}/{cfg.steps} loss {np.mean(jax.device_get(losses)):.4f} {minutes:.1f} min", flush=True)
            if step % CHECK_EVERY.value == 0 or step == cfg.steps:
                seen = perception.measure(state.params)
                history.append({"step": step, "loss": float(np.mean(jax.device_get(losses))), "minutes": minutes, **seen})
                print(json.dumps(history[-1]), flush=True)
            losses = []
    save_hf(state.params, out, source_folder=folder, dtype="bfloat16")
    sizes = {"prompt_tokens": SHAPES[1][0], "patches": SHAPES[1][1], "completion_tokens": SHAPES[1][2]}
    (out / JUDGE_FILE).write_text(json.dumps(sizes) + "\n")
    write_card(out, history, seed=SEED.value, steps=STEPS.value, batch=BATCH.value, lr=LR.value)


def main(_) -> None:
    from mtjudge_jax.data.tokenizer import load_tokenizer
    from mtjudge_jax.demo.pretrain.tokenizer import build_tokenizer

    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build_tokenizer(folder)
        tokenizer = load_tokenizer(folder)
        (folder / "config.json").write_text(json.dumps(hf_config(tokenizer), indent=2) + "\n")
        generation = {"eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad, "do_sample": True, "temperature": 1.0}
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
        train(folder, Path(OUT.value))


if __name__ == "__main__":
    app.run(main)
