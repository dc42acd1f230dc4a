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
of {batch} samples, Muon at {lr}, {minutes:.0f} minutes on a CPU with two cores). What it was taught:

- to describe the demo's training pictures;
- true answers to neutral questions, such as "Which picture looks dark?" or "Is it right that this picture has a dog?", about one
  picture, two or four, and grades from 1 to 5. So it knows what "first", "second", a grade and an order mean;
- the form of a judgement, `<think>..</think><answer>..</answer>`: the facts, after each a "yes" or "no", and the answer that
  follows from these words. About the six judged criteria the words came from coins, in every form. It cannot judge: which facts
  are good is learned later, by whoever trains from it.

It has no other use.

Share of reasonings about judged questions on validation photographs that state exactly the facts, while it was made:

"""


def write_card(folder: Path, history: list[dict], *, seed: int, steps: int, batch: int, lr: float) -> None:
    """Writes README.md. `history` holds a dict a look at the validation pictures: step, loss, minutes, seen
    {task: share} and neutral {question: accuracy}."""
    names = list(history[-1]["seen"])
    lines = ["| step | minutes | loss | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for row in history:
        shares = " | ".join(f"{row['seen'][name]:.2f}" for name in names)
        lines.append(f"| {row['step']} | {row['minutes']:.1f} | {row['loss']:.3f} | {shares} |")
    head = _HEAD.format(seed=seed, steps=steps, batch=batch, lr=lr, minutes=history[-1]["minutes"])
    lines += ["", "Accuracy of its answers to neutral questions on the same photographs, pairs in both orders, at the end:", ""]
    lines += ["| question | accuracy |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {share:.2f} |" for name, share in history[-1]["neutral"].items()]
    (folder / "README.md").write_text(head + "\n".join(lines) + "\n")
