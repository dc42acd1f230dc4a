"""Mistakes that a port makes: each is put in, and must move a logit by more than twice the tolerance.

Transformers' initialisation (norms one, biases zero) hides half of them; the goldens' models are random throughout.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from parity import TOLERANCE, compiled_logits, difference, golden_model, golden_rows, goldens
from tiny import jit

from mtjudge_jax.models.qwen3_vl import layers, moe, text, vision, vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig
from mtjudge_jax.types import Params, PromptBatch

BOTH = ("untied", "moe")


def seen(got: jax.Array, variant: str) -> bool:
    return difference(got, goldens()[f"{variant}/logits"], golden_rows().valid) > 2 * TOLERANCE


# in the weights: one compiled function for all


def cleared(*paths: str):
    return {path: lambda flat, path=path: 0 * flat[path] for path in paths}


def exchanged(a: str, b: str):
    return {a: lambda flat: flat[b], b: lambda flat: flat[a]}


def changed(path: str, change):
    return {path: lambda flat: change(flat[path])}


GATE_UP, DOWN, ROUTER = "text/layers/experts_gate_up_led2f", "text/layers/experts_down_lefd", "text/layers/router_lde"
EVERY_MODEL = {
    "vision qkv bias dropped": cleared("vision/blocks/qkv_bias_l3nh"),
    "no deepstack": cleared("vision/deepstack/fc2_tmo", "vision/deepstack/fc2_bias_to"),
    "q norm dropped": changed("text/layers/q_norm_lh", jnp.ones_like),
    "keys and values swapped": exchanged("text/layers/k_ldkh", "text/layers/v_ldkh"),
    "heads in another order": changed("text/layers/o_lnhd", lambda w: w[:, ::-1]),
    "merger transposed": changed("vision/merger/fc1_mm", jnp.transpose),
    "last tower bias dropped": changed("vision/blocks/fc2_bias_lc", lambda w: w.at[-1].set(0)),
}
WEIGHTS = {
    "untied": EVERY_MODEL | {"gate and up swapped": exchanged("text/layers/gate_ldf", "text/layers/up_ldf")},
    "moe": EVERY_MODEL
    | {
        "gate and up swapped": changed(GATE_UP, lambda w: w[..., ::-1, :]),
        "gate and up interleaved": changed(GATE_UP, lambda w: w.swapaxes(-1, -2).reshape(w.shape)),
        # A file in the other layout whose numbers are taken as they lie.
        "gate and up transposed": changed(GATE_UP, lambda w: jnp.moveaxis(w, 2, -1).reshape(w.shape)),
        "down transposed": changed(DOWN, lambda w: w.swapaxes(-1, -2).reshape(w.shape)),
        "router transposed": changed(ROUTER, lambda w: w.swapaxes(-1, -2).reshape(w.shape)),
        "experts in another order": changed(GATE_UP, lambda w: jnp.roll(w, 1, 1)) | changed(DOWN, lambda w: jnp.roll(w, 1, 1)),
        "downs in another order": changed(DOWN, lambda w: jnp.roll(w, 1, 1)),
        "routers of other layers": changed(ROUTER, lambda w: jnp.roll(w, 1, 0)),
        "router dropped": cleared(ROUTER),
    },
}


def with_weights(params: Params, changes: dict) -> Params:
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(flat | {path: change(flat) for path, change in changes.items()}, sep="/")


@pytest.mark.parametrize(("variant", "mistake"), [(variant, mistake) for variant in BOTH for mistake in WEIGHTS[variant]])
def test_a_mistake_in_the_weights_is_seen(variant, mistake):
    params, cfg = golden_model(variant)
    assert seen(compiled_logits(cfg)(with_weights(params, WEIGHTS[variant][mistake]), golden_rows()), variant)


# in the rows: the same function


def raster(rows: PromptBatch) -> PromptBatch:
    """Patch coordinates row by row instead of block by block."""
    hw, grid, segment = (np.array(field) for field in (rows.patch_hw, rows.patch_grid, rows.patch_segment))
    for row in range(len(hw)):
        for number in range(1, segment[row].max() + 1):
            here = segment[row] == number
            hw[row, here] = np.argwhere(np.ones(grid[row, here][0], bool))
    return rows._replace(patch_hw=jnp.asarray(hw))


ROWS = {
    "one-dimensional positions": lambda rows: rows._replace(
        positions=jnp.repeat((jnp.cumsum(rows.valid, 1) - 1)[..., None] * rows.valid[..., None], 3, -1)
    ),
    "height and width exchanged": lambda rows: rows._replace(positions=rows.positions[..., jnp.array([0, 2, 1])]),
    "patches in raster order": raster,
    "attention across images": lambda rows: rows._replace(patch_segment=jnp.minimum(rows.patch_segment, 1)),
    "padding seen": lambda rows: rows._replace(valid=jnp.ones_like(rows.valid)),
    "image tokens off by one": lambda rows: rows._replace(image_index=jnp.where(rows.image_index > 0, rows.image_index - 1, -1)),
    "images in another order": lambda rows: rows._replace(patches=jnp.roll(rows.patches, 24, 1)),
    "colours exchanged": lambda rows: rows._replace(patches=jnp.roll(rows.patches, 256, -1)),
}


@pytest.mark.parametrize("mistake", ROWS)
@pytest.mark.parametrize("variant", BOTH)
def test_a_mistake_in_the_rows_is_seen(variant, mistake):
    params, cfg = golden_model(variant)
    assert seen(compiled_logits(cfg)(params, ROWS[mistake](golden_rows())), variant)


# in the code: compiled once too, with a number that says which mistake is in

CODE = (
    "none",
    "rope theta 5e5",
    "rms eps 1e-5",
    "chunked mrope",
    "q and k norm after rope",
    "merger gelu tanh",
    "vision mlp gelu exact",
    "deepstack one layer late",
    "taps one block early",
    "half-pixel interpolation",
    "tower without rope",
    "one frame",
    "not causal",
    "layer norm eps 1e-5",
    "no renormalisation of the experts' weights",
    "one expert a token",
    "experts weighed alike",
)
OF_EXPERTS = CODE[-3:]
EPS = "layer norm eps 1e-5"  # felt only where the tower's inputs are small


def put_in_mistakes(patch: pytest.MonkeyPatch, now: jax.Array, cfg: Qwen3VLConfig) -> None:
    """Replaces what the model calls by what computes right and wrong and takes one, by `now`, while it is traced."""

    def pick(mistake: str, wrong, right):
        return jax.tree.map(lambda w, r: jnp.where(now == CODE.index(mistake), w, r), wrong, right)

    _in_the_decoder(patch, pick, cfg)
    _in_the_tower(patch, pick)
    _in_the_experts(patch, pick)


def _in_the_decoder(patch, pick, cfg: Qwen3VLConfig) -> None:
    rope, axes, norm, rotate = text.TextDecoder.rope, text.mrope_axes, text.rms_norm, text.rotate
    embed, attend = vlm.embed_prompt, vlm.attend
    late = []  # head norms whose heads have not been rotated yet, in order of q and k

    def other_rope(self, positions):
        theta = pick("rope theta 5e5", 5e5, self.cfg.rope_theta)
        return rope(SimpleNamespace(cfg=dataclasses.replace(self.cfg, rope_theta=theta), embed_vd=self.embed_vd), positions)

    def other_norm(x, weight, eps):
        normed = functools.partial(norm, weight=weight, eps=pick("rms eps 1e-5", 1e-5, eps))
        if weight.shape[-1] != cfg.text.head_dim:
            return normed(x)
        late.append(normed)
        return pick("q and k norm after rope", x, normed(x))

    def other_rotate(x, cos, sin):
        turned = rotate(x, cos, sin)
        return pick("q and k norm after rope", late.pop(0)(turned), turned)

    def other_embed(*args):
        x, taps = embed(*args)
        none = jnp.zeros_like(taps[:1])
        return x, pick("deepstack one layer late", jnp.concatenate([none, taps]), jnp.concatenate([taps, none]))

    def other_attend(*args, causal, **kwargs):
        return pick("not causal", attend(*args, causal=False, **kwargs), attend(*args, causal=causal, **kwargs))

    patch.setattr(text.TextDecoder, "rope", other_rope)
    patch.setattr(text, "mrope_axes", lambda cfg: pick("chunked mrope", np.repeat(np.arange(3), cfg.mrope_section), axes(cfg)))
    patch.setattr(text, "rms_norm", other_norm)
    patch.setattr(text, "rotate", other_rotate)
    patch.setattr(vlm, "embed_prompt", other_embed)
    patch.setattr(vlm, "attend", other_attend)


def _in_the_tower(patch, pick) -> None:
    tower, positions, embed = (vars(vision.VisionTower)[name] for name in ("__call__", "positions", "embed_patches"))
    rotate, gelu = vision.rotate, jax.nn.gelu

    def other_tower(self, batch, **kwargs):
        cfg, right = self.cfg, tower(self, batch, **kwargs)
        self.cfg = dataclasses.replace(cfg, deepstack_layers=tuple(tap - 1 for tap in cfg.deepstack_layers))
        wrong, self.cfg = tower(self, batch, **kwargs), cfg
        return pick("taps one block early", wrong, right)

    def other_positions(self, hw, grid):
        """By pixel centres instead of aligned corners: the same code at other coordinates."""
        side = round(self.cfg.num_position_embeddings**0.5)
        at = jnp.clip((hw + 0.5) * side / grid - 0.5, 0, side - 1) * jnp.maximum(grid - 1, 1) / (side - 1)
        return positions(self, pick("half-pixel interpolation", at, hw), grid)

    def other_embed(self, patches):
        """A still image's second frame left out: its half of the kernel is cleared."""
        kernel = self.patch_pc[...].reshape(3, 2, 256, -1).at[:, 1].set(0).sum(1).reshape(768, -1)
        return pick("one frame", (patches / 127.5 - 1) @ kernel + self.patch_bias_c[...], embed(self, patches))

    def other_gelu(x, approximate):
        """The merger's is the exact one, the blocks' the tanh one."""
        mistake = "vision mlp gelu exact" if approximate else "merger gelu tanh"
        return pick(mistake, gelu(x, approximate=not approximate), gelu(x, approximate=approximate))

    patch.setattr(vision.VisionTower, "__call__", other_tower)
    patch.setattr(vision.VisionTower, "positions", other_positions)
    patch.setattr(vision.VisionTower, "embed_patches", other_embed)
    patch.setattr(vision, "rotate", lambda x, cos, sin: pick("tower without rope", x, rotate(x, cos, sin)))
    patch.setattr(jax.nn, "gelu", other_gelu)
    patch.setattr(layers, "LN_EPS", pick(EPS, 1e-5, layers.LN_EPS))


def _in_the_experts(patch, pick) -> None:
    route = moe.route

    def other_route(x, router_de, *, k, taken):
        choice, right, probability = route(x, router_de, k=k)
        chosen = jnp.take_along_axis(probability, choice, -1)
        weight = pick("no renormalisation of the experts' weights", chosen, right)
        weight = pick("one expert a token", jnp.zeros_like(right).at[:, 0].set(1), weight)
        return choice, pick("experts weighed alike", jnp.full_like(right, 1 / k), weight), probability

    patch.setattr(moe, "route", other_route)


@functools.cache
def compiled_mistakes(cfg: Qwen3VLConfig):
    """(params, rows, number of the mistake in CODE) -> logits."""

    def run(params, rows, now):
        with pytest.MonkeyPatch.context() as patch:
            put_in_mistakes(patch, now, cfg)
            return vlm.logits(params, cfg, rows)

    return jit(run)


IN_CODE = [("untied", mistake) for mistake in CODE if mistake not in (EPS, *OF_EXPERTS)]
IN_CODE += [("quiet", EPS), *[("moe", mistake) for mistake in CODE if mistake != EPS]]


@pytest.mark.parametrize(("variant", "mistake"), IN_CODE)
def test_a_mistake_in_the_code_is_seen(variant, mistake):
    """And with none put in, the same compiled code gives the right logits: nothing but the mistake is seen."""
    params, cfg = golden_model(variant)
    got = compiled_mistakes(cfg)(params, golden_rows(), np.int32(CODE.index(mistake)))
    if mistake == "none":
        assert difference(got, goldens()[f"{variant}/logits"], golden_rows().valid) < TOLERANCE
    else:
        assert seen(got, variant)
