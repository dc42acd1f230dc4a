"""Rewards of a user's own, as the config names them."""

import os
import threading


def short(facts: dict, text: str, parsed) -> float:
    """Half a point for an answer of less than 60 characters, a tenth more where the instruction is about a cup."""
    return 0.5 * (len(text) < 60) + 0.1 * ("cup" in facts["instruction"])


def varied(facts: dict, text: str, parsed) -> float:
    """A number that differs from text to text, for a model whose answers earn nothing."""
    return sum(text.encode()) % 8 / 8


def fails(facts: dict, text: str, parsed) -> float:
    raise KeyError("no such fact")


def nothing(facts: dict, text: str, parsed) -> float:
    return float("nan")


def remote(facts: list[dict], texts: list[str], parsed: list, images: list) -> list[float | None]:
    """As a service that is down at each first call, and not asked about safety: how bright the picture is, how long the answer.

    REMOTE_DIES: a file whose absence lets the 12th call end the process, as a kill does.
    """
    with _LOCK:
        _CALLS.append(texts)
        count = len(_CALLS)
    dies = os.environ.get("REMOTE_DIES", "")
    if dies and count == 12 and not os.path.exists(dies):
        with open(dies, "w"):
            os._exit(9)
    if count % 5 == 1:
        raise ConnectionError("the service is down")
    answers = zip(facts, texts, images, strict=True)
    return [None if f["task"] == "safety" else i[0].mean() / 255 + len(t) / 1000 for f, t, i in answers]


_CALLS: list[list[str]] = []
_LOCK = threading.Lock()
NOT_A_FUNCTION = 3
