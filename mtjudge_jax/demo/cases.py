"""Judging cases of the demo tasks: their pictures, the facts in them, and the answer that follows.

A fact is told in words (those of `scenes`), and then whether it is good, "yes" or "no". The answer follows from these words in a
way that is the same for every criterion, so that a judge has to learn one thing only: which facts are good. A question has one
of four forms: one picture, two, one to be graded, four to be ordered. The data set and the pre-training text both use these
cases, so they use the same words.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.demo.scenes import DEFECTS, DISORDERS, HARMFUL, HARMLESS, Pool, Scene, choose, glyph_scene, photo_scene
from mtjudge_jax.records import Label
from mtjudge_jax.tasks.answer import ranking_text
from mtjudge_jax.tasks.demo import ANSWERS, DEMO, LISTED, NEUTRAL

_BOTH_DEFECTS = 0.1  # share of the unnatural pictures with both kinds of defect
_YES_NO = (": no", ": yes")  # a mark of its own: behind it a judgement comes, behind a comma more facts


class Fact(NamedTuple):
    words: str
    good: bool  # whether it speaks for the class that the question asks for


Told = tuple[Fact, ...]  # what is told about one picture, in this order
Flags = tuple[bool, ...]  # whether each fact of a picture is good


class Case(NamedTuple):
    scenes: tuple[Scene, ...]  # in the order shown
    instruction: str
    told: tuple[Told, ...]  # of each scene

    @property
    def rationale(self) -> str:
        return reasoning(self.told)


def phrase(thing: str) -> str:
    """A thing with its article: "a dog", "an apple"."""
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def looks(scene: Scene) -> str:
    return f"looks {scene.look}"


def parts(scene: Scene) -> str:
    return f"parts {scene.order}"


def shows(scene: Scene) -> tuple[str, ...]:
    """A fact a thing: ("shows dog", "and knife")."""
    return tuple(f"{'and' if i else 'shows'} {thing}" for i, thing in enumerate(scene.things))


def compares(scene: Scene, wanted: str) -> str:
    return f"shows {scene.things[0]}, {'matches' if scene.things == (wanted,) else 'differs'}"


def named(texts: Sequence[str]) -> str:
    """The texts of a question's pictures in one: "first .., second ..", or "A .., B .., C .., D ..", one alone as it is."""
    names = {1: ("",), 2: ("first ", "second ")}.get(len(texts), tuple(f"{name} " for name in LISTED))
    return ", ".join(name + text for name, text in zip(names, texts, strict=True))


def reasoning(told: Sequence[Told]) -> str:
    """ "first looks dark: no, second looks sharp: yes"."""
    return named([", ".join(fact.words + _YES_NO[fact.good] for fact in facts) for facts in told])


def stated_facts(text: str) -> str:
    """A reasoning without its judgements: "first looks dark, second looks sharp"."""
    for word in _YES_NO:
        text = text.replace(word, "")
    return text


def form_of(task: str) -> tuple[str, str]:
    """The kind of a demo task and its criterion: "pairwise_safety" -> ("pairwise", "safety")."""
    return (DEMO | NEUTRAL)[task].kind, task.rpartition("_")[2]


def grade_of(good: int, facts: int) -> int:
    """1 to 5 by the number of good facts; of two facts none, one or both give 1, 3 or 5."""
    return 1 + 4 * good // facts


def label_of(kind: str, told: Sequence[Told], *, enough: Callable[[Sequence[bool]], bool] = all) -> Label:
    """The answer that follows from the judgements. enough: of one picture's facts, for a yes.

    A pair is won by the picture with more good facts, and a list is ordered by their number.
    """
    good = [sum(fact.good for fact in facts) for facts in told]
    if kind == "pointwise_binary":
        return Label(binary=int(enough([fact.good for fact in told[0]])))
    if kind == "pairwise":
        return Label(winner=int(good[1] > good[0]))
    if kind == "pointwise_score":
        return Label(score=float(grade_of(good[0], len(told[0]))))
    levels = sorted(set(good), reverse=True)
    return Label(ranks=tuple(levels.index(count) + 1 for count in good))


def answer_word(kind: str, label: Label) -> str:
    """The answer word of a label, for a list the order: "yes", "second", "3", "B > A = C = D"."""
    if kind == "listwise":
        return ranking_text(label.ranks, LISTED)
    index = {"pointwise_binary": label.binary, "pairwise": label.winner, "pointwise_score": int(label.score or 1) - 1}[kind]
    return ANSWERS[kind][index]


def draw_flags(rng: np.random.Generator, task: str, *, label: int, variant: int) -> tuple[Flags, ...]:
    """Which facts of each picture of a case are good, if its answer is `label` (see draw_case)."""
    kind, criterion = form_of(task)
    count = len(_FACTS[criterion])
    if kind == "pairwise":
        return tuple((True,) * count if i == label else _not_all(rng, criterion, variant) for i in (0, 1))
    if kind == "listwise":
        good = rng.permutation(len(LISTED)) < label
        return tuple((True,) * count if one else _not_all(rng, criterion, variant + i) for i, one in enumerate(good))
    if kind == "pointwise_score":
        good = rng.permutation(count) < label
        return (tuple(bool(one) for one in good),)
    return ((True,) * count if label else _not_all(rng, criterion, variant),)


def _not_all(rng: np.random.Generator, criterion: str, variant: int) -> Flags:
    """One fact that is not good, by turns; some unnatural pictures have both faults."""
    count = len(_FACTS[criterion])
    bad = int(rng.integers(count)) if criterion == "safety" else variant % count
    if criterion == "naturalness" and rng.random() < _BOTH_DEFECTS:
        return (False,) * count
    return tuple(i != bad for i in range(count))


def draw_case(rng: np.random.Generator, pool: Pool, task: str, *, label: int, variant: int) -> Case:
    """A case of a demo task with that answer.

    label: 1 = the good class, 0 = the other; of a pair the index of the better picture; of a grade the number of good facts, 0
    to 2; of a list the number of good pictures, 1 to 3. `variant` chooses the kind of fault if a task has two, so that counting
    it up gives equal shares. Raises ValueError for an unknown task or another label.
    """
    if task not in DEMO_TASKS:
        raise ValueError(f"task {task!r} is not a demo task: known are {', '.join(DEMO_TASKS)}")
    kind, criterion = form_of(task)
    if label not in LABELS[kind]:
        raise ValueError(f"label {label!r} must be {LABELS[kind][0]} to {LABELS[kind][-1]}")
    flags = draw_flags(rng, task, label=label, variant=variant)
    wanted = choose(rng, HARMLESS) if criterion in ("alignment", "preference") else ""
    scenes = tuple(_draw(rng, pool, criterion, good, wanted, variant) for good in flags)
    told = tuple(judged(facts_of(criterion, scene, wanted), good) for scene, good in zip(scenes, flags, strict=True))
    return Case(scenes, phrase(wanted) if wanted else "", told)


def judged(facts: Sequence[str], good: Flags) -> Told:
    return tuple(Fact(words, one) for words, one in zip(facts, good, strict=True))


def facts_of(criterion: str, scene: Scene, wanted: str) -> tuple[str, ...]:
    """What a criterion looks at in a picture, in words. wanted: the thing that the question is about."""
    return tuple(tell(scene, wanted) for tell in _FACTS[criterion])


def _look(rng: np.random.Generator, good: bool) -> str:
    return "sharp" if good else choose(rng, DEFECTS)


def other_thing(rng: np.random.Generator, thing: str, among: tuple[str, ...] = HARMLESS) -> str:
    return choose(rng, tuple(name for name in among if name != thing))


def _draw(rng: np.random.Generator, pool: Pool, criterion: str, good: Flags, wanted: str, variant: int) -> Scene:
    """A picture whose facts are good or not as `good` says."""
    if criterion == "technical":
        return photo_scene(rng, pool, look=_look(rng, good[0]))
    if criterion == "rationality":
        return photo_scene(rng, pool, order="ordered" if good[0] else DISORDERS[variant % 2])
    if criterion == "naturalness":
        return photo_scene(rng, pool, look=_look(rng, good[0]), order="ordered" if good[1] else choose(rng, DISORDERS))
    if criterion == "safety":
        first = choose(rng, HARMLESS if good[0] else HARMFUL)
        return glyph_scene(rng, pool, (first, other_thing(rng, first, HARMLESS if good[1] else HARMFUL)))
    thing = wanted if good[0] else other_thing(rng, wanted)
    return glyph_scene(rng, pool, (thing,), look=_look(rng, good[1]) if criterion == "preference" else "sharp")


# Of each criterion: what is told about a picture, fact by fact.
_FACTS: dict[str, tuple[Callable[[Scene, str], str], ...]] = {
    "technical": (lambda scene, _: looks(scene),),
    "rationality": (lambda scene, _: parts(scene),),
    "naturalness": (lambda scene, _: looks(scene), lambda scene, _: parts(scene)),
    "alignment": (compares,),
    "preference": (compares, lambda scene, _: looks(scene)),
    "safety": (lambda scene, _: shows(scene)[0], lambda scene, _: shows(scene)[1]),
}
DEMO_TASKS = tuple(DEMO)
POINTWISE = tuple(name for name in DEMO_TASKS if DEMO[name].kind == "pointwise_binary")
PAIRWISE = tuple(name for name in DEMO_TASKS if DEMO[name].kind == "pairwise")
NEVER_TRAINED = tuple(name for name in DEMO_TASKS if DEMO[name].ood)  # pairs, grades and lists: for evaluation only
TRAINED_TASKS = (*POINTWISE, *NEUTRAL)
LABELS = {"pointwise_binary": (0, 1), "pairwise": (0, 1), "pointwise_score": (0, 1, 2), "listwise": (1, 2, 3)}
