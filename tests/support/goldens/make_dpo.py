"""Loss, rewards and gradient of TRL's own DPOTrainer on the golden model: `python make_dpo.py`, with torch and trl installed.

Writes dpo.npz beside this file. The two completions of each prompt of qwen3_vl.npz are a chosen and a rejected answer, each with
a prompt and pictures of its own, as TRL runs them. The policy is the golden model `untied`, the reference `quiet`. The trainer's
`_compute_loss` and its head run as they are.
"""

import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import make_goldens  # noqa: E402
import oracle  # noqa: E402

BETAS = (0.1, 0.5)


def trainer(net, reference, beta: float) -> MagicMock:
    """As much of a trainer as `_compute_loss` reads."""
    own = MagicMock()
    own.model, own.ref_model, own.args = net, reference, SimpleNamespace(gradient_checkpointing_kwargs=None)
    settings = {"beta": beta, "loss_types": ["sigmoid"], "loss_weights": [1.0], "f_divergence_type": "reverse_kl"}
    settings |= {"ld_alpha": None, "precompute_ref_logps": False, "aux_loss_enabled": False, "use_weighting": False}
    settings |= {"_metrics": {"train": defaultdict(list), "eval": defaultdict(list)}, "_total_train_tokens": 0, "_tp_size": 1}
    for name, value in settings.items():
        setattr(own, name, value)
    own.accelerator.gather_for_metrics = own.accelerator.gather = lambda x: x
    return own


def inputs(rows, tokens: np.ndarray, mask: np.ndarray) -> dict[str, torch.Tensor]:
    """TRL's batch: all prompts with their chosen answer, then all with their rejected one."""
    order = lambda x: np.moveaxis(x, 1, 0).reshape(-1, x.shape[-1])  # noqa: E731
    twice = type(rows)(*(np.concatenate([field, field]) for field in rows))
    flat = oracle.inputs(twice, order(tokens), order(mask))
    before = np.zeros_like(twice.valid)
    flat["completion_mask"] = torch.tensor(np.concatenate([before, order(mask)], 1), dtype=torch.long)
    return flat


def main() -> None:
    net = oracle.model(oracle.config(oracle.GAPS, tied=False), make_goldens.SEED)
    reference = oracle.quiet_tower(oracle.model(oracle.config(oracle.GAPS, tied=False), make_goldens.SEED))
    rows = oracle.batch(
        make_goldens.PROMPTS, net.config, length=make_goldens.LENGTH, patches=make_goldens.PATCHES, seed=make_goldens.SEED
    )
    tokens, mask = make_goldens.completions()
    for one in (net, reference):
        add_fused_lm_head(one, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    net.train()  # the golden model has no dropout
    out, places = {}, {}
    for beta in BETAS:
        net.zero_grad()
        own = trainer(net, reference, beta)
        loss = DPOTrainer._compute_loss(own, net, inputs(rows, tokens, mask), return_outputs=False)
        loss.backward()
        logged = {name: values[0] for name, values in own._metrics["train"].items()}
        names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
        out |= {f"{beta} loss": np.float64(loss.item()), f"{beta} metrics": np.array([logged[name] for name in names])}
        gradients = {name: p.grad.numpy().copy() for name, p in sorted(net.named_parameters())}
        if not places:
            places = {name: make_goldens.sample(name, gradient)[0] for name, gradient in gradients.items()}
        out[f"{beta} gradient"] = np.concatenate([gradients[name].reshape(-1)[at] for name, at in places.items()])
        out[f"{beta} norm"] = np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients.values()))
        print(beta, loss.item(), logged, out[f"{beta} norm"])
    out |= {"names": np.array(list(places)), "counts": np.array([len(at) for at in places.values()], np.int32)}
    np.savez_compressed(HERE / "dpo.npz", at=np.concatenate(list(places.values())), **out)


if __name__ == "__main__":
    main()
