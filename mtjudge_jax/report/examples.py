"""The judged examples of the page: chooses them and puts the answers before and after training side by side, with pictures."""

import base64
import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from PIL import Image

from mtjudge_jax.data.images import decode_image
from mtjudge_jax.data.pipeline import find_examples
from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.report.questions import Answer, answer_of, as_shown, asked_text, question_of
from mtjudge_jax.report.read import BASE_TEST, TRAINED_TEST, Evaluation, RunFolder

_MAX_SIDE = 192  # pixels; a smaller picture is shown as it is, a larger one is shrunk to this
TEST_QUOTA, VAL_QUOTA = 30, 10  # questions per task if both splits were judged; otherwise all 40 from one split
_STRIP = 6  # examples under the headline


class Judged(NamedTuple):
    """A question of one split with the predictions of two models; the two orders of a pair are two of them."""

    split: str
    before: dict | None
    after: dict | None

    @property
    def shown(self) -> dict:
        return self.after or self.before


class Card(NamedTuple):
    key: str
    task: str
    split: str
    order: str
    question: str
    asked: str  # the whole prompt
    label: str
    pictures: list[str]  # data URIs in the order the model saw them; "" = cannot be decoded
    before: Answer | None
    after: Answer | None
    outcome: str  # space-separated filter words: right | wrong, fixed | broken where training changed it, of a pair also
    # bothwrong (in both orders) or flipped (the verdict follows the order)


def build_cards(run: RunFolder) -> list[Card]:
    """Cards of all tasks in turn, the wrong answers first. Adds to `run.problems` what could not be read."""
    chosen: list[list[Judged]] = []
    pairs = list(_judged_pairs(run.evaluations))
    for split, before, after in pairs:
        quota = TEST_QUOTA + VAL_QUOTA if len(pairs) == 1 else TEST_QUOTA if split == "test" else VAL_QUOTA
        chosen += _choose_questions(split, before, after, quota)
    judged = list(itertools.chain.from_iterable(wrong_first(chosen)))
    return make_cards(judged, run.data, run.problems, seeds=seeds_of(run.config))


def make_cards(judged: list[Judged], data: AnyPath | None, problems: list[str], *, seeds: tuple[int, ...]) -> list[Card]:
    """data: the prepared folder with their records. Adds to `problems` what could not be read."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for one in judged:
        wanted.setdefault((one.split, one.shown["task"]), set()).add(one.shown["example_id"])
    examples = {}
    for (split, task), ids in sorted(wanted.items()):
        for name, example in read_examples(data, problems, split=split, task=task, ids=ids).items():
            examples[split, task, name] = example
    turned = _both_orders(judged)
    keyed = [(one, _question_key(one)) for one in judged]
    return [_make_card(one, examples.get(key), turned.get(key, ""), seeds) for one, key in keyed]


def seeds_of(config: dict) -> tuple[int, ...]:
    """Where the order of a list may come from: the run's seed in its validations, 0 in an evaluation without its config."""
    return tuple(dict.fromkeys((config.get("seed") or 0, 0)))


def _judged_pairs(evaluations: dict[str, Evaluation]) -> Iterator[tuple[str, Evaluation | None, Evaluation | None]]:
    """(split, before, after): base and trained on test; the first and the best validation on val."""
    if BASE_TEST in evaluations or TRAINED_TEST in evaluations:
        yield "test", evaluations.get(BASE_TEST), evaluations.get(TRAINED_TEST)
    validations = sorted(name for name in evaluations if name.startswith("val_"))
    if validations:
        first = evaluations[validations[0]] if len(validations) > 1 else None
        yield "val", first, evaluations[validations[-1]]


def _choose_questions(split: str, before: Evaluation | None, after: Evaluation | None, quota: int) -> list[list[Judged]]:
    """At most `quota` questions per task, balanced over right/wrong and labels. A pair keeps both its orders."""
    old = {_prediction_key(p): p for p in before.predictions} if before else {}
    new = {_prediction_key(p): p for p in after.predictions} if after else {}
    by_task: dict[str, dict[str, list[dict]]] = {}
    for p in (new or old).values():
        by_task.setdefault(p["task"], {}).setdefault(p["example_id"], []).append(p)
    chosen = []
    for questions in by_task.values():
        # A pair counts as right if it is right in both orders.
        heads = [ps[0] | {"correct": all(p["correct"] for p in ps)} for ps in questions.values()]
        chosen += [questions[head["example_id"]] for head in choose_balanced(heads, quota)]
    return [[Judged(split, old.get(_prediction_key(p)), new.get(_prediction_key(p))) for p in ps] for ps in chosen]


def choose_balanced(predictions: list[dict], quota: int) -> list[dict]:
    """Takes right and wrong answers in turn, and the labels in turn within each; deterministic by a hash of the id.

    If one side runs out, the other fills up: 3 wrong of 100 and quota 10 gives 3 wrong and 7 right.
    """
    ranked = sorted(predictions, key=lambda p: hashlib.sha256(_prediction_key(p).encode()).digest())
    sides = []
    for right in (True, False):
        side = [p for p in ranked if bool(p["correct"]) is right]
        labels = sorted({str(p["label"]) for p in side})
        sides.append(list(_take_turns([[p for p in side if str(p["label"]) == label] for label in labels])))
    return list(itertools.islice(_take_turns(sides), quota))


def wrong_first(questions: list[list[Judged]]) -> list[list[Judged]]:
    """The questions that were judged wrong, the tasks in turn, then the others likewise."""
    out = []
    for wrong in (True, False):
        by_task: dict[str, list] = {}
        for question in questions:
            if any(not one.shown["correct"] for one in question) is wrong:
                by_task.setdefault(question[0].shown["task"], []).append(question)
        out += _take_turns(list(by_task.values()))
    return out


def strip_of(cards: list[Card]) -> list[int]:
    """The places of the cards under the headline: with pictures, of as many tasks as there are; what training mended first, then
    a wrong answer for every two right ones. The first order of a pair only.
    """
    ranked: dict[str, list[int]] = {"fixed": [], "right": [], "wrong": []}
    for place, card in enumerate(cards):
        if any(card.pictures) and card.order != "ba":
            words = card.outcome.split()
            ranked["fixed" if "fixed" in words else words[0]].append(place)
    kinds = [ranked["fixed"] + ranked["right"], ranked["wrong"]]
    chosen: list[int] = []
    for turn in range(_STRIP):
        left = [[place for place in places if place not in chosen] for places in kinds]
        places = left[1] if turn % 3 == 2 and left[1] else left[0] or left[1]
        if not places:
            break
        seen = [cards[place].task for place in chosen]
        ranks = [(seen.count(cards[place].task), len(cards[place].pictures)) for place in places]
        chosen.append(places[ranks.index(min(ranks))])
    return chosen


def _take_turns(lists: list[list]) -> Iterator:
    """[[a, b, c], [x]] -> a, x, b, c."""
    missing = object()
    for row in itertools.zip_longest(*lists, fillvalue=missing):
        yield from (item for item in row if item is not missing)


def _prediction_key(p: dict) -> str:
    return f"{p['task']} {p['example_id']} {p.get('order', '')}".strip()


def _question_key(one: Judged) -> tuple[str, str, str]:
    return one.split, one.shown["task"], one.shown["example_id"]


def _both_orders(judged: Iterable[Judged]) -> dict[tuple[str, str, str], str]:
    """The filter word of each pair that is there in both orders and not right in both."""
    orders: dict[tuple[str, str, str], list[dict]] = {}
    for one in judged:
        if one.shown.get("order"):
            orders.setdefault(_question_key(one), []).append(one.shown)
    return {key: word for key, ps in orders.items() if len(ps) == 2 and (word := pair_outcome(ps))}


def pair_outcome(orders: list[dict]) -> str:
    """Of the predictions of both orders: bothwrong, flipped (one is right: the verdict follows the order) or "" (both right)."""
    right = sum(bool(p["correct"]) for p in orders)
    return ("bothwrong", "flipped", "")[right]


def read_examples(
    data: AnyPath | None, problems: list[str], *, split: str, task: str, ids: set[str]
) -> dict[str, JudgeExample]:
    """The records with these ids. Adds to `problems` what cannot be read."""
    if data is None:
        return {}
    try:
        found, unreadable = find_examples(data, split, task, ids)
    except UserError as e:
        problems.append(f"{e}: the examples of {split}/{task} are shown without pictures.")
        return {}
    if unreadable:
        problems.append(f"{split}/{task}: {unreadable} records could not be read and were skipped.")
    return found


def _make_card(one: Judged, example: JudgeExample | None, turned: str, seeds: tuple[int, ...]) -> Card:
    p, old, new = one.shown, one.before, one.after
    pictures, asked = [], ""
    if example is not None:
        example = as_shown(p, example, seeds)
        pictures, asked = [thumbnail(image) for image in example.images], asked_text(p, example)
    outcome = "right" if p["correct"] else "wrong"
    if old and new and bool(old["correct"]) is not bool(new["correct"]):
        outcome += " fixed" if new["correct"] else " broken"
    return Card(
        p["example_id"], p["task"], one.split, p.get("order", ""), question_of(p), asked, str(p["label"]), pictures,
        old and answer_of(old), new and answer_of(new), f"{outcome} {turned}".strip(),
    )  # fmt: skip


def thumbnail(data: bytes) -> str:
    """The picture as the model sees it, decoded and re-encoded, so that only the pixels of a foreign file get into the page."""
    try:
        image = Image.fromarray(decode_image(data))
    except Exception:  # Pillow raises a dozen types on damaged files; the card says that it cannot be decoded
        return ""
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=92, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
