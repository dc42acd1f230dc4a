"""What a run looks at and tells before its first step."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from data_fixtures import row_format
from feeding import COUNTS, NAMES, write_data

from mtjudge_jax.config import Config
from mtjudge_jax.data.sources import read_split
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.train import start
from mtjudge_jax.train.fit import when_best
from mtjudge_jax.train.monitor.health import FORMLESS_STEPS, Health
from mtjudge_jax.train.monitor.messages import opening_lines
from mtjudge_jax.train.start import check_records


@pytest.fixture(scope="module")
def fmt(tmp_path_factory):
    return row_format(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


def config(stage: str = "grpo") -> Config:
    cfg = Config(stage=stage)
    cfg.data.tasks = tuple(NAMES)
    return cfg


def test_records_are_counted(data, fmt):
    assert check_records(config(), data, fmt) == [f"training records: {', '.join(f'{k} {n}' for k, n in COUNTS.items())}"]


def test_a_task_of_which_nothing_fits_is_refused_before_the_first_step(data, fmt):
    """It would be left out record by record, and the run would end well."""
    said = r"no training record of technical can be used \(8 of 31 checked\): too_many_patches: .* [^\n]*$"
    with pytest.raises(ConfigError, match=said) as error:
        check_records(config(), data, fmt._replace(patch_count=4))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"no training record of technical can be used .* prompt_too_long: "):
        check_records(config(), data, fmt._replace(prompt_tokens=9))


def test_sft_without_a_gold_reasoning_says_what_it_teaches(data, fmt, monkeypatch):
    assert len(check_records(config("sft"), data, fmt)) == 1  # these have one
    plain = lambda *place: [replace(e, rationale=" ") for e in read_split(*place)]  # noqa: E731
    monkeypatch.setattr(start, "open_split", plain)
    _, said = check_records(config("sft"), data, fmt)
    assert said.startswith("warning: technical, safety, alignment: no record checked has gold reasoning")
    cfg = config("sft")
    cfg.sft.target = "answer"  # which asks for nothing else
    assert len(check_records(cfg, data, fmt)) == 1


def test_the_sizes_of_a_step_are_told():
    cfg = config()
    cfg.rollout.prompts, cfg.update.prompts = 24, 12
    lines = opening_lines(cfg, {"a": np.zeros((1000, 1500), np.float32), "b": np.zeros(10_000, np.float32)})
    assert lines[0].startswith("1.51 million parameters on 8 cpu devices")
    assert lines[1].startswith("a step: 24 prompts of up to 2,048 tokens and 4,096 patches")
    assert lines[2].startswith("2 updates of 12 prompts")
    assert opening_lines(cfg, {"a": SimpleNamespace(size=30_530_000_000)})[0].startswith("30.53 billion parameters")


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
