"""The model against transformers' Qwen3-VL, dense and mixture of experts: logits, gradients, greedy tokens.

The goldens were made by goldens/make_goldens.py; they are compared everywhere. Where torch is installed, other sizes and
exports are also compared with transformers itself.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import (
    CONTROL,
    DENSE,
    GRADIENT_TOLERANCE,
    HERE,
    MOE,
    TOLERANCE,
    assert_gradients,
    compiled_logits,
    difference,
    golden_model,
    golden_rows,
    goldens,
    hub_tensors,
    in_hub_layout,
    write_moe,
)
from tiny import jit, packed

from mtjudge_jax.config import MeshConfig
from mtjudge_jax.data.image_config import ImageConfig
from mtjudge_jax.data.images import patch_coordinates, patchify
from mtjudge_jax.data.rows import rope_positions
from mtjudge_jax.models.backend import Backend
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, load_config
from mtjudge_jax.policy.lanes import sample
from mtjudge_jax.rl.logp import completion_logp
from mtjudge_jax.sharding import make_mesh, shard_batch, tree_shardings
from mtjudge_jax.types import PromptBatch

VARIANTS = DENSE + MOE


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_reference(variant, record_testsuite_property):
    params, cfg = golden_model(variant)
    rows, want = golden_rows(), goldens()[f"{variant}/logits"]
    got = compiled_logits(cfg)(params, rows)
    gap = difference(got, want, rows.valid)
    record_testsuite_property(f"logits {variant}", gap)
    assert got.dtype == jnp.float32
    assert want.std() > 0.8
    assert gap < TOLERANCE


@pytest.mark.parametrize("variant", ["untied", "moe"])
def test_padding_changes_nothing(variant):
    params, cfg = golden_model(variant)
    rows, want = golden_rows(), goldens()[f"{variant}/logits"]
    by_name = rows._asdict()
    for name, value in {"tokens": 5, "valid": False, "positions": 0, "image_index": -1}.items():
        by_name[name] = jnp.pad(by_name[name], [(0, 0), (7, 0), (0, 0)][: by_name[name].ndim], constant_values=value)
    for name, value in {"patches": 255, "patch_hw": 0, "patch_grid": 1, "patch_segment": 0}.items():
        by_name[name] = jnp.pad(by_name[name], [(0, 0), (0, 24), (0, 0)][: by_name[name].ndim], constant_values=value)
    wider = PromptBatch(**by_name)
    assert difference(compiled_logits(cfg)(params, wider), want, wider.valid) < TOLERANCE


def loss(cfg: Qwen3VLConfig, backend: Backend):
    """(params, rows, tokens, mask, places) -> mean negative log-likelihood where mask, and log-probabilities."""
    allowed = np.ones(cfg.text.vocab_size, bool)

    def of(params, rows, tokens, mask, places):
        logp = completion_logp(
            params, cfg, rows, tokens, places, allowed=allowed, temperature=1.0, chunk=4096, backend=backend
        ).logp
        return -jnp.sum(logp * mask) / mask.sum(), logp

    return of


@functools.cache
def compiled_gradients(cfg: Qwen3VLConfig):
    return jit(jax.value_and_grad(loss(cfg, Backend()), has_aux=True))


@pytest.mark.parametrize("variant", [*DENSE, "moe"])
def test_completions_over_a_shared_prompt_equal_separate_ones(variant):
    """Log-probabilities and every gradient: transformers ran each completion with a prompt of its own."""
    params, cfg = golden_model(variant)
    golden = goldens()
    tokens, mask = golden["completions"], golden["completion_mask"]
    (value, logp), gradient = compiled_gradients(cfg)(params, golden_rows(), tokens, mask, packed(mask))
    assert difference(logp, golden[f"{variant}/logp"][mask], mask) < TOLERANCE
    assert abs(float(value) - golden[f"{variant}/loss"]) < TOLERANCE
    assert_gradients(gradient, cfg, variant)


def test_on_a_mesh_with_kernels_logits_and_gradients_are_the_same():
    """Experts over two devices, weights over two, heads and mlps over two; a fourth row, masked, makes the batch divide.

    Attention in blocks and experts sorted: what runs at size, as far as it runs without an accelerator.
    """
    params, cfg = golden_model("moe")
    mesh, golden = make_mesh(MeshConfig(1, 2, 2, 2)), goldens()
    backend = Backend(attention="chunked", experts="ragged", mesh=mesh)
    fourth = lambda x: np.concatenate([x, x[:1]])  # noqa: E731
    rows, tokens, mask = jax.tree.map(fourth, (golden_rows(), golden["completions"], golden["completion_mask"]))
    mask[3] = False
    rows, tokens, mask, places = shard_batch((rows, tokens, mask, packed(mask)), mesh)
    params = jax.device_put(params, tree_shardings(params, mesh))
    assert params["text"]["layers"]["experts_gate_up_led2f"].sharding.shard_shape((5, 8, 32, 2, 18)) == (5, 4, 16, 2, 9)

    def run(params, rows, *answers):
        return jax.value_and_grad(loss(cfg, backend), has_aux=True)(params, rows, *answers), vlm.logits(
            params, cfg, rows, backend=backend
        )

    ((value, logp), gradient), logits = jit(run)(params, rows, tokens, mask, places)
    valid = golden["rows/valid"]
    assert difference(logits[:3], golden["moe/logits"], valid) < TOLERANCE
    assert difference(logp[:3], golden["moe/logp"][golden["completion_mask"]], golden["completion_mask"]) < TOLERANCE
    assert abs(float(value) - golden["moe/loss"]) < TOLERANCE
    assert_gradients(gradient, cfg, "moe")


@pytest.mark.parametrize("variant", ["untied", "moe"])
def test_bfloat16_is_near_in_the_mean(variant):
    """Rounding moves single tokens, and where a router is undecided a whole expert; the statistics stay."""
    params, cfg = golden_model(variant)
    rows, want = golden_rows(), goldens()[f"{variant}/logits"]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = np.asarray(compiled_logits(cfg)(half, rows))[rows.valid]
    gap = np.asarray(jax.nn.log_softmax(got) - jax.nn.log_softmax(want))
    assert 0.001 < gap.std() < 0.06 * want.std()
    assert abs(gap.mean()) < 0.005
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.998


@pytest.mark.parametrize("variant", ["tied", "moe_tied"])
def test_greedy_decoding_gives_the_same_tokens(variant):
    """Prefill once, decode with caches, two equal completions a prompt; transformers ran the whole text at every step.

    The models with a head of their own: test_generate.
    """
    params, cfg = golden_model(variant)
    want = goldens()[f"{variant}/greedy"]
    allowed = np.arange(cfg.text.vocab_size) < CONTROL
    settings = {"temperature": np.zeros(2, np.float32), "allowed": allowed, "length": want.shape[1], "eos": -1, "pad": 0}
    got = jit(lambda params, rows: sample(params, cfg, rows, jax.random.key(0), **settings))(params, golden_rows())
    assert np.array_equal(got.tokens[:, 0], want)
    assert np.array_equal(got.tokens[:, 1], want)


def test_both_layouts_of_experts_and_both_spellings_of_config_give_one_model(tmp_path):
    made = {}
    for layout in ("hub", "transformers"):
        folder = write_moe(tmp_path / layout, layout=layout)
        cfg = load_config(folder)
        made[layout] = cfg, load_params(folder, cfg, dtype=jnp.float32, sharding_of=lambda path, shape: None)
    assert (tmp_path / "hub" / "config.json").read_text() != (tmp_path / "transformers" / "config.json").read_text()
    assert made["hub"][0] == made["transformers"][0]
    assert jax.tree.all(jax.tree.map(np.array_equal, made["hub"][1], made["transformers"][1]))


def test_rows_are_laid_out_as_the_reference_lays_them_out():
    """The host code's positions and patch order against transformers'."""
    rows = jax.tree.map(np.asarray, golden_rows())
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


@pytest.mark.parametrize(
    ("sizes", "tied", "seed"), [("GAPS", True, 21), ("PLAIN", False, 22), ("GAPS_MOE", True, 23), ("PLAIN_MOE", False, 24)]
)
def test_other_models_and_their_export_equal_transformers(oracle, tmp_path, sizes, tied, seed):
    """Saved by transformers, read here, written back, read by transformers: one set of logits."""
    net = oracle.model(oracle.config(vars(oracle)[sizes], tied=tied), seed)
    net.save_pretrained(tmp_path / "hf")
    cfg = load_config(tmp_path / "hf")
    assert cfg.text.tie_word_embeddings is tied
    params = load_params(tmp_path / "hf", cfg, dtype=jnp.float32, sharding_of=lambda path, shape: None)
    rows = oracle.batch(PROMPTS, net.config, length=40, patches=64, seed=seed)
    want = oracle.logits(net, rows)[rows.valid]
    got = compiled_logits(cfg)(params, jax.tree.map(jnp.asarray, rows))
    assert difference(got, want, rows.valid) < TOLERANCE
    save_hf(params, tmp_path / "ours", source_folder=tmp_path / "hf", dtype=jnp.float32, shard_bytes=200_000)
    again = oracle.logits(oracle.load(tmp_path / "ours"), rows)[rows.valid]
    assert np.array_equal(again, want)


@pytest.mark.parametrize("mean,std", [
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ((0.1, 0.9, 0.3), (0.1, 0.9, 1.5)),
])  # fmt: skip
def test_colours_are_normalised_as_the_folder_says(mean, std):
    """The patch embedding of ours, from uint8, against that of what transformers' image processor gives the tower."""
    processor = pytest.importorskip("transformers").Qwen2VLImageProcessorPil(
        patch_size=16, merge_size=2, temporal_patch_size=2, image_mean=list(mean), image_std=list(std),
        size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256},
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    theirs = processor(images=[pixels], return_tensors="np")["pixel_values"]
    params, cfg = golden_model("untied")
    cfg = dataclasses.replace(cfg, vision=dataclasses.replace(cfg.vision, image_mean=mean, image_std=std))
    limits = ImageConfig(16, 2, 32 * 32, 256 * 256, mean, std)
    tower = vlm.bind(params, cfg).vision
    got = tower.embed_patches(jnp.asarray(patchify(pixels, limits).patches)[None])[0]
    want = theirs @ np.asarray(params["vision"]["patch_pc"]) + np.asarray(params["vision"]["patch_bias_c"])
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.abs(want).max() > 0.1


@pytest.mark.parametrize("layout", ["dense", "hub", "transformers"])
def test_goldens_are_what_transformers_gives_today(oracle, tmp_path, layout):
    """Of experts in both layouts of a file: transformers reads them too, and gives the same."""
    net = oracle.load(HERE / "qwen3_vl" if layout == "dense" else write_moe(tmp_path, layout=layout))
    rows = jax.tree.map(np.asarray, golden_rows())
    want = goldens()["untied/logits" if layout == "dense" else "moe/logits"]
    assert np.abs(oracle.logits(net, rows)[rows.valid] - want).max() < TOLERANCE


@pytest.mark.parametrize("variant", ["untied", "moe"])
def test_every_entry_of_every_gradient_is_torchs(oracle, tmp_path, variant, record_testsuite_property):
    params, cfg = golden_model(variant)
    net = oracle.load(HERE / "qwen3_vl" if variant == "untied" else write_moe(tmp_path, layout="hub"))
    tokens, mask = goldens()["completions"], goldens()["completion_mask"]
    rows = golden_rows()
    want = hub_tensors(oracle.gradients(net, jax.tree.map(np.asarray, rows), tokens, mask)[2])
    got = in_hub_layout(compiled_gradients(cfg)(params, rows, tokens, mask, packed(mask))[1], cfg)
    assert sorted(got) == sorted(want)
    worst = max(float(np.abs(got[name] - want[name]).max() / np.abs(want[name]).max()) for name in want)
    record_testsuite_property(f"gradients {variant}", worst)
    assert worst < GRADIENT_TOLERANCE
