"""What an evaluation computes: prompts in the least room that holds a batch of them."""

import numpy as np
import pytest

from mtjudge_jax.demo.config import get_config
from mtjudge_jax.demo.dataset import make_examples
from mtjudge_jax.eval import batches
from mtjudge_jax.policy.model import eval_format, open_model, read_params
from mtjudge_jax.rl.rooms import quarters_of
from mtjudge_jax.types import PromptRoom


def test_the_quarters_of_a_room():
    assert quarters_of(PromptRoom(108, 144)) == ((27, 36), (54, 72), (81, 108), (108, 144))
    assert quarters_of(PromptRoom(30, 0)) == ((8, 0), (15, 0), (23, 0), (30, 0))
    assert quarters_of(PromptRoom(48, 36))[0] == (12, 12), "whole image tokens"


@pytest.mark.usefixtures("quick_to_compile")
@pytest.mark.parametrize("probabilities", [False, True])
def test_pairs_are_judged_in_a_half_of_their_room_and_as_in_the_whole(monkeypatch, probabilities):
    """The room of two pictures is twice that of one, and the demo's pairs need a half of it."""
    cfg = get_config()
    model = open_model(cfg)
    params, examples = read_params(model, cfg), list(make_examples(split="val", task="pairwise_safety", count=8, seed=1))
    how = batches.Judging(model.programs, eval_format(model, cfg), 8, np.zeros(1, np.float32), cfg.reward.alpha, 0)
    found = batches.judge(params, examples, how, step=0, probabilities=probabilities)
    assert all("(8, 54)" in name for name in model.programs.traces if name.startswith("sample"))
    single = list(make_examples(split="val", task="safety", count=8, seed=1))
    batches.judge(params, single, how, step=0, probabilities=probabilities)
    assert set(model.programs.traces.values()) == {1}, "single pictures need the same room, but shorter answers"
    monkeypatch.setattr(batches, "quarters_of", lambda room: ())
    whole = batches.judge(params, examples, how, step=0, probabilities=probabilities)
    assert any("(8, 108)" in name for name in model.programs.traces)
    assert [one["text"] for one in found] == [one["text"] for one in whole]
    if probabilities:
        shares = [[list(one["probabilities"].values()) for one in rows] for rows in (found, whole)]
        np.testing.assert_allclose(*shares, atol=2e-3)  # bfloat16
