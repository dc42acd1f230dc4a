"""A judge behind OpenAI's chat API, as vLLM serves an exported one: the same wordings, orders and parser."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtjudge_jax.client.logprobs import exact_shares, first_token_shares
from mtjudge_jax.client.pictures import data_url, pictures_of
from mtjudge_jax.client.requests import Requests
from mtjudge_jax.errors import UserError
from mtjudge_jax.records import JudgeExample, swapped
from mtjudge_jax.tasks import Task, get_task, tasks_with
from mtjudge_jax.tasks.answer import truth_of
from mtjudge_jax.tasks.asking import example_about, one_text_each
from mtjudge_jax.tasks.chat import chat_content
from mtjudge_jax.tasks.comparison import WinRates, compared_by, from_pairs, from_scores, opponents
from mtjudge_jax.tasks.pictures import most_pictures, size_of_each
from mtjudge_jax.tasks.verdicts import Reply, Verdict, read_reply, turned, verdict_of

_TOP = 20  # likeliest tokens with their log-probabilities: the most that OpenAI and vLLM give
_CONTROL = re.compile(r"<\|(?=[\w-]+\|>)")  # where a control token of Qwen begins


class OpenAIClient:
    """A judge at a URL with OpenAI's API; its methods are those of `Client`. Threads may share one.

    Label probabilities are read from the log-probabilities of the likeliest tokens where the answer has its verdict. Two labels
    that begin with the same token cannot be told apart there and get none; `exact=True` asks for each label's own, which takes a
    request a label and vLLM's `prompt_logprobs`, and agrees with `Judge`.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        folder: str | Path | None = None,
        token: str | None = None,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        exact: bool = False,
        opening: str = "",
        timeout: float = 300.0,
        retries: int = 4,
        at_once: int = 16,
    ):
        """url: ends in /v1, e.g. http://localhost:8000/v1. model: its name there. folder: the exported judge, whose judge.json
        has its own tasks and the length of its answers; without it the package's tasks and 1,024 tokens. temperature: of
        several samples; a single one is the likeliest answer. opening: what the chat template begins every answer with, as the
        model card says.
        """
        found = _judge_file(folder)
        self._tasks = tasks_with(found.get("custom_tasks", ()), templates="first")
        self._pictures = _Pictures(found, self._tasks)
        self._model, self._exact, self._opening, self._temperature = model, exact, opening, temperature
        self._max_tokens = max_tokens or found.get("completion_tokens", 1024)
        self._requests = Requests(url, token=token, timeout=timeout, retries=retries, at_once=at_once)

    def score(
        self, images: Any, *, task: str, instructions: str | Sequence[str] = "", samples: int = 1, seed: int = 0
    ) -> list[float]:
        """One number for each picture, as `Client.score` gives it; NaN without an answer that can be read."""
        pictures, found = pictures_of(images), self._task(task)
        texts = one_text_each(instructions, len(pictures))
        if not found.kind.startswith("pointwise"):
            raise UserError(f"task {task!r} asks {found.kind} questions, a score is of one picture")
        asked = enumerate(zip(pictures, texts, strict=True))
        examples = [example_about([image], text, task=found, number=i) for i, (image, text) in asked]
        verdicts = [verdict_of(replies, found) for replies in self._replies(examples, found, samples, seed)]
        return [float("nan") if one.score_expected is None else one.score_expected for one in verdicts]

    def compare(
        self,
        candidates: Any,
        *,
        task: str,
        instruction: str = "",
        by: str | None = None,
        anchors: int | None = None,
        samples: int = 1,
        seed: int = 0,
    ) -> WinRates:
        """The win rates of the candidates, as `Client.compare` gives them."""
        pictures, asked = pictures_of(candidates), compared_by(self._task(task), by, self._task)
        in_pairs = asked.kind == "pairwise"
        pairs = opponents(len(pictures), anchors if in_pairs else None)
        shown = [[pictures[i], pictures[j]] for i, j in pairs] if in_pairs else [[image] for image in pictures]
        examples = [example_about(images, instruction, task=asked, number=i) for i, images in enumerate(shown)]
        if not in_pairs:
            return from_scores([verdict_of(one, asked).probabilities for one in self._replies(examples, asked, samples, seed)])
        replies = self._in_both_orders(examples, asked, samples, seed)
        return from_pairs(len(pictures), pairs, [[one.shares for one in of_pair] for of_pair in replies], asked)

    def judge(
        self,
        images: Any,
        *,
        task: str,
        instruction: str = "",
        texts: Sequence[str] = (),
        samples: int = 1,
        both_orders: bool = False,
        seed: int = 0,
    ) -> Verdict:
        """The verdict about one question, as `Client.judge` gives it."""
        found = self._task(task)
        example = example_about(pictures_of(images), instruction, texts, task=found, number=0)
        ask = self._in_both_orders if both_orders else self._replies
        return verdict_of(ask([example], found, samples, seed)[0], found)

    def close(self) -> None:
        self._requests.close()

    def _task(self, name: str) -> Task:
        return get_task(name, self._tasks)

    def _in_both_orders(self, examples: Sequence[JudgeExample], task: Task, samples: int, seed: int) -> list[list[Reply]]:
        if task.kind != "pairwise":
            raise UserError(f"both_orders is for pairs, task {task.name!r} asks {task.kind} questions: leave it out")
        found = self._replies([*examples, *map(swapped, examples)], task, samples, seed)
        orders = zip(found[: len(examples)], found[len(examples) :], strict=True)
        return [[*shown, *(turned(one, task) for one in other)] for shown, other in orders]

    def _replies(self, examples: Sequence[JudgeExample], task: Task, samples: int, seed: int) -> list[list[Reply]]:
        """The answers to each question, several questions at a time."""
        if samples < 1:
            raise UserError(f"samples = {samples} must be at least 1")

        def one(example: JudgeExample) -> list[Reply]:
            return self._ask(example, task, samples, seed)

        return self._requests.each(one, examples)

    def _ask(self, example: JudgeExample, task: Task, samples: int, seed: int) -> list[Reply]:
        truth = truth_of(task, example)
        urls = [data_url(image) for image in example.images]
        content = chat_content(task.ask(example.question).parts, urls, escape=_escape, urls=True)
        message = {"role": "user", "content": content}
        body = {"model": self._model, "messages": [message], "max_tokens": self._max_tokens, "n": samples, "seed": seed}
        body |= {"temperature": 0.0 if samples == 1 else self._temperature, "logprobs": True, "top_logprobs": _TOP}
        size = self._pictures.size(task, len(urls))
        shown = {"mm_processor_kwargs": {"size": size}} if size else {}
        words = dict(zip(task.labels, truth.words, strict=False))
        replies = []
        for choice in self._requests.post("/chat/completions", body | shown)["choices"]:
            said = choice["message"]
            content = said.get("content") or ""
            reasoning = said.get("reasoning_content") or said.get("reasoning")  # of a server that takes it apart
            text = f"<think>{reasoning}</think>{content}" if reasoning else self._opening + content
            if task.kind == "listwise":
                shares = None
            elif self._exact:
                shares = exact_shares(text, words, self._requests, self._model, message, shown)
            else:
                shares = first_token_shares(choice.get("logprobs"), content, words)
            replies.append(read_reply(text, task, truth, shares))
        return replies


class _Pictures:
    """How large the pictures of a question are in training, from a judge.json."""

    def __init__(self, found: dict, tasks: Mapping[str, Task]):
        low, high = found.get("min_pixels", 0), found.get("max_pixels", 0)
        self._whole = {"shortest_edge": low, "longest_edge": high} if high else None
        self._patches = found.get("patches", 0)
        self._most = most_pictures([tasks[name] for name in found.get("templates", ()) if name in tasks])

    def size(self, task: Task, count: int) -> dict[str, int] | None:
        """The limits of each of `count` pictures, None where they are those of the exported image processor."""
        if self._whole is None or not count:
            return None
        size = size_of_each(task, count, self._most, self._whole, patches=self._patches)
        return None if size == self._whole else size


def _escape(text: str) -> str:
    """Keeps control tokens in a text plain text, as the judge's tokenizer does: `<|image_pad|>` becomes `< |image_pad|>`."""
    return _CONTROL.sub("< |", text)


def _judge_file(folder: str | Path | None) -> dict:
    if folder is None:
        return {}
    path = Path(folder) / "judge.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the folder of the exported judge, or no folder") from None
