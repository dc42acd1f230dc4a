"""The client of `mtjudge serve`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtjudge_jax.client.pictures import encoded, pictures_of
from mtjudge_jax.client.requests import Requests, chunks
from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.tasks.asking import one_text_each
from mtjudge_jax.tasks.comparison import WinRates
from mtjudge_jax.tasks.verdicts import Verdict

_FIELDS = ("image", "images", "instruction", "texts")  # of a question that is a dict


class Client:
    """A judge that `mtjudge serve` serves; its methods are those of `mtjudge_jax.judge.Judge`. Threads may share one."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        at_once: int = 8,
        together: int = 16,
    ):
        """timeout: seconds for one request. retries: further tries where the server is busy or not there. at_once: requests side
        by side. together: pictures of a score in one request.
        """
        self._requests = Requests(url, token=token, timeout=timeout, retries=retries, at_once=at_once)
        self._together = together

    def health(self) -> dict:
        """The server's tasks, and how many questions wait."""
        return self._requests.get("/health")

    def score(
        self, images: Any, *, task: str, instructions: str | Sequence[str] = "", samples: int = 1, seed: int = 0
    ) -> list[float]:
        """One number for each picture: the probability of the task's second label, or the expected grade; NaN where no answer
        could be read. Raises UserError for a picture or text that the judge cannot be asked about.
        """
        pictures = pictures_of(images)
        texts = one_text_each(instructions, len(pictures))

        def part(images: Sequence[Any], texts: Sequence[str]) -> list[float]:
            body = {"task": task, "images": [encoded(one) for one in images], "instructions": list(texts)}
            found = self._requests.post("/v1/score", body | {"samples": samples, "seed": seed})["scores"]
            return [math.nan if one is None else one for one in found]

        parts = self._requests.each(part, chunks(pictures, self._together), chunks(texts, self._together))
        return [score for one in parts for score in one]

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
        """The win rates of the candidates, as `Judge.compare` gives them, in lists."""
        images = [encoded(one) for one in pictures_of(candidates)]
        body = {"task": task, "images": images, "instruction": instruction, "by": by, "anchors": anchors}
        found = self._requests.post("/v1/compare", body | {"samples": samples, "seed": seed})
        matrix = [[math.nan if one is None else one for one in row] for row in found["matrix"]]
        return WinRates(found["win_rates"], matrix, found["unread"])

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
        """The verdict about one question: a picture, or those of a pair or a list."""
        body = {"task": task, "images": [encoded(one) for one in pictures_of(images)], "instruction": instruction}
        body |= {"texts": list(texts), "samples": samples, "both_orders": both_orders, "seed": seed}
        return Verdict(**self._requests.post("/v1/judge", body))

    def judge_all(
        self,
        questions: Iterable[Any],
        *,
        task: str,
        instruction: str | Sequence[str] = "",
        samples: int = 1,
        both_orders: bool = False,
        seed: int = 0,
    ) -> list[Verdict]:
        """The verdicts about many questions; several requests at a time.

        A question is a picture, a list of those of a pair or a list, a tuple (list of pictures, instruction), or a dict with
        `image` or `images`, `instruction` and `texts`. instruction: of the questions that bring none.

        A question that the server refuses gets a verdict None with the reason in `error`; the others are judged.
        """
        items = list(questions)
        texts = one_text_each(instruction, len(items), "questions")

        def one(question: Any, text: str) -> Verdict:
            how = {"task": task, "samples": samples, "both_orders": both_orders, "seed": seed}
            try:
                return self.judge(**({"instruction": text} | _question(question)), **how)
            except UserError as error:
                return Verdict(None, "", None, "", str(error), None, "invalid")

        return self._requests.each(one, items, texts)

    def close(self) -> None:
        self._requests.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _question(one: Any) -> dict:
    """The arguments of `Client.judge` that a question of `judge_all` names. Raises UserError for a field that is none."""
    if isinstance(one, Mapping):
        if strays := [str(name) for name in one if name not in _FIELDS]:
            raise UserError(unknown("field", strays[0], _FIELDS))
        if ("image" in one) == ("images" in one):
            raise UserError("a question has image or images: give one of them")
        rest = {name: one[name] for name in ("instruction", "texts") if name in one}
        return {"images": one.get("image", one.get("images"))} | rest
    if isinstance(one, (list, tuple)) and len(one) == 2 and isinstance(one[0], (list, tuple)) and isinstance(one[1], str):
        return {"images": one[0], "instruction": one[1]}
    return {"images": one}
