"""What a run looks at and tells before its first step."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from data_fixtures import encoded, example, noise, row_format
from feeding import COUNTS, NAMES, write_data

from mtjudge_jax.config import Config
from mtjudge_jax.data.images import Budget
from mtjudge_jax.data.pipeline import read_split
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.policy.model import pair_of_answers
from mtjudge_jax.records import LABEL_WORD, Label
from mtjudge_jax.tasks import TASKS, tasks_with
from mtjudge_jax.train import record_check
from mtjudge_jax.train.fit import untrained_best, when_best
from mtjudge_jax.train.monitor.health import FORMLESS_STEPS, Health, unreadable
from mtjudge_jax.train.monitor.messages import opening_lines
from mtjudge_jax.train.record_check import check_records


@pytest.fixture(scope="module")
def fmt(tmp_path_factory):
    return row_format(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


WORDS = ("crisp", "blurry")  # of the classes 0 and 1
LONGEST = "longest of 68 prompts checked: 129 tokens and 8 patches, the limits are 200 (data.prompt_tokens) and 36 (data.patches)"


def config(stage: str = "grpo") -> Config:
    cfg = Config(stage=stage)
    cfg.data.tasks = tuple(NAMES)
    return cfg


def test_records_are_counted(data, fmt):
    counts, longest = check_records(config(), data, fmt).notes
    assert counts == f"training records: {', '.join(f'{k} {n}' for k, n in COUNTS.items())}"
    assert longest == LONGEST


def test_a_task_of_which_nothing_fits_is_refused_before_the_first_step(data, fmt):
    """It would be left out record by record, and the run would end well."""
    said = r"no training record of technical can be used \(24 of 31 checked\): too_many_patches: .* [^\n]*$"
    with pytest.raises(ConfigError, match=said) as error:
        check_records(config(), data, fmt._replace(patch_count=3))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"no training record of technical can be used .* prompt_too_long: "):
        check_records(config(), data, fmt._replace(prompt_tokens=9))


def test_records_that_do_not_fit_are_told_before_the_first_step(data, fmt, monkeypatch):
    """One may be chance, so it is a warning with name, number and remedy; as many as surely stop the run refuse it."""

    def some_long(longer: int) -> list:
        text = lambda i: "a very long tale " * (40 if i < longer else 1)  # noqa: E731
        return [example(i, "alignment", images=(encoded(noise(i, 32, 32)),), instruction=text(i)) for i in range(24)]

    cfg = config()
    cfg.data.tasks = ("alignment",)
    monkeypatch.setattr(record_check, "open_split", lambda *place: some_long(1))
    *_, said = check_records(cfg, data, fmt).notes
    assert said.startswith("warning: of the training records checked, 1 of 24 of alignment (prompt_too_long: ")
    assert said.endswith("cannot be used; above 1.0% of all the run stops") and "raise data.prompt_tokens" in said
    monkeypatch.setattr(record_check, "open_split", lambda *place: some_long(3))
    with pytest.raises(ConfigError, match=r"3 of 24 of alignment \(prompt_too_long"):
        check_records(cfg, data, fmt)


def test_labels_the_wrong_way_round_are_refused(data, fmt, monkeypatch):
    """The rows call class 1 "blurry", the task class 0. Trained, it would learn the opposite without a word."""
    records = [example(i, images=(encoded(noise(i, 32, 32)),), label_rule=f"{LABEL_WORD}{WORDS[i % 2]}") for i in range(6)]
    records = [replace(one, label=Label(binary=i % 2)) for i, one in enumerate(records)]
    monkeypatch.setattr(record_check, "open_split", lambda *place: records)
    cfg = config()
    cfg.data.tasks = ("technical",)
    for labels, refused in ((("blurry", "Crisp"), True), (("Crisp", "blurry"), False), (("no", "yes"), False)):
        task = replace(fmt.tasks["technical"], labels=labels)
        changed = fmt._replace(tasks={**fmt.tasks, "technical": task})
        if refused:
            said = r"""'crisp' of the rows is class 0 .* Write "labels": \("Crisp", "blurry"\)$"""
            with pytest.raises(ConfigError, match=said):
                check_records(cfg, data, changed)
        else:
            check_records(cfg, data, changed)


def test_an_instruction_that_is_not_shown_is_told(data, fmt, monkeypatch):
    told = [example(i, images=(encoded(noise(i, 32, 32)),), instruction="a round thing") for i in range(4)]
    monkeypatch.setattr(record_check, "open_split", lambda *place: told)
    entry = {"name": "match", "kind": "binary", "question": "Does the picture show this?"}
    cfg = config()
    cfg.data.tasks, cfg.data.custom_tasks = ("match",), (entry,)
    told = [replace(e, task="match") for e in told]
    *_, said = check_records(cfg, data, fmt._replace(tasks=tasks_with((entry,)))).notes
    shown = entry | {"instruction": "Description"}
    assert len(check_records(cfg, data, fmt._replace(tasks=tasks_with((shown,)))).notes) == 2
    assert said.startswith("warning: match: the records have an instruction, which the task does not show")
    assert '"instruction": "Description"' in said


def test_pictures_that_were_made_smaller_are_told(data, fmt, monkeypatch):
    """Of 40 x 60 pixels, 2 tokens each; a room of 7 patches leaves one."""
    *_, said = check_records(config(), data, fmt._replace(budget=Budget(200, 7))).notes
    assert said.startswith("68 of 68 pictures checked were made smaller so that their prompts fit data.patches and data.prompt_")
    sizes = ((32, 32), (96, 96))
    mixed = [example(i, images=(encoded(noise(i, *sizes[i % 2])),)) for i in range(8)]
    monkeypatch.setattr(record_check, "open_split", lambda *place: mixed)
    *_, said = check_records(config(), data, fmt._replace(budget=Budget(200, 16))).notes
    assert said.startswith("12 of 24 pictures checked")
    assert len(check_records(config(), data, fmt._replace(budget=Budget(200, 36))).notes) == 2


def test_sft_without_a_gold_reasoning_says_what_it_teaches(data, fmt, monkeypatch):
    assert len(check_records(config("sft"), data, fmt).notes) == 2  # these have one
    plain = lambda *place: [replace(e, rationale=" ") for e in read_split(*place)]  # noqa: E731
    monkeypatch.setattr(record_check, "open_split", plain)
    *_, said = check_records(config("sft"), data, fmt).notes
    assert said.startswith("warning: technical, safety, alignment: no record checked has gold reasoning")
    cfg = config("sft")
    cfg.sft.target = "answer"  # which asks for nothing else
    assert len(check_records(cfg, data, fmt).notes) == 2


def test_dpo_is_refused_where_many_records_have_no_pair(data, fmt, monkeypatch):
    cfg = config("dpo")
    pairs = fmt._replace(
        target=lambda e: pair_of_answers(TASKS, e), targets=2, taught=("chosen", "rejected"), completion_tokens=32
    )
    with pytest.raises(ConfigError, match=r"no training record of technical can be used \(\d+ of \d+ checked\): no_pair: "):
        check_records(cfg, data, pairs)
    answered = lambda e: replace(e, chosen="a", rejected="b")  # noqa: E731
    half = lambda *place: [answered(e) if i % 2 else e for i, e in enumerate(read_split(*place))]  # noqa: E731
    monkeypatch.setattr(record_check, "open_split", half)
    with pytest.raises(ConfigError, match=r"of the training records checked, \d+ of \d+ of \d+ of technical \(no_pair: "):
        check_records(cfg, data, pairs)
    monkeypatch.setattr(record_check, "open_split", lambda *place: [answered(e) for e in read_split(*place)])
    notes = check_records(cfg, data, pairs).notes
    assert len(notes) == 2 and "; longest answer: 2 tokens, the limit is 32" in notes[1]


def test_the_sizes_of_a_step_are_told():
    cfg = config()
    cfg.rollout.prompts, cfg.update.prompts = 24, 12
    lines = opening_lines(cfg, {"a": np.zeros((1000, 1500), np.float32), "b": np.zeros(10_000, np.float32)})
    assert lines[0].startswith("1.51 million parameters on 8 cpu devices")
    assert lines[1].startswith("a step: 24 prompts of up to 2,048 tokens and 4,096 patches")
    assert lines[2].startswith("2 updates of 12 prompts")
    assert opening_lines(cfg, {"a": SimpleNamespace(size=30_530_000_000)})[0].startswith("30.53 billion parameters")


def predictions(*parses: str, task: str = "blur", error: str = "no answer", tokens: int = 9) -> list[dict]:
    return [{"task": task, "parse": p, "error": error * (p == "invalid"), "tokens": tokens, "unusable": False} for p in parses]


def test_answers_that_cannot_be_read_are_said_at_the_first_validation():
    cfg = config()
    (said,) = unreadable(predictions(*["invalid"] * 5, tokens=cfg.rollout.completion_tokens), cfg)
    assert said.startswith("blur: 0 of 5 validation answers have the format <think>reasoning</think><answer>label</answer>")
    assert (
        "(no answer 5)" in said and f"5 were cut at rollout.completion_tokens = {cfg.rollout.completion_tokens}: raise it" in said
    )
    assert "--config.stage=sft" in said
    (said,) = unreadable(predictions("lenient", "lenient"), cfg)  # a model of SFT on verdicts alone
    assert "blur: 0 of 2" in said and "(no reasoning before the verdict 2)" in said and "cut" not in said
    assert unreadable(predictions("lenient", "lenient"), config("sft")) == [] == unreadable(predictions("invalid", "strict"), cfg)
    (said,) = unreadable(predictions("invalid", "invalid", tokens=cfg.rollout.completion_tokens), config("sft"))
    assert "2 were cut at" in said and "they do not end yet" in said and "raise it" not in said
    assert "0 of 2 validation answers have a verdict that can be read" in said and "train longer" in said
    mixed = predictions("strict", "invalid") + predictions("invalid", task="stars") + [{"task": "x", "unusable": True}]
    assert unreadable(mixed, cfg)[0].startswith("stars: 0 of 1 ")


def test_a_step_of_equal_rewards_is_said_at_once():
    line = {"format": 0.0, "accuracy": 0.0, "reward": 0.0, "zero_variance": 1.0, "tasks": {}}
    health = Health()
    (said,) = health.add(line)
    assert "the same reward in this step (0.000 in the mean)" in said and "--config.stage=sft" in said
    assert health.add(line) == [] == health.add(line | {"zero_variance": 0.9})
    (said,) = health.add(line | {"format": 1.0, "accuracy": 1.0, "reward": 1.0})
    assert "all are right: take harder" in said
    assert "tells answers apart" in Health().add(line | {"format": 1.0, "accuracy": 0.5, "reward": 0.5})[0]
    assert Health().add({"loss": 0.1}) == []  # SFT


def test_a_best_model_without_training_is_said(tmp_path):
    (tmp_path / "best").mkdir()
    run = SimpleNamespace(workdir=tmp_path)
    for step, warned in ((0, True), (20, False)):
        (tmp_path / "best" / "judge.json").write_text(json.dumps({"step": step}))
        assert ("--step=latest" in untrained_best(run, SimpleNamespace(step=20))) == warned
    assert untrained_best(run, SimpleNamespace(step=0)) == ""


def test_answers_without_form_are_told_once():
    health, line = Health(), {"format": 0.0, "tasks": {}}
    said = [health.add(line) for _ in range(3 * FORMLESS_STEPS)]
    assert [len(texts) for texts in said] == [0] * (FORMLESS_STEPS - 1) + [1] + [0] * 2 * FORMLESS_STEPS
    assert said[FORMLESS_STEPS - 1][0].startswith("warning: no answer in the first 5 steps has the format <think>")
    health = Health()  # one that answers now and then learns
    assert not [text for share in (0.0, 0.1, *[0.0] * 20) for text in health.add({"format": share, "tasks": {}})]
    assert not [text for _ in range(20) for text in Health().add({"loss": 0.1})]  # SFT


def test_the_end_tells_of_which_step_the_best_model_is(tmp_path):
    run = SimpleNamespace(workdir=tmp_path)
    assert when_best(run) == ""
    (tmp_path / "best").mkdir()
    for step, said in ((80, ""), (0, " (the starting model: no later validation was better)")):
        (tmp_path / "best" / "judge.json").write_text(json.dumps({"step": step}))
        assert when_best(run) == f", after step {step}{said}, model in {tmp_path / 'best'}"


def test_gold_reasoning_of_one_side_is_said(data, fmt, tmp_path, monkeypatch):
    """SFT shows such pairs in the order stored, so a stored order that gives the answer away would be learned."""
    entry = {"name": "sharper", "kind": "pairwise", "question": "Which image is sharper?"}
    cfg = Config(stage="sft")
    cfg.data.tasks, cfg.data.custom_tasks = ("sharper",), (entry,)
    fmt = fmt._replace(tasks=tasks_with((entry,)), target=lambda e: ("<answer>A</answer>",), completion_tokens=32)
    fmt = fmt._replace(taught=("rationale",))

    def said(winner, rationale: str = "the first is sharp") -> str:
        pairs = [
            example(i, "sharper", kind="pairwise", images=(encoded(noise(i, 32, 32)), encoded(noise(-1 - i & 99, 32, 32))),
                    label=Label(winner=winner(i)), rationale=rationale, instruction="")
            for i in range(8)
        ]  # fmt: skip
        monkeypatch.setattr(record_check, "open_split", lambda *place: pairs)
        return "\n".join(check_records(cfg, tmp_path, fmt).notes)

    assert "warning: sharper: all records checked have the same right answer" in said(lambda i: 0)
    assert "warning" not in said(lambda i: i % 2) and "warning" not in said(lambda i: 0, "{A} is sharp")
    fmt = fmt._replace(taught=())
    assert "warning" not in said(lambda i: 0)
