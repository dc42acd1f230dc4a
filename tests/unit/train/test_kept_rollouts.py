"""Which rollouts are kept to be read, and what their file says."""

import io
import json

import jax
import numpy as np
from PIL import Image

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.policy.model import DEMO_BASE
from mtjudge_jax.sharding import local_row, local_rows, make_mesh, shard_batch
from mtjudge_jax.train.monitor.rollouts import _Candidate, choose_shown, question_asked
from mtjudge_jax.train.monitor.shown import drop_shown, read_shown, shown_steps, write_shown


def test_best_worst_and_random_groups_of_each_task():
    rewards = {"a": [0.1, 0.9, 0.5, 0.5, 0.7, -1e30], "b": [0.2, 0.4]}
    everyone = [_Candidate(0, row, task, reward, f"{task}{row}") for task, of in rewards.items() for row, reward in enumerate(of)]
    chosen = [(found.task, found.row, which) for found, which in choose_shown(everyone, 1, step=7)]
    assert [one for one in chosen if one[2] != "random"] == [
        ("a", 1, "best"),
        ("a", 5, "worst"),
        ("b", 1, "best"),
        ("b", 0, "worst"),
    ]
    ((task, row, _),) = [one for one in chosen if one[2] == "random"]
    assert task == "a" and row in (0, 2, 3, 4)
    turned = [one._replace(process=place % 3) for place, one in enumerate(reversed(everyone))]  # on other processes
    assert [(found.task, found.row, which) for found, which in choose_shown(turned, 1, step=7)] == chosen
    drawn = {found.row for step in range(40) for found, which in choose_shown(everyone, 1, step) if which == "random"}
    assert drawn == {0, 2, 3, 4}
    every = [found.row for found, _ in choose_shown(everyone, 9, step=1) if found.task == "a"]
    assert sorted(every) == [0, 1, 2, 3, 4, 5]  # none twice where there are too few


def test_the_question_is_what_the_prompt_says():
    tokenizer = load_tokenizer(DEMO_BASE)
    short = tokenizer.prompt_ids([None, "Which is sharper?", None, "Answer A or B.\n\nThink first."])
    tokens = [token for one in short for token in [one] * (6 if one == tokenizer.image else 1)]
    assert question_asked(tokens, tokenizer) == "[picture]\nWhich is sharper?[picture]\nAnswer A or B.\n\nThink first."


def test_a_file_a_step_with_its_pictures(tmp_path):
    files = {}
    for name, size in (("a.webp", (10, 20)), ("b.webp", (30, 5))):
        file = io.BytesIO()
        Image.new("RGB", size, "blue").save(file, "WEBP")
        files[name] = file.getvalue()
    lines = [{"step": 3, "question": "größer?\ud83d", "pictures": ["a.webp", "b.webp"]}, {"step": 3, "pictures": []}]
    for step in (10, 3, 3):
        write_shown(tmp_path, step, lines, files)
    assert shown_steps(tmp_path) == [3, 10]
    first, second = read_shown(tmp_path, 3)
    assert first.picture.size == (44, 20) and second.picture is None
    assert first.line == json.loads(json.dumps(lines[0] | {"question": "größer??"}))
    drop_shown(tmp_path, 3)
    assert shown_steps(tmp_path) == [3]
    drop_shown(tmp_path, -1)
    assert shown_steps(tmp_path) == [] and shown_steps(tmp_path / "none") == []


def test_one_row_of_a_sharded_array():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    x = shard_batch(np.arange(8 * 3 * 2).reshape(8, 3, 2), mesh)
    rows = local_rows(x, mesh)
    assert all(np.array_equal(local_row(x, number), rows[number]) for number in range(8))
