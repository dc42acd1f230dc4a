"""A task's own temperature, length and weights of the reward (`rollout.per_task`)."""

import numpy as np
import pytest

from mtjudge_jax.config import Config, from_dict, to_dict
from mtjudge_jax.config_check import check
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.rl.per_task import own_draws
from mtjudge_jax.rl.reward_rule import rule_of
from mtjudge_jax.tasks.reward import score

RIGHT, WRONG = "<think>sharp</think><answer>yes</answer>", "<think>soft</think><answer>no</answer>"


def config(*entries: dict, **reward) -> Config:
    cfg = Config()
    cfg.model.path, cfg.data.tasks, cfg.rollout.per_task = "demo", ("technical", "safety", "alignment"), entries
    cfg.rollout.temperature, cfg.rollout.completion_tokens = 0.5, 100
    for name, value in reward.items():
        setattr(cfg.reward, name, value)
    return cfg


def test_heat_and_length_of_each_prompt():
    cfg = config({"task": "safety", "temperature": 1.5}, {"task": "alignment", "completion_tokens": 7})
    check(cfg)
    assert from_dict(to_dict(cfg)) == cfg
    own = own_draws(cfg, ["safety", "technical", "alignment", "safety"])
    np.testing.assert_array_equal(own["heat"], np.float32([3, 1, 1, 3]))
    np.testing.assert_array_equal(own["longest"], [100, 100, 7, 100])
    assert own_draws(config(), ["safety"]) == {}


def rewards(cfg: Config, tasks: list[str], tokens: np.ndarray | None = None) -> np.ndarray:
    texts = [[RIGHT, WRONG, "yes"]] * len(tasks)
    cut = np.zeros((len(tasks), 3), bool)
    return score(texts, cut, tasks=tasks, labels=np.ones(len(tasks), int), alpha=rule_of(cfg), tokens=tokens).total


def test_the_weights_of_a_task_stand_in_the_place_of_the_common_ones():
    own = {"task": "safety", "weights": ("accuracy=1", "format=0.5")}
    np.testing.assert_allclose(rewards(config(own), ["technical", "safety"]), [[1, 0.1, 0], [1.5, 0.5, 0]], atol=1e-6)
    partly = config({"task": "safety", "weights": ("format=0",)}, weights=("accuracy=2", "format=0.25"))
    np.testing.assert_allclose(rewards(partly, ["safety", "technical"]), [[2, 0, 0], [2.25, 0.25, 0]], atol=1e-6)


def test_the_penalty_of_length_ends_at_the_tasks_own():
    cfg = config({"task": "safety", "completion_tokens": 20}, weights=("overlong=1",), overlong_buffer=10)
    tokens = np.tile([10, 15, 20], (2, 1))
    np.testing.assert_allclose(rewards(cfg, ["technical", "safety"], tokens), [[0, 0, 0], [0, -0.5, -1]], atol=1e-6)


@pytest.mark.parametrize(
    "entry,says",
    [
        ({"task": "safty"}, r"unknown task 'safty', did you mean 'safety'\?"),
        ({"task": "safety", "heat": 1}, "unknown field 'heat': known are task, temperature, completion_tokens, weights"),
        ({"task": "safety", "temperature": 0}, "'safety': temperature = 0 must be a number above 0"),
        ({"task": "safety", "completion_tokens": 101}, "completion_tokens = 101 must be 1 to rollout.completion_tokens = 100"),
        ({"task": "safety", "weights": ("accuracy=1", "graded=1")}, "reward.weights lacks graded: name it there, with weight 0"),
        ({"task": "safety", "weights": ("acuracy=1",)}, "names an unknown part"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entry, says):
    with pytest.raises(ValueError, match=says):
        check(config(entry))


def test_what_does_not_go_together_is_refused():
    own = {"task": "safety", "weights": ("accuracy=1",)}
    with pytest.raises(ConfigError, match="names 'safety' twice"):
        check(config(own, own))
    cfg = config(own)
    cfg.loss.advantage = "gdpo"
    with pytest.raises(ConfigError, match="'gdpo' has one weight a part for all tasks"):
        check(cfg)
    cfg = config(own)
    cfg.stage = "sft"
    with pytest.raises(ConfigError, match=r"rollout.per_task is of training by GRPO, and stage = 'sft'"):
        check(cfg)
