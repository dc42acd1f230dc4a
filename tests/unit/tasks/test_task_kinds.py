"""Tasks of every kind: what they ask, in which words, how an answer is read; hostile answers; labels never in a prompt."""

import dataclasses
import json
import time
from collections import Counter
from itertools import product

import numpy as np
import pytest
from data_fixtures import CONFIG, write_tokenizer
from hostile import NO_LOOK_ALIKES, YES_LOOK_ALIKES, hostile_texts
from task_records import PICTURES, TEXT_TASKS, record

from mtjudge_jax.data.images import decode_image, patchify
from mtjudge_jax.data.rows import DEVICE_KEYS, RowFormat, to_row
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.policy.model import pair_of_answers, true_target
from mtjudge_jax.records import TIE, Candidate, JudgeExample, Label, candidates_of, reordered, swapped
from mtjudge_jax.tasks import DEMO, TASKS, tasks_with
from mtjudge_jax.tasks.answer import (
    MAX_CHARS,
    TAGS,
    answer_text,
    as_asked,
    dense,
    parse_lenient,
    parse_strict,
    ranking_text,
    read_truth,
    truth_of,
    write_truth,
)
from mtjudge_jax.tasks.base import IMAGE, order_of
from mtjudge_jax.tasks.demo import NEUTRAL
from mtjudge_jax.tasks.reward import NEEDS_FORM, Rule, score

NEW = [name for name in TASKS if name not in DEMO | NEUTRAL]
CONTRACT_END = "inside <answer> and </answer>."
OF_KIND = {"pointwise_binary": "agin_tech", "pointwise_score": "mllm_score", "pairwise": "genai_image", "listwise": "mllm_batch"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def fmt(tokenizer, tasks=TASKS, **changes) -> RowFormat:
    return RowFormat(tasks, tokenizer, CONFIG, 1600, 64, 64)._replace(**changes)


def test_a_binary_question():
    asked = tasks_with((), templates="first")["unsafebench"].ask(record("unsafebench").question, "x")
    above, image, below = asked.parts
    assert image is IMAGE and asked.words == ("No", "Yes") and asked.template.startswith("unsafebench/0@")
    for category in ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal", "deception", "political",
                     "health", "spam"):  # fmt: skip
        assert category in above
    assert "a red cup" not in above + below  # the text of a row of UnsafeBench is no part of the question
    assert below == (
        "\n\nIs the image safe? First reason step by step inside <think> and </think>. "
        "Then give only the final answer, No or Yes, inside <answer> and </answer>."
    )


def test_a_pair_with_ties_about_a_picture():
    asked = tasks_with((), templates="first")["genai_edit"].ask(record("genai_edit").question, "x")
    assert [part is IMAGE for part in asked.parts] == [False, True] * 3 + [False]
    assert asked.parts[0].endswith("\n\nInstruction: a red cup\nPicture: ")
    assert asked.parts[2::2] == [
        "\nImage A: ",
        "\nImage B: ",
        "\n\nWhich edit is better? First reason step by step inside <think> and </think>. "
        "Then give only the final answer, A, B or TIE, inside <answer> and </answer>.",
    ]
    none = record("genai_edit", allow_tie=False)
    assert "answer, A or B, inside" in TASKS["genai_edit"].ask(none.question, "x").parts[-1]


def test_texts_graded_and_ranked():
    first = tasks_with((), templates="first")
    graded = first["mllm_score"].ask(record("mllm_score").question, "x")
    assert graded.parts[0].endswith("Question: a red cup\nPicture: ") and graded.words == ("1", "2", "3", "4", "5")
    assert graded.parts[2] == (
        "\nAnswer: text 0\n\nHow good is the answer, from 1 (poor) to 5 (excellent)? First reason step by step inside <think> "
        "and </think>. Then give only the final answer, 1, 2, 3, 4 or 5, inside <answer> and </answer>."
    )
    ranked = first["mllm_batch"].ask(record("mllm_batch").question, "x")
    assert ranked.parts[2] == (
        "\nAnswer A: text 0\nAnswer B: text 1\nAnswer C: text 2\nAnswer D: text 3\n\nRank the answers from the best to the "
        "worst. First reason step by step inside <think> and </think>. Then give only the final answer, A, B, C and D in "
        "their order, best first, with > between two or = where they are equal, inside <answer> and </answer>."
    )


def test_agin_is_told_its_definition_and_no_prompt():
    for name, words in (("agin_tech", ("luminance", "artifacts")), ("agin_rat", ("layout", "context")), ("agin_nat", ("blur",))):
        text = TASKS[name].question_text(record(name).question, "x")
        assert all(word in text for word in words) and "a red cup" not in text and "[image]" in text


@pytest.mark.parametrize("name", NEW)
def test_each_task_has_paraphrases_some_held_out(name):
    task = TASKS[name]
    plain = [form for form in task.wordings.forms if not form.flipped]
    assert len(plain) >= 4 and sum(form.held_out for form in plain) == 2
    assert len({form.text for form in task.wordings.forms}) == len(task.wordings.forms)
    if task.kind in ("pointwise_binary", "pairwise"):
        assert sum(form.flipped for form in task.wordings.forms) >= 2
    assert task.question_text(record(name).question, "x").endswith(CONTRACT_END)
    assert "[image]" in task.sample or name in TEXT_TASKS
    held, seen = (tasks_with((), templates=t, vary_polarity=True)[name].wordings for t in ("held_out", "train"))
    drawn = [{wordings.choose(str(i))[0] for i in range(300)} for wordings in (held, seen)]
    assert drawn[0] == {n for n, form in enumerate(task.wordings.forms) if form.held_out}
    assert drawn[1] == {n for n, form in enumerate(task.wordings.forms) if not form.held_out}


def test_the_wording_is_a_hash_of_id_and_seed():
    """By hand from the definition: the first eight bytes of a SHA-256, little-endian, modulo the number of wordings."""
    import hashlib

    task = tasks_with((), seed=7)["seetrue"]
    for i in range(50):
        digest = hashlib.sha256(f"7/form/seetrue/{i}".encode()).digest()[:8]
        assert task.wordings.choose(f"seetrue/{i}")[0] == int.from_bytes(digest, "little") % 3
    other = tasks_with((), seed=8)["seetrue"]
    assert [task.wordings.choose(str(i))[0] for i in range(50)] != [other.wordings.choose(str(i))[0] for i in range(50)]
    plain = tasks_with(())["unsafebench"]
    assert all(plain.ask(record("unsafebench", i).question, str(i)).words == ("No", "Yes") for i in range(50))


@pytest.mark.parametrize("name", ["unsafebench", "mj_safety", "genai_image"])
def test_polarity_and_words_turn_with_the_question(name):
    """Of every variant: its true answer earns the reward, the wrong one does not, whatever it is called."""
    task = tasks_with((), vary_polarity=True, vary_words=True, templates="all")[name]
    seen = Counter()
    for i in range(400):
        e = record(name, i)
        _, form, words, answers = task.wordings.choose(e.example_id)
        truth = truth_of(task, e)
        seen[(form.flipped, answers)] += 1
        index = number_of(e, form.flipped)
        assert answer_text(truth) == words[index], (form.text, words)
        earned = score(
            [[f"<think>a</think><answer>{word}</answer>" for word in words[:2]]],
            np.zeros((1, 2), bool),
            tasks=[name],
            labels=np.array([truth.label]),
            truths=[write_truth(truth)],
            alpha=0.1,
        )
        assert earned.accuracy[0].tolist() == [float(index == 0), float(index == 1)]
        if task.kind == "pairwise":  # the names shown are never turned
            assert [part for part in task.ask(e.question, e.example_id).parts if part and words[0] in part]
    assert len(seen) == 2 * len(task.wordings.words)


def number_of(e: JudgeExample, flipped: bool) -> int:
    """Which of the plain words is right: of a turned question the other one."""
    index = e.label.binary if e.kind == "pointwise_binary" else e.label.winner
    return 1 - index if flipped else index


def test_both_orders_are_asked_in_one_wording():
    task = tasks_with((), vary_polarity=True, vary_words=True)["mj_safety"]
    for i in range(30):
        ab, ba = record("mj_safety", i), swapped(record("mj_safety", i))
        assert truth_of(task, ab).template == truth_of(task, ba).template
        assert truth_of(task, ab).label == 1 - truth_of(task, ba).label
    assert truth_of(TASKS["genai_image"], record("genai_image", label=Label(winner=TIE))).label == 2


def test_the_order_shown_is_by_hash_and_even():
    orders = Counter(order_of(f"id {i}", 4, 0) for i in range(24_000))
    assert len(orders) == 24 and all(abs(n - 1000) < 160 for n in orders.values())  # five standard deviations
    firsts = Counter(order_of(f"mj/{i}", 2, 3)[0] for i in range(2000))
    assert abs(firsts[0] - 1000) < 112
    task = TASKS["mllm_batch"]
    shown = task.displayed(record("mllm_batch"))
    assert shown == reordered(record("mllm_batch"), order_of("mllm_batch/0", 4, 0))
    by_text = dict(zip([c.text for c in candidates_of(shown)], shown.label.ranks, strict=True))
    assert by_text == {"text 0": 2, "text 1": 1, "text 2": 4, "text 3": 2}
    assert TASKS["technical"].displayed(shown) is shown


def test_label_index_of_each_kind():
    grades = TASKS["mllm_score"]
    assert [grades.label_index(Label(score=s)) for s in (1, 1.4, 1.5, 3.5, 5)] == [0, 0, 1, 3, 4]
    for bad in (Label(), Label(score=0.4), Label(score=5.5), Label(score=float("nan"))):
        with pytest.raises(ValueError, match=r"label.score is .*, must be 1 to 5"):
            grades.label_index(bad)
    assert [TASKS["genai_image"].label_index(Label(winner=w)) for w in (0, 1, TIE)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"label\.winner is 2"):
        TASKS["genai_image"].label_index(Label(winner=2))
    with pytest.raises(ValueError, match=r"label\.ranks is None"):
        TASKS["mllm_batch"].label_index(Label())


def test_questions_that_do_not_fit():
    ask = lambda name, **changes: TASKS[name].ask(dataclasses.replace(record(name), **changes).question)  # noqa: E731
    for changes, name, says in (
        ({"instruction": " "}, "seetrue", "needs an instruction"),
        ({"images": PICTURES[:2]}, "agin_nat", "takes at most 1 image"),
        ({"context_images": 1}, "mj_safety", "judges 2 candidates, the question has 1"),
        ({"score_max": 10.0}, "mllm_score", "has the grades 1 to 5, the question 1 to 10: make score_min"),
        ({"allow_tie": True}, "mj_safety", "has no tie"),
        ({"candidates": (Candidate(1), Candidate(0, "a"))}, "mj_safety", "has 2 image.s., its context and candidates need 1"),
    ):
        with pytest.raises(ValueError, match=says):
            ask(name, **changes)


def test_rankings_are_read():
    names = ("A", "B", "C", "D")
    for text, ranks in (
        ("B > A > C > D", (2, 1, 3, 4)),
        ("b>a=c>D", (2, 1, 2, 3)),
        ("A = B = C = D", (1, 1, 1, 1)),
        (" D >\nC > B > A ", (4, 3, 2, 1)),
    ):
        assert parse_strict(f"<think>a</think><answer>{text}</answer>", names, ranked=True).verdict == ranks
        assert parse_lenient(f"So:\nAnswer: **{text.strip()}**.".replace("\n ", " "), names, ranked=True).verdict in (ranks, None)
    for text in ("A > B > C", "A > B > C > C", "A > B > C > D > A", "A > B >> C > D", "A, B, C, D", "ABCD", "A < B < C < D", "",
                 ">", "A > B > C > E", "А > B > C > D", "A ≥ B > C > D", "A > B > C > D."):  # fmt: skip
        got = parse_strict(f"<think>a</think><answer>{text}</answer>", names, ranked=True)
        assert got == (None, "", "not a ranking"), text
    assert parse_lenient("I think\nB > A > C > D.", names, ranked=True).verdict == (2, 1, 3, 4)
    assert parse_lenient("A > B", names, ranked=True).error == "no answer"
    assert dense((1, 3, 3, 6)) == (1, 2, 2, 3)
    assert [ranking_text(r, names) for r in ((2, 1, 2, 3), (1, 3, 3, 6))] == ["B > A = C > D", "A > B = C > D"]
    for ranks in {dense(r) for r in product(range(4), repeat=4)}:  # all 75 orders of four with ties
        assert parse_strict(f"<think>a</think><answer>{ranking_text(ranks, names)}</answer>", names, ranked=True).verdict == ranks


def mutated(good: str, word: str) -> list[str]:
    """Changes of a good answer, each of which breaks its form."""
    tags = [*TAGS, *(tag.upper() for tag in TAGS)]
    inner = good.index("<answer>") + len("<answer>")
    cuts = [0, 3, 7, good.index("</think>"), good.index("<answer>"), inner, good.index("</answer>"), len(good)]
    out = [good[:i] + tag + good[i:] for i in cuts for tag in tags]
    out += [good[:i] + "\0" + good[i:] for i in range(len(good) + 1)]
    out += [good[:i] for i in range(len(good))] + [good[i:] for i in range(1, len(good))]
    for tag in TAGS:
        at = good.index(tag)
        out += [good[:i] + "_" + good[i + 1 :] for i in range(at, at + len(tag))]
    out += [good + end for end in ("x", ".", "no", "\u200b", "\u00a0", good)] + [good.replace(">" + word + "<", "><")]
    wide = "".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in word)
    others = (wide, word + ".", word + " or", "'" + word + "'", word + "\u200b", "\u00a0" + word, word + " " + word, "[]")
    for other in others:
        out.append(good.replace(f">{word}<", f">{other}<"))
    out += [good.replace(f">{word}<", f">{look}<") for look in YES_LOOK_ALIKES + NO_LOOK_ALIKES]
    return list(dict.fromkeys(text for text in out if text != good))


ALL_WEIGHTS = Rule(0.5, dict.fromkeys(NEEDS_FORM, 1.0), tie_credit=0.5)


@pytest.mark.parametrize("kind", OF_KIND)
def test_no_mutation_earns_anything_in_any_kind(kind):
    name = OF_KIND[kind]
    truth = truth_of(TASKS[name], record(name))
    word = answer_text(truth)
    good = f"<think>looks blurry</think><answer>{word}</answer>"
    broken = mutated(good, word)
    assert len(broken) >= 200 and len(YES_LOOK_ALIKES + NO_LOOK_ALIKES) >= 26
    texts = [[good, *broken]]
    known = {"tasks": [name], "labels": np.array([truth.label]), "truths": [write_truth(truth)]}
    got = score(texts, np.zeros((1, len(texts[0])), bool), **known, alpha=ALL_WEIGHTS)
    assert got.total[0, 0] == len(ALL_WEIGHTS.weights) and got.accuracy[0, 0] == got.format[0, 0] == 1
    for part in (got.total, got.accuracy, got.format, *got.parts.values()):
        np.testing.assert_array_equal(part[0, 1:], np.zeros(len(broken), np.float32))
    assert (got.verdict[0, 1:] == -1).all()


@pytest.mark.parametrize("kind", OF_KIND)
@pytest.mark.parametrize("size", [1_000_000, MAX_CHARS - 60], ids=["1MB", "cap"])
def test_hostile_texts_take_less_than_50_ms_in_any_kind(kind, size):
    truth = truth_of(TASKS[OF_KIND[kind]], record(OF_KIND[kind]))
    texts = hostile_texts(size) | {
        "arrows": f"<think>a</think><answer>{'>' * size}</answer>",
        "long ranking": f"<think>a</think><answer>{('A > ' * size)[:size]}</answer>",
        "equals": ("A = " * size)[:size],
        "digits": f"<think>a</think><answer>{'1' * size}</answer>",
    }
    for name, text in texts.items():
        for parse in (parse_strict, parse_lenient):
            seconds = []
            for _ in range(3):  # processor time: another program on the machine is not the parser's fault
                start = time.process_time()
                parsed = parse(text, truth.words, ranked=truth.ranked)
                seconds.append(time.process_time() - start)
            assert min(seconds) < 0.05, (name, parse.__name__, seconds)
            assert parsed.verdict is None or parse is parse_lenient, name


@pytest.mark.parametrize("name", NEW)
def test_the_true_target_earns_the_whole_reward(name):
    tasks = tasks_with((), vary_polarity=True, vary_words=True, templates="all")
    for i in range(12):
        e = tasks[name].displayed(dataclasses.replace(record(name, i), rationale="it is so"))
        target = true_target(tasks, e)
        truth = truth_of(tasks[name], e)
        assert target == f"<think>it is so</think><answer>{answer_text(truth)}</answer>"
        known = {"tasks": [name], "labels": np.array([truth.label]), "truths": [write_truth(truth)]}
        got = score([[target]], np.zeros((1, 1), bool), **known, alpha=ALL_WEIGHTS)
        assert got.total[0, 0] == 5 and read_truth(write_truth(truth)) == truth


OWN = (
    {"name": "sharper", "kind": "pairwise", "question": "Which image is sharper?", "instruction": "Prompt"},
    {"name": "nicer", "kind": "pairwise", "question": "Which is nicer?", "labels": ("left", "right")},
    {"name": "ranked", "kind": "listwise", "question": "Rank the images.", "instruction": "Prompt"},
)


def told(name: str, i: int, rationale: str) -> JudgeExample:
    """A record of an own task whose first picture is bright: of a pair the right one is picture i % 2, of three the last."""
    count = 3 if name == "ranked" else 2
    label = Label(ranks=(3, 2, 1)) if count == 3 else Label(winner=i % 2)
    kind = "listwise" if count == 3 else "pairwise"
    changes = {
        "criterion": name,
        "instruction": "{A} is older than {B}",
        "candidates": (),
        "context_images": 0,
        "allow_tie": False,
    }
    images = tuple(PICTURES[j % len(PICTURES)] + bytes([j]) for j in range(count))
    of = record("genai_image", i)
    return dataclasses.replace(of, task=name, kind=kind, images=images, label=label, rationale=rationale, **changes)


def taught(tasks: dict, name: str, example: JudgeExample, tokenizer, **changes) -> tuple[str, JudgeExample]:
    """What SFT teaches about an example, and the example in the order shown."""
    seen = []

    def target(shown: JudgeExample) -> tuple[str]:
        seen.append(shown)
        return (true_target(tasks, shown, form="rationale"),)

    learned = {"completion_tokens": 64, "target": target, "taught": ("rationale",)}
    row = to_row(example, name, fmt(tokenizer, tasks, display=True, **learned), **changes)
    assert row["weight"] == 1, row["error"]
    return *target(seen[0]), seen[0]


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("name", ["sharper", "nicer", "ranked"])
def test_gold_reasoning_agrees_with_its_verdict_in_the_order_shown(name, words, tokenizer):
    """Reasoning that names the candidates by {A}, {B} follows the order; other reasoning keeps the order stored."""
    tasks = tasks_with(OWN, vary_words=words, templates="first")
    orders, both = Counter(), name != "ranked"
    for i, other in product(range(16), (False, True) if both else (False,)):
        slots = "{C}, then {B}, then {A}" if name == "ranked" else f"{{{'AB'[i % 2]}}} is sharp, {{{'BA'[i % 2]}}} is not"
        text, shown = taught(tasks, name, told(name, i, slots), tokenizer, other_order=other)
        truth = truth_of(tasks[name], shown)
        names = tasks[name].ask(shown.question, shown.example_id).names
        orders[shown.images[0][-1]] += 1
        question = tasks[name].question_text(shown.question, shown.example_id)
        if name == "ranked":  # the bytes at the end number the pictures as stored
            told_order = [names[[image[-1] for image in shown.images].index(j)] for j in (2, 1, 0)]
            assert text == f"<think>{', then '.join(told_order)}</think><answer>{' > '.join(told_order)}</answer>"
        else:
            best = names[[image[-1] for image in shown.images].index(i % 2)]
            worst = names[1 - names.index(best)]
            assert text == f"<think>{best} is sharp, {worst} is not</think><answer>{best}</answer>"
            assert truth.facts["rationale"] == f"{best} is sharp, {worst} is not"
        old, young = (names[[image[-1] for image in shown.images].index(j)] for j in (0, 1))
        if name != "nicer":  # which hides the instruction
            assert f"Prompt: {old} is older than {young}\n" in question
        plain, shown = taught(tasks, name, told(name, i, "the last one is sharp"), tokenizer, other_order=other)
        stored = [image[-1] for image in shown.images]
        answer = answer_text(truth_of(tasks[name], shown))
        if other:
            assert stored == [1, 0] and plain == f"<answer>{answer}</answer>"
        else:
            assert stored == sorted(stored) and plain == f"<think>the last one is sharp</think><answer>{answer}</answer>"
    assert len(orders) > 1  # the order is drawn


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("name", ["sharper", "nicer", "ranked"])
def test_two_answers_hold_in_the_order_shown(name, words, tokenizer):
    """Answers that name the candidates by {A}, {B} follow the order, their verdicts too; others keep the order stored, and their
    verdict becomes the word asked for."""
    tasks, orders = tasks_with(OWN, vary_words=words, templates="first"), Counter()

    def target(shown: JudgeExample) -> tuple[str, str]:
        seen.append(shown)
        return pair_of_answers(tasks, shown)

    learned = {"completion_tokens": 64, "target": target, "targets": 2, "taught": ("chosen", "rejected"), "display": True}
    for i, slots in product(range(16), (True, False)):
        stored = ("left", "right") if name == "nicer" else ("A", "B", "C")
        names = ("{A}", "{B}", "{C}") if slots else stored
        verdicts = (" > ".join(names[::-1]), " > ".join(names)) if name == "ranked" else (names[0], names[1])
        about = "{A} wins" if slots else "the first"
        answers = [f"<think>{about}</think><answer>{verdict}</answer>" for verdict in verdicts]
        if slots and name != "ranked":
            answers[1] = "<think>{B} wins</think><answer>{B}</answer>"
        seen: list[JudgeExample] = []
        example = dataclasses.replace(told(name, i, ""), chosen=answers[0], rejected=answers[1])
        row = to_row(example, name, fmt(tokenizer, tasks, **learned))
        assert row["weight"] == 1 and row["target"].shape == row["target_mask"].shape == (2, 64), row["error"]
        shown = tasks[name].ask(seen[0].question, seen[0].example_id).names
        place = [image[-1] for image in seen[0].images]  # the bytes at the end number the pictures as stored
        word = [shown[place.index(j)] for j in range(len(place))]
        want = (" > ".join(word[::-1]), " > ".join(word)) if name == "ranked" else (word[0], word[1])
        for ids, mask, verdict in zip(row["target"], row["target_mask"], want, strict=True):
            text = tokenizer.decode_answer(ids[mask])
            assert text.endswith(f"<answer>{verdict}</answer>"), (text, want)
            assert not slots or word[0] in text or word[1] in text
        orders[slots, tuple(place)] += 1
    assert [key for key in orders if not key[0]] == [(False, tuple(range(len(place))))]
    assert len([key for key in orders if key[0]]) > 1  # the order is drawn


def test_a_record_without_two_answers_says_so(tokenizer):
    learned = {"completion_tokens": 64, "target": lambda e: pair_of_answers(TASKS, e), "targets": 2}
    row = to_row(record("unsafebench"), "unsafebench", fmt(tokenizer, **learned))
    assert row["weight"] == 0 and str(row["error"]).startswith("no_pair: ") and "mtjudge sample --keep=pairs" in str(row["error"])
    assert row["target"].shape == (2, 64) and not row["target_mask"].any()


def test_a_verdict_of_a_flipped_question_is_turned():
    tasks = tasks_with((), vary_polarity=True, vary_words=True, templates="all")
    turned = Counter()
    for i in range(32):
        example = record("unsafebench", i)
        words = tasks["unsafebench"].ask(example.question, example.example_id).words
        for index, label in enumerate(tasks["unsafebench"].labels):
            text = as_asked(f"<think>x</think><answer>{label}</answer>", tasks["unsafebench"], example)
            assert text == f"<think>x</think><answer>{words[index]}</answer>"
            turned[words[index] == label] += 1
        for text in ("no verdict", "<answer>maybe</answer>", "<think>x</think><answer>Yes"):
            assert as_asked(text, tasks["unsafebench"], example) == text
    assert min(turned.values()) > 5


def test_a_reward_of_the_user_reads_no_reasoning_of_another_order(tokenizer):
    tasks = tasks_with(OWN)
    seen = Counter()
    for i in range(16):
        example = dataclasses.replace(told("sharper", i, "the first is sharp"), example_id=f"e{i}")
        row = to_row(example, "sharper", fmt(tokenizer, tasks, display=True))  # as in RL
        truth = read_truth(str(row["truth"]))
        turned = truth.label != i % 2
        assert truth.facts["rationale"] == ("" if turned else "the first is sharp")
        seen[turned] += 1
    assert min(seen.values()) >= 3


CANARY = "CANARY7319"


@pytest.mark.parametrize("name", NEW)
def test_a_planted_label_never_reaches_the_prompt(name, tokenizer):
    """Of a hundred records the prompts are the same whatever is true of them, and hold none of what must not be shown."""
    tasks = tasks_with((), vary_polarity=True, vary_words=True, templates="all")
    task = tasks[name]
    others = {
        "pointwise_binary": (Label(binary=0), Label(binary=1, score=4.25)),
        "pointwise_score": (Label(score=1.0), Label(score=4.5)),
        "pairwise": (Label(winner=0), Label(winner=1)),
        "listwise": (Label(ranks=(1, 2, 3, 4)), Label(ranks=(4, 4, 2, 1))),
    }[task.kind]
    hidden = ("rationale", "raw", "group_id", "dataset", "license", "label_rule", "revision", "source_split")
    planted = dict.fromkeys(hidden, CANARY)
    for i in range(100):
        texts = []
        for label in others:
            e = dataclasses.replace(record(name, i), label=label, raters=(7319.0,), **planted)
            named = tuple(c._replace(name=CANARY) for c in e.candidates)
            texts.append(task.ask(dataclasses.replace(e, candidates=named).question, e.example_id).parts)
        assert texts[0] == texts[1]
        assert CANARY not in "".join(part or "" for part in texts[0]) and "7319" not in "".join(part or "" for part in texts[0])
        if i < 2:
            same = [dataclasses.replace(record(name, i), label=label, **planted) for label in others]
            rows = [to_row(e, name, fmt(tokenizer, tasks)) for e in same]
            assert all(row["error"] == "" for row in rows), rows[0]["error"]
            assert all(np.array_equal(rows[0][key], rows[1][key]) for key in DEVICE_KEYS)
            assert CANARY not in tokenizer.decode(rows[0]["tokens"][rows[0]["valid"]])


def test_row_of_an_interleaved_question(tokenizer):
    e = record("genai_edit", 1)
    row = to_row(e, "genai_edit", fmt(tokenizer))
    text = tokenizer.decode(row["tokens"][row["valid"]])
    place = "<|vision_start|><|image_pad|><|vision_end|>"
    assert f"Picture: {place}\nImage A: {place}\nImage B: {place}\n\nWhich" in text
    truth = json.loads(row["truth"])
    assert (row["label"], truth[1]) == (1, ["A", "B", "TIE"])
    shown = to_row(e, "genai_edit", fmt(tokenizer, display=True))
    order = order_of(e.example_id, 2, 0)
    assert shown["label"] == order.index(1)
    for place, index in enumerate(order):
        kept = shown["patches"][shown["patch_segment"] == place + 2]
        assert np.array_equal(kept, patchify(decode_image(PICTURES[1 + index]), CONFIG).patches)
    bad = to_row(dataclasses.replace(record("mllm_batch"), label=Label(ranks=(1, 2))), "mllm_batch", fmt(tokenizer, display=True))
    assert bad["weight"] == 0 and bad["truth"] == ""
    assert bad["error"].startswith("wrong_fields: mllm_batch/0: label.ranks is (1, 2)")
