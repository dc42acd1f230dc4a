"""The training data of the demo's base model: describing pictures, and the form of a judgement without its verdict.

The judge demonstrations have the gold rationale but a verdict from a fair coin. So the base model learns to see and to write
`<think>..</think><answer>..</answer>`, but not which facts are good: the reward teaches that later. The caller's pool of
pictures must be `load_pool("train")`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtjudge_jax.demo.cases import PAIRWISE, POINTWISE, compares, draw_case, first_second, looks, parts, phrase, shows
from mtjudge_jax.demo.scenes import DEFECTS, DISORDERS, HARMLESS, THINGS, Pool, Scene, choose, glyph_scene, photo_scene
from mtjudge_jax.tasks import CONTRACT, TASKS

TEMPLATES: Mapping[str, str] = {name: TASKS[name].template for name in (*POINTWISE, *PAIRWISE)}
DESCRIBE_ONE = "Describe this picture."
DESCRIBE_TWO = "Describe both pictures."
# The same in the form of a judgement, answered with the key words of the reasoning: then the place of the verdict knows the
# facts, as in a real model, but not which of these are good. Without it RL has to build that path first.
KEY_WORDS = "Think, then answer in key words."
KEYS_ONE = f"Describe this picture. {KEY_WORDS}"
KEYS_COMPARE = "Compare this picture with {instruction}. " + KEY_WORDS
KEYS_OF_TWO = (f"Describe the first picture. {KEY_WORDS}", f"Describe the second picture. {KEY_WORDS}")
KEYS_SHARE = 0.5  # of the descriptions
_FILLERS = ("looks", "parts", "shows", "a", "an", "and")
JUDGE_SHARE = 0.35  # demonstrations whose verdict is a coin flip
EVIDENCE_SHARE = 0.25  # the judge's own questions, answered with the key words; the rest is description
PAIRWISE_SHARE = 0.25  # of both; pairs are never trained on later, so the base must know their form
_ANSWERS = ("no", "yes")
# Shares of the descriptions: a photograph, one thing, two things, a pair of pictures.
_DESCRIPTIONS = (0.42, 0.28, 0.18, 0.12)


class BaseSample(NamedTuple):
    images: tuple[np.ndarray, ...]  # one or two, uint8 [96, 96, 3]
    question: str
    answer: str


def base_sample(rng: np.random.Generator, pool: Pool, templates: Mapping[str, str] = TEMPLATES) -> BaseSample:
    """One sample of the pre-training mix."""
    kind = rng.random()
    if kind < JUDGE_SHARE + EVIDENCE_SHARE:
        task = choose(rng, PAIRWISE if rng.random() < PAIRWISE_SHARE else POINTWISE)
        draw = judge_sample if kind < JUDGE_SHARE else _evidence_sample
        return draw(rng, pool, task, templates=templates)
    kind = int(rng.choice(len(_DESCRIPTIONS), p=_DESCRIPTIONS))
    if kind == 3:
        return _describe_pair(rng, pool)
    scene = (_any_photo, _one_thing, _two_any_things)[kind](rng, pool)
    if rng.random() >= KEYS_SHARE:
        return BaseSample((scene.image,), DESCRIBE_ONE, _describe(scene))
    if len(scene.things) == 1 and rng.random() < 0.5:
        return _compare(rng, scene)
    return BaseSample((scene.image,), KEYS_ONE, _reasoned(_describe(scene), _keys(scene)))


def _keys(scene: Scene) -> str:
    """The words of `_describe` that carry its facts: "sharp shuffled", "dog blurry", "knife dog"."""
    if not scene.things:
        return f"{scene.look} {scene.order}"
    return " ".join(scene.things) if len(scene.things) == 2 else f"{scene.things[0]} {scene.look}"


def _reasoned(reasoning: str, answer: str) -> str:
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


def _compare(rng: np.random.Generator, scene: Scene) -> BaseSample:
    """One thing compared with its own name or another, without saying which is good."""
    shown = scene.things[0]
    wanted = shown if rng.random() < 0.5 else choose(rng, tuple(name for name in THINGS if name != shown))
    found = "matches" if shown == wanted else "differs"
    text = _reasoned(f"{compares(scene, wanted)}, {looks(scene)}", f"{found} {scene.look}")
    return BaseSample((scene.image,), KEYS_COMPARE.replace("{instruction}", phrase(wanted)), text)


def judge_sample(
    rng: np.random.Generator, pool: Pool, task: str, *, verdict: str = "coin", templates: Mapping[str, str] = TEMPLATES
) -> BaseSample:
    """One judge demonstration. `verdict`: "coin" (independent of everything else) or "true".

    Raises ValueError for another `verdict` or an unknown task.
    """
    if verdict not in ("coin", "true"):
        raise ValueError(f"verdict {verdict!r} must be 'coin' or 'true'")
    case = draw_case(rng, pool, task, label=int(rng.integers(2)), variant=int(rng.integers(2)))
    coin = int(rng.integers(2))
    word = _ANSWERS[coin if verdict == "coin" else case.label]
    return BaseSample(
        images=tuple(scene.image for scene in case.scenes),
        question=templates[task].replace("{instruction}", case.instruction),
        answer=_reasoned(case.rationale, word),
    )


def _any_look(rng: np.random.Generator) -> str:
    return "sharp" if rng.random() < 0.35 else choose(rng, DEFECTS)


def _any_photo(rng: np.random.Generator, pool: Pool) -> Scene:
    order = "ordered" if rng.random() < 0.5 else choose(rng, DISORDERS)
    return photo_scene(rng, pool, look=_any_look(rng), order=order)


def _one_thing(rng: np.random.Generator, pool: Pool) -> Scene:
    return glyph_scene(rng, pool, (choose(rng, THINGS),), look=_any_look(rng))


def _two_any_things(rng: np.random.Generator, pool: Pool) -> Scene:
    first = choose(rng, THINGS)
    return glyph_scene(rng, pool, (first, choose(rng, tuple(name for name in THINGS if name != first))))


def _describe(scene: Scene) -> str:
    """Everything that varies in a scene of its kind, in words."""
    if not scene.things:
        return f"{looks(scene)}, {parts(scene)}"
    return shows(scene) if len(scene.things) == 2 else f"{shows(scene)}, {looks(scene)}"


def _describe_pair(rng: np.random.Generator, pool: Pool) -> BaseSample:
    """Two photographs by their look, two pictures of one harmless thing, or two of two things; perhaps key words of one."""
    kind = int(rng.integers(3))
    if kind == 0:
        words, scenes = looks, tuple(photo_scene(rng, pool, look=_any_look(rng)) for _ in range(2))
    elif kind == 1:
        words, scenes = shows, tuple(glyph_scene(rng, pool, (choose(rng, HARMLESS),)) for _ in range(2))
    else:
        words, scenes = shows, tuple(_two_any_things(rng, pool) for _ in range(2))
    images, text = tuple(scene.image for scene in scenes), first_second(words, scenes)
    if rng.random() >= KEYS_SHARE:
        return BaseSample(images, DESCRIBE_TWO, text)
    which = int(rng.integers(2))
    return BaseSample(images, KEYS_OF_TWO[which], _reasoned(text, " ".join(scenes[which].things) or scenes[which].look))


def _evidence_sample(rng: np.random.Generator, pool: Pool, task: str, *, templates: Mapping[str, str] = TEMPLATES) -> BaseSample:
    """A judge's question, answered with the decisive facts instead of a verdict: of the picture, or of the second one."""
    case = draw_case(rng, pool, task, label=int(rng.integers(2)), variant=int(rng.integers(2)))
    question = templates[task].replace("{instruction}", case.instruction).replace(CONTRACT, KEY_WORDS)
    return BaseSample(
        images=tuple(scene.image for scene in case.scenes),
        question=question,
        answer=_reasoned(case.rationale, evidence(case.rationale.rpartition("second ")[2])),
    )


def evidence(rationale: str) -> str:
    """ "shows a cat, differs, looks sharp" -> "differs sharp"; "shows a knife and a dog" -> "knife dog"."""
    clauses = rationale.split(", ")
    compared = [clause for clause in clauses if not clause.startswith("shows") or len(clauses) == 1]
    return " ".join(word for word in " ".join(compared).split() if word not in _FILLERS)


def pair_sample(rng: np.random.Generator, pool: Pool) -> BaseSample:
    """One sample with two pictures, in the shares that `base_sample` gives them."""
    judged, shown = JUDGE_SHARE * PAIRWISE_SHARE, EVIDENCE_SHARE * PAIRWISE_SHARE
    described = (1 - JUDGE_SHARE - EVIDENCE_SHARE) * _DESCRIPTIONS[3]
    kind = rng.random() * (judged + shown + described)
    if kind < judged + shown:
        return (judge_sample if kind < judged else _evidence_sample)(rng, pool, choose(rng, PAIRWISE))
    return _describe_pair(rng, pool)
