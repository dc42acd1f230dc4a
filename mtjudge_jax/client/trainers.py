"""The judge as the reward of trainers that people have. A client is `Client` or `OpenAIClient`; a judge in the same process works
too.

Each function returns a callable with the signature that its trainer calls. `unread` is paid where no answer could be read.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mtjudge_jax.errors import UserError


class _Scorer(Protocol):
    """What is needed of a client."""

    def score(self, images: Any, *, task: str, instructions: Any, samples: int, seed: int) -> Sequence[float]: ...


def flow_grpo(client: _Scorer, task: str, *, samples: int = 1, seed: int = 0, unread: float = 0.0) -> Callable:
    """`fn(images, prompts, metadata) -> (scores, {})`, the reward of flow_grpo and of TRL's trainers for image models.

    images: a float tensor [n, 3, h, w] from 0 to 1, a uint8 array [n, h, w, 3], or a list of pictures. prompts: what each was to
    show.
    """

    def reward(images: Any, prompts: Sequence[str], metadata: Any = None) -> tuple[list[float], dict]:
        found = client.score(eight_bit(images), task=task, instructions=list(prompts), samples=samples, seed=seed)
        return [unread if math.isnan(score) else float(score) for score in found], {}

    return reward


def verl_omni(client: _Scorer, task: str, *, samples: int = 1, seed: int = 0, unread: float = 0.0) -> Callable:
    """`async compute_score(solution_image, ground_truth, **kwargs) -> {"score": float}`, as verl-omni awaits it.

    solution_image: a uint8 tensor [3, h, w], or of one picture [1, 3, h, w]. ground_truth: the prompt.
    """

    async def compute_score(solution_image: Any, ground_truth: str, **kwargs: Any) -> dict[str, float]:
        images = eight_bit(solution_image)
        images = images if getattr(images, "ndim", 0) == 4 else [images]
        asked = {"task": task, "instructions": [ground_truth], "samples": samples, "seed": seed}
        (score,) = await asyncio.to_thread(client.score, images[:1], **asked)
        return {"score": unread if math.isnan(score) else float(score)}

    return compute_score


def trl_texts(client: Any, task: str, *, images: str = "image", instruction: str | None = None, **how: Any) -> Callable:
    """`fn(prompts, completions, **columns) -> list[float | None]`, TRL's GRPO reward for texts about pictures.

    task: one that judges texts. images: the column with each row's picture. instruction: the column with what was asked, else
    the last message of the prompt. None where no answer could be read, which TRL leaves out.
    """

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        if images not in columns:
            raise UserError(f"no column {images!r} among {', '.join(columns)}: name that of the pictures, images='image'")
        asked = columns[instruction] if instruction else [_said(prompt) for prompt in prompts]
        verdicts = [
            client.judge(picture, task=task, instruction=text, texts=[_said(answer)], **how)
            for picture, text, answer in zip(columns[images], asked, completions, strict=True)
        ]
        return [verdict.score_expected for verdict in verdicts]

    return reward


def _said(text: Any) -> str:
    """A text, or the last message of a conversation."""
    if isinstance(text, str):
        return text
    content = text[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def eight_bit(images: Any) -> Any:
    """A float tensor or array from 0 to 1 as uint8 on the CPU; everything else as it is."""
    if hasattr(images, "detach"):
        images = images.detach().cpu()
        images = images.float().numpy() if images.dtype.is_floating_point else images.numpy()
    kind = getattr(getattr(images, "dtype", None), "kind", "")
    return (images * 255).round().clip(0, 255).astype("uint8") if kind == "f" else images
