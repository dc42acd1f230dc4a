"""Greedy answers against transformers' own `generate`: 20 prompts with images of different grids and 4
without, in one batch, left padded.

generate.npz holds its answers (see goldens/make_goldens.py), in which every token leads the next best by more than 1e-3 and
no choice of experts is a near tie; where torch is installed `generate` also runs here.
"""

import functools

import jax
import numpy as np
import pytest
from parity import CONTROL, HERE, PAD, VOCABULARY, golden_model, prompt_rows, question, write_moe
from tiny import jit

from mtjudge_jax.policy.lanes import sample
from mtjudge_jax.types import PromptBatch, Rollout

FAMILIES = ("untied", "moe")
BANNED = [PAD, *range(CONTROL, VOCABULARY)]
LEAD = 1e-3


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(HERE / "generate.npz") as file:
        return dict(file)


@functools.cache
def rows() -> PromptBatch:
    return prompt_rows(golden()["seeds"].tolist())


@functools.cache
def sampler(family: str):
    """(params, rows, eos) -> two greedy answers a prompt."""
    _, cfg = golden_model(family)
    allowed = ~np.isin(np.arange(VOCABULARY), BANNED)
    settings = {"temperature": np.zeros(2, np.float32), "allowed": allowed, "pad": PAD}
    length = golden()[f"{family}/tokens"].shape[1]
    return jit(lambda params, rows, eos: sample(params, cfg, rows, jax.random.key(0), eos=eos, length=length, **settings))


@functools.cache
def answers(family: str, eos: int) -> Rollout:
    return jax.tree.map(np.asarray, sampler(family)(golden_model(family)[0], rows(), eos))


def test_the_prompts_have_different_images():
    prompts = [question(seed) for seed in golden()["seeds"]]
    grids = [tuple(part for part in prompt if isinstance(part, tuple)) for prompt in prompts]
    assert sum(map(bool, grids)) == 20
    assert grids.count(()) == 4
    assert sum(len(set(own)) > 1 for own in grids) >= 8  # images of different grids beside each other
    assert len(set(rows().valid.sum(1))) > 10  # lengths, and so paddings


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_generate(family):
    want, eos = golden()[f"{family}/tokens"], int(golden()[f"{family}/eos"])
    got, ended = answers(family, eos), (want == eos).any(1)
    assert want.shape == (24, 32)
    assert 5 <= ended.sum() <= 19
    assert np.array_equal(got.tokens[:, 0], want)
    assert np.array_equal(got.tokens[:, 1], want)
    assert np.array_equal(got.mask[:, 0], want != PAD)
    assert np.array_equal(got.truncated[:, 0], ~ended)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_never_end_are_those_of_generate(family):
    want = golden()[f"{family}/free"]
    assert len(np.unique(want)) > 50
    assert np.array_equal(answers(family, VOCABULARY).tokens[:, 0], want)


@pytest.mark.parametrize("family", FAMILIES)
def test_mistakes_that_only_decoding_can_make_are_seen(family):
    """Answers that begin a position late (or, without M-RoPE's jump, count tokens); a prompt whose padding is read."""
    params, want = golden_model(family)[0], golden()[f"{family}/free"]
    run = lambda rows: np.asarray(sampler(family)(params, rows, VOCABULARY).tokens[:, 0])  # noqa: E731
    late = run(rows()._replace(next_position=rows().next_position + 1))
    count = rows().valid.sum(1).astype(np.int32)
    counted, jumps = run(rows()._replace(next_position=count)), count != rows().next_position
    padded, shorter = run(rows()._replace(valid=np.ones_like(rows().valid))), count < rows().valid.shape[1]
    assert np.array_equal(late[:, 0], want[:, 0])
    assert 10 <= jumps.sum() < 24
    for other, concerned in ((late, np.ones(len(count), bool)), (counted, jumps), (padded, shorter)):
        wrong = (other != want).any(1)
        assert wrong[concerned].mean() > 0.5
        assert not wrong[~concerned].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_answers_so_today(family, tmp_path):
    """transformers lays out positions, caches and decodes by itself; it gets the ids, the grids and the pixels."""
    pytest.importorskip("torch", reason="torch is not installed; the goldens were compared")
    import oracle

    net = oracle.load(HERE / "qwen3_vl" if family == "untied" else write_moe(tmp_path, layout="hub"))
    eos, want = int(golden()[f"{family}/eos"]), golden()[f"{family}/tokens"]
    with oracle.router_gaps(net) as gaps:
        got, lead = oracle.generate(net, rows(), steps=want.shape[1], eos=eos, banned=BANNED)
    assert lead.min() > LEAD
    assert min(gaps, default=1) > 1e-5
    assert np.array_equal(got, want)
    assert np.array_equal(got, answers(family, eos).tokens[:, 0])
