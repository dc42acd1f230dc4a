"""Tasks of a user's own: an entry in the config, no code; known to training, evaluation and `Judge` through judge.json."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_fixtures import encoded, noise
from task_records import record

from mtjudge_jax.config import Config, MeshConfig, from_dict, get_tasks, to_dict
from mtjudge_jax.config_check import check
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.eval.scores import task_score
from mtjudge_jax.judge.questions import question_example
from mtjudge_jax.policy.judge_file import JUDGE_FILE, judge_config, judge_file
from mtjudge_jax.records import Label
from mtjudge_jax.sharding import make_mesh
from mtjudge_jax.tasks import TASKS, task_of
from mtjudge_jax.tasks.answer import truth_of, write_truth
from mtjudge_jax.tasks.custom import custom_task
from mtjudge_jax.tasks.reward import score
from mtjudge_jax.train.workdir import wording_hashes

BLUR = {
    "name": "blur",
    "kind": "pointwise_binary",
    "question": "Is the image sharp?",
    "criterion": "sharpness of the main subject",
    "labels": ("blurred", "sharp"),
    "paraphrases": ("Is the subject in focus?",),
    "held_out": ("Would you call the subject sharp?",),
    "flipped": ("Is the image blurred?",),
}
STARS = {"name": "stars", "kind": "pointwise_score", "question": "How many stars?", "score_min": 0, "score_max": 10}
BETTER = {"name": "better", "kind": "pairwise", "question": "Which is better?", "allow_tie": True, "instruction": "Brief"}
OWN = (BLUR, STARS, BETTER)


def config(*entries: dict, tasks: tuple[str, ...] = ("blur",)) -> Config:
    cfg = Config()
    cfg.model.path, cfg.data.custom_tasks, cfg.data.tasks = "demo", entries, tasks
    return cfg


def test_entries_become_tasks():
    cfg = config(*OWN, tasks=("blur", "stars", "better", "agin_tech"))
    check(cfg)
    tasks = get_tasks(cfg, "first")
    assert set(tasks) == {*TASKS, "blur", "stars", "better"} and set(TASKS).isdisjoint({"blur", "stars", "better"})
    picture = encoded(noise(0, 32, 32))
    e = record("agin_tech", 1)
    asked = tasks["blur"].ask(e.question._replace(task="blur"), "x")
    assert asked.parts[0] == "The criterion is: sharpness of the main subject.\n\nImage: " and asked.words == ("blurred", "sharp")
    assert asked.parts[2].startswith("\n\nIs the image sharp? First") and "answer, blurred or sharp, inside" in asked.parts[2]
    stars = question_example([picture], "", task=tasks["stars"], number=0)
    assert "answer, a whole number from 0 to 10, inside" in tasks["stars"].question_text(stars.question)
    assert tasks["stars"].labels == tuple(map(str, range(11))) and tasks["stars"].metric == "accuracy"
    pair = question_example([picture] * 2, "a logo", task=tasks["better"], number=0)
    text = tasks["better"].question_text(pair.question)
    assert text.startswith("Brief: a logo\nImage A: [image]") and "answer, A, B or TIE, inside" in text


def test_wordings_of_an_entry():
    cfg = config(*OWN)
    cfg.data.polarity = "varied"
    train, held = (get_tasks(cfg, which)["blur"] for which in ("train", "held_out"))
    e = record("agin_tech", 1)
    drawn = {train.ask(e.question, str(i)).parts[2].split("?")[0] for i in range(100)}
    assert drawn == {"\n\nIs the image sharp", "\n\nIs the subject in focus", "\n\nIs the image blurred"}
    assert {held.ask(e.question, str(i)).parts[2].split("?")[0] for i in range(20)} == {"\n\nWould you call the subject sharp"}
    assert get_tasks(cfg, "held_out")["stars"].wordings.templates == "train"  # it holds none out


def test_an_entry_through_json_is_the_same():
    cfg = config(*OWN, tasks=("blur", "stars", "better"))
    again = from_dict(json.loads(json.dumps(to_dict(cfg))))
    check(again)
    assert wording_hashes(again) == wording_hashes(cfg) and len(set(wording_hashes(cfg).values())) == 3
    other = config({**BLUR, "question": "Is it sharp?"})
    assert wording_hashes(other)["blur"] != wording_hashes(cfg)["blur"]


def test_judge_json_tells_the_tasks(tmp_path):
    (tmp_path / JUDGE_FILE).write_bytes(judge_file(config(*OWN), 3, {"blur": "x"}))
    known = get_tasks(judge_config(tmp_path, batch=1))
    assert known["blur"].labels == ("blurred", "sharp") and known["stars"].labels[-1] == "10"
    plain = json.loads(judge_file(config(tasks=("technical",)), 3, {}))
    assert set(plain) == {
        "prompt_tokens", "patches", "completion_tokens", "min_pixels", "max_pixels", "step", "templates", "stages"
    }  # fmt: skip


def test_the_remedy_for_an_own_task_is_its_entry():
    entries = [{"name": name, "kind": kind, "question": "Is it?"} for name, kind in (("look", "binary"), ("nicer", "pairwise"))]
    tasks = get_tasks(config(*entries))
    graded, pair = record("agin_tech", 1).question, record("pickapic", 2).question
    graded = graded._replace(kind="pointwise_score")
    with pytest.raises(UserError, match=r"got 'pointwise_score' \('graded' in rows.*write \"kind\": \"graded\" in its entry"):
        tasks["look"].ask(graded)
    with pytest.raises(UserError, match=r'write "allow_tie": True in its entry of data.custom_tasks'):
        tasks["nicer"].ask(pair._replace(kind="pairwise", allow_tie=True))


def test_a_task_has_the_kind_of_the_rows_it_is_of():
    """`kind` may be written as in the rows of docs/data.md."""
    for short, kind in (("binary", "pointwise_binary"), ("graded", "pointwise_score"), ("pairwise", "pairwise")):
        tasks = get_tasks(config({"name": "blur", "kind": short, "question": "Is it blurred?"}))
        assert tasks["blur"].kind == kind


def test_rewards_of_an_own_task():
    tasks = get_tasks(config(*OWN))
    e = record("agin_tech", 1)
    truth = truth_of(tasks["blur"], e)
    texts = [[f"<think>a</think><answer>{word}</answer>" for word in ("Sharp", "blurred", "yes")]]
    known = {"labels": np.array([1]), "truths": [write_truth(truth)], "known": tasks}
    got = score(texts, np.zeros((1, 3), bool), tasks=["blur"], alpha=0.1, **known)
    np.testing.assert_allclose(got.total, [[1.0, 0.1, 0.0]], rtol=1e-6)


def test_the_improvement_of_an_own_task_in_mt_grpo():
    """Its sums and weights are put together by the run's own tasks: blur (3 + 1) / (4 + 4), safety 2 / 4."""
    from mtjudge_jax.train.mixture_feedback import gains_by_task

    mesh, known = make_mesh(MeshConfig(data=1, fsdp=1), jax.devices()[:1]), get_tasks(config(BLUR, tasks=("blur", "safety")))
    run = SimpleNamespace(model=SimpleNamespace(programs=SimpleNamespace(mesh=mesh), fmt=SimpleNamespace(tasks=known)))
    gains = jnp.array([3.0, 2.0, 1.0]), jnp.array([4.0, 4.0, 4.0])
    assert gains_by_task(run, {"task": np.array(["blur", "safety", "blur"])}, gains) == {"blur": 0.5, "safety": 0.5}


def test_predictions_tell_their_own_task():
    line = {"task": "blur", "custom": json.loads(json.dumps(BLUR)), "group_id": "g"}
    line |= {"sampled_accuracy": None, "probabilities": None}
    rows = [line | {"example_id": str(i), "label": "sharp", "verdict": v} for i, v in enumerate(("sharp", "blurred", None))]
    assert task_of(rows[0]).labels == ("blurred", "sharp")
    assert task_score(rows)["accuracy"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="unknown task 'blur'"):
        task_of({"task": "blur"})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "technical"}, "'technical' is the name of another task: choose a new one"),
        ({"name": "my task"}, "must be letters, digits and _"),
        ({"kind": "binry"}, "kind 'binry' is not one of pointwise_binary, pointwise_score, pairwise, listwise, binary, graded"),
        ({"question": " "}, "its question is empty"),
        ({"labels": ("same", "Same")}, "must be two or more different ASCII words"),
        ({"labels": ("one",)}, "must be two short words"),
        ({"labels": ("a<b", "c")}, "must be two short words without <"),
        ({"metric": "f2"}, "metric 'f2' is not one of macro_f1, accuracy"),
        ({"quesion": "?"}, "has the unknown field 'quesion': known are name, kind, question"),
        ({"paraphrases": "one"}, "paraphrases = 'one' is a str, it must be a list of str"),
        ({"ood": 1}, "ood = 1 is a int, it must be bool"),
        ({"kind": "pointwise_score"}, "a pointwise_score task has no labels of its own"),
        ({"kind": "pointwise_score", "labels": (), "score_min": 5, "score_max": 5}, "must be 1 to 100 grades apart"),
        ({"kind": "listwise", "labels": ()}, "a listwise question has no opposite"),
    ],
)
def test_a_bad_entry_is_one_line(change, says):
    with pytest.raises(UserError, match=says) as error:
        check(config({**BLUR, **change}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_what_is_no_entry_and_what_is_missing():
    for raw, says in (
        ("blur", "'blur' is a str, it must be a dict"),
        ({"name": "blur", "kind": "pairwise"}, "'blur' has no question"),
    ):
        with pytest.raises(UserError, match=says):
            check(config(raw))
    with pytest.raises(UserError, match="'blur' is the name of another task"):
        check(config(BLUR, BLUR))
    with pytest.raises(ConfigError, match="did you mean 'blur'"):
        check(config(BLUR, tasks=("blurr",)))
    with pytest.raises(ConfigError, match=r"'blur' is an evaluation-only task: move it from data\.tasks to eval\.tasks"):
        check(config({**BLUR, "ood": True}))


def test_labels_of_an_own_grade():
    task = get_tasks(config(STARS))["stars"]
    assert [task.label_index(Label(score=s)) for s in (0, 9.5, 10)] == [0, 10, 10]


def test_the_name_of_the_instruction_has_no_colon_of_its_own():
    entry = {"name": "match", "kind": "binary", "question": "Does it match?", "instruction": "Description: "}
    task = custom_task(entry, ())
    assert task.shows_instruction and "Description: a round thing\n" in "".join(p for p in task.ask(about(task)).parts if p)


@pytest.mark.parametrize("field", ["question", "paraphrases"])
def test_a_slot_in_a_question_is_refused(field):
    """It would be asked as it is, and the text never shown."""
    entry = {"name": "match", "kind": "binary", "question": "Is it so?"}
    entry[field] = "Is it {instruction}?" if field == "question" else ["Is it {prompt}?"]
    with pytest.raises(UserError, match=r"\{[a-z]+\} in 'Is it .* would be asked as it is: leave it out and set \"instruction\""):
        custom_task(entry, ())


def about(task):
    return task.sample_question("a round thing")
