"""loss.replay_routing: the experts that the sampler chose, in the stream of training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from mtjudge_jax.config import Config, LossConfig, RolloutConfig, UpdateConfig
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.policy.programs import make_programs, place_prompts
from mtjudge_jax.rl.routing import check_replay, replaying
from mtjudge_jax.rl.streams import in_least_room, place_answers
from mtjudge_jax.types import NO_CHOICE, PromptRoom

ROWS, GROUP, LENGTH, LAYERS = 8, 4, 24, 3
pytestmark = pytest.mark.usefixtures("quick_to_compile")
MESHES = {"one device": (1, 1, 1, 1), "2 data, 2 fsdp, 2 expert": (2, 2, 2, 1)}


def build(mesh: str = "one device", dtype: str = "float32", micro: int = 0):
    cfg = Config(
        rollout=RolloutConfig(prompts=ROWS, group_size=GROUP, completion_tokens=LENGTH, micro_prompts=micro),
        update=UpdateConfig(prompts=ROWS, micro_prompts=ROWS),
        loss=LossConfig(replay_routing=True),
    )
    cfg.model.dtype = dtype
    model_cfg = tiny.config(moe=True, layers=LAYERS, blocks=1)
    programs = make_programs(cfg, model_cfg, tiny.tokenizer(), tiny.mesh_of(MESHES[mesh]))
    params = tiny.placed(tiny.params(model_cfg), programs.mesh)
    return programs, params, place_prompts(tiny.prompts(ROWS)._asdict(), programs.mesh)


def drawn(programs, params, prompts):
    """A rollout, and its log-probabilities by the stream of training with and without the sampler's choices."""
    out = programs.sample(params, prompts, jax.random.key(0), np.full(GROUP, 1.0, np.float32), LENGTH)
    replayed, bare = replaying(prompts, out, programs.mesh)
    assert bare.routing is None
    places = place_answers(prompts, out.mask, programs.mesh)
    found = [np.where(out.mask, programs.logp(params, p, out.tokens, places), 0) for p in (prompts, replayed)]
    return jax.device_get(out), replayed, *found


@pytest.mark.parametrize("mesh", MESHES)
def test_every_token_that_was_read_has_its_experts_and_no_other(mesh):
    programs, params, prompts = build(mesh)
    out, _, own, replayed = drawn(programs, params, prompts)
    of_prompts, of_answers = out.routing
    assert of_prompts.shape == (ROWS, tiny.PROMPT_TOKENS, LAYERS, 2) and of_answers.shape == (ROWS, GROUP, LENGTH, LAYERS, 2)
    assert of_prompts.max() < 8
    read = np.arange(LENGTH) < out.mask.sum(-1, keepdims=True) - 1  # the last token is drawn and never read
    assert (of_answers[read] < 8).all() and (of_answers[~read] == NO_CHOICE).all() and read.sum() > 100
    assert (of_answers[read][..., 0] != of_answers[read][..., 1]).all()
    np.testing.assert_allclose(replayed, own, atol=1e-5)  # in float32 both choose alike


def test_another_choice_gives_other_log_probabilities_and_the_router_still_learns():
    programs, params, prompts = build()
    out, replayed, own, _ = drawn(programs, params, prompts)
    other = replayed._replace(routing=jax.tree.map(lambda x: jnp.where(x == NO_CHOICE, x, (x + 1) % 8), replayed.routing))
    places = place_answers(prompts, jnp.asarray(out.mask), programs.mesh)
    got = np.where(out.mask, programs.logp(params, other, out.tokens, places), 0)
    assert np.abs(got - own).max() > 0.1

    def total(params, prompts):
        return jnp.where(out.mask, programs.logp_fn(params, prompts, out.tokens, places).logp, 0).sum()

    with_own, with_replayed = (jax.grad(total)(params, p) for p in (prompts, replayed))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(with_own), jax.tree.leaves(with_replayed), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * max(np.abs(a).max(), 1e-3), path
    assert np.abs(with_replayed["text"]["layers"]["router_lde"]).max() > 1e-3


def test_the_gap_of_bfloat16_shrinks():
    out, _, own, replayed = drawn(*build(dtype="bfloat16"))
    gaps = [np.abs(logp - out.logp)[out.mask] for logp in (own, replayed)]
    assert np.quantile(gaps[0], 0.99) > 3 * np.quantile(gaps[1], 0.99) > 0
    assert gaps[0].mean() > 1.3 * gaps[1].mean()


def test_prompts_that_take_the_places_of_others_have_theirs():
    """In pieces and in segments, with lanes that move: the same choices as all at once."""
    (whole, params, prompts), (pieces, *_) = build(), build(micro=4)
    drawing = params, prompts, jax.random.key(0), np.ones(GROUP, np.float32), LENGTH
    want, got = (programs.sample(*drawing) for programs in (whole, pieces))
    assert pieces.work["lane steps"] > 0
    assert np.array_equal(want.tokens, got.tokens)
    assert all(np.array_equal(a, b) for a, b in zip(want.routing, got.routing, strict=True))


def test_a_rollout_in_a_smaller_room_is_replayed_in_the_batchs_own():
    programs, params, prompts = build()
    longest, most = int(prompts.valid.sum(1).max()), int((prompts.patch_segment > 0).sum(1).max())
    whole = PromptRoom(prompts.tokens.shape[1], prompts.patches.shape[1])
    small = in_least_room(prompts, programs.mesh, (PromptRoom(longest, most), whole))
    out = programs.sample(params, small, jax.random.key(0), np.ones(GROUP, np.float32), LENGTH)
    assert out.routing.prompts.shape[1] == longest < whole.prompt
    replayed, _ = replaying(prompts, out, programs.mesh)
    wide = np.asarray(replayed.routing.prompts)
    assert np.array_equal(wide[:, -longest:], out.routing.prompts) and (wide[:, :-longest] == NO_CHOICE).all()


def test_what_has_no_experts_or_too_many_is_refused():
    cfg = Config(loss=LossConfig(replay_routing=True))
    with pytest.raises(ConfigError, match="dense"):
        check_replay(cfg, tiny.config().text)
    text = tiny.config(moe=True).text
    with pytest.raises(ConfigError, match="at most 255 experts, the model has 512"):
        check_replay(cfg, dataclasses.replace(text, moe=dataclasses.replace(text.moe, num_experts=512)))
    check_replay(Config(), tiny.config().text)
