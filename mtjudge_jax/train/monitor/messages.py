"""The lines that a run prints: what it begins with and the sizes of a step."""

import sys

import jax
from tqdm import tqdm

from mtjudge_jax.config import Config, offline
from mtjudge_jax.flags import recipe_text
from mtjudge_jax.rl.rooms import Rooms
from mtjudge_jax.types import Params


def say(text: str) -> None:
    """Prints one line on process 0, above the progress bar if there is one."""
    if jax.process_index() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def step_text(cfg: Config) -> str:
    """The sizes of a step, in two lines."""
    size = f"of up to {cfg.data.prompt_tokens:,} tokens and {cfg.data.patches:,} patches"
    micro = f"{cfg.update.micro_prompts} at a time"
    sampled = f", {cfg.rollout.micro_prompts} at a time" if cfg.rollout.micro_prompts else ""
    if offline(cfg):
        answers, policy = {"sft": ("one answer", "no reference policy"), "dpo": ("two answers", "a reference policy")}[cfg.stage]
        return (
            f"a step: an update of {cfg.update.prompts} prompts {size}, {micro}, {answers} of up to "
            f"{cfg.rollout.completion_tokens:,};\n        no rollout, {policy}; an evaluation samples "
            f"{cfg.eval.samples} answers of {cfg.rollout.prompts} prompts{sampled}"
        )
    answers = f"{cfg.rollout.group_size} answers each of up to {cfg.rollout.completion_tokens:,} tokens"
    updates = cfg.rollout.prompts // cfg.update.prompts
    learned = f"{updates} update{'s' * (updates > 1)} of {cfg.update.prompts} prompts, {micro}"
    return f"a step: {cfg.rollout.prompts} prompts {size}{sampled}; {answers};\n        {learned}"


def room_lines(rooms: Rooms | None) -> list[str]:
    """The rooms of the prompts; none where all have the room of the config."""
    if rooms is None:
        return []
    sizes = ", ".join(f"{prompt:,} tokens and {patches:,} patches" for prompt, patches in rooms.shapes)
    lines = [f"prompts of one size learn together, {rooms.size} a device at a time, in the room of {sizes}"]
    if rooms.shared:
        (prompt, patches), share = rooms.shared[0].shape, rooms.shared[0].prompts
        lines.append(f"or, where that computes less, {share:g} share a stream of {prompt:,} tokens and {patches:,} patches")
    return lines


def opening_lines(cfg: Config, params: Params) -> list[str]:
    """The model, the devices, the sizes of a step. params: the whole model, on its devices."""
    leaves = jax.tree.leaves(params)
    count, devices = sum(leaf.size for leaf in leaves), jax.devices()
    size = f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.2f} million"
    return [
        f"{size} parameters on {len(devices)} {devices[0].device_kind} device{'s' * (len(devices) > 1)}",
        *filter(None, [recipe_text(cfg)]),
        *(line.strip() for line in step_text(cfg).splitlines()),
        "the first step and the first validation take longer because they are compiled",
    ]
