"""What is told about a training step: the seconds of its phases, the means over its updates, its line on the terminal."""

import time

import numpy as np

from mtjudge_jax.config import Config


class NonFiniteUpdate(RuntimeError):
    """The loss or a gradient was not finite; the state is as it was before that update."""


def step_line(cfg: Config, step: int, line: dict, seconds_left: float | None) -> str:
    """`step  12/300 reward 0.55 accuracy 0.50 format 1.00 kl 0.0012 .. 5120 tokens/s 3:20 left`."""
    shown = ("reward", "accuracy", "format", "loss", "kl", "entropy", "grad_norm", "zero_variance")
    numbers = " ".join(f"{name} {line[name]:.3f}" for name in shown if line.get(name) is not None)
    minutes, seconds = divmod(int(seconds_left or 0), 60)
    left = "" if seconds_left is None else f" {minutes}:{seconds:02d} left"
    width = len(str(cfg.steps))
    return f"step {step:{width}d}/{cfg.steps} {numbers} {line['tokens_per_s']:.0f} tokens/s{left}"


def summarise(metrics: list[dict], step: int, *, kl: bool) -> dict:
    """Means over the updates of a step. Raises NonFiniteUpdate."""
    if not all(m["finite"] for m in metrics):
        raise NonFiniteUpdate(
            f"step {step + 1}: loss {[float(m['loss']) for m in metrics]} or gradient norm "
            f"{[float(m['grad_norm']) for m in metrics]} is not finite; that update changed nothing. Lower optim.lr or "
            "loss.kl_coef; the last checkpoint is good"
        )
    out = {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0] if name != "finite"}
    return out if kl else out | {"kl": None}


class Clock:
    """Seconds by phase; a phase ends when its results are on the host or waited for."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
