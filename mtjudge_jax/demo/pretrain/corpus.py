"""The training data of the demo's base model: to see, to say what is asked for, and the form of a judgement without its verdict.

A third of it describes pictures, or asks neutral questions, whose answers are true. The rest are the judge's own questions, with
the true facts but with judgements from a coin, in all forms from the first update on. So the base learns to see, and what an
answer in each form means, but not which facts are good: the reward teaches that later. The caller's pool of pictures must be
`load_pool("train")`.
"""

from typing import NamedTuple

import numpy as np

from mtjudge_jax.demo.cases import (
    DEMO_TASKS,
    LABELS,
    Case,
    answer_word,
    draw_case,
    draw_flags,
    form_of,
    judged,
    label_of,
    looks,
    named,
    other_thing,
    parts,
    shows,
)
from mtjudge_jax.demo.neutral import FAMILIES, neutral_case
from mtjudge_jax.demo.scenes import DEFECTS, DISORDERS, THINGS, Pool, Scene, choose, glyph_scene, photo_scene
from mtjudge_jax.tasks import TASKS, Task
from mtjudge_jax.tasks.demo import NEUTRAL_KINDS

DESCRIBE = {1: "Describe this picture.", 2: "Describe both pictures."}
# Shares of description, neutral questions and judge's questions, by the number of pictures. The rest is judge's questions.
DESCRIBED = {1: 0.2, 2: 0.1, 4: 0.0}
ASKED = {1: 0.5, 2: 0.6, 4: 0.6}
_GRADED = 0.25  # of the questions about one picture
# Nothing else is learned before these three are: to hold a fact against what is asked for. See docs/results.md.
_EASIEST, _EASIEST_STEPS = ("look", "order", "match"), 300
_OFTEN = {"thing": 2, "kind": 2}  # how often a family comes for each time of another


class BaseSample(NamedTuple):
    images: tuple[np.ndarray, ...]  # uint8 [96, 96, 3]
    question: str
    answer: str


def base_sample(rng: np.random.Generator, pool: Pool, *, pictures: int, step: int = 10**6) -> BaseSample:
    """One sample about 1, 2 or 4 pictures, of the mix of an update."""
    part = rng.random()
    if part < DESCRIBED[pictures]:
        return _description(rng, pool, pictures)
    kind = {2: "pairwise", 4: "listwise"}.get(pictures) or ("pointwise_score" if rng.random() < _GRADED else "pointwise_binary")
    if part < DESCRIBED[pictures] + ASKED[pictures]:
        return neutral_sample(rng, pool, kind, choose(rng, families(kind, step)))
    return judge_sample(rng, pool, choose(rng, tuple(task for task in DEMO_TASKS if form_of(task)[0] == kind)))


def families(kind: str, step: int) -> tuple[str, ...]:
    """The neutral questions of an update, as often as they come; a list tells too much to ask for two things in each picture."""
    if step <= _EASIEST_STEPS or kind == "listwise":
        return _EASIEST
    return tuple(family for family in FAMILIES for _ in range(_OFTEN.get(family, 1)))


def _said(reasoning: str, answer: str) -> str:
    return f"<think>{reasoning}</think><answer>{answer}</answer>"


def _sample(task: Task, case: Case, answer: str) -> BaseSample:
    question = task.template.replace("{instruction}", case.instruction)
    return BaseSample(tuple(scene.image for scene in case.scenes), question, _said(case.rationale, answer))


def neutral_sample(rng: np.random.Generator, pool: Pool, kind: str, family: str) -> BaseSample:
    """A neutral question and its true answer: of one picture, yes if any of its facts is asked for."""
    case = neutral_case(rng, pool, kind, family)
    return _sample(NEUTRAL_KINDS[kind], case, answer_word(kind, label_of(kind, case.told, enough=any)))


def judge_sample(rng: np.random.Generator, pool: Pool, task: str, *, verdict: str = "coin") -> BaseSample:
    """One of the judge's questions. `verdict`: "coin", judgements and answer drawn before anything else is, or "true".

    Raises ValueError for another `verdict` or an unknown task.
    """
    if verdict not in ("coin", "true"):
        raise ValueError(f"verdict {verdict!r} must be 'coin' or 'true'")
    kind, _ = form_of(task)
    labels = LABELS[kind]
    coin = draw_flags(rng, task, label=choose(rng, labels), variant=int(rng.integers(2)))
    case = draw_case(rng, pool, task, label=choose(rng, labels), variant=int(rng.integers(2)))
    if verdict == "coin":
        texts = [tuple(fact.words for fact in told) for told in case.told]
        case = case._replace(told=tuple(judged(words, flags) for words, flags in zip(texts, coin, strict=True)))
    return _sample(TASKS[task], case, answer_word(kind, label_of(kind, case.told)))


def _any_look(rng: np.random.Generator) -> str:
    return "sharp" if rng.random() < 0.35 else choose(rng, DEFECTS)


def _photo(rng: np.random.Generator, pool: Pool) -> Scene:
    order = "ordered" if rng.random() < 0.5 else choose(rng, DISORDERS)
    return photo_scene(rng, pool, look=_any_look(rng), order=order)


def _thing(rng: np.random.Generator, pool: Pool) -> Scene:
    return glyph_scene(rng, pool, (choose(rng, THINGS),), look=_any_look(rng))


def _two_things(rng: np.random.Generator, pool: Pool) -> Scene:
    first = choose(rng, THINGS)
    return glyph_scene(rng, pool, (first, other_thing(rng, first, THINGS)))


def _describe(scene: Scene) -> str:
    """Everything that varies in a scene of its kind, in the words of a reasoning."""
    if not scene.things:
        return f"{looks(scene)}, {parts(scene)}"
    return ", ".join(shows(scene) if len(scene.things) == 2 else (*shows(scene), looks(scene)))


def _description(rng: np.random.Generator, pool: Pool, pictures: int) -> BaseSample:
    draw = choose(rng, (_photo, _photo, _thing, _two_things))
    scenes = tuple(draw(rng, pool) for _ in range(pictures))
    return BaseSample(tuple(scene.image for scene in scenes), DESCRIBE[pictures], named([_describe(scene) for scene in scenes]))
