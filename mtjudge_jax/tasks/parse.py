"""Reads a verdict out of a completion: strictly where it earns a reward, leniently where a judge is only measured.

Both parsers are linear (find and slice, no regular expression), never raise on any string, and never guess.
Completions are given as text without the end-of-sequence token.
"""

import string
import unicodedata
from typing import NamedTuple

# 8,192 tokens of ordinary text are about 40,000 characters: no answer comes near this. Anything longer is refused unread,
# so the time for one string is bounded whatever it holds.
MAX_CHARS = 131_072
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
# ASCII only: str.strip() would also take a dozen Unicode spaces and separators for nothing.
WHITESPACE = " \t\r\n"
# Longest slice that is still looked at as a label by the lenient parser (Unicode normalisation is not linear).
MAX_LABEL_CHARS = 64
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Parsed(NamedTuple):
    """`verdict` is a label index, or None exactly when `error` is not empty. `error` is one of a few phrases to count by."""

    verdict: int | None
    reasoning: str
    error: str


def _ascii_lower(text: str) -> str:
    # str.lower() can change the length of a text (dotted capital I), which would shift every index.
    return text.lower() if text.isascii() else text.translate(_LOWER)


def _unreadable(text: str) -> str:
    if len(text) > MAX_CHARS:
        return "too long"
    return "NUL character" if "\0" in text else ""


def _label_index(word: str, labels: tuple[str, ...]) -> int | None:
    """Index of the label that `word` is, in ASCII and whatever the case; no look-alike letter is folded."""
    word = word.strip(WHITESPACE)
    folded = [label.lower() for label in labels]
    return folded.index(word.lower()) if word.isascii() and word.lower() in folded else None


def parse_strict(text: str, labels: tuple[str, ...]) -> Parsed:
    """Accepts `<think>REASONING</think><answer>LABEL</answer>` and nothing else.

    Each tag exactly once and in this order; a tag in capitals counts as one too many, not as a tag. The reasoning holds at
    least one letter or digit. ASCII whitespace may stand around the two parts and around the label, no other text.

        "<think>looks blurry</think><answer>No</answer>"          -> verdict 0, reasoning "looks blurry"
        "<think><answer>no</answer></think><answer>no</answer>"   -> error "repeated <answer>"
    """
    error = _unreadable(text) or _tag_error(text)
    if error:
        return Parsed(None, "", error)
    think, think_end, answer, answer_end = (text.find(tag) for tag in TAGS)
    if not think < think_end < answer < answer_end:
        return Parsed(None, "", "tags out of order")
    reasoning = text[think + len("<think>") : think_end]
    outside = text[:think], text[think_end + len("</think>") : answer], text[answer_end + len("</answer>") :]
    if any(part.strip(WHITESPACE) for part in outside):
        return Parsed(None, "", "text outside the tags")
    if not any(map(str.isalnum, reasoning)):
        return Parsed(None, "", "no reasoning")
    verdict = _label_index(text[answer + len("<answer>") : answer_end], labels)
    if verdict is None:
        return Parsed(None, "", "not a label")
    return Parsed(verdict, reasoning.strip(), "")


def _tag_error(text: str) -> str:
    folded = _ascii_lower(text)
    for tag in TAGS:
        if tag not in text:
            return f"missing {tag}"
        if folded.count(tag) > 1:
            return f"repeated {tag}"
    return ""


def parse_lenient(text: str, labels: tuple[str, ...]) -> Parsed:
    """Finds the verdict of an answer that may break the form. The first of these that is there decides:

    1. behind the last `</think>` (or in all of the text): the last closed `<answer>`, else an `<answer>` left open,
       else the last `[...]`, else the last line, with or without "answer:" before it;
    2. anywhere: the last closed `<answer>`.

    What is found must be a label after Unicode compatibility folding (full-width letters) and without punctuation around
    it; if it is not, the answer is invalid. Tags are read whatever their case. An invalid answer counts as wrong.
    """
    error = _unreadable(text)
    if error:
        return Parsed(None, "", error)
    folded = _ascii_lower(text)
    end = folded.rfind("</think>")
    start = folded.find("<think>")
    tail = folded[end + len("</think>") :] if end >= 0 else folded
    found = _last_answer(tail)
    if found is None:
        found = _open_answer(tail)
    if found is None:
        found = _last_bracket(tail)
    if found is None:
        found = _last_line(tail) or _last_answer(folded)
    verdict = None if found is None else _lenient_index(found, labels)
    if verdict is None:
        return Parsed(None, "", "no answer" if found is None else "not a label")
    begin = start + len("<think>") if start >= 0 else 0
    return Parsed(verdict, text[begin : end if end >= begin else begin].strip(), "")


def _last_answer(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end] if start >= 0 else None


def _open_answer(text: str) -> str | None:
    start = text.rfind("<answer>")
    return text[start + len("<answer>") :] if start >= 0 else None


def _last_bracket(text: str) -> str | None:
    end = text.rfind("]")
    start = text.rfind("[", 0, max(end, 0))
    return text[start + 1 : end] if start >= 0 else None


def _last_line(text: str) -> str | None:
    line = text.rstrip()[-MAX_LABEL_CHARS:].rpartition("\n")[2]
    return line.rpartition("answer:")[2].strip() or None


def _lenient_index(word: str, labels: tuple[str, ...]) -> int | None:
    word = word.strip()
    if len(word) > MAX_LABEL_CHARS:
        return None
    return _label_index(unicodedata.normalize("NFKC", word).strip(string.punctuation + string.whitespace), labels)
