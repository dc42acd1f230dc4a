"""Tasks, parsers and rewards: exact wording, what the strict form refuses, and how long a hostile text takes."""

import dataclasses
import subprocess
import sys
import time
from itertools import pairwise, permutations

import pytest
from hostile import GOOD, NO_LOOK_ALIKES, REASONING, YES_LOOK_ALIKES, hostile_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from mtjudge_jax.records import Label, Question
from mtjudge_jax.tasks import DEMO, TASKS, Task, get_task
from mtjudge_jax.tasks.answer import MAX_CHARS, TAGS, parse_lenient, parse_strict
from mtjudge_jax.tasks.base import CONTRACTS, RANKING, without_contract
from mtjudge_jax.tasks.reward import reward_of

NO_YES = ("no", "yes")
THINK, THINK_END, ANSWER, ANSWER_END = TAGS


def question(kind="pointwise_binary", images=1, instruction="a dog"):
    return Question("any", "any", kind, instruction, (b"image",) * images)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("technical", "Is it right that this picture has good technical quality? Think, then answer yes or no."),
        ("rationality", "Is it right that this picture has a sensible order? Think, then answer yes or no."),
        ("naturalness", "Is it right that this picture looks natural? Think, then answer yes or no."),
        ("alignment", "Is it right that this picture shows a dog? Think, then answer yes or no."),
        ("preference", "Is it right that this picture is a good one of a dog? Think, then answer yes or no."),
        (
            "safety",
            "Is it right that this picture is safe? Weapons, tobacco and alcohol are not. Think, then answer yes or no.",
        ),
        ("pairwise_technical", "Which picture has good technical quality? Think, then answer first or second."),
        ("pairwise_alignment", "Which picture shows a dog? Think, then answer first or second."),
        (
            "pairwise_safety",
            "Which picture is safe? Weapons, tobacco and alcohol are not. Think, then answer first or second.",
        ),
        (
            "graded_naturalness",
            "How far is it right that this picture looks natural? Think, then answer with a grade from 1 to 5.",
        ),
        (
            "graded_preference",
            "How far is it right that this picture is a good one of a dog? Think, then answer with a grade from 1 to 5.",
        ),
        (
            "ranked_technical",
            "How far is it right that each picture has good technical quality? "
            "Think, then answer with the order of A, B, C and D.",
        ),
        (
            "ranked_alignment",
            "How far is it right that each picture shows a dog? Think, then answer with the order of A, B, C and D.",
        ),
    ],
)
def test_question_text_of_each_task(name, text):
    task = TASKS[name]
    fitting = question(task.kind, {"pairwise": 2, "listwise": 4}.get(task.kind, 1))
    if task.kind == "pointwise_score":
        fitting = fitting._replace(score_min=1.0, score_max=5.0)
    assert task.question_text(fitting) == text
    assert without_contract(text) + " " + CONTRACTS[task.kind] == text


# The demo's numbers depend on these: its model knows the words of its questions only.
DEMO_HASHES = {
    "technical": "2f4d77dec6447c40",
    "rationality": "0de6f4d33529afea",
    "naturalness": "4da7dfdeebf55ebb",
    "alignment": "920a9326cef36933",
    "preference": "6bd138b67d7cd55c",
    "safety": "eeea980cddffcd23",
    "pairwise_technical": "0097ffbd8c5c6801",
    "pairwise_alignment": "1f6341cb56b50268",
    "pairwise_safety": "a57b7394f65cf640",
    "graded_naturalness": "d8a1b0f2152be537",
    "graded_preference": "56723ae467d497fb",
    "ranked_technical": "bcf9e10bc37cdf00",
    "ranked_alignment": "907a3cc2df24225a",
}


def test_table_of_tasks():
    assert {name: task.template_hash for name, task in DEMO.items()} == DEMO_HASHES
    words = {"pointwise_binary": NO_YES, "pairwise": ("first", "second"), "pointwise_score": tuple("12345"), "listwise": RANKING}
    for task in DEMO.values():
        assert task.labels == words[task.kind]
        assert task.ood == (task.kind != "pointwise_binary")
    assert len(TASKS) == 35 and all(task.name == name for name, task in TASKS.items())
    assert len({task.template_hash for task in TASKS.values()}) == 32  # three are asked like another


def test_template_hash_changes_with_wording_and_answers():
    task = TASKS["safety"]
    assert task.template_hash == dataclasses.replace(task, name="other").template_hash
    assert task.template_hash != dataclasses.replace(task, template=task.template + " ").template_hash
    assert task.template_hash != dataclasses.replace(task, labels=("unsafe", "safe")).template_hash


def test_question_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"asks pointwise_binary questions, got 'pairwise'"):
        TASKS["technical"].question_text(question("pairwise", 2))
    for images in (0, 2):
        with pytest.raises(ValueError, match=rf"'technical' needs exactly 1 image\(s\), the question has {images}"):
            TASKS["technical"].question_text(question(images=images))
    for images in (0, 1, 3):
        with pytest.raises(ValueError, match=rf"needs exactly 2 .* has {images}"):
            TASKS["pairwise_safety"].question_text(question("pairwise", images))
    for images in (3, 5):
        with pytest.raises(ValueError, match=rf"'ranked_technical' needs exactly 4 image\(s\), the question has {images}"):
            TASKS["ranked_technical"].question_text(question("listwise", images))
    with pytest.raises(ValueError, match="'graded_naturalness' has the grades 1 to 5, the question none"):
        TASKS["graded_naturalness"].question_text(question("pointwise_score"))
    with pytest.raises(ValueError, match="'alignment' needs an instruction"):
        TASKS["alignment"].question_text(question(instruction=" "))


def test_instruction_is_text_not_a_format_string():
    text = TASKS["alignment"].question_text(question(instruction="{0} {labels} {instruction}"))
    assert text == "Is it right that this picture shows {0} {labels} {instruction}? Think, then answer yes or no."


def test_label_index():
    assert [TASKS["technical"].label_index(Label(binary=i)) for i in (0, 1)] == [0, 1]
    assert [TASKS["pairwise_safety"].label_index(Label(winner=i)) for i in (0, 1)] == [0, 1]
    for bad in (Label(), Label(winner=1), Label(binary=2), Label(binary=-1)):
        with pytest.raises(ValueError, match=r"label.binary is .*, must be 0 to 1"):
            TASKS["technical"].label_index(bad)
    with pytest.raises(ValueError, match=r"label.winner is -1"):
        TASKS["pairwise_safety"].label_index(Label(winner=-1))


def test_ill_defined_task_is_refused():
    with pytest.raises(ValueError, match="kind 'ranked' is not one of pointwise_binary, pointwise_score, pairwise, listwise"):
        Task(name="t", kind="ranked", template="?")
    for count in (0, 1, 27):
        with pytest.raises(ValueError, match=f"needs wordings, or with a template .* max_images is {count}, must be 2 to 26"):
            Task(name="t", kind="listwise", template="?", labels=RANKING, max_images=count)
    for labels in (("yes",), ("Yes", "yes"), ("nо", "yes"), ("", "yes")):
        with pytest.raises(ValueError, match="must be two or more different ASCII words"):
            Task(name="t", kind="pairwise", template="?", labels=labels)


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown task 'saftey', did you mean 'safety'\?; docs/"):
        get_task("saftey")
    with pytest.raises(ValueError, match=r"unknown task 'xyzzy': known are technical, .* and \d+ more; docs/tasks_and"):
        get_task("xyzzy")
    assert get_task("safety") is TASKS["safety"]


@pytest.mark.parametrize("label", ["no", "No", "NO", " no\n", "\tnO "])
def test_strict_accepts_the_form(label):
    assert parse_strict(f"<think>{REASONING}</think><answer>{label}</answer>", NO_YES) == (0, REASONING, "")
    assert parse_strict(f" \n<think>\n{REASONING}\n</think>\n\n<answer>{label}</answer>\r\n", NO_YES) == (0, REASONING, "")


def test_strict_reads_every_label():
    labels = ("A", "B", "tie")
    for i, word in enumerate(labels):
        assert parse_strict(f"<think>it 1 < 2 > 0 & é 犬</think><answer>{word}</answer>", labels).verdict == i


def mutations() -> list[str]:
    """Distinct changes of GOOD, each of which breaks the form."""
    tags = [*TAGS, *(tag.upper() for tag in TAGS)]
    cuts = [0, 3, 7, 15, GOOD.index(THINK_END), GOOD.index(ANSWER), GOOD.index(ANSWER) + 9, GOOD.index(ANSWER_END), len(GOOD)]
    out = [GOOD[:i] + tag + GOOD[i:] for i in cuts for tag in tags]
    out += [GOOD[:i] + "\0" + GOOD[i:] for i in range(len(GOOD) + 1)]
    out += [GOOD[:i] for i in range(len(GOOD))] + [GOOD[i:] for i in range(1, len(GOOD))]
    for tag in TAGS:  # each character of each tag dropped, widened, in capitals or replaced
        at = GOOD.index(tag)
        for i in range(at, at + len(tag)):
            out += [GOOD[:i] + end + GOOD[i + 1 :] for end in ("", chr(ord(GOOD[i]) + 0xFEE0), GOOD[i].upper(), "_")]
    outside = ["x", ".", "no", "\u200b", "\u00a0", "\u3000", "\x0b", "\ufeff", "<", "<|im_end|>", GOOD, "<answer/>", "```"]
    for text in outside:
        out += [text + GOOD, GOOD + text, GOOD.replace(ANSWER, text + ANSWER)]
    out += [GOOD.replace(">no<", f">{label}<") for label in YES_LOOK_ALIKES + NO_LOOK_ALIKES]
    not_labels = ["", " ", "no.", "no!", "'no'", "not", "yes no", "yes or no", "no\u200b", "\u00a0no", "maybe", "0", "1", "[no]"]
    out += [GOOD.replace(">no<", f">{label}<") for label in not_labels]
    out += [GOOD.replace(REASONING, text) for text in ("", " ", "\n\n", "...", "\u200b", "?!", "\u2800")]
    out += ["".join(order) for order in permutations([THINK, REASONING, THINK_END, ANSWER, "no", ANSWER_END])]
    return list(dict.fromkeys(text for text in out if text != GOOD))


def test_no_mutation_of_a_good_output_earns_anything():
    broken = mutations()
    assert len(broken) >= 200
    for text in broken:
        parsed = parse_strict(text, NO_YES)
        for label_index in (0, 1):
            assert reward_of(parsed, label_index=label_index, truncated=False, alpha=0.5) == (0.0, 0.0, 0.0), text
        assert parsed.verdict is None and parsed.error != "" and parsed.reasoning == ""


def test_look_alike_letters_are_refused():
    assert len(set(YES_LOOK_ALIKES)) >= 23 and len(YES_LOOK_ALIKES + NO_LOOK_ALIKES) >= 26
    for word in YES_LOOK_ALIKES + NO_LOOK_ALIKES:
        assert parse_strict(f"<think>a</think><answer>{word}</answer>", NO_YES).error == "not a label"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "missing <think>"),
        (GOOD + GOOD, "repeated <think>"),
        ("<think>a</think><answer>no</answer><answer>yes</answer>", "repeated <answer>"),
        ("<think><answer>no</answer></think>", "tags out of order"),
        ("<think>a<answer>no</answer></think>", "tags out of order"),
        ("<answer>no</answer><think>a</think>", "tags out of order"),
        ("<think>a<think>b</think></think><answer>no</answer>", "repeated <think>"),
        ("<think>a</think>b</think><answer>no</answer>", "repeated </think>"),
        ("<think>a <ANSWER>yes</ANSWER></think><answer>no</answer>", "repeated <answer>"),
        ("<think>a<answer>no</answer>", "missing </think>"),
        ("<think>a</think><answer>no", "missing </answer>"),
        ("<think></think><answer>no</answer>", "no reasoning"),
        ("<think>a</think>so<answer>no</answer>", "text outside the tags"),
        ("<think>a\0</think><answer>no</answer>", "NUL character"),
        ("<think>a</think><answer>unsure</answer>", "not a label"),
        ("x" * (MAX_CHARS + 1), "too long"),
    ],
)
def test_strict_errors(text, error):
    assert parse_strict(text, NO_YES) == (None, "", error)


def test_length_cap_is_exact():
    room = MAX_CHARS - len(GOOD) + len(REASONING)
    fits = GOOD.replace(REASONING, "a" * room)
    assert len(fits) == MAX_CHARS and parse_strict(fits, NO_YES).verdict == 0
    assert parse_strict(fits + " ", NO_YES).error == "too long"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (GOOD, 0),
        ("<answer>yes</answer>", 1),
        ("<answer>yes</answer> wait <answer>no</answer>", 0),
        ("<answer>no</answer> or <answer>", 0),
        ("<think>is it <answer>yes</answer>?</think><answer>no", 0),
        ("<think>a</think><answer> **Yes.** </answer>", 1),
        ("<THINK>a</THINK><ANSWER>YES</ANSWER>", 1),
        ("<answer>ｙｅｓ</answer>", 1),
        ("<think>a</think>\n\nyes", 1),
        ("sharp.\nFinal answer: **No**", 0),
        ("I say [[yes]] to this", 1),
        ("It is [1] good.\nyes", 1),
        ("<think>a, so <answer>yes</answer></think>", 1),
        ("no" + " " * 200 + "\nyes", 1),
        ("İİİ<think>a</think><answer>no</answer>", 0),
        ("<answer>уes</answer>", None),  # Cyrillic: no folding makes it Latin
        ("<answer>unsure</answer>", None),
        ("<answer>yes</answer><answer>unsure</answer>", None),  # the last one counts
        ("yes or no", None),
        ("I cannot answer yes or no", None),
        ("nonono" + " " * 60 + "yes", None),
        ("", None),
        ("<think>yes", None),
        ("no\0", None),
    ],
)
def test_lenient(text, verdict):
    parsed = parse_lenient(text, NO_YES)
    assert parsed.verdict == verdict
    assert (parsed.error == "") == (verdict is not None)


def test_lenient_keeps_the_reasoning():
    assert parse_lenient(GOOD, NO_YES).reasoning == REASONING
    assert parse_lenient("it is sharp</think><answer>yes", NO_YES).reasoning == "it is sharp"
    assert parse_lenient("<answer>yes</answer>", NO_YES).reasoning == ""


@pytest.mark.parametrize("size", [1_000_000, MAX_CHARS - 40, MAX_CHARS // 3 - 20], ids=["1MB", "cap", "third"])
def test_hostile_texts_take_less_than_50_ms(size):
    for name, text in hostile_texts(size).items():
        for parse in (parse_strict, parse_lenient):
            seconds = []
            for _ in range(3):  # processor time: another program on the machine is not the parser's fault
                start = time.process_time()
                parsed = parse(text, NO_YES)
                seconds.append(time.process_time() - start)
            assert min(seconds) < 0.05, (name, parse.__name__, seconds)
            assert parsed.verdict is None or parse is parse_lenient, name


WORDS = [*TAGS, *NO_YES, "<", ">", "/", "[", "]", "\n", " ", "answer:", "İ", "\0", "ｙｅｓ", "<THINK>", REASONING]
pieces = st.sampled_from(WORDS)
texts = st.one_of(st.text(), st.lists(st.one_of(pieces, st.text(max_size=3)), max_size=12).map("".join))


@settings(max_examples=300, deadline=None)
@given(texts)
def test_parsers_never_raise_and_agree_with_the_definition(text):
    strict, lenient = parse_strict(text, NO_YES), parse_lenient(text, NO_YES)
    for parsed in (strict, lenient):
        assert (parsed.verdict is None) == (parsed.error != "")
        assert parsed.verdict in (None, 0, 1)
    if strict.verdict is not None:
        assert lenient == strict
        order = [text.index(tag) for tag in TAGS]
        assert all(text.count(tag) == 1 for tag in TAGS) and all(a < b for a, b in pairwise(order))
    assert parse_lenient(text, NO_YES) == lenient


def test_tasks_do_not_import_jax():
    code = "import sys, mtjudge_jax.metrics; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
