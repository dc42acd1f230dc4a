"""`mtjudge plan`: slices and chips, the command on this machine and for a TPU slice, what does not fit, bad input."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
import tiny
from commands import commands
from places import CONFIGS

from mtjudge_jax.config_check import check
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.models.chips import GIB, TPUS, Chip, chip_of
from mtjudge_jax.plan import search
from mtjudge_jax.plan.analytic import estimate
from mtjudge_jax.plan.layouts import LAYOUTS
from mtjudge_jax.plan.programs import device_bytes, phases_of, programs_of, rollout_batch
from mtjudge_jax.plan.roofline import step_phases, tokens_a_step
from mtjudge_jax.plan.run import model_of
from mtjudge_jax.plan.slices import SLICES, Slice, known_slices, tpu_slice, without_a_tpu
from mtjudge_jax.plan.table import memory_table, step_text, summary
from mtjudge_jax.plan.xla.compiled import memory_rows, peak, refused
from mtjudge_jax.policy.model import DEMO_BASE


def test_chips_are_as_their_maker_says():
    v5p = TPUS["v5p"]
    assert (v5p.flops, v5p.hbm, v5p.links, v5p.memory) == (459e12, 2765e9, 600e9, int(95.74 * GIB))
    kinds = ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "TPU7x")
    assert [chip_of(kind) and chip_of(kind).name for kind in kinds] == list(TPUS)
    assert chip_of("NVIDIA H100 80GB HBM3").hbm == 3350e9 and chip_of("NVIDIA H200").hbm == 4800e9
    assert chip_of("cpu") is None
    assert tpu_slice("tpu7x:2x2x1").devices == 8, "two devices a chip"


@pytest.mark.parametrize("name,devices,links", [
    ("v5p:4x4x4", 64, 600e9),  # three rings: all links
    ("v5p:2x4x4", 32, 300e9),  # no cube, no rings: a chip at a corner has one link along each axis
    ("v5p:2x2x1", 4, 200e9),
    ("v4:4x4x8", 128, 300e9),
    ("v4:2x2x4", 16, 150e9),
    ("v6e:8x8", 64, 200e9),
    ("v6e:8x16", 128, 300e9),  # one ring
    ("v6e:16x16", 256, 400e9),
    ("v5e:4x4", 16, 100e9),
])  # fmt: skip
def test_slices(name, devices, links):
    place = tpu_slice(name)
    assert (place.name, place.devices, place.links) == (name, devices, links)


@pytest.mark.parametrize("name,shape,chips", [
    ("v5p-64", "v5p:2x4x4", 32),  # 64 cores
    ("v5p-128", "v5p:4x4x4", 64),
    ("v4-32", "v4:2x2x4", 16),
    ("tpu7x-8", "tpu7x:2x2x1", 4),
    ("v5litepod-64", "v5e:8x8", 64),
    ("v5e-64", "v5e:8x8", 64),
    ("v6e-64", "v6e:8x8", 64),
])  # fmt: skip
def test_the_names_that_google_cloud_has(name, shape, chips):
    """Of cores where a chip is sold as two, else of chips: as launch/ and gcloud understand them."""
    place = tpu_slice(name)
    assert place == tpu_slice(shape) and np.prod(place.shape) == chips
    with pytest.raises(ConfigError, match="unknown topology 'v5p-4'"):
        tpu_slice("v5p-4")  # two chips


def test_a_wrong_slice_names_the_nearest_and_all():
    with pytest.raises(
        ConfigError, match=r"unknown topology 'v5p:4x4x5', did you mean 'v5p:4x4x\d'\?; known are v4: 2x2x1 2x2x2 "
    ) as e:
        tpu_slice("v5p:4x4x5")
    for chip, shapes in SLICES.items():
        assert f"{chip}: {' '.join(shapes)}" in str(e.value)
    with pytest.raises(ConfigError, match="unknown topology 'x'; known are v4"):
        tpu_slice("x")
    assert len(known_slices()) == sum(map(len, SLICES.values()))


def test_the_model_is_found_by_its_folder_its_name_or_the_flag():
    def model(path: str, name: str = ""):
        cfg = small()
        cfg.model.path = path
        return model_of(cfg, name)

    assert model("demo")[0].text.hidden_size == json.loads((DEMO_BASE / "config.json").read_text())["text_config"]["hidden_size"]
    assert model("/no/Qwen3-VL-30B-A3B-Instruct")[0].text.moe.num_experts == 128
    name = "30b-a3b (the size in the name of /no/Qwen3-VL-30B-A3B-Instruct, which is not on this machine)"
    assert model("/no/Qwen3-VL-30B-A3B-Instruct")[1] == name
    assert model("gs://bucket/Qwen3-VL-8B-Thinking")[0].text.hidden_size == 4096
    assert model("demo", "2b")[0].text.num_layers == 28
    with pytest.raises(ConfigError, match=r"model.path = '/no/other' is not a folder with a config.json .*--model=2b\|4b"):
        model("/no/other")
    with pytest.raises(ConfigError, match="unknown size '31b-a3b', did you mean '30b-a3b'"):
        model("demo", "31b-a3b")


def small():
    cfg = search.Config()
    cfg.model.path, cfg.data.tasks, cfg.model.experts = "tiny", ("technical",), "dense"
    cfg.mesh.data, cfg.mesh.fsdp = 1, -1
    cfg.data.prompt_tokens, cfg.data.patches = 16, 16
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 32
    cfg.rollout.group_size, cfg.rollout.completion_tokens, cfg.loss.kl_coef, cfg.eval.samples = 4, 8, 0.0, 4
    return cfg


def quick():
    """Compiles without what would make the programs fast."""
    compile = jax.stages.Lowered.compile
    return mock.patch.object(jax.stages.Lowered, "compile", lambda lowered: compile(lowered, compiler_options=tiny.QUICK))


def place(memory: float) -> Slice:
    """Devices of this machine as if each had so much memory."""
    return Slice("test", Chip("test", "cpu", int(memory), 1e12, 1e11, 1e10), (2,))


def test_what_does_not_fit_is_repaired_by_what_is_tried():
    cfg, model, devices = small(), tiny.config(), jax.devices()[:2]
    cfg.stage = "sft"
    with quick():
        plan = search.compile_plan(cfg, model, place(1e12), devices)
        assert plan.failing == [] and plan.seconds > 0
        lean = search.compile_plan(search.changed(cfg, {"update.micro_prompts": 16}), model, place(1e12), devices)
        limit = (plan.peaks["update"] + lean.peaks["update"]) / 2
        plan, said = plan._replace(place=place(limit)), []
        assert plan.failing == ["update"]
        assert search.repair(plan, model, 6, said.append) == {"update.micro_prompts": 16}
        assert said[0].startswith("  --config.update.micro_prompts=16: update ") and said[0].endswith("fits")
        assert said[1].startswith("    the other programs then need evaluation ") and len(said) == 2
        said.clear()
        assert search.repair(plan._replace(place=place(1000)), model, 1, said.append) is None
        assert said[0].endswith("does not fit") and said[1:] == ["  stopped: no tries left, give a larger --tries"]


def test_sft_has_its_own_phases():
    """An update and, beside the optimizer, the answers of an evaluation; no rollout, no reference, no log-probabilities."""
    cfg, model, devices = small(), tiny.config(), jax.devices()[:2]
    cfg.stage, cfg.loss.kl_coef = "sft", 0.01
    cfg.eval.samples, cfg.rollout.micro_prompts = 6, 16
    with quick():
        plan = search.compile_plan(cfg, model, place(1e12), devices)
    assert list(plan.peaks) == ["update", "evaluation"] and plan.setup.reference is None
    rows = memory_rows(plan.setup, plan.compiled, "evaluation")
    text, tokens = model.text, 16 + 6 * 7  # of the prompt and of six answers, whose last token nothing reads
    assert rows["caches"] == 2 * text.num_layers * text.num_kv_heads * text.head_dim * 4 * (16 // 2) * tokens
    assert rows["optimizer"] >= 2 * rows["parameters"] and "gradients" not in rows
    assert [phase.name for phase in step_phases(cfg, plan.compiled, plan.place)] == ["update"]
    assert "no rollout, no reference policy; an evaluation samples 6 answers of 32 prompts, 16 at a time" in step_text(cfg)
    assert "evaluation" in memory_table(plan.setup, plan.compiled, plan.place).splitlines()[0]
    remedies = [remedy.changes for remedy in search.remedies(cfg, model, place(1e12), ["evaluation"])]
    assert remedies[0] == {"rollout.micro_prompts": 8}
    cfg.stage = "grpo"
    assert programs_of(cfg) == ["rollout", "logp", "update", "evaluation"], "six answers, where a rollout draws four"
    cfg.rollout.group_size = 6
    assert programs_of(cfg) == ["rollout", "logp", "update"]


def test_mt_grpo_is_planned_with_as_many_rollouts_as_it_may_take():
    """And with the forward passes before and after the update that measure what it changed."""
    cfg, model, devices = small(), tiny.config(), jax.devices()[:2]
    cfg.loss.kl_coef = 0.01
    with quick():
        one = search.compile_plan(cfg, model, place(1e12), devices)
        cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, mixture="mt_grpo", mt_grpo_rounds=3))
        three = search.compile_plan(cfg, model, place(1e12), devices)
    updates = cfg.rollout.prompts // cfg.update.prompts
    assert phases_of(cfg) == {"rollout": 3, "logp": 3, "update": updates}
    assert phases_of(one.setup.cfg)["rollout"] == 1 and tokens_a_step(cfg) == 3 * tokens_a_step(one.setup.cfg)
    before, after = ({p.name: p.costs["flops"] for p in step_phases(x.setup.cfg, x.compiled, x.place)} for x in (one, three))
    assert after["prefill"] == 3 * before["prefill"] > 0 and after["decode"] == 3 * before["decode"] > 0
    assert after["update"] == before["update"]
    kept = device_bytes(rollout_batch(three.setup, cfg.rollout.prompts)[:3])  # prompts, tokens and mask, beside the next round's
    batches = [memory_rows(x.setup, x.compiled, "rollout")["batch"] for x in (one, three)]
    assert batches[1] - batches[0] == kept > 0
    assert "A step with 3 rollouts, the most that MT-GRPO may take, takes at least" in summary(
        cfg, [mock.Mock(seconds=1.0)], mock.Mock(chip=1)
    )


def test_remedies_end_with_what_changes_the_learning():
    cfg, model = small(), tiny.config(moe=True)
    cfg.rollout.prompts = 64
    found = [remedy.changes for remedy in search.remedies(cfg, model, place(1e9), ["rollout", "update"])]
    assert found[0] == {"rollout.micro_prompts": 32} and {"rollout.micro_prompts": 2} in found
    assert {"update.micro_prompts": 16} in found and {"model.remat": "full"} in found
    assert found[-2:] == [{"model.param_dtype": "bfloat16"}, {"lora.rank": 16}]
    alone = [remedy.changes for remedy in search.remedies(cfg, model, place(1e9), ["rollout"])]
    assert [sorted(x) for x in alone[:2]] == [["rollout.micro_prompts"]] * 2 and {"update.micro_prompts": 16} not in alone


@pytest.mark.parametrize("failing", [["update", "rollout"], ["rollout", "logp", "update"], ["logp", "rollout"]])
def test_the_first_tries_reach_every_phase_that_does_not_fit_the_worst_first(failing):
    cfg, model = small(), tiny.config()
    cfg.rollout.prompts, cfg.update.prompts, cfg.update.micro_prompts = 64, 64, 64
    first = [next(iter(remedy.changes)) for remedy in search.remedies(cfg, model, place(1e9), failing)][:4]
    knobs = ["rollout.micro_prompts", "update.micro_prompts"]
    assert first == (knobs if failing[0] == "rollout" else knobs[::-1]) * 2


def test_three_tries_for_two_phases():
    """Each phase comes down by its own knob; a knob of one that fits by now is not tried; what helped is kept."""
    cfg, model = small(), tiny.config()
    cfg.rollout.prompts, cfg.update.prompts, cfg.update.micro_prompts = 64, 64, 64

    def peaks(cfg, phases):  # as if memory were what is computed at a time
        sizes = {"rollout": 20 * (cfg.rollout.micro_prompts or 64), "update": 40 * cfg.update.micro_prompts}
        return {phase: sizes[phase] for phase in phases}

    class Plan(search.Plan):
        peaks = property(lambda plan: peaks(plan.setup.cfg, plan.compiled))
        crowded = False

    tried = []

    def compile_plan(cfg, model, place, devices, phases=("rollout", "update")):
        tried.append((cfg.rollout.micro_prompts or 64, cfg.update.micro_prompts))
        done = {phase: mock.Mock(memory=object()) for phase in phases}
        return Plan(mock.Mock(cfg=cfg, mesh=mock.Mock(devices=np.array(devices))), place, done)

    with mock.patch.object(search, "compile_plan", compile_plan):
        plan, said = compile_plan(cfg, model, place(1000), jax.devices()[:2]), []
        assert plan.failing == ["update", "rollout"], "2560 and 1280 of 1000"
        changes = search.repair(plan, model, 3, said.append)
    assert tried[1:] == [(64, 32), (32, 32), (32, 2)]
    assert changes == {"update.micro_prompts": 2, "rollout.micro_prompts": 32}
    assert search.flags({"update.micro_prompts": 16, "mesh.fsdp": 2}) == "--config.update.micro_prompts=16 --config.mesh.fsdp=2"


def test_meshes_divide_what_they_must():
    cfg, model = small(), tiny.config(moe=True)
    found = list(search.meshes(cfg, model, 16, 16))
    for mesh in found:
        assert np.prod(list(mesh.values())) == 16
        assert cfg.update.micro_prompts % (mesh["data"] * mesh["fsdp"] * mesh["expert"]) == 0
        assert model.text.moe.num_experts % mesh["expert"] == 0 and model.text.num_kv_heads % mesh["tensor"] == 0
    assert {"data": 1, "fsdp": 16, "expert": 1, "tensor": 1} in found and {
        "data": 1,
        "fsdp": 2,
        "expert": 8,
        "tensor": 1,
    } in found
    assert {mesh["tensor"] for mesh in search.meshes(cfg, model, 16, 1)} == {1}
    assert all(mesh["expert"] == 1 for mesh in search.meshes(cfg, tiny.config(), 16, 4))


def test_dpo_has_its_own_phases():
    """The reference's log-probabilities of two answers a prompt and an update; no rollout. A reference costs a second copy."""
    cfg, model, devices = small(), tiny.config(), jax.devices()[:2]
    cfg.stage, cfg.loss.kl_coef, cfg.eval.samples = "dpo", 0.0, 2
    with quick():
        plan = search.compile_plan(cfg, model, place(1e12), devices)
    assert list(plan.peaks) == ["logp", "update", "evaluation"] and plan.setup.reference is not None
    assert [phase.name for phase in step_phases(cfg, plan.compiled, plan.place)] == ["logp", "update"]
    own = estimate(model, cfg, plan.place, dict(plan.setup.mesh.shape))
    tokens = tokens_a_step(cfg)
    cfg.stage = "sft"
    alone = estimate(model, cfg, plan.place, dict(plan.setup.mesh.shape))
    assert own.held > alone.held and own.seconds > alone.seconds
    assert tokens - tokens_a_step(cfg) == cfg.update.prompts * cfg.rollout.completion_tokens


def test_a_sweep_ranks_meshes():
    cfg, model, devices = small(), tiny.config(), jax.devices()[:2]
    cfg.stage = "sft"
    with quick():
        plans = search.sweep(cfg, model, [(place(1e12), devices)], 2, lambda text: None)
    assert len(plans) == 2 and plans[0].seconds <= plans[1].seconds
    assert len({tuple(plan.setup.mesh.shape.values()) for plan in plans}) == 2
    assert search.mesh_flags(plans[0]).startswith("--config.mesh.data=")
    cfg.update.micro_prompts, cfg.mesh.fsdp = 3, 1
    with pytest.raises(ConfigError, match=r"update\.micro_prompts = 3 is not divisible by the shards of any mesh of 4 devices"):
        search.sweep(cfg, model, [(place(1e12)._replace(shape=(4,)), devices)], 2, print)


def test_what_xla_says_when_memory_does_not_suffice():
    text = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (600.00G) exceeds "
    assert refused(text) == 600 * GIB
    assert refused("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 20.50G of 15.75G hbm. Exceeded") == int(20.5 * GIB)
    assert refused("INTERNAL: something else (600.00G)") is None


def test_the_command_on_this_machine():
    done = commands().run("plan", f"--config={commands().config}", "--json", "--config.rollout.prompts=24")
    assert done.status == 0, done.err
    plan = json.loads(done.out.splitlines()[-1])
    weights = sum(np.prod(shape) for shape in demo_shapes())
    assert plan["memory"]["update"]["parameters"] == 4 * weights
    assert plan["memory"]["update"]["optimizer"] == pytest.approx(8 * weights, abs=64)
    assert set(plan["memory"]) == {"rollout", "logp", "update"} and plan["fits"] and plan["limit"] is None
    assert set(plan["phases"]) == {"prefill", "decode", "logp", "update"}
    share = plan["phases"]["update"]["flops"] / plan["phases"]["logp"]["flops"]
    assert 1.4 < share < 2.8, "three to five forward passes over all prompts against two"
    assert plan["tokens"] == 24 * (48 + 2 * 18)
    assert "lengths" not in plan
    flags = f"--data={commands().folder / 'data'}", "--lengths=answer:6/12"
    printed = commands().run("plan", f"--config={commands().config}", *flags).out
    assert "log-prob." in printed and "No times: this device has no published figures." in printed
    lengths = re.search(r"prompts of (\d\d) \(\d\d\) tokens and 36 \(36\) patches, answers of 6 \(1[12]\)\n", printed)
    assert lengths and 30 <= int(lengths[1]) < 48 and "a prompt as 48 tokens" in printed, printed
    assert "36 patches (100% real)" in printed and "17 places an answer" in printed, printed
    steps = re.search(r"decoding takes (\d+) steps; \d\d% of the lanes' steps", printed)
    assert 8 <= int(steps[1]) < 17 and printed.count("matrix products, ") == 2


def demo_shapes() -> list[tuple[int, ...]]:
    from mtjudge_jax.models.qwen3_vl import vlm
    from mtjudge_jax.models.qwen3_vl.config import load_config

    return [leaf.shape for leaf in jax.tree.leaves(vlm.abstract_params(load_config(DEMO_BASE)))]


@pytest.mark.parametrize("flags,text", [
    (["--topology=v5p:4x4x5"], "unknown topology 'v5p:4x4x5', did you mean"),
    (["--model=7b"], "unknown size '7b'"),
    (["--config.model.path=/no/where"], "is not a folder with a config.json on this machine"),
    (["--config.mesh.fsdp=3", "--config.mesh.data=1"], "mesh.fsdp = 3"),
    (["--config.update.micro_prompts=5"], "update.micro_prompts"),
    (["--tries=-1"], "tries"),
    (["--lengths=words:9"], "--lengths='words:9': give each of prompt, patches, answer once"),
    (["--lengths=prompt:9", "--data=x"], "--lengths gives prompt, and --data measures them"),
    (["--data=/no/where"], "/no/where"),
    (["--lengths=answer:9", "--sweep"], "--sweep ranks by the longest prompts and answers"),
])  # fmt: skip
def test_bad_input_is_one_line(flags, text):
    done = commands().run("plan", f"--config={commands().config}", *flags)
    assert done.status == 2 and len(done.err.splitlines()) == 1 and text in done.err, done.err
    assert done.err.startswith("error: ")


def test_without_the_compiler_for_tpus_the_remedy_is_named():
    with (
        mock.patch("importlib.util.find_spec", lambda name: None),
        pytest.raises(ConfigError, match=r"pip install -e '\.\[tpu\]'"),
    ):
        without_a_tpu(["v5p:4x4x4"])
    with mock.patch.dict(os.environ, clear=True), mock.patch("importlib.util.find_spec", lambda name: True):
        without_a_tpu([])
        assert "JAX_PLATFORMS" not in os.environ
        without_a_tpu(["v5p:4x4x4"])
        assert os.environ["JAX_PLATFORMS"] == "cpu" and os.environ["TPU_SKIP_MDS_QUERY"] == "1"


NO_LIBTPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install -e '.[tpu]'")
ASK = """
import re, sys
from mtjudge_jax.plan.slices import without_a_tpu
names = sys.argv[1:]
without_a_tpu(names)
import jax
from jax.sharding import SingleDeviceSharding
from mtjudge_jax.plan.run import place_of
for name in names:
    place, devices = place_of(name)
    x = jax.ShapeDtypeStruct((2**38,), "int8", sharding=SingleDeviceSharding(devices[0]))
    try:
        jax.jit(lambda x: x + 1).lower(x).compile()
    except jax.errors.JaxRuntimeError as error:
        print(name, len(devices), devices[0].device_kind, re.search(r"available HBM \\(([\\d.]+)G\\)", str(error))[1], sep=",")
"""


@NO_LIBTPU
def test_chips_are_as_the_compiler_has_them():
    """Devices, their kind, and the memory that XLA lets a program have, of each generation."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "JAX", "TPU"))}
    names = [f"{chip}:{shapes[1]}" for chip, shapes in SLICES.items()]
    done = subprocess.run([sys.executable, "-c", ASK, *names], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    places = [tpu_slice(name) for name in names]
    found = [line.rsplit(",", 1) for line in done.stdout.splitlines()]
    assert [name for name, _ in found] == [f"{p.name},{p.devices},{p.chip.kind}" for p in places]
    for (name, memory), p in zip(found, places, strict=True):  # versions of libtpu keep a few megabytes more or less
        assert float(memory) == pytest.approx(p.chip.memory / GIB, rel=5e-4), name


@NO_LIBTPU
def test_a_slice_that_is_not_here():
    """The demo on four chips: compiled by XLA for TPUs, every kernel's work known."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "JAX", "TPU"))}
    eight = [f"--config.{name}=8" for name in ("rollout.prompts", "update.prompts", "update.micro_prompts")]  # two a chip
    command = [sys.executable, "-m", "mtjudge_jax.cli", "plan", f"--config={commands().config}", "--topology=v5e:2x2", "--json"]
    command += ["--lengths=answer:4/8"]
    done = subprocess.run(command + eight, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    plan = json.loads(done.stdout)
    assert (plan["devices"], plan["fits"], plan["limit"]) == (4, True, int(15.75 * GIB))
    assert plan["seconds"] > 0 and {p["bound"] for p in plan["phases"].values()} <= {"compute", "memory", "links"}
    assert max(map(peak, plan["memory"].values())) < GIB
    natural = plan["lengths"]
    (lanes, columns, steps), *others = natural["decoded"]["steps"]
    assert (lanes, columns, others) == (4, 17, []) and 5 < steps < 10, "to the last end of 16 answers, in the mean"
    for kind in ("flops", "hbm", "seconds"):
        assert natural["phases"]["decode"][kind] == pytest.approx(plan["phases"]["decode"][kind] * steps / 17)
    assert natural["learned"]["answer"] == 17 and 0.2 < natural["learned"]["real"][2] < 0.4


@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is None, reason="no compiler for GPUs: pip install -e '.[cuda]'")
@pytest.mark.parametrize("topology,limit", [("a100-40:2", 42331013120), ("h100", 84942979072)])
def test_gpus_that_are_not_here(topology, limit):
    """The demo, compiled by XLA for GPUs with the kernels that run there; the work of each is known."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "JAX", "TPU"))}
    env |= {"XLA_CLIENT_MEM_FRACTION": "0.5"}
    command = [sys.executable, "-m", "mtjudge_jax.cli", "plan", f"--config={commands().config}", f"--topology={topology}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"of {limit // 2 / 1e9:.2f}" in done.stdout and "JAX takes 50% of" in done.stdout
    assert "lack the matrix products" not in done.stdout and "Fits." in done.stdout


def test_the_papers_configs_can_be_trained_where_they_are_planned():
    """A process a host of four chips: what `mtjudge train` checks there."""
    scope = {}
    exec((CONFIGS / "mt_rl_judge.py").read_text(), scope)
    planned = [pair for pair in LAYOUTS if pair != ("rehearsal", "laptop")]
    assert len(planned) == 4
    for size, name in planned:
        place, cfg = tpu_slice(name), scope["get_config"](f"{size},{name}")
        check(cfg, place.devices, place.devices // place.host_devices)
        assert place.host_devices == 4 and cfg.rollout.group_size == 20 and cfg.rollout.prompts == 512
        cfg.mesh.fsdp, cfg.mesh.expert, cfg.mesh.tensor = place.devices // 8, 1, 8
        cfg.update.micro_prompts = cfg.rollout.micro_prompts = 256
        with pytest.raises(ConfigError, match=r"mesh\.tensor = 8 does not divide the 4 devices of a process"):
            check(cfg, place.devices, place.devices // 4)
