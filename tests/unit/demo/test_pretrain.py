"""What the demo's base is taught: neutral questions with true answers, and judgements from a coin."""

import re
from collections import Counter

import numpy as np
import pytest

from mtjudge_jax.demo import cases, dataset, neutral, scenes
from mtjudge_jax.demo.pretrain import corpus
from mtjudge_jax.demo.pretrain.make_base import alike
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.answer import parse_strict
from mtjudge_jax.tasks.base import CONTRACTS
from mtjudge_jax.tasks.demo import ANSWERS, DEMO, LISTED


@pytest.fixture(scope="module")
def pool():
    return scenes.load_pool("train")


def words_of(answer: str) -> tuple[list[str], str]:
    """The judgements of a sample's facts, and its answer."""
    return re.findall(r": (yes|no)\b", answer), answer.partition("<answer>")[2].removesuffix("</answer>")


@pytest.mark.parametrize("task", cases.DEMO_TASKS)
def test_coin_verdicts_do_not_depend_on_the_label(task, pool, monkeypatch):
    """With the same generator every label of the pictures gets the same judgements and the same answer."""
    draw, labels = cases.draw_case, cases.LABELS[cases.form_of(task)[0]]
    found, truths = [], []
    for label in labels:
        monkeypatch.setattr(corpus, "draw_case", lambda *args, label, variant, forced=label: draw(*args, label=forced, variant=0))
        found.append([words_of(corpus.judge_sample(np.random.default_rng(seed), pool, task).answer) for seed in range(30)])
        truths.append([corpus.judge_sample(np.random.default_rng(seed), pool, task, verdict="true").answer for seed in range(3)])
    assert all(one == found[0] for one in found)
    answers = Counter(answer for _, answer in found[0])
    assert len(answers) >= 2 and max(answers.values()) <= 24
    assert len({words_of(text)[1] for texts in truths for text in texts}) >= len(labels)  # true ones do depend on it


def test_coins_are_fair():
    """4000 flips within 3 sigma of one half, of a binary question and of a pair."""
    for task in ("naturalness", "pairwise_safety"):
        kind = cases.form_of(task)[0]
        rng, counts = np.random.default_rng(0), Counter()
        for _ in range(4000):
            flags = cases.draw_flags(rng, task, label=int(rng.integers(2)), variant=int(rng.integers(2)))
            told = tuple(cases.judged(("x",) * len(good), good) for good in flags)
            counts[cases.answer_word(kind, cases.label_of(kind, told))] += 1
        assert set(counts) == set(ANSWERS[kind]) and abs(counts[ANSWERS[kind][0]] - 2000) < 3 * np.sqrt(1000)


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("family", neutral.FAMILIES)
def test_a_neutral_answer_is_true_of_its_pictures(kind, family, pool):
    """The answer by what the pictures show, not by what is told of them."""
    rng, answers = np.random.default_rng(3), Counter()
    for _ in range(40):
        case = neutral.neutral_case(rng, pool, kind, family)
        holds = [sum(true_of(clause, scene) for clause in clauses(kind, case.instruction)) for scene in case.scenes]
        sample = cases.answer_word(kind, cases.label_of(kind, case.told, enough=any))
        assert sample == wanted_answer(kind, holds), (case.instruction, case.rationale)
        assert kind != "pairwise" or holds[0] != holds[1]
        answers[sample] += 1
    assert len(answers) >= (3 if kind in ("pointwise_score", "listwise") else 2) and max(answers.values()) <= 30


def wanted_answer(kind: str, holds: list[int]) -> str:
    """Of the number of asked facts that hold in each picture."""
    if kind == "listwise":
        levels = [[n for n, h in zip(LISTED, holds, strict=True) if h == level] for level in sorted(set(holds), reverse=True)]
        return " > ".join(" = ".join(names) for names in levels)
    if kind == "pairwise":
        return "first" if holds[0] > holds[1] else "second"
    return str(1 + 2 * holds[0]) if kind == "pointwise_score" else "yes" if holds[0] else "no"


def clauses(kind: str, question: str) -> list[str]:
    start = neutral.ASKS[kind].partition("{0}")[0]
    return question.removeprefix(start).removesuffix("?").split(" and ")


def true_of(clause: str, scene: scenes.Scene) -> bool:
    """Whether "looks dark", "has parts shuffled", "matches a dog", "differs from a dog", "has a dog" or "has animals" holds."""
    word = clause.split()[-1]
    if clause.startswith("looks "):
        return scene.look == word
    if clause.startswith("has parts "):
        return scene.order == word
    if clause.startswith(("matches", "differs")):
        return (scene.things == (word,)) == clause.startswith("matches")
    return bool(set(neutral.THING_KINDS.get(word, (word,))) & set(scene.things))


def test_neutral_questions_favour_no_value(pool):
    """Sharp is asked for as often as each defect, and holds as often: nothing says that it is the good one."""
    rng, asked, held = np.random.default_rng(5), Counter(), Counter()
    for _ in range(1200):
        case = neutral.neutral_case(rng, pool, "pointwise_binary", "look")
        word = case.instruction.removesuffix("?").split()[-1]
        asked[word] += 1
        held[word] += case.scenes[0].look == word
    assert set(asked) == set(scenes.LOOKS) and all(abs(n - 200) < 4 * np.sqrt(200 * 5 / 6) for n in asked.values())
    assert all(abs(held[word] - n / 2) < 4 * np.sqrt(n / 4) for word, n in asked.items())
    with pytest.raises(ValueError, match="family 'taste' is not one of look, order"):
        neutral.neutral_case(rng, pool, "pairwise", "taste")


def test_the_pairs_of_a_run_are_neutral():
    """They ask for a fact in its own words, any of its values as often, and either picture wins as often."""
    asked = {
        "pairwise_looks": rf"looks ({'|'.join(scenes.LOOKS)})|has parts ({'|'.join(scenes.ORDERS)})",
        "pairwise_things": rf"(?:matches|differs from|has) an? ({'|'.join(scenes.THINGS)})|has ({'|'.join(neutral.THING_KINDS)})",
    }
    for task, clause in asked.items():
        examples = list(dataset.make_examples(split="train", task=task, count=120, seed=0))
        found = [re.fullmatch(rf"Which picture (?:{clause})\?", e.instruction).groups() for e in examples]
        values, others = (Counter(group for group in groups if group) for groups in zip(*found, strict=True))
        assert max(values.values()) < 25 and max(others.values()) < 35 and sum((values + others).values()) == 120
        for example in examples:
            yes = [text.count(": yes") for text in example.rationale.split(", second ")]
            assert (yes[1] > yes[0], len(example.images)) == (bool(example.label.winner), 2) and min(yes) == 0
        assert Counter(example.label.winner for example in examples) == {0: 60, 1: 60}
        assert not TASKS[task].ood and not TASKS[task].single


@pytest.mark.parametrize("pictures", [1, 2, 4])
def test_the_mix_has_its_shares(pictures, pool):
    rng = np.random.default_rng(2)
    samples = [corpus.base_sample(rng, pool, pictures=pictures) for _ in range(400)]
    described = sum(s.question in corpus.DESCRIBE.values() for s in samples) / 400
    judged = re.compile("|".join(re.escape(task.template).replace(r"\{instruction\}", r"an? \w+") for task in DEMO.values()))
    asked = [s for s in samples if s.question not in corpus.DESCRIBE.values() and not judged.fullmatch(s.question)]
    assert abs(described - corpus.DESCRIBED[pictures]) < 0.08
    assert abs(len(asked) / 400 - corpus.ASKED[pictures]) < 0.08
    assert {len(s.images) for s in samples} == {pictures}
    assert {image.shape for s in samples for image in s.images} == {(96, 96, 3)}
    for sample in samples:
        if "Think, then" not in sample.question:
            continue
        kind = next(k for k, c in CONTRACTS.items() if sample.question.endswith(c))
        parsed = parse_strict(sample.answer, LISTED if kind == "listwise" else ANSWERS[kind], ranked=kind == "listwise")
        assert not parsed.error
    with pytest.raises(ValueError, match="'coin' or 'true'"):
        corpus.judge_sample(rng, pool, "safety", verdict="heads")


def test_queries_begin_as_the_keys_of_their_group():
    """Of 4 queries and 2 keys a layer, query n as key n // 2; all else stays."""
    rng = np.random.default_rng(0)
    layers = {"q_ldnh": rng.normal(size=(3, 5, 4, 6)), "k_ldkh": rng.normal(size=(3, 5, 2, 6)), "o_lnhd": np.ones(2)}
    params = {"text": {"layers": layers, "embed_vd": np.ones(3)}, "vision": np.ones(1)}
    made = alike(params)
    for n in range(4):
        np.testing.assert_array_equal(made["text"]["layers"]["q_ldnh"][:, :, n], layers["k_ldkh"][:, :, n // 2])
    assert made["text"]["layers"]["o_lnhd"] is layers["o_lnhd"] and made["vision"] is params["vision"]
    assert made["text"]["embed_vd"] is params["text"]["embed_vd"] and params["text"]["layers"] is layers


def test_the_easiest_questions_come_first():
    assert corpus.families("pairwise", 300) == ("look", "order", "match")
    later = Counter(corpus.families("pairwise", 301))
    assert later == {"look": 1, "order": 1, "match": 1, "thing": 2, "kind": 2}
    assert corpus.families("listwise", 10**6) == ("look", "order", "match")
