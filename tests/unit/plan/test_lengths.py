"""Lengths that a plan is asked for: how they are read and drawn, and what a step computes of them."""

import numpy as np
import pytest

from mtjudge_jax.config import Config
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.plan.lengths import Spread, decode_steps, decoded, draw_lengths, learned, read_spreads
from mtjudge_jax.types import Lengths, PromptRoom


def config(**rollout: int) -> Config:
    """8 prompts of up to 512 tokens and 1,024 patches, 4 answers each of up to 101 tokens; two updates of 4 prompts."""
    cfg = Config()
    cfg.data.prompt_tokens, cfg.data.patches = 512, 1024
    cfg.rollout.prompts, cfg.rollout.group_size, cfg.rollout.completion_tokens = 8, 4, 101
    cfg.update.prompts, cfg.update.micro_prompts = 4, 4
    for name, value in rollout.items():
        setattr(cfg.rollout, name, value)
    return cfg


@pytest.mark.parametrize(("mean", "high"), [(200, 600), (600, 1500), (50, 51), (70, 270)])
def test_a_spread_has_its_mean_and_95_per_cent_below(mean, high):
    got = Spread(mean, high).at(np.random.default_rng(0).normal(size=200_000), 10**6)
    assert got.mean() == pytest.approx(mean, rel=0.03)
    assert np.quantile(got, 0.95) == pytest.approx(high, rel=0.02, abs=1)
    assert Spread(mean, high).at(np.array([-9.0, 9.0]), high).tolist()[1] == high  # cut at the limit


def test_a_mean_alone_is_the_length_of_all():
    assert read_spreads(["prompt:100", "answer:20/60"], config()) == {"prompt": Spread(100, 100), "answer": Spread(20, 60)}
    lengths = draw_lengths(config(), read_spreads(["prompt:100"], config()), [])
    assert set(lengths.prompt) == {100} and set(lengths.patches) == {1024} and set(lengths.answers.ravel()) == {101}
    assert lengths.prompt.shape == (256,) and lengths.answers.shape == (256, 4)  # whole batches


@pytest.mark.parametrize(("given", "said"), [
    (["words:9"], "'words:9': give each of prompt, patches, answer once"),
    (["prompt"], "'prompt': give each of"),
    (["prompt:many"], "give each of"),
    (["prompt:9/8"], "give each of"),
    (["prompt:0"], "give each of"),
    (["prompt:nan"], "give each of"),
    (["prompt:1/2/3"], "give each of"),
    (["answer:9", "answer:8"], "'answer:8': give each of"),
    (["prompt:513"], "the mean is above data.prompt_tokens = 512: raise that or lower the mean"),
    (["answer:10/50"], "95 % of a lognormal distribution lie below 3.87 means: give 39 at most"),
])  # fmt: skip
def test_lengths_that_cannot_be_planned_are_refused(given, said):
    with pytest.raises(ConfigError) as error:
        read_spreads(given, config())
    assert said in str(error.value)


def test_measured_prompts_take_the_place_of_the_spreads():
    lengths = draw_lengths(config(), read_spreads(["answer:20"], config()), [(40, 100), (500, 1000)])
    assert {*zip(lengths.prompt.tolist(), lengths.patches.tolist(), strict=True)} == {(40, 100), (500, 1000)}
    assert set(lengths.answers.ravel()) == {20}


def test_what_learning_computes_by_hand():
    """Half of the prompts are short. Each of the two devices takes two at a time, those of one size together."""
    lengths = Lengths(np.array([30, 512] * 4), np.array([60, 1024] * 4), np.full((8, 4), 51))
    got = learned(config(), lengths, 2)
    assert got.together == 2  # of a device's two in an update; one short, one long: both have the large room
    assert (got.prompt, got.patches) == (512, 1024)
    apart = Lengths(np.array([30] * 4 + [512] * 4), np.array([60] * 4 + [1024] * 4), np.full((8, 4), 51))
    got = learned(config(), apart, 2)
    assert (got.prompt, got.patches) == ((64 + 512) / 2, (64 + 1024) / 2)
    assert got.real[0] == pytest.approx((30 + 512) / (64 + 512)) and got.real[1] == pytest.approx((60 + 1024) / (64 + 1024))
    assert 50 <= got.answer <= 75 and got.real[2] == pytest.approx(51 / got.answer)


def test_lengths_of_one_size_have_the_room_of_the_config():
    full = draw_lengths(config(), {}, [])
    assert learned(config(), full, 2) == (512, 1024, 100, 2, (1.0, 1.0, 1.0))
    how = decoded(config(), full, 2)
    assert how.room == PromptRoom(512, 1024) and how.live == 1.0
    assert dict(how.steps) == {(16, 64): 64, (16, 100): 36}  # 4 prompts of a device, 4 answers each; columns fill up


def test_steps_of_decoding_by_hand():
    """Two prompts in turn on one device, one at a time: the second enters when the first has all its answers."""
    answers = np.array([[[1, 5], [30, 2]]])
    assert dict(decode_steps(answers, held=1, length=40)) == {(2, 39): 4 + 29}
    together = decode_steps(answers, held=2, length=40)
    assert dict(together) == {(4, 39): 29}
    assert dict(decode_steps(answers, held=1, length=10 + 6)) == {(2, 15): 4 + 29}, "short answers: one program, to the last end"
    many = np.full((1, 2, 32), 2)
    many[0, 0, 0], many[0, 1, 0] = 20, 11
    assert dict(decode_steps(many, held=2, length=40)) == {(64, 39): 1, (16, 39): 18}, "few live answers: few lanes"


def test_a_sampler_that_holds_few_prompts_reads_them_in_turn():
    full = draw_lengths(config(micro_prompts=2), {}, [])
    how = decoded(config(micro_prompts=2), full, 2)
    assert sum(how.steps.values()) == 4 * 100 and how.live == 1.0
