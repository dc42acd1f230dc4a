"""Questions with true answers about facts that nobody judges: which picture looks dark, is there a dog.

From these the base learns what an answer means, in every form of question: that "yes" after a fact says that it is what is asked
for, and that "first" names the picture with such a fact. RL goes on with the pairs, so that it does not forget that. They ask for
any value with equal chance ("sharp" as well as "dark"), so nothing in them says which values are good.
"""

from collections.abc import Callable

import numpy as np

from mtjudge_jax.demo.cases import Case, Fact, Told, compares, looks, other_thing, parts, phrase, shows
from mtjudge_jax.demo.scenes import DEFECTS, LOOKS, ORDERS, THINGS, Pool, Scene, choose, glyph_scene, photo_scene
from mtjudge_jax.tasks.demo import LISTED

THING_KINDS = {
    "animals": ("bird", "cat", "dog", "fish"),
    "plants": ("apple", "flower", "tree"),
    "vehicles": ("boat", "car"),
    "drinks": ("beer", "cup", "wineglass"),
    "weapons": ("axe", "bomb", "knife"),
}
_COMPARED = ("matches", "differs")
# What can be asked of a picture. Those of two things are harder: a question has to be held against both.
FAMILIES = ("look", "order", "match", "thing", "kind")
PAIRS = {"pairwise_looks": ("look", "order"), "pairwise_things": ("match", "thing", "kind")}  # families of the trained tasks
ASKS = {
    "pointwise_binary": "Is it right that this picture {0}?",
    "pairwise": "Which picture {0}?",
    "pointwise_score": "How far is it right that this picture {0} and {1}?",
    "listwise": "How far is it right that each picture {0}?",
}


def neutral_case(rng: np.random.Generator, pool: Pool, kind: str, family: str, *, winner: int | None = None) -> Case:
    """A case of a kind of question; its instruction is the whole question but for the demand for an answer.

    The answer is drawn: yes and no, first and second, each grade, one to three of four pictures with equal chance. winner: 0 or
    1, the answer of a pair in place of the drawn one. `family` is one of FAMILIES; a graded question asks for two facts at once,
    whatever the family. Raises ValueError for an unknown one.
    """
    if family not in FAMILIES:
        raise ValueError(f"family {family!r} is not one of {', '.join(FAMILIES)}")
    if kind == "pointwise_score":
        return _graded(rng, pool)
    draw, clause = _FAMILY[family](rng)
    if kind == "pairwise":
        toss = int(rng.integers(2))
        better = toss if winner is None else winner
        right = (not better, bool(better))
    elif kind == "listwise":
        right = tuple(bool(one) for one in rng.permutation(len(LISTED)) <= rng.integers(len(LISTED) - 1))
    else:
        right = (bool(rng.integers(2)),)
    drawn = [draw(pool, one) for one in right]
    return Case(tuple(scene for scene, _ in drawn), ASKS[kind].format(clause), tuple(told for _, told in drawn))


_Draw = Callable[[Pool, bool], tuple[Scene, Told]]  # a scene of which the asked is true or not, and what is told of it


def _look_but(rng: np.random.Generator, asked: str, right: bool) -> str:
    if right:
        return asked
    return "sharp" if asked != "sharp" and rng.random() < 0.35 else choose(rng, tuple(d for d in DEFECTS if d != asked))


def _order_but(rng: np.random.Generator, asked: str, right: bool) -> str:
    return asked if right else choose(rng, tuple(order for order in ORDERS if order != asked))


def _look(rng: np.random.Generator) -> tuple[_Draw, str]:
    asked, plain = choose(rng, LOOKS), rng.random() < 0.6

    def draw(pool: Pool, right: bool) -> tuple[Scene, Told]:
        look = _look_but(rng, asked, right)
        scene = photo_scene(rng, pool, look=look) if plain else glyph_scene(rng, pool, (choose(rng, THINGS),), look=look)
        return scene, (Fact(looks(scene), right),)

    return draw, f"looks {asked}"


def _order(rng: np.random.Generator) -> tuple[_Draw, str]:
    asked = choose(rng, ORDERS)

    def draw(pool: Pool, right: bool) -> tuple[Scene, Told]:
        scene = photo_scene(rng, pool, order=_order_but(rng, asked, right))
        return scene, (Fact(parts(scene), right),)

    return draw, f"has parts {asked}"


def _clause(word: str, wanted: str) -> str:
    return f"{word}{' from' if word == 'differs' else ''} {phrase(wanted)}"


def _match(rng: np.random.Generator) -> tuple[_Draw, str]:
    wanted, asked = choose(rng, THINGS), choose(rng, _COMPARED)

    def draw(pool: Pool, right: bool) -> tuple[Scene, Told]:
        thing = wanted if right == (asked == "matches") else other_thing(rng, wanted, THINGS)
        scene = glyph_scene(rng, pool, (thing,))
        return scene, (Fact(compares(scene, wanted), right),)

    return draw, _clause(asked, wanted)


def _two_of(rng: np.random.Generator, pool: Pool, asked: tuple[str, ...], right: bool) -> tuple[Scene, Told]:
    """Two things, one of which is among the asked if it is right, else none."""
    others = tuple(thing for thing in THINGS if thing not in asked)
    first = choose(rng, asked if right else others)
    things = (first, other_thing(rng, first, others))
    scene = glyph_scene(rng, pool, things if rng.random() < 0.5 else things[::-1])
    return scene, tuple(Fact(words, thing in asked) for words, thing in zip(shows(scene), scene.things, strict=True))


def _thing(rng: np.random.Generator) -> tuple[_Draw, str]:
    asked = choose(rng, THINGS)
    return lambda pool, right: _two_of(rng, pool, (asked,), right), f"has {phrase(asked)}"


def _kind(rng: np.random.Generator) -> tuple[_Draw, str]:
    asked = choose(rng, tuple(THING_KINDS))
    return lambda pool, right: _two_of(rng, pool, THING_KINDS[asked], right), f"has {asked}"


_FAMILY: dict[str, Callable[[np.random.Generator], tuple[_Draw, str]]] = {
    "look": _look,
    "order": _order,
    "match": _match,
    "thing": _thing,
    "kind": _kind,
}


def _graded(rng: np.random.Generator, pool: Pool) -> Case:
    """A photograph by its look and its order, or a thing by its name and its look: none, one or both as asked."""
    right = tuple(bool(one) for one in rng.permutation(2) < rng.integers(3))
    asked = choose(rng, LOOKS)
    if rng.random() < 0.5:
        order = choose(rng, ORDERS)
        scene = photo_scene(rng, pool, look=_look_but(rng, asked, right[0]), order=_order_but(rng, order, right[1]))
        clauses, texts = (f"looks {asked}", f"has parts {order}"), (looks(scene), parts(scene))
    else:
        wanted, word = choose(rng, THINGS), choose(rng, _COMPARED)
        thing = wanted if right[0] == (word == "matches") else other_thing(rng, wanted, THINGS)
        scene = glyph_scene(rng, pool, (thing,), look=_look_but(rng, asked, right[1]))
        clauses, texts = (_clause(word, wanted), f"looks {asked}"), (compares(scene, wanted), looks(scene))
    told = tuple(Fact(words, one) for words, one in zip(texts, right, strict=True))
    return Case((scene,), ASKS["pointwise_score"].format(*clauses), (told,))
