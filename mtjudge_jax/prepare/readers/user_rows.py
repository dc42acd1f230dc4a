"""The form of a row in a user's own data, the same in JSONL and in parquet.

    {"id": "7", "task": "logo", "kind": "binary", "image": "a.png", "instruction": "a red logo", "label": "yes"}
    {"task": "sharpness", "kind": "graded", "image": "a.png", "label": 4, "scale": [1, 5]}
    {"task": "nicer", "kind": "pairwise", "candidates": ["a.png", "b.png"], "label": "B"}
    {"task": "caption", "kind": "listwise", "context": ["a.png"], "label": "B > A",
     "candidates": [{"text": "a dog"}, {"text": "a cat"}]}

An image is a path that starts at the JSONL file's folder, or bytes. A candidate is an image, or
{"image" or "images", "text", "name"}; its name (who made it) is never shown. Fields that are equal in all rows may be
options instead.
"""

import difflib
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.prepare.readers import fields, files, image_files
from mtjudge_jax.records import KINDS, LABEL_WORD, SHORT_KINDS, TIE, BadRecord, Candidate, JudgeExample, Label, counted

LICENSE = "the user's own"
TERMS = "open"
_WORDS = {"positive": "yes,true,1", "negative": "no,false,0"}
OPTIONS = {
    "task": "task of rows without one (default: none)",
    "kind": "kind of rows without one: binary, graded, pairwise or listwise (default: none)",
    "criterion": "criterion of rows without one (default: the task's name)",
    "instruction": "instruction of rows without one (default: empty)",
    "split": "split of rows without one: train, val, test or ood (default: split by group)",
    "scale": "lowest and highest grade of rows without a scale, as 1-5 (default: none)",
    "positive": f"words of label 1, separated by commas (default: {_WORDS['positive']})",
    "negative": f"words of label 0, separated by commas (default: {_WORDS['negative']})",
    "allow_tie": "yes or no: whether pairs without allow_tie may be tied (default: no)",
    "license": "license of rows without one (default: the user's own)",
    "terms": "terms of rows without any: open, research, gated or eval_only (default: open)",
    **fields.REVISION,
}
FIELDS = (
    "id", "task", "kind", "criterion", "instruction", "image", "images", "text", "context", "candidates", "label", "scale",
    "allow_tie", "split", "group", "rationale", "chosen", "rejected", "raters", "license", "terms", "meta",
)  # fmt: skip
_SHOWN = ("image", "images", "text", "candidates")  # a row has at least one of these
_SPLITS = ("", "train", "val", "test", "ood")
_PAIR = {"a": 0, "b": 1, "0": 0, "1": 1, "tie": TIE, "-1": TIE, "both_good": TIE, "both_bad": TIE}
_MAX_CANDIDATES = 26
_OWN_WORDS = "; other words are named by e.g. --option=positive=pass --option=negative=fail"
_NO_LABEL = "no label; training and evaluation need one, pictures without labels are judged by `mtjudge judge --data`"
_CHAT = {"messages", "conversations", "conversation", "completion", "prompt"}  # rows of trainers of language models


class Taken(NamedTuple):
    """The options, parsed once."""

    options: Mapping[str, str]
    binary: Mapping[str, int]  # word -> label
    dataset: str


def take(given: Mapping[str, str], known: Mapping[str, str], dataset: str) -> Taken:
    """Raises UserError for an unknown or invalid option."""
    options = fields.take_options(given, known, allow_tie=("no", "yes"), split=_SPLITS)
    fields.scale_of(options["scale"])
    if options["kind"] and _kind_of(options["kind"]) is None:
        raise UserError(f"option kind: {unknown('kind', options['kind'], ('binary', 'graded', 'pairwise', 'listwise'))}")
    words = {}
    for name, value in (("positive", 1), ("negative", 0)):
        for word in (options[name] or _WORDS[name]).split(","):
            if words.setdefault(word.strip().lower(), value) != value:
                raise UserError(f"option {name}: {word.strip()!r} means both labels: give it to one")
    return Taken(options, words, dataset)


def label_words(dataset: str, options: Mapping[str, str]) -> dict[str, str]:
    """The first word of each binary label, {"1": "yes", "0": "no"}; none for a published set, whose labels are no words."""
    default = _WORDS if dataset in ("jsonl", "parquet") else {}
    words = {label: options.get(name) or default.get(name) for label, name in (("1", "positive"), ("0", "negative"))}
    return {label: text.split(",")[0].strip() for label, text in words.items() if text}


def _kind_of(name: Any) -> str | None:
    kind = SHORT_KINDS.get(name, name) if isinstance(name, str) else None
    return kind if kind in KINDS else None


def example_of_row(row: files.NativeRow, images: image_files.ReadImage, taken: Taken) -> JudgeExample:
    """Raises BadRecord if the row does not have the form above."""
    native = {name: value for name, value in row.fields.items() if value is not None}
    for name in native:
        if name not in FIELDS:
            raise BadRecord("unknown_field", not_a_field("field", name, native))
    given = {name: native.get(name, taken.options.get(name, "")) for name in FIELDS}
    task = _text(given, "task", needed=True)
    kind = _kind_of(given["kind"])
    if kind is None:
        raise BadRecord("wrong_field", f"kind is {fields.quoted(given['kind'])}, must be binary, graded, pairwise or listwise")
    if "label" not in native:
        raise BadRecord("missing_field", _NO_LABEL)
    context = tuple(image_files.image_of(image, images, "context") for image in _list(native, "context"))
    candidates, shown = _candidates(native, kind, images)
    low, high = _scale(native.get("scale"), taken) if kind == "pointwise_score" else (None, None)
    allow_tie = kind == "pairwise" and _flag(native.get("allow_tie"), taken.options["allow_tie"] == "yes")
    name = fields.name_of(native.get("id")) or str(row.index)
    instruction = _text(given, "instruction")
    if (split := given["split"]) not in _SPLITS:
        raise BadRecord("wrong_field", f"split is {fields.quoted(split)}, must be {', '.join(filter(None, _SPLITS))}")
    return JudgeExample(
        example_id=f"{taken.dataset}/{task}/{name}",
        dataset=taken.dataset,
        split=split,
        group_id=fields.name_of(native.get("group")) or f"{taken.dataset}/{fields.digest_of(_about(native, context + shown))}",
        task=task,
        criterion=_text(given, "criterion") or task,
        kind=kind,
        instruction=instruction,
        images=context + shown,
        label=_label_of(native["label"], kind, len(candidates), (low, high), allow_tie, taken),
        rationale=_text(given, "rationale"),
        chosen=_text(given, "chosen"),
        rejected=_text(given, "rejected"),
        license=_text(given, "license") or LICENSE,
        terms=_text(given, "terms") or TERMS,
        raw=_meta(native.get("meta")),
        context_images=len(context),
        candidates=candidates,
        allow_tie=allow_tie,
        score_min=low,
        score_max=high,
        label_rule=f"{LABEL_WORD}{_word(native['label'])}" if kind == "pointwise_binary" else "label",
        raters=tuple(fields.finite_number(vote, "raters") for vote in _list(native, "raters")),
        revision=taken.options["revision"],
    )


def not_a_field(what: str, name: str, there: Collection[str]) -> str:
    """Suggests the nearest field, or else lists all fields and the required ones that are missing."""
    if chat := sorted(_CHAT & set(there)):
        return f"unknown {what} {chat[0]!r}: chat rows are not read; fields are {', '.join(FIELDS)}"
    if near := difflib.get_close_matches(name, FIELDS, 1, 0.7):
        return f"unknown {what} {name!r}, did you mean {near[0]!r}?"
    missing = ["image"] * (not any(field in there for field in _SHOWN)) + ["label"] * ("label" not in there)
    lacks = f" and no {' and no '.join(missing)}" if missing else ""
    return f"unknown {what} {name!r}{lacks}: fields are {', '.join(FIELDS)}"


def _about(native: Mapping, images: tuple[bytes, ...]) -> str | bytes:
    """What a row shares with its group: its own instruction if it has one, else its first image or text."""
    return native.get("instruction") or (images[0] if images else native.get("text") or repr(native.get("candidates")))


def _label_of(
    value: Any, kind: str, count: int, scale: tuple[float | None, float | None], allow_tie: bool, taken: Taken
) -> Label:
    """The label of a row, given as a word or a number. Raises BadRecord `label_outside`."""
    if kind == "pointwise_binary":
        return Label(binary=_one_of(value, taken.binary, tuple(taken.binary), _OWN_WORDS))
    if kind == "pointwise_score":
        score = fields.finite_number(value, "label")
        if not scale[0] <= score <= scale[1]:
            raise BadRecord("label_outside", f"label is {score:g}, the scale is {scale[0]:g} to {scale[1]:g}")
        return Label(score=score)
    if kind == "listwise":
        return Label(ranks=_ranks_of(value, count))
    ties = ("tie", "both_good", "both_bad") if allow_tie else ()
    word, winner = _word(value), _one_of(value, _PAIR, ("A", "B", "0", "1", *ties))
    if winner == TIE and not allow_tie:
        raise BadRecord(
            "label_outside", f"label is {fields.quoted(value)}, but the row has no allow_tie; give --option=allow_tie=yes"
        )
    return Label(winner=winner, tie=word if word in ("both_good", "both_bad") else "")


def _ranks_of(value: Any, count: int) -> tuple[int, ...]:
    """The rank of each of `count` candidates. "B > A = C" or [2, 1, 2] -> (2, 1, 2). Raises BadRecord `label_outside`."""
    letters = [chr(ord("A") + i) for i in range(count)]
    if isinstance(value, str):
        places = [[name.strip().upper() for name in place.split("=")] for place in re.split(r"[>,]", value)]
        rank = {name: number for number, place in enumerate(places, 1) for name in place}
        if sorted(name for place in places for name in place) == letters:
            return tuple(rank[letter] for letter in letters)
    whole = isinstance(value, list) and len(value) == count and all(type(rank) is int for rank in value)
    if whole and min(value) == 1 and max(value) <= count:
        return tuple(value)
    order = " > ".join(letters) if count < 5 else f"{letters[0]} > .. > {letters[-1]}"
    text = f"label is {fields.quoted(value)}, must be an order of all candidates as {order}, or their ranks from 1"
    raise BadRecord("label_outside", text)


def _candidates(native: Mapping, kind: str, images: image_files.ReadImage) -> tuple[tuple[Candidate, ...], tuple[bytes, ...]]:
    """The candidates and their images. In pairs and lists without `candidates`, each image is one."""
    single = kind.startswith("pointwise")
    if single and "candidates" in native:
        raise BadRecord("wrong_field", f"only pairwise and listwise rows have candidates, this is {kind}: give image and text")
    if not single and "candidates" in native and native.keys() & {"image", "images", "text"}:
        raise BadRecord("wrong_field", "the row has candidates and also image, images or text: put these into the candidates")
    if single:
        given = [{name: native[name] for name in ("image", "images", "text") if name in native}]
    else:
        given = _list(native, "candidates") or _list(native, "images")
    least, most = (1, 1) if single else (2, 2) if kind == "pairwise" else (2, _MAX_CANDIDATES)
    if not least <= len(given) <= most:
        raise BadRecord("wrong_field", f"{kind} takes {counted(least, most)}, the row has {len(given)}")
    made = [_candidate(value, images) for value in given]
    return tuple(candidate for candidate, _ in made), tuple(image for _, held in made for image in held)


def _candidate(value: Any, images: image_files.ReadImage) -> tuple[Candidate, tuple[bytes, ...]]:
    if not isinstance(value, dict) or (value.keys() <= {"bytes", "path"} and value):
        value = {"image": value}
    value = {name: part for name, part in value.items() if part is not None}
    for name in value:
        if name not in ("image", "images", "text", "name"):
            raise BadRecord("unknown_field", f"candidate: {unknown('field', name, ('image', 'images', 'text', 'name'))}")
    held = ([value["image"]] if "image" in value else []) + _list(value, "images")
    text = _text(value, "text")
    if not held and not text:
        raise BadRecord("missing_image", "a candidate has neither an image nor a text")
    shown = tuple(image_files.image_of(image, images, "image") for image in held)
    return Candidate(len(shown), text, fields.name_of(value.get("name"))), shown


def _list(native: Mapping, name: str) -> list:
    return fields.list_of(native[name], name) if name in native else []


def _text(native: Mapping, name: str, *, needed: bool = False) -> str:
    value = native.get(name, "")
    if needed and value == "":
        raise BadRecord("missing_field", f"no {name}; give it in the row or as --option={name}=..")
    return fields.text_of(value, name, empty=not needed)


def _word(value: Any) -> str:
    """ "Yes " -> "yes", True -> "true", 1.0 -> "1"."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    return str(value).strip().lower() if isinstance(value, str | int) else ""


def _one_of(value: Any, words: Mapping[str, int], offered: Sequence[str], remedy: str = "") -> int:
    word = _word(value)
    if word not in words:
        raise BadRecord("label_outside", f"label is {fields.quoted(value)}, must be {' or '.join(offered)}{remedy}")
    return words[word]


def _flag(value: Any, default: bool) -> bool:
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    raise BadRecord("wrong_field", f"allow_tie is {fields.quoted(value)}, must be true or false")


def _scale(value: Any, taken: Taken) -> tuple[float, float]:
    if value is None:
        scale = fields.scale_of(taken.options["scale"])
        if scale is None:
            raise BadRecord("missing_field", "no scale; give it in the row as [1, 5] or as --option=scale=1-5")
        return scale
    low, high = (fields.finite_number(end, "scale") for end in fields.list_of(value, "scale", 2))
    if not low < high:
        raise BadRecord("wrong_field", f"scale is {fields.quoted(value)}, the first must be below the second")
    return low, high


def _meta(value: Any) -> str:
    """JSON for the user's own metrics, kept unchanged."""
    if value is None:
        return ""
    if isinstance(value, str):  # parquet has no free-form objects
        return fields.raw_json(meta=value)
    if not isinstance(value, dict):
        raise BadRecord("wrong_field", f"meta is {fields.quoted(value)}, must be an object")
    return json.dumps(value, sort_keys=True, default=str)
