"""Losses and gradients of TRL's own GRPOTrainer on random arrays: `python make_objectives.py`, with torch and trl installed.

Writes objectives.npz beside this file: the inputs [Q, G, C], and for each name the loss and its gradient by log-probability.
The trainer's `_compute_loss` runs as it is, with the model's log-probabilities put in its place.
"""

import inspect
import textwrap
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

Q, G, C = 3, 4, 6
CLIPS = {"epsilon_low": 0.2, "epsilon_high": 0.3}
# name: (loss_type, importance_sampling_level, further settings)
NAMES = {
    "clip token_mean": ("bnpo", "token", {}),
    "clip sequence_mean": ("grpo", "token", {}),
    "clip constant": ("dr_grpo", "token", {}),
    "gspo sequence_mean": ("grpo", "sequence", {}),
    "cispo token_mean": ("cispo", "token", {"epsilon_high": 1.5}),
    "sapo sequence_mean": ("sapo", "token", {}),
    "clip token_mean entropy": ("bnpo", "token", {"entropy_coef": 0.02}),
    "clip token_mean sampler": ("bnpo", "token", {"sampler": True}),
}


def trainer(kind: str, level: str, changed: dict, logp: torch.Tensor, entropy: torch.Tensor) -> MagicMock:
    """As much of a trainer as `_compute_loss` reads."""
    own = MagicMock()
    own.args = SimpleNamespace(
        delta=3.0, use_bias_correction_kl=False, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, steps_per_generation=1
    )
    settings = {"beta": 0.1, "loss_type": kind, "importance_sampling_level": level, "max_completion_length": C, **CLIPS}
    settings |= {"top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "aux_loss_enabled": False, "entropy_coef": 0.0}
    settings |= {"use_adaptive_entropy": False, "current_gradient_accumulation_steps": 1, "use_vllm": False} | changed
    settings["vllm_importance_sampling_correction"] = settings["use_vllm"] = changed.get("sampler", False)
    settings["_entropy_bonus_enabled"] = settings["entropy_coef"] != 0
    for name, value in settings.items():
        setattr(own, name, value)
    own.model.training = True
    own._get_per_token_logps_and_entropies = lambda *_, **__: (logp, entropy, None)
    own.accelerator.num_processes = 1
    own.accelerator.reduce = lambda x, **_: x
    own.accelerator.gather = lambda x: x
    return own


def gdpo_advantages(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Advantages [Q, G] of parts [Q, G, K]: TRL's own lines for `normalize_then_sum`, taken from its source and run."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    branch = source[source.index('elif self.multi_objective_aggregation == "normalize_then_sum":') :]
    lines = textwrap.dedent(branch[branch.index("\n") + 1 : branch.index("else:\n            raise ValueError")]).strip()
    count = parts.shape[0] * parts.shape[1]
    names = {
        "rewards_per_func": torch.tensor(parts.reshape(count, -1)), "num_generations": parts.shape[1], "torch": torch,
        "nanstd": nanstd, "device": "cpu", "unscorable_mask": torch.zeros(count, dtype=torch.bool),
        "self": SimpleNamespace(reward_funcs=[None] * parts.shape[2], reward_weights=torch.tensor(weights)),
    }  # fmt: skip
    exec(lines, names)
    return names["advantages"].numpy().reshape(parts.shape[:2])


def main() -> None:
    rng = np.random.default_rng(0)
    logp = -rng.uniform(0.05, 3.0, (Q, G, C)).astype(np.float32)
    old = logp - rng.normal(0, 0.3, logp.shape).astype(np.float32)
    ref = logp + rng.normal(0, 0.4, logp.shape).astype(np.float32)
    sampler = old + rng.normal(0, 0.5, logp.shape).astype(np.float32)
    entropy = rng.uniform(0.1, 2.0, logp.shape).astype(np.float32)
    lengths = rng.integers(1, C + 1, (Q, G))
    mask = np.arange(C) < lengths[..., None]
    advantages = rng.normal(size=(Q, G)).astype(np.float32)
    out = {"logp": logp, "old": old, "ref": ref, "sampler": sampler, "entropy": entropy, "mask": mask, "advantages": advantages}
    flat = lambda x: torch.tensor(x.reshape(Q * G, *x.shape[2:]))  # noqa: E731
    for name, (kind, level, changed) in NAMES.items():
        given = flat(logp).requires_grad_()
        own = trainer(kind, level, changed, given, flat(entropy))
        ids = torch.zeros(Q * G, C, dtype=torch.long)
        inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids}
        inputs["completion_mask"] = flat(mask).float()
        inputs |= {"advantages": flat(advantages), "old_per_token_logps": flat(old), "ref_per_token_logps": flat(ref)}
        inputs["num_items_in_batch"] = flat(mask).sum().float()
        inputs["importance_sampling_ratio"] = torch.exp(flat(old) - flat(sampler)).clamp(max=2.0)
        loss = GRPOTrainer._compute_loss(own, None, inputs)
        loss.backward()
        out |= {f"{name} loss": np.float32(loss.item()), f"{name} gradient": given.grad.numpy().reshape(Q, G, C)}
    parts = rng.normal(0.5, 0.3, (Q, G, 2)).astype(np.float32)
    weights = np.array([0.9, 0.25], np.float32)
    out |= {"gdpo parts": parts, "gdpo weights": weights, "gdpo advantages": gdpo_advantages(parts, weights)}
    np.savez(Path(__file__).with_name("objectives.npz"), **out)


if __name__ == "__main__":
    main()
