"""The optimizer as one optax chain: clip by global norm, then AdamW or Muon, under a schedule."""

import jax
import optax
from optax import contrib

from mtjudge_jax.config import OptimConfig
from mtjudge_jax.sharding import path_name
from mtjudge_jax.types import Params


def schedule(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by update: linear warm-up, then constant, or cosine down to final_lr_ratio * lr at `steps`."""
    after = max(1, steps - cfg.warmup_steps)
    if cfg.schedule == "constant":
        body = optax.constant_schedule(cfg.lr)
    else:
        body = optax.cosine_decay_schedule(cfg.lr, after, cfg.final_lr_ratio)
    if not cfg.warmup_steps:
        return body
    warmup = optax.linear_schedule(cfg.lr / cfg.warmup_steps, cfg.lr, cfg.warmup_steps)
    return optax.join_schedules([warmup, body], [cfg.warmup_steps])


# Which axes of a weight are a matrix's input and output. All other axes (layers, taps, the three of qkv) stack matrices.
MATRICES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "ldnh": ((1,), (2, 3)),
    "ldkh": ((1,), (2, 3)),
    "lnhd": ((1, 2), (3,)),
    "ldf": ((1,), (2,)),
    "lfd": ((1,), (2,)),
    "led2f": ((2,), (4,)),
    "lefd": ((2,), (3,)),
    "lde": ((1,), (2,)),
    "ldr": ((1,), (2,)),
    "lrnh": ((1,), (2, 3)),
    "lrkh": ((1,), (2, 3)),
    "lnhr": ((1, 2), (3,)),
    "lrd": ((1,), (2,)),
    "lrf": ((1,), (2,)),
    "lfr": ((1,), (2,)),
    "lc3nh": ((1,), (3, 4)),
    "lnhc": ((1, 2), (3,)),
    "lcf": ((1,), (2,)),
    "lfc": ((1,), (2,)),
    "mm": ((0,), (1,)),
    "mo": ((0,), (1,)),
    "tmm": ((1,), (2,)),
    "tmo": ((1,), (2,)),
    "pc": ((0,), (1,)),
}


def muon_dimensions(params: Params):
    """Muon's view of each weight by the axes its name ends in; None (embeddings, norms, biases, positions) goes to AdamW."""

    def one(path, _):
        axes = path_name(path).rsplit("_", 1)[-1]
        return contrib.MuonDimensionNumbers(*MATRICES[axes]) if axes in MATRICES else None

    return jax.tree_util.tree_map_with_path(one, params)


def make_optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run. `steps`: number of updates in the whole run, which the schedule needs."""
    lr = schedule(cfg, steps)
    if cfg.name == "adamw":
        inner = optax.adamw(lr, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay, mask=decays)
    else:
        inner = contrib.muon(
            lr,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            eps=cfg.eps,
            weight_decay=cfg.weight_decay,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=muon_dimensions,
        )
    return optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), inner)


def decays(params: Params):
    """Weight decay is for matrices and embeddings, not for norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(part in path_name(path) for part in ("norm", "bias")), params)
