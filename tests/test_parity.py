"""The model against transformers' Qwen3-VL: logits, gradients and greedy tokens; and mistakes that must not go unnoticed.

The goldens were made by goldens/make_goldens.py; they are compared everywhere. Where torch is installed, other sizes and
exports are also compared with transformers itself.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtjudge_jax.data.images import patch_coordinates
from mtjudge_jax.data.rows import rope_positions
from mtjudge_jax.models.qwen3_vl import layers, text, vision, vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config
from mtjudge_jax.models.qwen3_vl.convert import flatten, load_params, nest, save_hf, to_hf, weights
from mtjudge_jax.types import Params, PromptBatch

HERE = Path(__file__).parent / "goldens"
VARIANTS = ("untied", "tied", "quiet")
TOLERANCE = 5e-5  # float32 on both sides; logits have a standard deviation of 0.9
GRADIENT_TOLERANCE = 1e-4  # of the largest entry of each tensor
CONTROL = 120  # the first id greedy decoding leaves out
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # these compile more than they run


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    with np.load(HERE / "qwen3_vl.npz") as file:
        return dict(file)


def golden_rows() -> PromptBatch:
    return PromptBatch(*(jnp.asarray(goldens()[f"rows/{name}"]) for name in PromptBatch._fields))


@functools.cache
def golden_model(variant: str) -> tuple[Params, Qwen3VLConfig]:
    """The variants share one set of weights, see make_goldens."""
    cfg = load_config(HERE / "qwen3_vl")
    flat = flatten(load_params(HERE / "qwen3_vl", cfg, dtype=jnp.float32, sharding_of=lambda path, shape: None))
    if variant == "tied":
        cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, tie_word_embeddings=True))
        del flat["text/head_vd"]
    if variant == "quiet":
        flat |= {path: flat[path] * 1e-3 for path in ("vision/patch_pc", "vision/patch_bias_c", "vision/pos_sc")}
    return nest(flat), cfg


@functools.cache
def compiled_logits(cfg: Qwen3VLConfig):
    return jit(lambda params, rows: vlm.logits(params, cfg, rows))


def difference(got: jax.Array, want: np.ndarray, valid: np.ndarray) -> float:
    """Largest difference over real tokens; NaN counts as infinite."""
    gap = np.abs(np.asarray(got)[valid] - want)
    return float(np.where(np.isnan(gap), np.inf, gap).max())


# goldens


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_reference(variant):
    params, cfg = golden_model(variant)
    rows, want = golden_rows(), goldens()[f"{variant}/logits"]
    got = compiled_logits(cfg)(params, rows)
    assert got.dtype == jnp.float32
    assert want.std() > 0.8
    assert difference(got, want, rows.valid) < TOLERANCE


def test_padding_changes_nothing():
    params, cfg = golden_model("untied")
    rows, want = golden_rows(), goldens()["untied/logits"]
    by_name = rows._asdict()
    for name, value in {"tokens": 5, "valid": False, "positions": 0, "image_index": -1}.items():
        by_name[name] = jnp.pad(by_name[name], [(0, 0), (7, 0), (0, 0)][: by_name[name].ndim], constant_values=value)
    for name, value in {"patches": 255, "patch_hw": 0, "patch_grid": 1, "patch_segment": 0}.items():
        by_name[name] = jnp.pad(by_name[name], [(0, 0), (0, 24), (0, 0)][: by_name[name].ndim], constant_values=value)
    wider = PromptBatch(**by_name)
    assert difference(compiled_logits(cfg)(params, wider), want, wider.valid) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_completions_over_a_shared_prompt_equal_separate_ones(variant):
    """Log-probabilities and every gradient: transformers ran each completion with a prompt of its own."""
    params, cfg = golden_model(variant)
    rows, golden = golden_rows(), goldens()
    tokens, mask = jnp.asarray(golden["completions"]), jnp.asarray(golden["completion_mask"])

    def loss(params):
        hidden = vlm.completion_hidden(params, cfg, rows, tokens)
        scores = jax.nn.log_softmax(jnp.einsum("qgcd,vd->qgcv", hidden, vlm.output_head(params, cfg)))
        logp = jnp.take_along_axis(scores, tokens[..., None], -1)[..., 0]
        return -jnp.sum(logp * mask) / mask.sum(), logp

    (value, logp), gradient = jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert difference(logp, golden[f"{variant}/logp"][mask], mask) < TOLERANCE
    assert abs(float(value) - golden[f"{variant}/loss"]) < TOLERANCE
    assert_gradients(gradient, cfg, variant)


def assert_gradients(gradient: Params, cfg: Qwen3VLConfig, variant: str) -> None:
    """Norm and sampled entries of every tensor's gradient, in transformers' layout."""
    golden, flat = goldens(), flatten(gradient)
    by_name = {}
    for weight in weights(cfg):
        leaf = np.asarray(flat[weight.path])
        by_name |= {name: to_hf(weight, leaf if weight.stack is None else leaf[i]) for i, name in enumerate(weight.names)}
    names = [str(name) for name in golden[f"{variant}/gradient_names"]]
    assert sorted(by_name) == names
    ends = np.cumsum(golden[f"{variant}/gradient_counts"])
    for name, norm, end, count in zip(
        names, golden[f"{variant}/gradient_norms"], ends, golden[f"{variant}/gradient_counts"], strict=True
    ):
        part = slice(end - count, end)
        at, want = golden[f"{variant}/gradient_at"][part], golden[f"{variant}/gradient_values"][part]
        got = by_name[name].reshape(-1)
        assert norm > 0
        assert abs(np.linalg.norm(got.astype(np.float64)) / norm - 1) < GRADIENT_TOLERANCE, name
        assert np.abs(got[at] - want).max() < GRADIENT_TOLERANCE * np.abs(want).max(), name


@pytest.mark.parametrize("variant", ["untied", "tied"])
def test_greedy_decoding_gives_the_same_tokens(variant):
    """Prefill once, decode with caches, two equal completions a prompt; transformers ran the whole text at every step."""
    params, cfg = golden_model(variant)
    rows, want = golden_rows(), goldens()[f"{variant}/greedy"]
    steps, group = want.shape[1], 2

    @jit
    def run(params):
        head = vlm.output_head(params, cfg)[:CONTROL]
        hidden, prompt = vlm.prefill(params, cfg, rows)
        first = jnp.repeat(jnp.argmax(hidden @ head.T, -1)[:, None], group, 1).astype(jnp.int32)

        def step(carry, at):
            tokens, own = carry
            hidden, own = vlm.decode(params, cfg, rows, tokens=tokens, at=at, prompt=prompt, own=own)
            return (jnp.argmax(hidden @ head.T, -1).astype(jnp.int32), own), tokens

        carry = (first, vlm.empty_cache(cfg, prompt, group, steps))
        return jax.lax.scan(step, carry, jnp.arange(steps))[1]

    got = np.asarray(run(params))  # [steps, Q, G]
    assert np.array_equal(got[:, :, 0].T, want)
    assert np.array_equal(got[:, :, 1].T, want)


def test_rows_are_laid_out_as_the_reference_lays_them_out():
    """The host code's positions and patch order against transformers'."""
    rows = PromptBatch(*(np.asarray(field) for field in golden_rows()))
    image_id = load_config(HERE / "qwen3_vl").image_token_id
    for row in range(len(rows.tokens)):
        segment, valid = rows.patch_segment[row], rows.valid[row]
        numbers = range(1, segment.max() + 1)
        grids = [tuple(int(side) for side in rows.patch_grid[row][segment == number][0]) for number in numbers]
        tokens = rows.tokens[row][valid].tolist()
        positions, following = rope_positions(tokens, image_id=image_id, grids=grids, merge=2)
        assert np.array_equal(positions, rows.positions[row][valid])
        assert following == rows.next_position[row]
        for number, grid in zip(numbers, grids, strict=True):
            assert np.array_equal(patch_coordinates(grid, 2), rows.patch_hw[row][segment == number])


# mistakes: each is put in, and must move a logit by more than the tolerance


def with_params(params: Params, **changes) -> Params:
    """A copy with leaves changed; text__layers__up_ldf=f sets text/layers/up_ldf to f(flat tree)."""
    flat = flatten(params)
    return nest(flat | {key.replace("__", "/"): change(flat) for key, change in changes.items()})


PARAMETER_MISTAKES = {
    "vision qkv bias dropped": {"vision__blocks__qkv_bias_l3nh": lambda flat: 0 * flat["vision/blocks/qkv_bias_l3nh"]},
    "no deepstack": {
        "vision__deepstack__fc2_tmo": lambda flat: 0 * flat["vision/deepstack/fc2_tmo"],
        "vision__deepstack__fc2_bias_to": lambda flat: 0 * flat["vision/deepstack/fc2_bias_to"],
    },
    "gate and up swapped": {
        "text__layers__gate_ldf": lambda flat: flat["text/layers/up_ldf"],
        "text__layers__up_ldf": lambda flat: flat["text/layers/gate_ldf"],
    },
    "q norm dropped": {"text__layers__q_norm_lh": lambda flat: jnp.ones_like(flat["text/layers/q_norm_lh"])},
    "keys and values swapped": {
        "text__layers__k_ldkh": lambda flat: flat["text/layers/v_ldkh"],
        "text__layers__v_ldkh": lambda flat: flat["text/layers/k_ldkh"],
    },
    "heads in another order": {"text__layers__o_lnhd": lambda flat: flat["text/layers/o_lnhd"][:, ::-1]},
    "merger transposed": {"vision__merger__fc1_mm": lambda flat: flat["vision/merger/fc1_mm"].T},
    "last tower bias dropped": {"vision__blocks__fc2_bias_lc": lambda flat: flat["vision/blocks/fc2_bias_lc"].at[-1].set(0)},
}


@pytest.mark.parametrize("mistake", PARAMETER_MISTAKES)
def test_a_mistake_in_the_weights_is_seen(mistake):
    params, cfg = golden_model("untied")
    rows = golden_rows()
    got = compiled_logits(cfg)(with_params(params, **PARAMETER_MISTAKES[mistake]), rows)
    assert difference(got, goldens()["untied/logits"], rows.valid) > 2 * TOLERANCE


def raster(rows: PromptBatch) -> PromptBatch:
    """Patch coordinates row by row instead of block by block."""
    hw, grid, segment = (np.array(field) for field in (rows.patch_hw, rows.patch_grid, rows.patch_segment))
    for row in range(len(hw)):
        for number in range(1, segment[row].max() + 1):
            here = segment[row] == number
            hw[row, here] = np.argwhere(np.ones(grid[row, here][0], bool))
    return rows._replace(patch_hw=jnp.asarray(hw))


ROW_MISTAKES = {
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


@pytest.mark.parametrize("mistake", ROW_MISTAKES)
def test_a_mistake_in_the_rows_is_seen(mistake):
    params, cfg = golden_model("untied")
    rows = golden_rows()
    got = compiled_logits(cfg)(params, ROW_MISTAKES[mistake](rows))
    assert difference(got, goldens()["untied/logits"], rows.valid) > 2 * TOLERANCE


def other_theta(cfg: Qwen3VLConfig) -> Qwen3VLConfig:
    return dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, rope_theta=5e5))


def earlier_taps(cfg: Qwen3VLConfig) -> Qwen3VLConfig:
    """Taps before the block instead of after it."""
    taps = tuple(tap - 1 for tap in cfg.vision.deepstack_layers)
    return dataclasses.replace(cfg, vision=dataclasses.replace(cfg.vision, deepstack_layers=taps))


def larger_rms_eps(cfg: Qwen3VLConfig) -> Qwen3VLConfig:
    return dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, rms_norm_eps=1e-5))


def chunked_mrope(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(text, "mrope_axes", lambda cfg: np.repeat(np.arange(3), cfg.mrope_section))


def norm_after_rope(patch: pytest.MonkeyPatch) -> None:
    """rms_norm on heads is put off until rotate has been applied."""

    def norm(x, weight, eps):
        return (x, weight, eps) if weight.shape[-1] == 16 else layers.rms_norm(x, weight, eps)

    patch.setattr(text, "rms_norm", norm)
    patch.setattr(text, "rotate", lambda late, cos, sin: layers.rms_norm(layers.rotate(late[0], cos, sin), *late[1:]))


def gelu(patch: pytest.MonkeyPatch, *, tanh: bool) -> None:
    """One flavour everywhere; the merger's is the exact one, the blocks' the tanh one."""
    real = jax.nn.gelu
    patch.setattr(jax.nn, "gelu", lambda x, approximate: real(x, approximate=tanh))


def shifted_deepstack(patch: pytest.MonkeyPatch) -> None:
    def embed(*args):
        x, taps = real(*args)
        return x, jnp.concatenate([jnp.zeros_like(taps[:1]), taps])

    real = vlm.embed_prompt
    patch.setattr(vlm, "embed_prompt", embed)


def half_pixel(patch: pytest.MonkeyPatch) -> None:
    """Interpolation by pixel centres instead of aligned corners: the same code at other coordinates."""

    def positions(self, hw, grid):
        side = round(self.cfg.num_position_embeddings**0.5)
        at = jnp.clip((hw + 0.5) * side / grid - 0.5, 0, side - 1)
        return real(self, at * jnp.maximum(grid - 1, 1) / (side - 1), grid)

    real = vision.VisionTower.positions
    patch.setattr(vision.VisionTower, "positions", positions)


def unrotated_tower(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vision, "rotate", lambda x, cos, sin: x)


def one_frame(patch: pytest.MonkeyPatch) -> None:
    """The second frame of a still image left out: its half of the kernel is cleared."""

    def embed(self, patches):
        kernel = self.patch_pc[...].reshape(3, 2, 256, -1).at[:, 1].set(0).sum(1).reshape(768, -1)
        return (patches / 127.5 - 1) @ kernel + self.patch_bias_c[...]

    patch.setattr(vision.VisionTower, "embed_patches", embed)


def not_causal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(vlm, "prompt_mask", lambda rows: rows.valid[:, None, :] & jnp.ones_like(rows.valid)[:, :, None])


CODE_MISTAKES = {
    "rope theta 5e5": (other_theta, None),
    "taps one block early": (earlier_taps, None),
    "rms eps 1e-5": (larger_rms_eps, None),
    "chunked mrope": (None, chunked_mrope),
    "q and k norm after rope": (None, norm_after_rope),
    "merger gelu tanh": (None, functools.partial(gelu, tanh=True)),
    "vision mlp gelu exact": (None, functools.partial(gelu, tanh=False)),
    "deepstack one layer late": (None, shifted_deepstack),
    "half-pixel interpolation": (None, half_pixel),
    "tower without rope": (None, unrotated_tower),
    "one frame": (None, one_frame),
    "not causal": (None, not_causal),
}


@pytest.mark.parametrize("mistake", CODE_MISTAKES)
def test_a_mistake_in_the_code_is_seen(mistake, monkeypatch):
    params, cfg = golden_model("untied")
    rows, (change, patch) = golden_rows(), CODE_MISTAKES[mistake]
    if patch is not None:
        patch(monkeypatch)
    cfg = cfg if change is None else change(cfg)
    got = jit(lambda params, rows: vlm.logits(params, cfg, rows))(params, rows)
    assert difference(got, goldens()["untied/logits"], rows.valid) > 2 * TOLERANCE


def test_another_layer_norm_epsilon_is_seen(monkeypatch):
    """Only where the tower's inputs are small; elsewhere 1e-5 and 1e-6 give the same logits."""
    params, cfg = golden_model("quiet")
    rows = golden_rows()
    monkeypatch.setattr(layers, "LN_EPS", 1e-5)
    got = jit(lambda params, rows: vlm.logits(params, cfg, rows))(params, rows)
    assert difference(got, goldens()["quiet/logits"], rows.valid) > 2 * TOLERANCE


# transformers itself


@pytest.fixture
def oracle():
    pytest.importorskip("torch", reason="torch is not installed; the goldens were compared")
    import oracle

    return oracle


PROMPTS = [
    [31, 62, (2, 2), 5, 17, (6, 8), 93, (4, 2), 44],
    [7, 8, 9],
    [(8, 2), 101, (2, 10), 55, 66, 77, 88],
    [12, (6, 6), 13],
]


@pytest.mark.parametrize(("sizes", "tied", "seed"), [("GAPS", True, 21), ("PLAIN", False, 22)])
def test_other_models_and_their_export_equal_transformers(oracle, tmp_path, sizes, tied, seed):
    """Saved by transformers, read here, written back, read by transformers: one set of logits."""
    sizes = {"GAPS": oracle.GAPS, "PLAIN": oracle.PLAIN}[sizes]
    net = oracle.model(oracle.config(sizes, tied=tied), seed)
    net.save_pretrained(tmp_path / "hf")
    cfg = load_config(tmp_path / "hf")
    assert cfg.text.tie_word_embeddings is tied
    params = load_params(tmp_path / "hf", cfg, dtype=jnp.float32, sharding_of=lambda path, shape: None)
    rows = oracle.batch(PROMPTS, net.config, length=40, patches=64, seed=seed)
    want = oracle.logits(net, rows)[rows.valid]
    got = compiled_logits(cfg)(params, PromptBatch(*(jnp.asarray(field) for field in rows)))
    assert difference(got, want, rows.valid) < TOLERANCE
    save_hf(params, tmp_path / "ours", source_folder=tmp_path / "hf", dtype=jnp.float32, shard_bytes=200_000)
    again = oracle.logits(oracle.load(tmp_path / "ours"), rows)[rows.valid]
    assert np.array_equal(again, want)


def test_goldens_are_what_transformers_gives_today(oracle):
    net = oracle.load(HERE / "qwen3_vl")
    rows = PromptBatch(*(np.asarray(field) for field in golden_rows()))
    assert np.abs(oracle.logits(net, rows)[rows.valid] - goldens()["untied/logits"]).max() < TOLERANCE
