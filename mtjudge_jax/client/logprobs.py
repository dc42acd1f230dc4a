"""The probabilities of the labels from the log-probabilities that a server gives."""

import math
from collections.abc import Mapping
from typing import Any

from mtjudge_jax.client.requests import Requests
from mtjudge_jax.tasks.verdicts import Shares

_TAG = "<answer>"


def first_token_shares(logprobs: Mapping[str, Any] | None, content: str, words: Mapping[str, str]) -> Shares | None:
    """From the likeliest tokens in the place where the verdict begins.

    logprobs: of a choice. words: the answer word of each label. A label that is not among the likeliest tokens counts 0. None
    without a verdict's place, without log-probabilities, or where two labels begin with the same token.
    """
    tokens, start = (logprobs or {}).get("content") or [], content.find(_TAG)
    if start < 0 or not tokens:
        return None
    start, at = start + len(_TAG), 0
    for token in tokens:  # the first one that holds text behind the tag
        end = at + len(token["token"])
        if end > start:
            break
        at = end
    else:
        return None
    before = content[at:start]  # of the tag, where a token holds its end and the verdict's beginning
    mass: dict[str, float] = dict.fromkeys(words, 0.0)
    for likely in token.get("top_logprobs") or []:
        text = likely["token"]
        if len(text) <= len(before):
            continue
        meant = [label for label, word in words.items() if f"{before}{word}</answer>".startswith(text)]
        if len(meant) > 1:
            return None
        for label in meant:
            mass[label] += math.exp(likely["logprob"])
    total = math.fsum(mass.values())
    return {label: one / total for label, one in mass.items()} if total > 0 else None


def exact_shares(
    text: str, words: Mapping[str, str], requests: Requests, model: str, message: dict, more: Mapping[str, Any] | None = None
) -> Shares | None:
    """From the log-probabilities of the whole answer with each label in the place of its verdict, by vLLM's `prompt_logprobs`.

    The answers are equal up to the label, so their log-probabilities differ by those from there on. None without a place for it.
    more: further fields of the request that asked `message`.
    """
    before, tag, _ = text.partition(_TAG)
    if not tag:
        return None
    lists = []
    for word in words.values():
        answer = {"role": "assistant", "content": f"{before}{tag}{word}</answer>"}
        body = {"model": model, "messages": [message, answer], "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        body |= {"add_generation_prompt": False, "continue_final_message": True} | dict(more or {})
        lists.append([_only(one) for one in requests.post("/chat/completions", body)["prompt_logprobs"]])
    shortest = min(map(len, lists))
    equal = next((at for at in range(shortest) if len({one[at][0] for one in lists}) > 1), shortest)
    sums = [math.fsum(logprob for _, logprob in one[equal:]) for one in lists]
    odds = [math.exp(one - max(sums)) for one in sums]
    return {label: one / math.fsum(odds) for label, one in zip(words, odds, strict=True)}


def _only(entry: Mapping[str, Any] | None) -> tuple[str, float]:
    """The prompt's own token in one place, and its log-probability; the first place has none."""
    if not entry:
        return "", 0.0
    token, found = next(iter(entry.items()))
    return token, found["logprob"]
