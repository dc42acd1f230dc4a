"""Times a DPO step with TRL's own loss on the same random tiny Qwen3-VL, for dpo_step.py: needs torch, transformers and trl.

A step is `DPOTrainer._compute_loss` (its forward pass of policy and reference on chosen and rejected answers, each with the
prompt and the picture again, as its collator lays them out), the backward pass, the clip and AdamW. Its data loading and its log
are not counted. Takes the flags of sizes.py; prints the line that peer.py reads.
"""

import copy
import json
import os
import resource
import statistics
import time
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
from sizes import parser

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
IMAGE, VIDEO, START, END, FIRST_TEXT = 6, 7, 3, 4, 10


def parse_args():
    p = parser(__doc__, prompts=8, new=16, G=2)
    p.add_argument("--steps", type=int, default=5)
    return p.parse_args()


def model_of(args):
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    side = args.head_dim // 2 * 5 // 16
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
    rope |= {"mrope_section": [args.head_dim // 2 - 2 * side, side, side]}
    text = {
        "vocab_size": args.vocab, "hidden_size": args.hidden, "intermediate_size": args.mlp, "num_hidden_layers": args.layers,
        "num_attention_heads": args.heads, "num_key_value_heads": args.kv_heads, "head_dim": args.head_dim,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": args.vis_depth, "hidden_size": args.vis_hidden, "num_heads": args.vis_heads, "patch_size": 16,
        "intermediate_size": 4 * args.vis_hidden, "out_hidden_size": args.hidden, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "num_position_embeddings": 256,
        "deepstack_visual_indexes": list(range(max(args.vis_depth - 3, 0), args.vis_depth)),
    }  # fmt: skip
    ids = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}
    cfg = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    return Qwen3VLForConditionalGeneration._from_config(cfg, dtype="float32", attn_implementation="sdpa")


def inputs_of(args):
    """TRL's batch: all chosen, then all rejected, each with its prompt and its picture."""
    import torch

    rng = np.random.default_rng(1)
    grid = args.image // 16
    image = [START, *[IMAGE] * (grid**2 // 4), END]
    text = rng.integers(FIRST_TEXT, args.vocab, (args.prompts, args.text_tokens - 2))
    prompt = np.concatenate([text[:, :1], np.tile(image, (args.prompts, 1)), text[:, 1:]], 1)
    answers = rng.integers(FIRST_TEXT, args.vocab, (2 * args.prompts, args.new))
    ids = torch.tensor(np.concatenate([np.tile(prompt, (2, 1)), answers], 1))
    pixels = torch.tensor(rng.normal(size=(args.prompts * grid**2, 1536)).astype(np.float32)).repeat(2, 1)
    completion = torch.zeros_like(ids)
    completion[:, prompt.shape[1] :] = 1
    return prompt.shape[1], {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "completion_mask": completion,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, grid, grid]] * 2 * args.prompts),
    }


def trainer_of(model, reference):
    """As much of a trainer as `_compute_loss` reads."""
    own = MagicMock()
    own.model, own.ref_model, own.args = model, reference, SimpleNamespace(gradient_checkpointing_kwargs=None)
    settings = {"beta": 0.1, "loss_types": ["sigmoid"], "loss_weights": [1.0], "f_divergence_type": "reverse_kl"}
    settings |= {"ld_alpha": None, "precompute_ref_logps": False, "aux_loss_enabled": False, "use_weighting": False}
    settings |= {"_metrics": {"train": defaultdict(list), "eval": defaultdict(list)}, "_total_train_tokens": 0, "_tp_size": 1}
    for name, value in settings.items():
        setattr(own, name, value)
    own.accelerator.gather_for_metrics = own.accelerator.gather = lambda x: x
    return own


def main() -> None:
    args = parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.utils import add_fused_lm_head

    torch.set_num_threads(args.threads)
    model = model_of(args)
    reference = copy.deepcopy(model).eval()
    model.train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))  # as the trainer does
    add_fused_lm_head(reference)
    prompt_tokens, inputs = inputs_of(args)
    own, optimizer = trainer_of(model, reference), torch.optim.AdamW(model.parameters(), lr=1e-6)
    clock, spent, forward = (time.process_time if args.by_cpu else time.perf_counter), {}, reference.forward

    def timed(*given, **named):
        began = clock()
        out = forward(*given, **named)
        spent["ref_logps"] = clock() - began
        return out

    reference.forward = timed
    steps = []
    for _ in range(2 + args.steps):
        began = clock()
        optimizer.zero_grad()
        DPOTrainer._compute_loss(own, model, inputs, return_outputs=False).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        whole = clock() - began
        steps.append({"step": whole, "ref_logps": spent["ref_logps"], "update": whole - spent["ref_logps"]})
    median = {name: round(statistics.median(one[name] for one in steps[2:]), 3) for name in steps[0]}
    out = {"peer": "trl", "clock": "cpu" if args.by_cpu else "wall", "rows": args.prompts * args.G, "new": args.new}
    out |= {"params_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 2), "prompt_tokens": prompt_tokens}
    print(
        "JSON " + json.dumps(out | {"median": median, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024})
    )


if __name__ == "__main__":
    main()
