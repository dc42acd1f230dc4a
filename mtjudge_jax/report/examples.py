"""The judged examples of the page: chooses them and puts the answers before and after training side by side, with pictures."""

import base64
import hashlib
import io
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from mtjudge_jax.data.sources import find_examples
from mtjudge_jax.errors import UserError
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.report.read import BASE_TEST, TRAINED_TEST, Evaluation, RunFolder
from mtjudge_jax.tasks import get_task

_MAX_SIDE = 192  # pixels; a smaller picture is shown as it is, a larger one is shrunk to this
TEST_QUOTA, VAL_QUOTA = 30, 10  # examples per task if both splits were judged; otherwise all 40 from one split


class Answer(NamedTuple):
    """One model's answer. `positive` is the probability of the task's last label word ("yes"), None if unknown."""

    verdict: str | None
    correct: bool
    reasoning: str
    text: str
    error: str
    reward: float | None
    sampled_accuracy: float | None
    positive: float | None
    positive_word: str


class Card(NamedTuple):
    key: str
    task: str
    split: str
    order: str
    question: str
    label: str
    pictures: list[str]  # data URIs in the order the model saw them; "" = cannot be decoded
    before: Answer | None
    after: Answer | None
    outcome: str  # space-separated filter words: right | wrong, and fixed | broken where training changed it


def build_cards(run: RunFolder) -> list[Card]:
    """Cards ordered by task, then split, then a hash of the id. Adds to `run.problems` what could not be read."""
    chosen: list[tuple[str, dict | None, dict | None]] = []
    pairs = list(_judged_pairs(run.evaluations))
    for split, before, after in pairs:
        quota = TEST_QUOTA + VAL_QUOTA if len(pairs) == 1 else TEST_QUOTA if split == "test" else VAL_QUOTA
        chosen += _choose_pairs(split, before, after, quota)
    wanted: dict[tuple[str, str], set[str]] = {}
    for split, old, new in chosen:
        shown = new or old
        wanted.setdefault((split, shown["task"]), set()).add(shown["example_id"])
    examples = {}
    for (split, task), ids in sorted(wanted.items()):
        examples |= read_examples(run, split=split, task=task, ids=ids)
    order = list(dict.fromkeys((new or old)["task"] for _, old, new in chosen))
    chosen.sort(key=lambda item: order.index((item[2] or item[1])["task"]))  # stable: split and hash order stay
    return [_make_card(split, old, new, examples) for split, old, new in chosen]


def _judged_pairs(evaluations: dict[str, Evaluation]) -> Iterator[tuple[str, Evaluation | None, Evaluation | None]]:
    """(split, before, after): base and trained on test; the first and the last validation on val."""
    if BASE_TEST in evaluations or TRAINED_TEST in evaluations:
        yield "test", evaluations.get(BASE_TEST), evaluations.get(TRAINED_TEST)
    validations = sorted(name for name in evaluations if name.startswith("val_"))
    if validations:
        first = evaluations[validations[0]] if len(validations) > 1 else None
        yield "val", first, evaluations[validations[-1]]


def _choose_pairs(split: str, before: Evaluation | None, after: Evaluation | None, quota: int) -> list[tuple]:
    """At most `quota` per task of (split, prediction before, prediction after), balanced over right/wrong and labels."""
    old = {_prediction_key(p): p for p in before.predictions} if before else {}
    new = {_prediction_key(p): p for p in after.predictions} if after else {}
    shown = new or old
    by_task: dict[str, list[dict]] = {}
    for p in shown.values():
        by_task.setdefault(p["task"], []).append(p)
    chosen = itertools.chain.from_iterable(choose_balanced(ps, quota) for ps in by_task.values())
    keys = [_prediction_key(p) for p in chosen]
    return [(split, old.get(key), new.get(key)) for key in keys]


def choose_balanced(predictions: list[dict], quota: int) -> list[dict]:
    """Takes right and wrong answers in turn, and the labels in turn within each; deterministic by a hash of the id.

    If one side runs out, the other fills up: 3 wrong of 100 and quota 10 gives 3 wrong and 7 right.
    """
    ranked = sorted(predictions, key=lambda p: hashlib.sha256(_prediction_key(p).encode()).digest())
    sides = []
    for right in (True, False):
        side = [p for p in ranked if bool(p["correct"]) is right]
        labels = sorted({p["label"] for p in side})
        sides.append(list(_take_turns([[p for p in side if p["label"] == label] for label in labels])))
    return list(itertools.islice(_take_turns(sides), quota))


def _take_turns(lists: list[list]) -> Iterator:
    """[[a, b, c], [x]] -> a, x, b, c."""
    missing = object()
    for row in itertools.zip_longest(*lists, fillvalue=missing):
        yield from (item for item in row if item is not missing)


def _prediction_key(p: dict) -> str:
    return f"{p['task']} {p['example_id']} {p.get('order', '')}".strip()


def read_examples(run: RunFolder, *, split: str, task: str, ids: set[str]) -> dict[str, JudgeExample]:
    """The records with these ids. Adds to `run.problems` what cannot be read."""
    if run.data is None:
        return {}
    try:
        found, unreadable = find_examples(run.data, split, task, ids)
    except UserError as e:
        run.problems.append(f"{e}: the examples of {split}/{task} are shown without pictures.")
        return {}
    if unreadable:
        run.problems.append(f"{split}/{task}: {unreadable} records could not be read and were skipped.")
    return found


def _make_card(split: str, old: dict | None, new: dict | None, examples: dict[str, JudgeExample]) -> Card:
    p = new or old
    example = examples.get(p["example_id"])
    pictures, question = [], ""
    if example is not None:
        pictures = [thumbnail(image) for image in example.images]
        if p.get("order") == "ba":  # the model saw them in the other order
            pictures.reverse()
        question = _ask(example)
    outcome = "right" if p["correct"] else "wrong"
    if old and new and bool(old["correct"]) is not bool(new["correct"]):
        outcome += " fixed" if new["correct"] else " broken"
    return Card(
        p["example_id"], p["task"], split, p.get("order", ""), question, p["label"], pictures,
        old and _make_answer(old), new and _make_answer(new), outcome,
    )  # fmt: skip


def _ask(example: JudgeExample) -> str:
    """The question as the model read it, or the bare instruction if the package's tasks cannot ask it."""
    try:
        return get_task(example.task).question_text(example.question)
    except ValueError:
        return example.instruction


def _make_answer(p: dict) -> Answer:
    word, positive = next(reversed((p.get("probabilities") or {}).items()), ("", None))
    return Answer(
        p["verdict"], bool(p["correct"]), p["reasoning"], p["text"], p.get("error") or "", p.get("reward"),
        p.get("sampled_accuracy"), positive, word,
    )  # fmt: skip


def thumbnail(data: bytes) -> str:
    """The picture, decoded and re-encoded, so that only the pixels of a foreign file get into the page."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            image = image.convert("RGB")
    except Exception:  # Pillow raises a dozen types on damaged files; the card says that it cannot be decoded
        return ""
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=92, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
