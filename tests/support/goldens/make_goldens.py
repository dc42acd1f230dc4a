"""Makes the goldens of the parity tests with transformers on CPU:

    python tests/support/goldens/make_goldens.py

writes beside this file qwen3_vl/ (a tiny random model, untied, float32, transformers' own layout), qwen3_vl_moe/ (the routers
and experts that take the place of its mlps, transformers' own layout), and of both families an .npz: the prompt rows,
completions, and for each variant logits at valid positions, log-probabilities, loss, gradient norms and samples of the
gradient in the hub's layout, greedy tokens. Variants of a family share the weights: `untied`; `tied`, without the head;
`quiet`, whose tower sees inputs so small that the epsilon of its LayerNorms matters; `moe`; `moe_tied`. generate.npz holds
what transformers' `generate` answers to 20 prompts with images and 4 without. Made with torch 2.13 and transformers 5.23.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import oracle  # noqa: E402
import parity  # noqa: E402

SEED = 8
SAMPLES = 48
# Three images of different grids in one row, one text-only row, one with the image first; lengths differ, so padding too.
PROMPTS = [
    [11, 45, (4, 6), 7, 88, (6, 4), 19, (2, 8), 3, 101, 54],
    [23, 9, 77, 64, 118, 2, 35],
    [(8, 4), 14, 15, 92, 65, 35],
]
LENGTH, PATCHES, GROUP, COMPLETION, STEPS = 36, 72, 2, 6, 16
WITH_IMAGES, WORDS_ALONE, ANSWER_TOKENS = 20, 4, 32
BANNED = [parity.PAD, *range(parity.CONTROL, parity.VOCABULARY)]
LEAD, GAP = 1e-3, 5e-5  # a token's over the next best; an expert's router logit over the first that is not chosen


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
    gradients = parity.hub_tensors(gradients)
    made, lead = oracle.greedy(net, rows, STEPS)
    assert lead > LEAD, f"a greedy choice is within {lead} of the next best; take another seed"
    out = {"logits": oracle.logits(net, rows)[rows.valid], "logp": logp, "loss": np.float32(loss), "greedy": made}
    names = sorted(gradients)
    drawn = [sample(name, gradients[name]) for name in names]
    out["gradient_names"] = np.array(names)
    out["gradient_norms"] = np.array([np.linalg.norm(gradients[name].astype(np.float64)) for name in names])
    out["gradient_counts"] = np.array([len(at) for at, _ in drawn], np.int32)
    out["gradient_at"] = np.concatenate([at for at, _ in drawn])
    out["gradient_values"] = np.concatenate([values for _, values in drawn])
    return out


def variants(nets: dict, rows, tokens, mask) -> dict[str, np.ndarray]:
    arrays = {}
    for variant, net in nets.items():
        with oracle.router_gaps(net) as gaps:
            arrays |= {f"{variant}/{name}": value for name, value in results(net, rows, tokens, mask).items()}
        assert min(gaps, default=1) > GAP, f"a choice of experts is within {min(gaps)} of another; take another seed"
        print(variant, "logit std", arrays[f"{variant}/logits"].std(), "loss", arrays[f"{variant}/loss"], min(gaps, default=None))
    return arrays


def answers(nets: dict) -> dict[str, np.ndarray]:
    """Answers of `generate` to questions whose choices are clear for every net; ends of sequence that stop some of them."""
    seeds, arrays = np.arange(48), {}
    lead, images = {}, np.array([sum(isinstance(part, tuple) for part in parity.question(seed)) for seed in seeds])
    for net in nets.values():
        for seed in seeds:
            with oracle.router_gaps(net) as gaps:
                own = oracle.generate(net, parity.prompt_rows([seed]), steps=ANSWER_TOKENS, eos=None, banned=BANNED)[1].min()
            lead[seed] = min(lead.get(seed, np.inf), own if min(gaps, default=1) > GAP / 5 else 0)
    clear = [seed for seed in seeds if lead[seed] > LEAD]
    kinds = [seed for seed in clear if images[seed]][:WITH_IMAGES], [seed for seed in clear if not images[seed]][:WORDS_ALONE]
    assert [len(kind) for kind in kinds] == [WITH_IMAGES, WORDS_ALONE], "too few clear questions; take more seeds"
    seeds = np.array(sorted(kinds[0] + kinds[1]))
    print("images a prompt", np.bincount(images[seeds]))
    arrays["seeds"] = seeds
    rows = parity.prompt_rows(seeds.tolist())
    for family, net in nets.items():
        free, _ = oracle.generate(net, rows, steps=ANSWER_TOKENS, eos=None, banned=BANNED)
        share = np.array([(free == token).any(1).mean() if token not in BANNED else 0 for token in range(parity.VOCABULARY)])
        eos = int(np.abs(share - 0.4).argmin())
        tokens, least = oracle.generate(net, rows, steps=ANSWER_TOKENS, eos=eos, banned=BANNED)
        assert least.min() > LEAD
        arrays |= {f"{family}/eos": np.int32(eos), f"{family}/tokens": tokens, f"{family}/free": free}
        print(family, "eos", eos, "ended", (tokens == eos).any(1).sum(), "different tokens", len(np.unique(free)))
    return arrays


def save(net, folder: Path, keep=lambda name: True) -> None:
    """config.json and the tensors to keep, as transformers lays them out."""
    net.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    kept = {name: tensor for name, tensor in stored.items() if keep(name)}
    name = "model.safetensors" if len(kept) == len(stored) else "experts.safetensors"
    save_file(kept, folder / name, metadata={"format": "pt"})


def main() -> None:
    untied = oracle.model(oracle.config(oracle.GAPS, tied=False), SEED)
    moe = oracle.model(oracle.config(oracle.GAPS_MOE, tied=False), SEED)
    save(untied, HERE / "qwen3_vl")
    save(moe, HERE / "qwen3_vl_moe", lambda name: "language_model" in name and ".mlp." in name)
    rows = oracle.batch(PROMPTS, untied.config, length=LENGTH, patches=PATCHES, seed=SEED)
    tokens, mask = completions()
    arrays = {f"rows/{name}": field for name, field in rows._asdict().items()}
    arrays |= {"completions": tokens, "completion_mask": mask}
    dense = {
        "untied": untied,
        "tied": oracle.model(oracle.config(oracle.GAPS, tied=True), SEED),
        "quiet": oracle.quiet_tower(oracle.model(oracle.config(oracle.GAPS, tied=False), SEED)),
    }
    experts = {"moe": moe, "moe_tied": oracle.model(oracle.config(oracle.GAPS_MOE, tied=True), SEED)}
    np.savez_compressed(HERE / "qwen3_vl.npz", **arrays, **variants(dense, rows, tokens, mask))
    np.savez_compressed(HERE / "qwen3_vl_moe.npz", **variants(experts, rows, tokens, mask))
    np.savez_compressed(HERE / "generate.npz", **answers({"untied": untied, "moe": moe}))


if __name__ == "__main__":
    main()
