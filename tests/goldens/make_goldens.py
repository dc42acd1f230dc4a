"""Makes the goldens of the parity tests with transformers on CPU:

    python tests/goldens/make_goldens.py

writes beside this file: qwen3_vl/ (a tiny random model, untied, float32, transformers' own layout) and qwen3_vl.npz, holding
the prompt rows, completions, and for each variant logits at valid positions, log-probabilities, loss, gradient norms and
samples of the gradient, greedy tokens. Variants share the weights: `untied`; `tied`, without the head; `quiet`, whose tower
sees inputs so small that the epsilon of its LayerNorms matters. Made with torch 2.13 and transformers 5.23.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import oracle  # noqa: E402

SEED = 8
SAMPLES = 48
# Three images of different grids in one row, one text-only row, one with the image first; lengths differ, so padding too.
PROMPTS = [
    [11, 45, (4, 6), 7, 88, (6, 4), 19, (2, 8), 3, 101, 54],
    [23, 9, 77, 64, 118, 2, 35],
    [(8, 4), 14, 15, 92, 65, 35],
]
LENGTH, PATCHES, GROUP, COMPLETION, STEPS = 36, 72, 2, 6, 16


def completions() -> tuple[np.ndarray, np.ndarray]:
    """tokens int32 [Q, G, C] and mask bool [Q, G, C]; the completions end at different places."""
    rng = np.random.default_rng(SEED)
    shape = (len(PROMPTS), GROUP, COMPLETION)
    lengths = rng.integers(2, COMPLETION + 1, shape[:2])
    return rng.integers(1, 120, shape).astype(np.int32), np.arange(COMPLETION) < lengths[..., None]


def sample(name: str, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where, in the flattened tensor, and what: the largest entry and up to SAMPLES - 1 others."""
    flat = gradient.reshape(-1)
    others = np.random.default_rng([SEED, *name.encode()]).choice(flat.size, min(SAMPLES - 1, flat.size), replace=False)
    at = np.unique(np.append(others, np.abs(flat).argmax())).astype(np.int32)
    return at, flat[at]


def results(net, rows, tokens, mask) -> dict[str, np.ndarray]:
    """All that is compared for one variant, by name."""
    logp, loss, gradients = oracle.gradients(net, rows, tokens, mask)
    made, lead = oracle.greedy(net, rows, STEPS)
    assert lead > 1e-3, f"a greedy choice is within {lead} of the next best; take another seed"
    out = {"logits": oracle.logits(net, rows)[rows.valid], "logp": logp, "loss": np.float32(loss), "greedy": made}
    names = sorted(gradients)
    drawn = [sample(name, gradients[name]) for name in names]
    out["gradient_names"] = np.array(names)
    out["gradient_norms"] = np.array([np.linalg.norm(gradients[name].astype(np.float64)) for name in names])
    out["gradient_counts"] = np.array([len(at) for at, _ in drawn], np.int32)
    out["gradient_at"] = np.concatenate([at for at, _ in drawn])
    out["gradient_values"] = np.concatenate([values for _, values in drawn])
    return out


def main() -> None:
    folder = HERE / "qwen3_vl"
    untied = oracle.model(oracle.config(oracle.GAPS, tied=False), SEED)
    untied.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    stored = load_file(folder / "model.safetensors")
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    rows = oracle.batch(PROMPTS, untied.config, length=LENGTH, patches=PATCHES, seed=SEED)
    tokens, mask = completions()
    arrays = {f"rows/{name}": field for name, field in rows._asdict().items()}
    arrays |= {"completions": tokens, "completion_mask": mask}
    nets = {
        "untied": untied,
        "tied": oracle.model(oracle.config(oracle.GAPS, tied=True), SEED),
        "quiet": oracle.quiet_tower(oracle.model(oracle.config(oracle.GAPS, tied=False), SEED)),
    }
    for variant, net in nets.items():
        arrays |= {f"{variant}/{name}": value for name, value in results(net, rows, tokens, mask).items()}
        print(variant, "logit std", arrays[f"{variant}/logits"].std(), "loss", arrays[f"{variant}/loss"])
    np.savez_compressed(HERE / "qwen3_vl.npz", **arrays)


if __name__ == "__main__":
    main()
