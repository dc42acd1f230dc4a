"""What is trained: all, all but the named parts, adapters alone; in which dtype; and the routers' metrics of an update."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from mtjudge_jax.config import Config, LoraConfig, LossConfig, ModelConfig
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.hf.lora import merge_lora
from mtjudge_jax.models.qwen3_vl import config as model_config
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.moe import RouterStats
from mtjudge_jax.policy import lanes, model
from mtjudge_jax.policy.trainable import cast, join, split, without_adapters
from mtjudge_jax.policy.update import apply, init_state, summarise_router
from mtjudge_jax.rl.logp import completion_logp
from mtjudge_jax.rl.loss import sft_loss
from mtjudge_jax.rl.optim import make_optimizer
from mtjudge_jax.sharding import make_mesh
from mtjudge_jax.types import SftBatch, TrainState

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")


def names(tree) -> set[str]:
    return set(flatten_dict(tree, sep="/"))


def settings(**model) -> Config:
    return Config(model=ModelConfig(**model))


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ((), lambda name: False),
        (("vision",), lambda name: name.startswith("vision/") and "merger" not in name and "deepstack" not in name),
        (("mergers",), lambda name: name.startswith(("vision/merger/", "vision/deepstack/"))),
        (("embeddings",), lambda name: name in ("text/embed_vd", "text/head_vd")),
        (("vision", "mergers"), lambda name: name.startswith("vision/")),
    ],
)
def test_parts_are_frozen_by_name(freeze, frozen):
    params = vlm.abstract_params(tiny.config())
    apart = split(params, settings(freeze=freeze))
    assert names(apart.frozen) == {name for name in names(params) if frozen(name)}
    assert names(apart.trained) | names(apart.frozen) == names(params)
    assert flatten_dict(join(*apart), sep="/") == flatten_dict(params, sep="/")


def adapted(*, moe: bool = False, rank: int = 3) -> model_config.Qwen3VLConfig:
    targets = TARGETS[:4] if moe else TARGETS
    return dataclasses.replace(tiny.config(blocks=1, moe=moe), lora=model_config.AdapterConfig(rank, 6.0, targets))


def random_adapters(cfg: model_config.Qwen3VLConfig):
    """With a B that is not zero, as after training."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), vlm.init_adapters(cfg, 0, "float32"))


def test_adapters_are_declared_where_they_are_asked_for():
    cfg = adapted()
    declared, base = names(vlm.abstract_params(cfg)), names(vlm.abstract_params(dataclasses.replace(cfg, lora=None)))
    fresh = flatten_dict(vlm.init_adapters(cfg, 0, "bfloat16"), sep="/")
    assert declared - base == fresh.keys() and len(fresh) == 14
    shapes = {name: leaf.shape for name, leaf in flatten_dict(vlm.abstract_params(cfg), sep="/").items()}
    for name, leaf in fresh.items():
        assert leaf.shape == shapes[name] and leaf.dtype == jnp.bfloat16
        assert bool((leaf == 0).all()) == ("_lora_b_" in name)
    apart = split(vlm.abstract_params(cfg), Config(lora=LoraConfig(rank=3)))
    assert names(apart.trained) == fresh.keys()
    assert names(without_adapters(vlm.abstract_params(cfg))) == base == names(apart.frozen)


@functools.cache
def compiled_logp(cfg: model_config.Qwen3VLConfig):
    def logp(params, rows, tokens):
        out = completion_logp(params, cfg, rows, tokens, tiny.full(tokens), allowed=tiny.ALLOWED, temperature=1.0, chunk=4096)
        return out.logp

    return tiny.jit(logp)


@pytest.mark.parametrize("moe", [False, True])
def test_adapters_add_their_product_and_nothing_while_b_is_zero(moe):
    """Through activations as in training, against the sum of the weights; and sampled from, against both."""
    cfg = adapted(moe=moe)
    plain = dataclasses.replace(cfg, lora=None)
    base, rows, (tokens, mask) = tiny.params(plain), tiny.prompts(), tiny.answers(4, 2, 5)
    before = compiled_logp(plain)(base, rows, tokens)
    fresh = compiled_logp(cfg)(join(base, vlm.init_adapters(cfg, 0, "float32")), rows, tokens)
    assert np.array_equal(before, fresh)
    params = join(base, random_adapters(cfg))
    through = compiled_logp(cfg)(params, rows, tokens)
    merged = merge_lora(params, cfg)
    assert names(merged) == names(base)
    assert tiny.relative(through[mask], before[mask]) > 0.05
    assert tiny.relative(through[mask], compiled_logp(plain)(merged, rows, tokens)[mask]) < 1e-5
    sample = functools.partial(lanes.sample, cfg=cfg, key=jax.random.key(0), allowed=tiny.ALLOWED, length=5, eos=tiny.EOS,
                               pad=tiny.PAD, temperature=jnp.ones(2))  # fmt: skip
    out = tiny.jit(lambda params, prompts: sample(params, prompts=prompts))(params, rows)
    again = compiled_logp(cfg)(params, rows, out.tokens)
    assert tiny.relative(out.logp[out.mask], again[out.mask]) < 1e-5


def test_a_target_without_a_projection_is_refused():
    cfg = Config(lora=LoraConfig(rank=2, targets=("q", "down")))
    with pytest.raises(model.ConfigError, match=r"lora.targets = \('q', 'down'\): a mixture of experts has no single down"):
        model.with_adapters(tiny.config(moe=True), cfg)
    assert model.with_adapters(tiny.config(), cfg).lora == model_config.AdapterConfig(2, 32.0, ("q", "down"))


@functools.cache
def one_update(name: str) -> tuple[TrainState, TrainState, dict, dict]:
    """(state before, state after, frozen part, metrics) of an SFT update of the tiny model."""
    cfg = Config(stage="sft")
    cfg.optim.lr, cfg.optim.weight_decay = 1e-3, 0.0
    model_cfg = tiny.config(blocks=1)
    params = tiny.params(model_cfg)
    if name == "lora":
        model_cfg, cfg.lora = adapted(), LoraConfig(rank=3)
        params = join(params, random_adapters(model_cfg))
    if name == "frozen":
        cfg.model.freeze = ("vision", "mergers", "embeddings")
    if name == "bf16 compute":
        cfg.model.dtype, cfg.optim.lr = "bfloat16", 1e-5
    apart = split(params, cfg)
    frozen = cast(apart.frozen, cfg.model.dtype)
    optimizer = make_optimizer(cfg.optim, 10)
    state = init_state(apart.trained, optimizer, make_mesh(cfg.mesh, jax.devices()[:1]))

    def logp_fn(params, rows, tokens, places):
        kept = {"allowed": tiny.ALLOWED, "temperature": 1.0, "chunk": 4096}
        return completion_logp(cast(params, cfg.model.dtype), model_cfg, rows, tokens, places, **kept)

    tokens, mask = tiny.answers(4, 1, 5)
    batch = SftBatch(tiny.prompts(), tokens, mask, tiny.packed(mask))
    run = tiny.jit(
        functools.partial(apply, loss_fn=functools.partial(sft_loss, logp_fn=logp_fn), optimizer=optimizer, pieces=2,
                          aggregation="token_mean")
    )  # fmt: skip
    after, metrics = run(state, frozen, batch)
    return state, after, frozen, metrics


def moments(state: TrainState) -> dict[str, np.ndarray]:
    """AdamW's first moment by the parameter's name: after one update, the gradient times 0.1."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "/mu/" in name:
            found[name.split("/mu/")[1]] = np.asarray(leaf)
    return found


def test_freezing_leaves_the_others_gradients_as_they_were():
    """And costs no memory for what stands still: moments of the trained part only."""
    _, _, _, metrics = one_update("all")
    before, after, frozen, frozen_metrics = one_update("frozen")
    assert float(metrics["loss"]) == pytest.approx(float(frozen_metrics["loss"]), rel=1e-6)
    everything, some = moments(one_update("all")[1]), moments(after)
    assert some.keys() == names(before.params) == everything.keys() - names(frozen)
    for name in some:
        # Clipping by the global norm scales both: directions are compared.
        a, b = everything[name].ravel(), some[name].ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99999, name
    trained = sum(x.size for x in jax.tree.leaves(before.params))
    assert sum(x.size for x in jax.tree.leaves(before.opt_state)) <= 2 * trained + 4


def test_an_adapters_update_moves_adapters():
    before, after, frozen, _ = one_update("lora")
    assert names(frozen) == names(vlm.abstract_params(tiny.config(blocks=1)))
    change = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before.params, after.params)
    assert all(value > 1e-4 for value in flatten_dict(change, sep="/").values()), change
    assert len(flatten_dict(change, sep="/")) == 14


def test_float32_is_kept_under_bfloat16_computing():
    """Steps too small for bfloat16 to hold are not lost; the gradient is that of float32 within bfloat16's precision."""
    before, after, _, _ = one_update("bf16 compute")
    moved, rounded_away = 0, 0
    for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        moved += int((a != b).sum())
        rounded_away += int(((a != b) & (a.astype(jnp.bfloat16) == b.astype(jnp.bfloat16))).sum())
    assert rounded_away > 0.8 * moved > 0
    exact, got = moments(one_update("all")[1]), moments(after)
    a, b = (np.concatenate([x[name].ravel() for name in sorted(x)]) for x in (exact, got))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


def test_the_reference_shares_what_is_frozen():
    """Under adapters it is the base itself; with everything trained in one dtype it is what the state was copied from."""
    params = tiny.params(tiny.config(blocks=1))
    cfg = Config(loss=LossConfig(kl_coef=0.1))
    reference, shared = model.reference_of(split(params, cfg), cfg)
    assert shared and flatten_dict(reference, sep="/").keys() == names(params)
    assert all(leaf is flatten_dict(params, sep="/")[name] for name, leaf in flatten_dict(reference, sep="/").items())
    cfg.model.freeze, cfg.model.dtype = ("vision",), "bfloat16"
    apart = split(params, cfg)
    reference, shared = model.reference_of(apart, cfg)
    assert not shared
    assert all(flatten_dict(reference, sep="/")[name] is leaf for name, leaf in flatten_dict(apart.frozen, sep="/").items())
    assert all(flatten_dict(reference, sep="/")[name].dtype == jnp.bfloat16 for name in names(apart.trained))
    cfg = Config(loss=LossConfig(kl_coef=0.1), lora=LoraConfig(rank=3))
    apart = split(join(params, random_adapters(adapted())), cfg)
    reference, _ = model.reference_of(apart, cfg)
    assert reference is apart.frozen and names(reference) == names(params)
    cfg.loss.kl_coef = 0.0
    assert model.reference_of(apart, cfg) == (None, False)


def test_routers_are_not_cast():
    params = cast(tiny.params(tiny.config(moe=True)), "bfloat16")
    dtypes = {name: leaf.dtype for name, leaf in flatten_dict(params, sep="/").items()}
    assert dtypes.pop("text/layers/router_lde") == jnp.float32
    assert set(dtypes.values()) == {jnp.dtype(jnp.bfloat16)}


def test_router_metrics_are_of_real_tokens():
    """Loads sum to one a layer, count prompts without padding and answers up to their end, and summarise by definition."""
    cfg = tiny.config(blocks=1, moe=True)
    params, rows, (tokens, mask) = tiny.params(cfg), tiny.prompts(), tiny.answers(4, 2, 5)

    def stats(tokens, places):
        kept = {"allowed": tiny.ALLOWED, "temperature": 1.0, "chunk": 4096}
        return completion_logp(params, cfg, rows, tokens, places, backend=Backend(), **kept).router

    run = tiny.jit(stats)
    got = run(tokens, tiny.packed(mask))
    assert isinstance(got, RouterStats) and got.load.shape == (2, 8) and got.entropy.shape == (2,)
    assert np.allclose(got.load.sum(-1), 1, atol=1e-6)
    count = 2 * (rows.valid.sum() + mask[:, :, :-1].sum())  # two choices a token; the last one predicts nothing
    assert np.allclose(np.asarray(got.load) * count, np.round(np.asarray(got.load) * count), atol=1e-3)
    assert np.all(np.asarray(got.entropy) > 0) and np.all(np.asarray(got.entropy) < np.log(8))
    junk = run(np.where(mask, tokens, 7), tiny.packed(mask))
    assert np.array_equal(junk.load, got.load)
    assert not np.array_equal(run(np.where(mask, tokens, 7), tiny.full(tokens)).load, got.load)
    load = jnp.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    metrics = {"loss": jnp.float32(1), "router_load": load, "router_entropy": jnp.array([1.0, 3])}
    want = {"loss": 1.0, "router_entropy": 2.0, "router_peak": 3.0, "router_idle": 5 / 8}
    assert {name: float(value) for name, value in summarise_router(metrics).items()} == want
