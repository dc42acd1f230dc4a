"""The model card of the demo base: how it was made, in figures."""

from pathlib import Path

_HEAD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# The demo base of mtjudge_jax

A tiny Qwen3-VL made from nothing by `python -m mtjudge_jax.demo.pretrain.make_base` (seed {seed}, {steps} updates
of {batch} samples, Muon at {lr}, {minutes:.0f} minutes on a CPU with two cores). It was taught to describe the demo's training
pictures and to answer in the form `<think>..</think><answer>..</answer>`, about one picture or two. Every verdict in that
training was a coin flip: it cannot judge, and whatever judging a model trained from it shows was learned later. It has no
other use.

Share of reasonings on validation photographs that say exactly what is in the pictures, while it was made:

"""


def write_card(folder: Path, history: list[dict], *, seed: int, steps: int, batch: int, lr: float) -> None:
    """Writes README.md. `history` holds a dict a look at the validation pictures: step, loss, minutes, seen {task: share}."""
    names = list(history[-1]["seen"])
    lines = ["| step | minutes | loss | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for row in history:
        shares = " | ".join(f"{row['seen'][name]:.2f}" for name in names)
        lines.append(f"| {row['step']} | {row['minutes']:.1f} | {row['loss']:.3f} | {shares} |")
    head = _HEAD.format(seed=seed, steps=steps, batch=batch, lr=lr, minutes=history[-1]["minutes"])
    (folder / "README.md").write_text(head + "\n".join(lines) + "\n")
