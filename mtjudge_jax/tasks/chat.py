"""A judge's question as the `content` of a chat message, for transformers and for the API of OpenAI, which vLLM serves.

The texts and pictures stand in the order in which the judge was trained to see them, `Task.ask(...).parts`: a picture is often
between two texts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mtjudge_jax.tasks.base import IMAGE, Task

_PLACES = ("first", "second", "third")
_URL = "https://example.com/"


class Example(NamedTuple):
    """A task with a question of the usual form: the parts of its prompt, and a name for each picture and text in it."""

    task: Task
    parts: list[str | None]
    pictures: list[str]
    instruction: str
    texts: list[str]  # the candidates, where the task judges texts
    in_context: int  # pictures that belong to the question and are not judged


def example_of(task: Task, instruction: str = "a dog", text: str = "It is a dog.") -> Example:
    """The usual question of a task, asked in its first wording."""
    question = task.sample_question(instruction, text)
    texts = [candidate.text for candidate in question.candidates]
    judged = len(question.images) - question.context_images
    names = [f"picture{number or ''}.jpg" for number in range(question.context_images)]
    names += ["picture.jpg"] if judged == 1 and not names else [f"{place}.jpg" for place in _PLACES[:judged]]
    asks = instruction in "".join(part for part in task.ask(question).parts if part is not IMAGE)
    return Example(task, task.ask(question).parts, names, instruction if asks else "", texts, question.context_images)


def chat_content(
    parts: Sequence[str | None], pictures: Sequence[str], *, escape: Callable[[str], str] = str, urls: bool = False
) -> list[dict[str, Any]]:
    """The `content` of the one user message that asks a question.

    parts: texts, and None in the place of each picture. pictures: files or URLs, in the order of these places. escape: of the
    judge's tokenizer, which keeps control tokens in a text from becoming special, as in training. urls: in the form of OpenAI's
    API instead of that of transformers. Raises ValueError if the numbers of places and pictures differ.
    """
    places = sum(part is IMAGE for part in parts)
    if places != len(pictures):
        raise ValueError(f"the question has {places} places for pictures, {len(pictures)} are given")
    left = iter(pictures)
    return [_picture(next(left), urls) if part is IMAGE else {"type": "text", "text": escape(part)} for part in parts]


def _picture(name: str, urls: bool) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": name}} if urls else {"type": "image", "image": name}


def openai_request(
    example: Example, *, model: str, max_tokens: int, escape: Callable[[str], str] = str, ends: Sequence[int] = (),
    size: dict[str, int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The body of `POST /v1/chat/completions` that asks an example. ends: stop_token_ids, where the served model lacks them.
    size: the limits of each picture, where they are not those of the served model's image processor.
    """
    content = chat_content(example.parts, [_URL + name for name in example.pictures], escape=escape, urls=True)
    more = ({"stop_token_ids": [*ends]} if ends else {}) | ({"mm_processor_kwargs": {"size": size}} if size else {})
    return {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": max_tokens} | more
