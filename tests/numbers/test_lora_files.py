"""Adapters: added to what they adapt, and their files as PEFT writes and reads them."""

import dataclasses
import functools
import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from parity import HERE, TOLERANCE, compiled_logits, difference, golden_model, golden_rows, write_moe
from safetensors.numpy import load_file, save_file

from mtjudge_jax.config import Config, LoraConfig
from mtjudge_jax.config_check import check
from mtjudge_jax.errors import UserError
from mtjudge_jax.models.hf.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_peft, merge_lora, read_peft_config, save_peft
from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.models.qwen3_vl.config import AdapterConfig, Qwen3VLConfig
from mtjudge_jax.models.qwen3_vl.text import lora_shapes
from mtjudge_jax.policy.model import open_model, read_weights
from mtjudge_jax.types import Params

EVERY = ("q", "k", "v", "o", "gate", "up", "down")
TARGETS = {"untied": EVERY, "moe": EVERY[:4]}
RANK, ALPHA = 3, 4.5
LAYERS = "text/layers/"


@functools.cache
def adapted(variant: str) -> tuple[Params, Qwen3VLConfig]:
    """A golden model with adapters of which none is zero."""
    params, cfg = golden_model(variant)
    cfg = dataclasses.replace(cfg, lora=AdapterConfig(RANK, ALPHA, TARGETS[variant]))
    rng = np.random.default_rng(0)
    shapes = lora_shapes(cfg.text, cfg.lora)
    new = {LAYERS + name: jnp.asarray(0.1 * rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return unflatten_dict(flatten_dict(params, sep="/") | new, sep="/"), cfg


def base_folder(variant: str, tmp_path: Path) -> Path:
    return HERE / "qwen3_vl" if variant == "untied" else write_moe(tmp_path / "base", layout="hub")


def written(tmp_path: Path, variant: str = "untied") -> Path:
    params, cfg = adapted(variant)
    save_peft(params, tmp_path / "adapter", cfg, base_model="somebody/base", dtype=jnp.float32)
    return tmp_path / "adapter"


def pair(flat: dict, target: str) -> tuple[jax.Array, jax.Array]:
    """The two leaves of an adapter."""
    return tuple(next(flat[path] for path in flat if path.startswith(f"{LAYERS}{target}_lora_{part}_")) for part in "ab")


# adding


@pytest.mark.parametrize("variant", TARGETS)
def test_adapters_are_added_where_they_belong(variant):
    params, cfg = adapted(variant)
    before, after = flatten_dict(params, sep="/"), flatten_dict(merge_lora(params, cfg), sep="/")
    assert after.keys() == flatten_dict(golden_model(variant)[0], sep="/").keys()
    changed = set()
    for target in cfg.lora.targets:
        path = next(p for p in after if p.startswith(f"{LAYERS}{target}_l"))
        w, (a, b) = np.asarray(before[path], np.float64), (np.asarray(x, np.float64) for x in pair(before, target))
        inside = 2 if target == "o" else 1  # axes that the projection sums over
        a, b = a.reshape(len(w), -1, RANK), b.reshape(len(w), RANK, -1)
        low = ALPHA / RANK * np.stack([x @ y for x, y in zip(a, b, strict=True)])
        assert np.prod(w.shape[1 : 1 + inside]) == low.shape[1] and np.abs(low).max() > 0.05
        np.testing.assert_allclose(after[path], w + low.reshape(w.shape), rtol=1e-6, atol=1e-6)
        changed.add(path)
    others = after.keys() - changed
    assert len(others) > 20 and all(after[path] is before[path] for path in others)


def test_the_sum_is_rounded_once_and_stays_where_the_weight_is():
    """-1 + (1 + 1/512): in bfloat16 the bracket alone would be 1, and the sum nothing."""
    cfg = dataclasses.replace(golden_model("untied")[1], lora=AdapterConfig(2, 2.0, ("down",)))
    l, f, d = cfg.text.num_layers, cfg.text.intermediate_size, cfg.text.hidden_size
    mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec(None, "tensor", "fsdp"))
    flat = flatten_dict(golden_model("untied")[0], sep="/")
    flat[LAYERS + "down_lfd"] = jax.device_put(jnp.full((l, f, d), -1, jnp.bfloat16), sharding)
    flat[LAYERS + "down_lora_a_lfr"] = jnp.broadcast_to(jnp.array([1, 2.0**-9], jnp.bfloat16), (l, f, 2))
    flat[LAYERS + "down_lora_b_lrd"] = jnp.ones((l, 2, d), jnp.bfloat16)
    merged = flatten_dict(merge_lora(unflatten_dict(flat, sep="/"), cfg), sep="/")[LAYERS + "down_lfd"]
    assert merged.dtype == jnp.bfloat16 and merged.sharding == sharding
    assert jnp.all(merged == 2.0**-9)


@pytest.mark.parametrize("variant", TARGETS)
def test_a_merged_model_answers_as_one_with_adapters(variant):
    params, cfg = adapted(variant)
    rows = golden_rows()
    plain = dataclasses.replace(cfg, lora=None)
    merged = compiled_logits(plain)(merge_lora(params, cfg), rows)
    assert difference(compiled_logits(cfg)(params, rows), np.asarray(merged)[np.asarray(rows.valid)], rows.valid) < TOLERANCE
    base = compiled_logits(plain)(golden_model(variant)[0], rows)
    assert difference(base, np.asarray(merged)[np.asarray(rows.valid)], rows.valid) > 0.1


def test_what_cannot_be_merged_is_named():
    params, cfg = adapted("untied")
    with pytest.raises(ValueError, match="this config has no adapters"):
        merge_lora(params, dataclasses.replace(cfg, lora=None))
    with pytest.raises(ValueError, match=r"no adapters to merge: q_lora_a_ldr, q_lora_b_lrnh, .* are not in the parameters"):
        merge_lora(golden_model("untied")[0], cfg)
    moe = dataclasses.replace(golden_model("moe")[1], lora=AdapterConfig(2, 2.0, ("q", "up")))
    with pytest.raises(ValueError, match="targets up: a mixture of experts has several of each"):
        merge_lora(params, moe)


# files


@pytest.mark.parametrize("variant", TARGETS)
def test_an_adapter_folder_round_trip_is_bit_equal(tmp_path, variant):
    params, cfg = adapted(variant)
    folder = written(tmp_path, variant)
    assert sorted(path.name for path in folder.iterdir()) == [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    assert read_peft_config(folder) == cfg.lora
    again, before = flatten_dict(load_peft(folder, cfg), sep="/"), flatten_dict(params, sep="/")
    assert again.keys() == {path for path in before if "_lora_" in path}
    assert all(np.array_equal(again[path], before[path]) for path in again)


def test_tensors_have_the_names_and_the_axes_of_peft(tmp_path):
    params, cfg = adapted("untied")
    tensors, flat = load_file(written(tmp_path) / ADAPTER_WEIGHTS), flatten_dict(params, sep="/")
    module = "base_model.model.model.language_model.layers.{}.{}.lora_{}.weight"
    places = {t: f"self_attn.{t}_proj" for t in "qkvo"} | {t: f"mlp.{t}_proj" for t in EVERY[4:]}
    layers = range(cfg.text.num_layers)
    assert tensors.keys() == {module.format(i, place, ab) for i in layers for place in places.values() for ab in "AB"}
    for target, place in places.items():
        a, b = pair(flat, target)
        assert np.array_equal(tensors[module.format(2, place, "A")], a[2].reshape(-1, RANK).T)
        assert np.array_equal(tensors[module.format(2, place, "B")], b[2].reshape(RANK, -1).T)


def test_an_adapter_is_replaced_only_when_asked(tmp_path):
    folder = written(tmp_path)
    params, cfg = adapted("untied")
    settings = {"base_model": "b", "dtype": jnp.bfloat16}
    with pytest.raises(FileExistsError, match="exists already"):
        save_peft(params, folder, cfg, **settings)
    save_peft(params, folder, cfg, **settings, overwrite=True, files={"README.md": b"# new"})
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    assert {tensor.dtype.name for tensor in load_file(folder / ADAPTER_WEIGHTS).values()} == {"bfloat16"}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"no adapter_config\.json"):
        save_peft(params, tmp_path / "model", cfg, **settings, overwrite=True)
    with pytest.raises(ValueError, match=r"the adapters do not fit cfg\.lora:\ntext/layers/q_lora_a_ldr: has None"):
        save_peft(golden_model("untied")[0], tmp_path / "none", cfg, **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "use_dora is True, which is not supported"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern is"),
        ({"layers_to_transform": [0]}, "layers_to_transform is"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"an_option_of_tomorrow": 3}, "an_option_of_tomorrow is 3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' is supported"),
        ({"r": 0}, "r is 0; it must be"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"target_modules": ["qkv"]}, "target_modules is ['qkv']; it must be a list of q_proj, k_proj"),
        ({"target_modules": "all-linear"}, "target_modules is 'all-linear'"),
        ({"r": 8}, "the adapter has rank 8, alpha 4.5, targets q, k, v, o, gate, up, down; the config has rank 3, alpha 4.5"),
        ({"target_modules": ["model.language_model.layers.0.self_attn.q_proj"]}, "targets q; the config has rank 3"),
    ],
)  # fmt: skip
def test_adapters_of_another_kind_are_refused(tmp_path, change, said):
    folder = written(tmp_path)
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError) as caught:
        load_peft(folder, adapted("untied")[1])
    assert said in str(caught.value)


def test_options_at_rest_are_no_reason_to_refuse(tmp_path):
    folder = written(tmp_path)
    path = folder / ADAPTER_CONFIG
    rest = {"use_dora": False, "rank_pattern": {}, "modules_to_save": None, "lora_dropout": 0.1, "megatron_core": "megatron.core"}
    path.write_text(json.dumps(json.loads(path.read_text()) | rest | {"init_lora_weights": "gaussian"}))
    assert read_peft_config(folder) == adapted("untied")[1].lora


def test_all_that_is_wrong_with_the_tensors_is_said_at_once(tmp_path):
    folder = written(tmp_path)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    name = "base_model.model.model.language_model.layers.{}.self_attn.q_proj.lora_A.weight"
    del tensors[name.format(0)]
    tensors[name.format(1)] = np.ascontiguousarray(tensors[name.format(1)].T)
    tensors[name.format(2)] = tensors[name.format(2)].astype(np.int8)
    tensors["base_model.model.lm_head.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    with pytest.raises(ValueError, match="4 problems") as caught:
        load_peft(folder, adapted("untied")[1])
    said = str(caught.value)
    assert f"missing: {name.format(0)}" in said and "unexpected: base_model.model.lm_head.weight" in said
    assert f"shape: {name.format(1)} is (32, 3), the config needs (3, 32)" in said and "is I8, only F32, BF16" in said


def test_damaged_and_missing_files_are_named(tmp_path):
    cfg = adapted("untied")[1]
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json: not found"):
        load_peft(tmp_path, cfg)
    folder = written(tmp_path)
    whole = (folder / ADAPTER_WEIGHTS).read_bytes()
    (folder / ADAPTER_WEIGHTS).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"damaged or cut short at {len(whole) - 1} bytes"):
        load_peft(folder, cfg)
    (folder / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="only safetensors are read"):
        load_peft(folder, cfg)
    for text, said in (("{", "not valid JSON"), ("[]", "holds a list")):
        (folder / ADAPTER_CONFIG).write_text(text)
        with pytest.raises(ValueError, match=said):
            load_peft(folder, cfg)


# a run that starts from an adapter


def run_with_adapters(**lora) -> Config:
    cfg = Config(lora=LoraConfig(**lora))
    cfg.model.path, cfg.data.tasks = "demo", ("technical",)
    return cfg


def test_a_run_starts_from_the_exported_adapter(tmp_path):
    """Bit for bit, where fresh adapters would be: on the mesh, in model.param_dtype; the base is unchanged."""
    cfg = run_with_adapters(rank=2, alpha=3.0, targets=("q", "o", "down"))
    model = open_model(cfg)
    fresh = read_weights(model, cfg)
    flat, rng = flatten_dict(fresh.trained, sep="/"), np.random.default_rng(1)
    trained = unflatten_dict({name: jnp.asarray(rng.normal(size=x.shape), x.dtype) for name, x in flat.items()}, sep="/")
    save_peft(trained, tmp_path / "adapter", model.cfg, base_model="somebody/base", dtype=jnp.float32)
    cfg.lora.path = str(tmp_path / "adapter")
    check(cfg)
    start = read_weights(model, cfg)
    got, want = flatten_dict(start.trained, sep="/"), flatten_dict(trained, sep="/")
    assert got.keys() == want.keys() == flat.keys()
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert all((got[name].sharding, got[name].dtype) == (x.sharding, x.dtype) for name, x in flat.items())
    assert jax.tree.all(jax.tree.map(np.array_equal, start.frozen, fresh.frozen))
    cfg.model.param_dtype = "bfloat16"
    rounded = flatten_dict(read_weights(model, cfg).trained, sep="/")
    assert all(np.array_equal(rounded[name], want[name].astype(jnp.bfloat16)) for name in want)


@pytest.mark.parametrize(
    ("other", "has"),
    [
        ({"rank": 4}, "rank 4, alpha 3, targets q, v"),
        ({"alpha": 2.5}, "rank 2, alpha 2.5, targets q, v"),
        ({"targets": ("q",)}, "rank 2, alpha 3, targets q"),
    ],
)
def test_a_run_refuses_an_adapter_of_another_shape(tmp_path, other, has):
    mine = {"rank": 2, "alpha": 3.0, "targets": ("q", "v")}
    cfg = run_with_adapters(**mine | other)
    model = open_model(cfg)
    save_peft(read_weights(model, cfg).trained, tmp_path / "adapter", model.cfg, base_model="b", dtype=jnp.float32)
    cfg = run_with_adapters(**mine, path=str(tmp_path / "adapter"))
    with pytest.raises(UserError) as caught:
        read_weights(open_model(cfg), cfg)
    rank, alpha, targets = has.removeprefix("rank ").replace(" alpha ", "").replace(" targets ", "").split(",", 2)
    assert str(caught.value) == (
        f"{tmp_path / 'adapter'}: the adapter has {has}; the config has rank 2, alpha 3, targets q, v: "
        f"set lora.rank={rank}, lora.alpha={alpha} and lora.targets={targets.replace(' ', '')}"
    )
    cfg.lora.path = str(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"nothing/adapter_config\.json: not found; give a folder"):
        read_weights(open_model(cfg), cfg)


# against PEFT


@pytest.mark.parametrize("variant", TARGETS)
def test_peft_merged_and_our_own_forward_agree(tmp_path, variant, recwarn):
    peft = pytest.importorskip("peft", reason="peft is not installed; it needs torch")
    import oracle

    params, cfg = adapted(variant)
    rows, source = jax.device_get(golden_rows()), base_folder(variant, tmp_path)
    save_peft(params, tmp_path / "adapter", cfg, base_model=str(source), dtype=jnp.float32)
    base = oracle.load(source)
    mapping = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text())["auto_mapping"]  # peft finds the base's class by it
    assert getattr(importlib.import_module(mapping["parent_library"]), mapping["base_model_class"]) is type(base)
    wrapped = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert not [w for w in recwarn if "adapter keys" in str(w.message)]
    want = oracle.logits(wrapped.eval(), rows)[np.asarray(rows.valid)]
    assert difference(compiled_logits(cfg)(params, rows), want, rows.valid) < TOLERANCE
    save_hf(merge_lora(params, cfg), tmp_path / "merged", source_folder=source, dtype=jnp.float32)
    assert difference(oracle.logits(oracle.load(tmp_path / "merged"), rows), want, rows.valid) < TOLERANCE


def test_an_adapter_that_peft_wrote_is_read(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed; it needs torch")
    import oracle
    import torch

    wrapped = peft.get_peft_model(
        oracle.load(HERE / "qwen3_vl"),
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights="gaussian"),
    )
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    lora = read_peft_config(tmp_path / "adapter")
    assert lora == AdapterConfig(4, 6.0, ("q", "v", "down"))
    base, cfg = golden_model("untied")
    cfg, rows = dataclasses.replace(cfg, lora=lora), jax.device_get(golden_rows())
    params = unflatten_dict(flatten_dict(base, sep="/") | flatten_dict(load_peft(tmp_path / "adapter", cfg), sep="/"), sep="/")
    merged = compiled_logits(dataclasses.replace(cfg, lora=None))(merge_lora(params, cfg), rows)
    want = oracle.logits(wrapped.eval(), rows)[np.asarray(rows.valid)]
    assert difference(merged, want, rows.valid) < TOLERANCE
