"""Judging cases of the demo tasks: their pictures, the facts in them in words, and the answer that follows.

A rationale names facts only (the words of `scenes`), so that the verdict is a separate step. The data set and the
pre-training text both use these cases, so they use the same words.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mtjudge_jax.demo.scenes import DEFECTS, DISORDERS, HARMFUL, HARMLESS, Pool, Scene, choose, glyph_scene, photo_scene

_BOTH_DEFECTS = 0.1  # share of the unnatural pictures with both kinds of defect


class Case(NamedTuple):
    scenes: tuple[Scene, ...]  # one, or two in the order shown
    instruction: str
    rationale: str
    label: int  # pointwise: 1 = the good class; pairwise: index of the better picture


def phrase(thing: str) -> str:
    """A thing with its article: "a dog", "an apple"."""
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def looks(scene: Scene) -> str:
    return f"looks {scene.look}"


def parts(scene: Scene) -> str:
    return f"parts {scene.order}"


def shows(scene: Scene) -> str:
    return "shows " + " and ".join(phrase(thing) for thing in scene.things)


def compares(scene: Scene, wanted: str) -> str:
    return f"{shows(scene)}, {'matches' if scene.things == (wanted,) else 'differs'}"


def first_second(words: Callable[[Scene], str], scenes: tuple[Scene, ...]) -> str:
    return f"first {words(scenes[0])}, second {words(scenes[1])}"


def draw_case(rng: np.random.Generator, pool: Pool, task: str, *, label: int, variant: int) -> Case:
    """A case of a demo task with that answer.

    `variant` chooses the kind of fault if a task has two, so that counting it up gives equal shares.
    Raises ValueError for an unknown task or a label that is not 0 or 1.
    """
    if task not in _DRAW:
        raise ValueError(f"task {task!r} is not a demo task: known are {', '.join(_DRAW)}")
    if label not in (0, 1):
        raise ValueError(f"label {label!r} must be 0 or 1")
    return _DRAW[task](rng, pool, label, variant)


def _technical(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    scene = photo_scene(rng, pool, look="sharp" if label else choose(rng, DEFECTS))
    return Case((scene,), "", looks(scene), label)


def _rationality(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    scene = photo_scene(rng, pool, order="ordered" if label else DISORDERS[variant % 2])
    return Case((scene,), "", parts(scene), label)


def _naturalness(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    look, order = "sharp", "ordered"
    if not label:
        both = rng.random() < _BOTH_DEFECTS
        look = choose(rng, DEFECTS) if both or variant % 2 == 0 else look
        order = choose(rng, DISORDERS) if both or variant % 2 == 1 else order
    scene = photo_scene(rng, pool, look=look, order=order)
    return Case((scene,), "", f"{looks(scene)}, {parts(scene)}", label)


def _other(rng: np.random.Generator, thing: str) -> str:
    return choose(rng, tuple(name for name in HARMLESS if name != thing))


def _alignment(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    wanted = choose(rng, HARMLESS)
    scene = glyph_scene(rng, pool, (wanted if label else _other(rng, wanted),))
    return Case((scene,), phrase(wanted), compares(scene, wanted), label)


def _preference(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    wanted = choose(rng, HARMLESS)
    wrong_thing = not label and variant % 2 == 0
    wrong_look = not label and variant % 2 == 1
    thing = _other(rng, wanted) if wrong_thing else wanted
    scene = glyph_scene(rng, pool, (thing,), look=choose(rng, DEFECTS) if wrong_look else "sharp")
    return Case((scene,), phrase(wanted), f"{compares(scene, wanted)}, {looks(scene)}", label)


def _two_things(rng: np.random.Generator, pool: Pool, safe: bool) -> Scene:
    """Two different things: both harmless if `safe`, else exactly one harmful, on either side."""
    first = choose(rng, HARMLESS)
    second = _other(rng, first) if safe else choose(rng, HARMFUL)
    return glyph_scene(rng, pool, (first, second) if rng.random() < 0.5 else (second, first))


def _safety(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    scene = _two_things(rng, pool, bool(label))
    return Case((scene,), "", shows(scene), label)


def _pairwise_technical(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    bad = choose(rng, DEFECTS)
    scenes = tuple(photo_scene(rng, pool, look="sharp" if i == label else bad) for i in (0, 1))
    return Case(scenes, "", first_second(looks, scenes), label)


def _pairwise_alignment(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    wanted = choose(rng, HARMLESS)
    wrong = _other(rng, wanted)
    scenes = tuple(glyph_scene(rng, pool, (wanted if i == label else wrong,)) for i in (0, 1))
    return Case(scenes, phrase(wanted), first_second(lambda scene: compares(scene, wanted), scenes), label)


def _pairwise_safety(rng: np.random.Generator, pool: Pool, label: int, variant: int) -> Case:
    scenes = tuple(_two_things(rng, pool, i == label) for i in (0, 1))
    return Case(scenes, "", first_second(shows, scenes), label)


_DRAW: dict[str, Callable[[np.random.Generator, Pool, int, int], Case]] = {
    "technical": _technical,
    "rationality": _rationality,
    "naturalness": _naturalness,
    "alignment": _alignment,
    "preference": _preference,
    "safety": _safety,
    "pairwise_technical": _pairwise_technical,
    "pairwise_alignment": _pairwise_alignment,
    "pairwise_safety": _pairwise_safety,
}
POINTWISE = tuple(name for name in _DRAW if not name.startswith("pairwise_"))
PAIRWISE = tuple(name for name in _DRAW if name.startswith("pairwise_"))
