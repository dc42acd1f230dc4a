"""The operations of a step by hand and by identities, and what a step reports of its work."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import Config
from mtjudge_jax.models.chips import TPUS
from mtjudge_jax.plan import analytic
from mtjudge_jax.policy.flops import forward_flops, step_flops, update_flops
from mtjudge_jax.rl.streams import lengths_of
from mtjudge_jax.sharding import make_mesh
from mtjudge_jax.train.monitor import work
from mtjudge_jax.train.monitor.work import Work, work_numbers
from mtjudge_jax.types import Lengths

MODEL = tiny.config(layers=2, blocks=1)


def lengths(prompts: list[int], patches: list[int], answers: list[list[int]]) -> Lengths:
    return Lengths(np.array(prompts), np.array(patches), np.array(answers))


def test_a_forward_pass_by_hand():
    """A prompt of 3 tokens without a picture and answers of 2 and 4: streams of 3 + 1 + 3 tokens, 2 + 4 rows of the head."""
    text, got = MODEL.text, forward_flops(MODEL, lengths([3], [0], [[2, 4]]))
    d, h, heads, kv = text.hidden_size, text.head_dim, text.num_heads, text.num_kv_heads
    layer = d * h * (2 * heads + 2 * kv) + 3 * d * text.intermediate_size
    assert (got.patches, got.blocks, got.mergers) == (0, 0, 0)
    assert got.layers == 2 * text.num_layers * layer * 7 and got.head == 2 * d * text.vocab_size * 6
    pairs = 3 * 3 / 2 + (1 * 3 + 1 / 2) + (3 * 3 + 9 / 2)
    assert got.pairs == 4 * text.num_layers * heads * h * pairs


def test_prompts_add_up_and_padding_does_not_count():
    parts = [lengths([7], [16], [[3, 9]]), lengths([30], [64], [[1, 5]])]
    both = lengths([7, 30], [16, 64], [[3, 9], [1, 5]])
    np.testing.assert_allclose(np.add(*[forward_flops(MODEL, one) for one in parts]), forward_flops(MODEL, both), rtol=1e-12)
    cfg = Config()
    cfg.data.prompt_tokens, cfg.data.patches, cfg.rollout.completion_tokens, cfg.rollout.group_size = 30, 64, 9, 2
    cfg.rollout.prompts = cfg.update.prompts = 2
    full = lengths([30, 30], [64, 64], [[9, 9], [9, 9]])
    formula = analytic.flops(MODEL, cfg)
    assert sum(forward_flops(MODEL, full)) == pytest.approx(formula["logp"], rel=1e-12)
    assert update_flops(forward_flops(MODEL, full), cfg) == pytest.approx(formula["update"], rel=1e-12)
    assert sum(forward_flops(MODEL, both)) < 0.8 * formula["logp"]


def test_a_step_is_its_rollout_its_passes_and_its_update():
    cfg, one = Config(), lengths([7, 30], [16, 64], [[3, 9], [1, 5]])
    forward, trained = sum(forward_flops(MODEL, one)), update_flops(forward_flops(MODEL, one), cfg)
    assert step_flops(MODEL, cfg, sampled=None, learned=one, passes=0) == trained
    twice = Lengths(*[np.concatenate([x, x]) for x in one])
    got = step_flops(MODEL, cfg, sampled=twice, learned=one, passes=2)
    assert got == pytest.approx(2 * forward + 2 * forward + trained, rel=1e-12)
    cfg.model.freeze = ("vision", "mergers", "embeddings")
    assert step_flops(MODEL, cfg, sampled=None, learned=one, passes=0) < trained


@pytest.mark.parametrize("kind,peak", [("TPU v5", TPUS["v5p"].flops), ("cpu", None)])
def test_the_numbers_of_a_step(kind, peak, monkeypatch):
    devices = [SimpleNamespace(device_kind=kind)] * 4
    monkeypatch.setattr(work.jax, "devices", lambda: devices)
    monkeypatch.setattr(work.jax, "device_count", lambda: 4)
    run, clock = SimpleNamespace(cfg=Config(), model=SimpleNamespace(cfg=MODEL)), SimpleNamespace(seconds={"a": 1.5, "b": 0.5})
    one = lengths([7, 30], [16, 64], [[3, 9], [1, 5]])
    got = work_numbers(run, Work(one, one, 1, stream=100, prefill=64, decode=40), clock)
    assert got["tokens"] == {"prompts": 37, "answers": 18, "stream": 100, "prefill": 64, "decode": 40}
    operations = step_flops(MODEL, run.cfg, sampled=one, learned=one, passes=1)
    assert got["tokens_per_s"] == 55 / 2 and got["model_tflops"] == pytest.approx(operations / 1e12)
    assert got.get("mfu") == (None if peak is None else pytest.approx(operations / (2 * 4 * peak)))
    offline = work_numbers(run, Work(None, one, 0, stream=100), clock)
    assert offline["tokens"] == {"prompts": 37, "answers": 18, "stream": 100} and offline["model_tflops"] < got["model_tflops"]


def test_lengths_are_counted_without_padding():
    cfg = Config()
    prompts = SimpleNamespace(
        valid=jnp.array([[0, 1, 1], [1, 1, 1]], bool), patch_segment=jnp.array([[1, 1, 2, 2, 0, 0], [1, 0, 0, 0, 0, 0]])
    )
    mask = jnp.array([[[1, 1, 0], [1, 0, 0]], [[0, 0, 0], [1, 1, 1]]], bool)
    with jax.default_device(jax.devices()[0]):
        got = lengths_of(prompts, mask, make_mesh(cfg.mesh, jax.devices()[:1]))
    assert got.prompt.tolist() == [2, 3] and got.patches.tolist() == [4, 1] and got.answers.tolist() == [[2, 1], [0, 3]]
