"""Weights from Hugging Face folders: every layout, dtype and mesh; what a process reads and holds; what is refused."""

import json
import os
import pickle
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import loading
import ml_dtypes
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from places import GOLDENS
from safetensors.numpy import load_file, save_file

from mtjudge_jax.models.hf import place
from mtjudge_jax.models.hf import shards as shards_module
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.hf.save import companions, save_hf
from mtjudge_jax.models.hf.shards import open_checkpoint
from mtjudge_jax.models.hf.table import layouts, model_weights, to_hf
from mtjudge_jax.models.qwen3_vl.config import Qwen3VLConfig, from_hf, load_config
from mtjudge_jax.sharding import param_sharding

GOLDEN = GOLDENS / "qwen3_vl"
SHARDS = 6
EXPERTS = "model.language_model.layers.{}.mlp.experts.{}"


@pytest.fixture(autouse=True)
def compiles_fast(monkeypatch):
    """Programs that write pieces are many and run for microseconds."""
    monkeypatch.setattr(jax, "jit", tiny.jit)


def anywhere(path: str, shape: tuple[int, ...]) -> None:
    return None


def load(folder: Path = GOLDEN, dtype=jnp.float32, sharding_of=anywhere, **more) -> dict:
    return load_params(folder, load_config(folder), dtype=dtype, sharding_of=sharding_of, **more)


def equal(a: dict, b: dict) -> bool:
    """The same leaves, bit for bit."""
    a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
    return a.keys() == b.keys() and all(
        a[path].dtype == b[path].dtype and np.asarray(a[path]).tobytes() == np.asarray(b[path]).tobytes() for path in a
    )


def write(folder: Path, cfg: Qwen3VLConfig, params: dict, *, dtype=jnp.float32, shard_bytes: int = 5_000_000_000) -> Path:
    """A model folder of a config and parameters."""
    source = folder.parent / f"{folder.name}.source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(cfg.raw))
    save_hf(params, folder, source_folder=source, dtype=dtype, shard_bytes=shard_bytes)
    return folder


def mixture(folder: Path, **sizes) -> tuple[Path, dict]:
    """A tiny mixture of experts in several shards, and its parameters."""
    cfg = tiny.config(moe=True)
    cfg = from_hf(cfg.raw | {"text_config": cfg.raw["text_config"] | sizes})
    params = tiny.params(cfg)
    return write(folder, cfg, params, shard_bytes=60_000), params


def rewrite(folder: Path, change: Callable[[dict], None]) -> Path:
    """Changes the tensors of every file of a folder."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


def turn(tensors: dict) -> None:
    """The experts as transformers 5 saves them."""
    for name in tensors:
        if ".experts." in name:
            tensors[name] = np.ascontiguousarray(tensors[name].transpose(0, 2, 1))


# what is read


def test_pieces_of_any_size_make_the_same_leaves():
    assert equal(load(piece_bytes=1, host_bytes=0), load())  # a row of the first axis at a time
    assert equal(load(piece_bytes=3000), load())


@pytest.mark.parametrize("ways", [{}, {"piece_bytes": 2500}, {"piece_bytes": 2500, "host_bytes": 20_000}])
def test_sharded_leaves_equal_the_unsharded(ways):
    """Axes that share a dimension of the tensor, cut at the first and inside of it, whole and in pieces.

    2500 bytes are 10 of the embedding's 64 rows on a device: the last piece repeats some.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    specs = {
        "text/layers/q_ldnh": PartitionSpec(None, "fsdp", "tensor", None),
        "text/layers/v_ldkh": PartitionSpec(None, None, None, "tensor"),
        "text/layers/o_lnhd": PartitionSpec(None, "tensor", None, "fsdp"),
        "text/layers/gate_ldf": PartitionSpec(None, ("tensor", "fsdp")),
        "text/embed_vd": PartitionSpec("tensor", "fsdp"),
        "vision/patch_pc": PartitionSpec("fsdp", "tensor"),
        "vision/blocks/qkv_lc3nh": PartitionSpec(None, "fsdp", None, "tensor"),
    }
    plain = flatten_dict(load(), sep="/")
    with loading.Bytes() as read:
        sharded = flatten_dict(
            load(sharding_of=lambda path, _: NamedSharding(mesh, specs.get(path, PartitionSpec())), **ways), sep="/"
        )
    for path, leaf in sharded.items():
        assert leaf.sharding == NamedSharding(mesh, specs.get(path, PartitionSpec()))
        assert np.array_equal(leaf, plain[path]), path
    whole = sum(tensor.nbytes for tensor in load_file(GOLDEN / "model.safetensors").values())
    assert whole <= read.total <= (1.3 if ways else 1) * whole  # the last piece of a tensor may overlap


def test_what_cannot_be_placed_is_refused():
    mesh = loading.mesh(1, 2, 1, 1)
    with pytest.raises(ValueError, match="input_norm_ld: layer axis sharded over 'fsdp'; layers are scanned"):
        load(sharding_of=lambda path, shape: NamedSharding(mesh, PartitionSpec("fsdp" if "text/layers" in path else None)))
    with pytest.raises(ValueError, match="embed_vd: sharded by a SingleDeviceSharding; give a NamedSharding"):
        load(sharding_of=lambda path, shape: SingleDeviceSharding(jax.devices()[0]))


def test_both_layouts_of_experts_are_read(tmp_path):
    """On one device and over a mesh, put together on the host and in pieces."""
    folder, params = mixture(tmp_path / "hub", moe_intermediate_size=200)
    turned = rewrite(shutil.copytree(folder, tmp_path / "turned"), turn)
    over = loading.mesh(1, 2, 2, 2)
    for sharding_of in (anywhere, lambda path, shape: param_sharding(path, shape, over)):
        for ways in ({}, {"piece_bytes": 100_000, "host_bytes": 350_000}):  # the latter: experts on the devices, the rest not
            assert equal(load(folder, sharding_of=sharding_of, **ways), params)
            assert equal(load(turned, sharding_of=sharding_of, **ways), params)


def test_a_layer_may_have_another_layout_than_its_neighbour(tmp_path):
    folder, params = mixture(tmp_path / "hub")

    def one(tensors: dict) -> None:
        part = {name: tensors[name] for name in tensors if ".layers.1." in name}
        turn(part)
        tensors.update(part)

    assert equal(load(rewrite(folder, one)), params)


@pytest.mark.parametrize(("expert", "fits_both"), [(16, "gate_up_proj"), (32, "down_proj")])
@pytest.mark.parametrize("layout", ["hub", "transformers 5"])
def test_a_square_expert_takes_the_layout_of_its_neighbour(tmp_path, expert, fits_both, layout):
    """Width 32: gate_up_proj of experts of width 16 is (E, 32, 32) in either layout, as is down_proj of width 32."""
    folder, params = mixture(tmp_path / "model", moe_intermediate_size=expert)
    if layout != "hub":
        rewrite(folder, turn)
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    shapes = {name.rpartition(".")[2]: x.shape for tensors in files for name, x in tensors.items() if ".experts." in name}
    assert [name for name, shape in shapes.items() if shape == (8, 32, 32)] == [fits_both]
    assert equal(load(folder), params)


@pytest.mark.parametrize("stored", ["bfloat16", "float32", "float16", "float64"])
@pytest.mark.parametrize("host_bytes", [None, 300_000])
def test_dtypes_in_the_file_and_in_the_tree_are_independent(tmp_path, stored, host_bytes):
    cfg = tiny.config(vocabulary=4096)  # its embedding alone is not put together on the host
    (tmp_path / "config.json").write_text(json.dumps(cfg.raw))
    params = flatten_dict(tiny.params(cfg), sep="/")
    tensors = {
        name: to_hf(weight, np.asarray(params[weight.path] if weight.stack is None else params[weight.path][i])).astype(stored)
        for weight in model_weights(cfg)
        for i, name in enumerate(weight.names)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    for dtype in ("float32", "bfloat16"):
        got = flatten_dict(load(tmp_path, dtype=dtype, piece_bytes=100_000, host_bytes=host_bytes), sep="/")
        embed = tensors["model.language_model.embed_tokens.weight"]
        assert got["text/embed_vd"].dtype == dtype
        assert np.array_equal(got["text/embed_vd"], embed.astype(np.float32).astype(dtype))
        assert all(leaf.dtype == dtype for leaf in got.values())


# what a process reads, and what its host holds


def test_two_processes_read_their_own_parts(tmp_path):
    """Over fsdp, which parts the two: a leaf that it shards is read by halves, others by both."""
    folder, params = mixture(tmp_path / "model")
    rewrite(folder, turn)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    program = [sys.executable, "-W", "ignore", str(Path(loading.__file__)), str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": env}
    started = [subprocess.Popen([*program, str(i), str(port), "20000"], **pipes) for i in (0, 1)]
    flat = flatten_dict(params, sep="/")
    seen = set()
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err[-3000:]
        facts = json.loads(out.splitlines()[-1])
        assert facts["devices"] == 8 and facts["most"] == 4  # of the 8 parts of an expert leaf
        own = {(path, str(index)): digest for path, index, digest in facts["parts"]}
        assert len(facts["parts"]) == 4 * len(flat)
        for path, index, digest in facts["parts"]:
            part = np.asarray(flat[path])[tuple(slice(*bounds) for bounds in index)]
            assert loading.digest(part) == digest, (path, index)
        need = sum(
            np.asarray(flat[path])[tuple(slice(*bounds) for bounds in json.loads(index))].nbytes for path, index in own
        )
        assert need <= facts["read"] <= 1.05 * need
        seen |= own.keys()
        total = sum(leaf.nbytes for leaf in flat.values())
        assert facts["read"] < 0.62 * total  # norms, biases and positions are replicated
    assert sum(path == "text/layers/experts_gate_up_led2f" for path, _ in seen) == 8  # together they hold every part


def test_the_host_holds_a_piece_at_a_time(tmp_path):
    """Numpy's memory while 26 MB are read: a few pieces, though a single tensor has 12.8 MB.

    Beside them the small leaves; of CPUs all, which then are the arrays themselves.
    """
    cfg = tiny.config(vocabulary=100_000, moe=True)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tiny.vlm.abstract_params(cfg))
    folder = write(tmp_path / "model", cfg, params)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert total > 25e6
    piece, small = 400_000, 300_000
    for sharding_of in (anywhere, lambda path, shape: param_sharding(path, shape, loading.mesh(1, 4, 1, 1))):
        for host_bytes, held in ((small, small), (None, total)):
            ways = {"sharding_of": sharding_of, "piece_bytes": piece, "host_bytes": host_bytes}
            load(folder, **ways)  # what jax keeps of compilations is not meant
            tracemalloc.start()
            with loading.Bytes() as read:
                load(folder, **ways)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert read.total >= total and read.largest <= piece
            assert peak < held + 3 * piece + 500_000, f"{peak} bytes at the peak"


@pytest.mark.parametrize("sharded", [False, True])
def test_a_piece_is_written_where_the_leaf_lies(sharded):
    """Into the buffer that was there, which is gone: no second one is made."""
    mesh = loading.mesh(1, 2, 1, 2)
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor")) if sharded else None
    leaf = place.plan_leaf("x", (3, 8, 12), dtype=jnp.float32, sharding=sharding, stacked=True)
    tensor = np.arange(96, dtype=np.float32).reshape(12, 8)
    before = place.device_buffer(leaf)
    where = [shard.data.unsafe_buffer_pointer() for shard in before.addressable_shards]
    after = place.write_on_devices(leaf, before, tensor, (1, 0), 1, 1000)
    assert before.is_deleted() and [shard.data.unsafe_buffer_pointer() for shard in after.addressable_shards] == where
    assert np.array_equal(after, np.stack([np.zeros((8, 12)), tensor.T, np.zeros((8, 12))]))


def test_files_may_change_after_loading(tmp_path):
    """No leaf is a view of a mapped file."""
    shutil.copytree(GOLDEN, tmp_path / "model")
    params = load(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert equal(params, load())


# what is refused


def sharded(tmp_path: Path) -> Path:
    """The golden model in six files with an index."""
    folder = tmp_path / "model"
    total = sum(tensor.nbytes for tensor in load_file(GOLDEN / "model.safetensors").values())
    save_hf(load(), folder, source_folder=GOLDEN, dtype=jnp.float32, shard_bytes=total // SHARDS + 12_000)
    assert len(list(folder.glob("*.safetensors"))) == SHARDS
    return folder


def shard(folder: Path, number: int) -> Path:
    return folder / f"model-{number:05d}-of-{SHARDS:05d}.safetensors"


def rewrite_header(path: Path, change: Callable[[dict], object]) -> None:
    """Changes the header of a file and leaves its data alone."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def rewrite_index(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def refusal(folder: Path) -> list[str]:
    """The lines of the one message; it comes before any leaf is placed."""
    with pytest.raises(ValueError, match=r"the weights do not fit config\.json") as caught:
        load(folder, sharding_of=pytest.fail)
    return str(caught.value).splitlines()


def test_everything_wrong_is_said_in_one_message(tmp_path):
    folder = sharded(tmp_path)
    first = sorted(load_file(shard(folder, 1)))
    cut = shard(folder, 2)
    lost = {number: len(load_file(shard(folder, number))) for number in (4, 5)}

    def change(tensors: dict) -> None:
        if "model.language_model.norm.weight" in tensors:
            del tensors["model.language_model.norm.weight"]
            tensors["model.language_model.layers.0.self_attn.q_proj.lora_A.weight"] = np.zeros((2, 2), np.float32)

    rewrite(folder, change)
    rewrite_header(shard(folder, 1), lambda header: header[first[0]].update(shape=[3, 5]))
    rewrite_header(shard(folder, 1), lambda header: header[first[1]].update(dtype="F8_E4M3"))
    cut.write_bytes(cut.read_bytes()[:-100])
    shard(folder, 4).unlink()
    shard(folder, 5).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 717120\n")
    moved = first[2]
    rewrite_index(folder, lambda index: index["weight_map"].update({moved: shard(folder, 3).name, "x": "pytorch_model.bin"}))
    title, *lines = refusal(folder)
    kinds = [line.partition(":")[0] for line in lines]
    assert re.search(rf"\({len([kind for kind in kinds if kind != 'hint'])} problems\)", title)
    text = "\n".join(lines)
    for expected in (
        rf"file: {shard(folder, 4).name} is missing: download it again",
        rf"file: {shard(folder, 5).name} is a Git LFS pointer, not the file: run `git lfs pull`",
        rf"header: {re.escape(first[0])} in {shard(folder, 1).name} is F32 of \(3, 5\), 60 bytes, and has \d+",
        rf"shape: {re.escape(first[0])} is \(3, 5\), the config needs",
        rf"dtype: {re.escape(first[1])} is F8_E4M3",
        rf"cut short: model\.\S+ ends at byte \d+, {cut.name} has \d+",
        rf"index: says that {re.escape(moved)} is in {shard(folder, 3).name}, it is in {shard(folder, 1).name}",
        r"index: names 'pytorch_model\.bin'; only safetensors files beside the index are read",
        rf"missing: model\.language_model\.norm\.weight \(in {cut.name}, says the index\)",
        r"unexpected: model\.language_model\.layers\.0\.self_attn\.q_proj\.lora_A\.weight",
        r"hint: an adapter is not a model",
        r"hint: only F32, BF16, F16, F64 are read; take the checkpoint that is not quantised",
    ):
        assert re.search(expected, text), f"{expected}\nnot in\n{text}"
    assert kinds.count("index") == 2 and kinds.count("unexpected") == 1
    assert kinds.count("missing") == 1  # not the tensors that are in the lost files
    assert all(count > 1 for count in lost.values())


def test_many_problems_are_counted_and_a_few_shown(tmp_path):
    folder = sharded(tmp_path)
    rewrite_index(folder, lambda index: index.update(weight_map={}))
    title, *lines = refusal(folder)
    names = {name for weight in model_weights(load_config(folder)) for name in weight.names}
    assert f"({len(names)} problems)" in title and len(lines) == 13
    assert lines[-1] == f"missing: and {len(names) - 12} more"


def test_names_and_shapes_are_compared(tmp_path):
    def change(tensors):
        del tensors["model.visual.blocks.2.attn.qkv.bias"]
        tensors["visual.blocks.2.attn.qkv.bias"] = np.zeros(72, np.float32)
        name = "model.language_model.layers.1.self_attn.q_proj.weight"
        tensors[name] = np.ascontiguousarray(tensors[name].T)
        tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.int8)

    title, *lines = refusal(rewrite(shutil.copytree(GOLDEN, tmp_path / "model"), change))
    assert title.endswith("(4 problems)")
    assert lines == [
        "shape: model.language_model.layers.1.self_attn.q_proj.weight is (32, 64), the config needs (64, 32)",
        "dtype: lm_head.weight is I8",
        "missing: model.visual.blocks.2.attn.qkv.bias",
        "unexpected: visual.blocks.2.attn.qkv.bias",
        "hint: names without model.visual / model.language_model are an old layout; save it with transformers",
        "hint: only F32, BF16, F16, F64 are read; take the checkpoint that is not quantised",
    ]


def test_a_misshapen_expert_names_both_layouts(tmp_path):
    folder, _ = mixture(tmp_path / "model")
    name = EXPERTS.format(1, "down_proj")

    def change(tensors):
        if name in tensors:
            tensors[name] = np.ascontiguousarray(tensors[name].transpose(1, 0, 2))

    assert refusal(rewrite(folder, change))[1:] == [
        f"shape: {name} is (20, 8, 32), the config needs (8, 20, 32) or (8, 32, 20)"
    ]


def test_a_tied_config_refuses_a_separate_head(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "model")
    config = json.loads((GOLDEN / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    _, problem, hint = refusal(tmp_path / "model")
    assert problem == "unexpected: lm_head.weight" and "tie_word_embeddings is true" in hint


@pytest.mark.parametrize("shards", [False, True])
def test_a_tied_model_may_be_saved_with_a_copy_of_its_embedding_as_head(tmp_path, shards, monkeypatch):
    """Some trainers write both. transformers ties them if they are equal; we read the model as without the head."""
    monkeypatch.setattr(shards_module, "_COMPARED_BYTES", 500)  # compared in several pieces
    shutil.copytree(GOLDEN, folder := tmp_path / "model")
    config = json.loads((GOLDEN / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.language_model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.copy()
    head = {"lm_head.weight": tensors.pop("lm_head.weight")} if shards else {}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if shards:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        save_file(head, folder / "b.safetensors", metadata={"format": "pt"})
        places = dict.fromkeys(tensors, "a.safetensors") | dict.fromkeys(head, "b.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    params = load(folder)
    assert "head_vd" not in params["text"] and np.array_equal(params["text"]["embed_vd"], embedding)
    out = tmp_path / "out"
    save_hf(params, out, source_folder=folder, dtype=jnp.float32)
    assert "lm_head.weight" not in load_file(out / "model.safetensors") and equal(load(out), params)
    for file in folder.glob("*.safetensors"):
        changed = load_file(file)
        if "lm_head.weight" in changed:
            changed["lm_head.weight"][-1, -1] += 1
            save_file(changed, file, metadata={"format": "pt"})
    assert "unexpected: lm_head.weight" in refusal(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_tied_alike_in_both_places_of_an_export(tmp_path, tied):
    """transformers reads the top level, vLLM text_config; files say either, both or neither."""
    raw = json.loads((GOLDEN / "config.json").read_text())
    for nested in (None, False, True):
        config = raw | {"tie_word_embeddings": tied, "text_config": {**raw["text_config"], "tie_word_embeddings": nested}}
        if nested is None:
            del config["text_config"]["tie_word_embeddings"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        written = json.loads(companions(tmp_path, np.dtype("float32"))["config.json"])
        assert (written["tie_word_embeddings"], written["text_config"]["tie_word_embeddings"]) == (tied, tied)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data[:4], r"file: model.safetensors is not a safetensors file: 4 bytes"),
        (lambda data: b"<html>not found</html>", r"file: model.safetensors is not a safetensors file: 22 bytes"),
        (lambda data: data[:100], r"file: model.safetensors is cut short at 100 bytes, inside its header of \d+"),
        (lambda data: data[:8] + b"x" + data[9:], r"file: model.safetensors has a damaged header \("),
        (lambda data: struct.pack("<Q", 2) + b"[]", r"file: model.safetensors has a list as its header"),
        (lambda data: pickle.dumps({"a": 1}), r"file: model.safetensors is a pickle, which can run code and is refused"),
        (lambda data: b"PK\x03\x04" + data, r"file: model.safetensors is a pickle"),
        (lambda data: data + b"\0\0", r"header: model.safetensors has 2 bytes after its last tensor"),
        (lambda data: data[:-100], r"cut short: \S+ ends at byte \d+, model.safetensors has \d+"),
    ],
)
def test_a_file_that_is_not_its_tensors_is_refused(tmp_path, change, problem):
    folder = shutil.copytree(GOLDEN, tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    title, line, *hints = refusal(folder)
    assert title.endswith("(1 problem)") and re.match(problem, line), line
    assert all(hint.startswith("hint: ") for hint in hints)


def test_headers_that_lie_are_refused(tmp_path):
    name, other = "model.language_model.norm.weight", "model.language_model.embed_tokens.weight"

    def swapped(header: dict) -> None:
        """Two tensors on the same bytes; nothing on the bytes of the first."""
        header[name]["data_offsets"] = [header[other]["data_offsets"][0], header[other]["data_offsets"][0] + 128]

    for case, (change, problem) in enumerate(
        [
            (swapped, r"header: \S+ in model.safetensors begins at byte \d+, the one before it ends at \d+"),
            (lambda header: header[name].update(data_offsets=[0]), rf"header: {name} in model.safetensors has no usable"),
            (lambda header: header[name].update(data_offsets=[1e999, 3]), rf"header: {name} in model.safetensors has no usable"),
            (lambda header: header[name].pop("dtype"), rf"header: {name} in model.safetensors has no usable"),
            (lambda header: header[name].update(dtype="BF16"), rf"header: {name} in \S+ is BF16 of \(32,\), 64 .* has 128"),
            (lambda header: header.update({name: "x"}), rf"header: {name} in model.safetensors has no usable"),
        ]
    ):
        folder = shutil.copytree(GOLDEN, tmp_path / str(case))
        rewrite_header(folder / "model.safetensors", change)
        lines = refusal(folder)
        assert any(re.match(problem, line) for line in lines), lines


@pytest.mark.parametrize("length", [640, 896, 1152, 1280, 1408])
def test_a_header_that_begins_like_a_pickle_is_read(tmp_path, length):
    """The length of the header comes first: 640 is written as 80 02, as protocol 2 of pickle begins."""
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    content = length.to_bytes(8, "little") + header.ljust(length) + b"12345678"
    (tmp_path / "model.safetensors").write_bytes(content)
    assert content[0] == length % 256 and open_checkpoint(tmp_path, {"x": ((2,),)})["x"].start == 8 + length


def test_a_name_that_comes_twice_is_refused(tmp_path):
    folder = shutil.copytree(GOLDEN, tmp_path / "model")
    file, name = folder / "model.safetensors", b"model.language_model.norm.weight"
    data = file.read_bytes()
    twin = b"model.language_model.layers.0.input_layernorm.weight"
    (length,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + length].replace(twin, name)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    lines = refusal(folder)
    assert f"twice: {name.decode()} (in model.safetensors and model.safetensors)" in lines
    assert f"missing: {twin.decode()}" in lines
    folder = sharded(tmp_path / "twice")
    copied = sorted(load_file(shard(folder, 2)))[0]
    tensors = load_file(shard(folder, 1)) | {copied: load_file(shard(folder, 2))[copied]}
    save_file(tensors, shard(folder, 1))
    assert f"twice: {copied} (in {shard(folder, 1).name} and {shard(folder, 2).name})" in refusal(folder)


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path):
    folder = sharded(tmp_path)
    path = folder / "model.safetensors.index.json"
    right = path.read_text()
    name = sorted(load_file(shard(folder, 1)))[0]
    for change, problem in (
        (lambda index: index["weight_map"].pop(name), f"index: does not know {name}, which is in {shard(folder, 1).name}"),
        (
            lambda index: index["weight_map"].update({"x": shard(folder, 1).name}),
            f"index: says that x is in {shard(folder, 1).name}, which does not hold it",
        ),
        (
            lambda index: index["weight_map"].update({"x": "../model.safetensors"}),
            "index: names '../model.safetensors'; only safetensors files beside the index are read",
        ),
        (lambda index: index["weight_map"].update({"x": 3}), "index: names 3; only safetensors files beside the index are read"),
    ):
        rewrite_index(folder, change)
        assert refusal(folder)[1:] == [problem]
        path.write_text(right)
    shutil.copy(GOLDEN / "model.safetensors", folder)
    assert "is beside an index that does not name it" in refusal(folder)[1]
    (folder / "model.safetensors").unlink()
    for text in ("{", "[]", '{"weight_map": ["a"]}', "version https://git-lfs.github.com/spec/v1\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json: not an index of safetensors files"):
            load(folder)
    path.write_text(right)
    rewrite_index(folder, lambda index: index["metadata"].update(total_size=7))
    with pytest.warns(UserWarning, match="total_size is 7, the tensors have 700128 bytes"):
        load(folder)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    shutil.copy(GOLDEN / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model\.bin\); they can run code"):
        load(tmp_path)


def test_damaged_headers_are_never_believed(tmp_path):
    """500 headers with a byte changed: refused by name, or read where they still say the same."""
    cfg = load_config(GOLDEN)
    wanted = {name: tuple(one.tensor_shape for one in layouts(weight)) for weight in model_weights(cfg) for name in weight.names}
    data = (GOLDEN / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    (tmp_path / "model.safetensors").write_bytes(data)
    right = open_checkpoint(tmp_path, wanted)
    chance = random.Random(0)
    refused = 0
    with (tmp_path / "model.safetensors").open("r+b") as file:
        for _ in range(500):
            at, byte = chance.randrange(8 + length), chance.randrange(256)
            file.seek(at)
            file.write(bytes([byte]))
            file.flush()
            try:
                assert open_checkpoint(tmp_path, wanted) == right, (at, byte)
            except ValueError as error:
                assert "the weights do not fit config.json" in str(error)
                refused += 1
            file.seek(at)
            file.write(data[at : at + 1])
    assert refused > 450


def test_bfloat16_is_not_rounded_on_its_way(tmp_path):
    """All 65,536 bit patterns but NaNs, into float32 and bfloat16, through the host and through pieces."""
    cfg = tiny.config(vocabulary=2048)
    params = tiny.params(cfg)
    bits = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)
    bits = np.where(np.isnan(bits.astype(np.float32)), np.zeros((), bits.dtype), bits)
    params["text"]["embed_vd"] = bits.reshape(2048, 32)
    folder = write(tmp_path / "model", cfg, params, dtype=jnp.bfloat16)
    for dtype in ("float32", "bfloat16"):
        for host_bytes in (None, 230_000):
            got = np.asarray(load(folder, dtype=dtype, piece_bytes=10_000, host_bytes=host_bytes)["text"]["embed_vd"])
            assert got.tobytes() == bits.astype(dtype).tobytes(), (dtype, host_bytes)
