"""The data folder of sampled answers: a pair or a list keeps the order that the model saw, for SFT and for DPO."""

import dataclasses
import json

import numpy as np
import pytest
from data_fixtures import CONFIG, encoded, example, noise, write_tokenizer

from mtjudge_jax.data.pipeline import open_split, read_manifest
from mtjudge_jax.data.record_file import write_records
from mtjudge_jax.data.rows import RowFormat, completion_text, to_row
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.eval.predictions import AnswerGroup
from mtjudge_jax.policy.model import pair_of_answers, true_target
from mtjudge_jax.records import JudgeExample, Label
from mtjudge_jax.sample.choosing import drawn_line
from mtjudge_jax.sample.writing import write_sampled
from mtjudge_jax.tasks import tasks_with
from mtjudge_jax.tasks.answer import answer_text, truth_of

OWN = (
    {"name": "sharper", "kind": "pairwise", "question": "Which image is sharper?"},
    {"name": "ranked", "kind": "listwise", "question": "Rank the images."},
)
TASKS = tasks_with(OWN, templates="train")
COUNT = {"sharper": 2, "ranked": 3}


def stored(name: str, number: int) -> JudgeExample:
    label = Label(winner=number % 2) if name == "sharper" else Label(ranks=(2, 1, 3))
    images = tuple(encoded(noise(10 * number + place, 32, 32)) for place in range(COUNT[name]))
    kind = "pairwise" if name == "sharper" else "listwise"
    return example(number, name, kind=kind, images=images, label=label, rationale="an older reasoning")


def answered(shown: JudgeExample) -> dict:
    """The line of a right and a wrong answer, both of which name the places shown."""
    truth, task = truth_of(TASKS[shown.task], shown), TASKS[shown.task]
    right = answer_text(truth)
    wrong = " > ".join(reversed(right.split(" > "))) if truth.ranked else {"A": "B", "B": "A"}[right]
    texts = [completion_text(f"it is {word}", word) for word in (wrong, right)]
    group = AnswerGroup(texts, np.zeros(2, bool), np.array([9, 9]), np.ones(2, bool))
    return drawn_line(shown, task, "", group, 0.1, choose="shortest", most_tokens=64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared data with a training and a test file a task."""
    folder = tmp_path_factory.mktemp("data")
    files = {
        f"{split}/{name}": write_records(
            folder / split / f"{name}.array_record", [stored(name, i) for i in range(first, first + 8)]
        )
        for name in COUNT
        for split, first in (("train", 0), ("test", 50))
    }
    (folder / "manifest.json").write_text(json.dumps({"version": 2, "dataset": "own", "files": files}))
    return folder


@pytest.mark.parametrize("keep", ["right", "pairs"])
def test_pairs_and_lists_are_taught_as_they_were_seen(data, tmp_path, tokenizer, keep):
    sources = {name: open_split(data, "train", name) for name in COUNT}
    shown = {name: [TASKS[name].displayed(source[i]) for i in range(8)] for name, source in sources.items()}
    lines = {name: [answered(one) for one in group] for name, group in shown.items()}
    ids = {name: {line["example_id"] for line in found[::2]} for name, found in lines.items()}
    folder = write_sampled(tmp_path / "out", str(data), shown, lines, ids, keep=keep, given={"seed": 0})
    turned = 0
    for name, source in sources.items():
        found = open_split(folder, "train", name)
        assert [found[i].example_id for i in range(len(found))] == [one.example_id for one in shown[name][::2]]
        for i, seen in enumerate(shown[name][::2]):
            record, before = found[i], source[2 * i]
            turned += record.images != before.images
            pair = {"rationale": record.rationale, "chosen": "", "rejected": "", "pass_rate": 0.5}
            if keep == "pairs":
                pair |= {"chosen": record.chosen, "rejected": record.rejected}
            assert record == dataclasses.replace(seen, **pair) and (keep == "pairs") == bool(record.chosen)
            check_taught(record, seen, tokenizer, keep)
    assert turned > 2  # so an order other than the stored one was seen
    files = read_manifest(folder)["files"]
    assert set(files) == {f"{split}/{name}" for name in COUNT for split in ("train", "test")}
    assert all(files[f"test/{name}"] == read_manifest(data)["files"][f"test/{name}"] for name in COUNT)
    told = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(told) == 16 and [line["kept"] for line in told] == [True, False] * 8


def check_taught(record: JudgeExample, seen: JudgeExample, tokenizer, keep: str) -> None:
    """Training shows the record in the order seen, and teaches the texts that were said there."""
    asked = []

    def target(example: JudgeExample) -> tuple[str, ...]:
        asked.append(example)
        return pair_of_answers(TASKS, example) if keep == "pairs" else (true_target(TASKS, example),)

    taught = ("chosen", "rejected") if keep == "pairs" else ("rationale",)
    fmt = RowFormat(TASKS, tokenizer, CONFIG, 400, 64, completion_tokens=64, target=target, targets=len(taught), display=True)
    row = to_row(record, record.task, fmt._replace(taught=taught))
    assert row["weight"] == 1, row["error"]
    (one,) = asked
    assert (one.images, one.label) == (seen.images, seen.label)
    right = answer_text(truth_of(TASKS[seen.task], seen))
    text = tokenizer.decode_answer(row["target"][0][row["target_mask"][0]])
    assert text == completion_text(f"it is {right}", right)
