"""What is told about a training step: its sizes, the seconds of its phases, means over its updates, its line on the terminal."""

import time
from collections.abc import Callable

import numpy as np

from mtjudge_jax.config import Config


def step_text(cfg: Config) -> str:
    """The sizes of a step, in two lines."""
    size = f"of up to {cfg.data.prompt_tokens:,} tokens and {cfg.data.patches:,} patches"
    micro = f"{cfg.update.micro_prompts} at a time"
    sampled = f", {cfg.rollout.micro_prompts} at a time" if cfg.rollout.micro_prompts else ""
    if cfg.stage == "sft":
        return (
            f"a step: an update of {cfg.update.prompts} prompts {size}, {micro}, one answer of up to "
            f"{cfg.rollout.completion_tokens:,};\n        no rollout, no reference policy; an evaluation samples "
            f"{cfg.eval.samples} answers of {cfg.rollout.prompts} prompts{sampled}"
        )
    answers = f"{cfg.rollout.group_size} answers each of up to {cfg.rollout.completion_tokens:,} tokens"
    updates = cfg.rollout.prompts // cfg.update.prompts
    learned = f"{updates} update{'s' * (updates > 1)} of {cfg.update.prompts} prompts, {micro}"
    return f"a step: {cfg.rollout.prompts} prompts {size}{sampled}; {answers};\n        {learned}"


def step_line(cfg: Config, step: int, line: dict, seconds_left: float | None) -> str:
    """`step  12/300 reward 0.55 accuracy 0.50 format 1.00 kl 0.0012 .. 5120 tokens/s 3:20 left`."""
    shown = ("reward", "accuracy", "format", "loss", "kl", "entropy", "grad_norm", "zero_variance")
    numbers = " ".join(f"{name} {line[name]:.3f}" for name in shown if line.get(name) is not None)
    zeros = {name: means["zero_variance"] for name, means in line.get("tasks", {}).items()}
    if len(zeros) > 1:  # the task whose prompts most often teach nothing
        worst = max(zeros, key=zeros.get)
        numbers += f" ({worst} {zeros[worst]:.2f})"
    if line.get("wanted_met") is not None:
        numbers += f" {line['rounds']} round{'s' * (line['rounds'] > 1)}, {line['wanted_met']:.0%} of what is wanted"
    minutes, seconds = divmod(int(seconds_left or 0), 60)
    left = "" if seconds_left is None else f" {minutes}:{seconds:02d} left"
    width = len(str(cfg.steps))
    return f"step {step:{width}d}/{cfg.steps} {numbers} {line['tokens_per_s']:.0f} tokens/s{left}"


def summarise(metrics: list[dict], *, kl: bool) -> dict:
    """Means over the updates of a step that were applied, None where none was; `skipped` counts the others."""
    applied = [m for m in metrics if m["finite"]]
    names = [name for name in metrics[0] if name != "finite"]
    out = {name: float(np.mean([m[name] for m in applied])) if applied else None for name in names}
    return out | {"skipped": len(metrics) - len(applied)} | ({} if kl else {"kl": None})


class Clock:
    """Seconds by phase, of all its times together; a phase ends when its results are on the host or waited for. `reached` is told
    each end."""

    def __init__(self, reached: Callable[[str], None]):
        self.seconds: dict[str, float] = {}
        self._reached, self._last = reached, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
        self._reached(name)
