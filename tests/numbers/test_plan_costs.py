"""What `mtjudge plan` counts in a compiled program: exact numbers of small ones, and of the model against its formula."""

import dataclasses
import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from places import GOLDENS

from mtjudge_jax.config import Config, MeshConfig
from mtjudge_jax.models.attention import splash
from mtjudge_jax.plan import analytic, natural
from mtjudge_jax.plan.lengths import draw_lengths, read_spreads
from mtjudge_jax.plan.programs import Setup, make_setup
from mtjudge_jax.plan.roofline import step_phases
from mtjudge_jax.plan.search import Plan, changed
from mtjudge_jax.plan.slices import Slice
from mtjudge_jax.plan.table import lengths_text
from mtjudge_jax.plan.xla import costs, kernels, parse
from mtjudge_jax.plan.xla.compiled import Compiled, compile_all, memory_rows, peak
from mtjudge_jax.policy.flops import step_flops
from mtjudge_jax.types import Lengths

# A fragment as XLA writes it for a TPU: an async gather in steps, inside other fusions; fast memory, S(1); a convolution with a
# batch axis in disguise; a kernel with an estimate of its work and one without; a loop whose bound is carried along.
TPU_TEXT = (GOLDENS / "tpu_program.txt").read_text()


def test_a_program_of_a_tpu():
    counted = costs.count(parse.parse_program(TPU_TEXT), kernel_work=lambda kernel: None, taken=1.0)
    assert counted.loop == {} and counted.unknown == {"strange": 1}
    # Four products of [16, 32] and [32, 8]: of the 16 pairs of positions along the dilated axis, 4 meet an element.
    assert counted.fixed["flops"] == 2 * 4 * 16 * 32 * 8 + 1000
    assert counted.fixed["all-gather"] == 2 * 64 * 2 * 3, "counted where it starts, not at every step"
    assert counted.fixed["reduce-scatter"] == 5 * 64 * 4 * 4 * 3 / 4, "five turns, from 2 to 7"
    assert counted.fixed["all-reduce"] == 0
    gathered, left, right, scattered = 2 * 8 * 64, 2 * 4 * 16 * 32, 2 * 4 * 32 * 8, 4 * 64 * 4
    copied = 2 * 2 * 64  # read; written to fast memory
    kernels = 2 * (2 * gathered)  # each reads and writes as much
    assert counted.fixed["hbm"] == copied + gathered + left + right + kernels + 5 * (scattered + scattered / 4)


def test_a_kernel_that_reads_one_layer_of_a_stack():
    """Its operand is the stack of all layers; what it reads is in its own estimate."""
    whole, part = (
        costs.count(parse.parse_program(text), kernel_work=lambda kernel: None, taken=1.0).fixed
        for text in (TPU_TEXT, TPU_TEXT.replace('op_name="ragged"', 'op_name="jit(f)/product_of_layer"'))
    )
    assert part["flops"] == whole["flops"]
    assert whole["hbm"] - part["hbm"] == 2 * (2 * 8 * 64) - 5


def test_loops_and_collectives_of_a_real_program():
    """Five turns of three products, each on a quarter of the rows; every kind of collective."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    turns, rows, width = 5, 8, 16

    def on_device(x, w):
        def turn(x, w):
            whole = jax.lax.all_gather(w, "b", axis=0, tiled=True)  # [4, 16] -> [16, 16]
            y = jax.lax.psum(x @ whole, "a")
            y = jax.lax.all_to_all(y, "b", 1, 0, tiled=True)
            y = jax.lax.ppermute(y, "b", [(i, (i + 1) % 4) for i in range(4)])
            return jax.lax.all_gather(
                jax.lax.psum_scatter(y, "b", scatter_dimension=0, tiled=True), "b", axis=1, tiled=True
            ), None

        return jax.lax.scan(turn, x, w)[0]

    call = jax.shard_map(on_device, mesh=mesh, in_specs=(P("b"), P(None, "b")), out_specs=P("b"), check_vma=False)
    x = jax.ShapeDtypeStruct((4 * rows, width), jnp.float32, sharding=NamedSharding(mesh, P("b")))
    w = jax.ShapeDtypeStruct((turns, width, width), jnp.float32, sharding=NamedSharding(mesh, P(None, "b")))
    counted = costs.count(
        parse.parse_program(jax.jit(call).lower(x, w).compile().as_text()), kernel_work=lambda kernel: None, taken=1.0
    )
    size = 4 * rows * width
    assert counted.fixed["flops"] == turns * 2 * rows * width * width
    assert counted.fixed["all-gather"] == turns * 3 * (4 * width * width / 4 + size / 4)
    assert counted.fixed["all-reduce"] == turns * 2 * size * 1 / 2
    assert counted.fixed["all-to-all"] == turns * size * 3 / 4
    assert counted.fixed["collective-permute"] == turns * size
    assert counted.fixed["reduce-scatter"] == turns * size * 3 / 4
    assert counted.unknown == {}


def test_a_loop_that_the_data_end_is_kept_apart_and_a_condition_is_weighed():
    def f(x, w):
        def turn(state):
            i, x = state
            return i + 1, jax.lax.cond(x[0, 0] > i, lambda x: x @ w, lambda x: x, x)

        return jax.lax.while_loop(lambda s: (s[1].sum() < 100) & (s[0] < 9), turn, (0, x @ w))[1]

    x, w = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32)
    program = parse.parse_program(jax.jit(f).lower(x, w).compile().as_text())
    for taken in (1.0, 0.25):
        counted = costs.count(program, kernel_work=lambda kernel: None, taken=taken)
        assert counted.fixed["flops"] == 2 * 8 * 16 * 16
        assert counted.loop["flops"] == taken * 2 * 8 * 16 * 16


def test_memory_traffic_counts_the_slices_of_a_stack():
    """Of stacked weights every turn reads its own, of the stack of results it writes its own."""

    def f(x, w):
        return jax.lax.scan(lambda x, w: ((y := jnp.tanh(x * w)), y), x, w)

    x, w = jax.ShapeDtypeStruct((1024, 128), jnp.float32), jax.ShapeDtypeStruct((50, 1024, 128), jnp.float32)
    counted = costs.count(
        parse.parse_program(jax.jit(f).lower(x, w).compile().as_text()), kernel_work=lambda kernel: None, taken=1.0
    )
    layer = 4 * 1024 * 128
    assert 50 * 3 * layer <= counted.fixed["hbm"] <= 50 * 6 * layer + 50 * layer, (
        "the whole stack each turn would be 50 times that"
    )


def test_a_computation_of_a_sparse_core_ends_where_it_ends():
    """XLA gives the scatter of log-probabilities to the sparse cores of a TPU that has them."""
    body = "(p: f32[2]) -> f32[2] {\n  ROOT %p = f32[2]{0} parameter(0)\n}"
    program = parse.parse_program(f'%f {body}, execution_thread="sparsecore"\n\n%g {body}\n\nENTRY %main {body}\n')
    assert list(program.computations) == ["f", "g", "main"] and program.entry == "main"
    assert all(list(computation) == ["p"] for computation in program.computations.values())


@pytest.mark.parametrize("to,source,passes", [(":S(1)", "", 1), ("", ":S(1)", 1), ("", "", 2), (":S(1)", ":S(1)", 0)])
def test_a_copy_reads_its_source_and_writes_its_result(to, source, passes):
    """Fast memory, S(1), costs nothing. A copy's new buffer is the first of its results: XLA writes it so for a TPU."""
    into, out = f"bf16[2,64]{{1,0{to}}}", f"bf16[2,64]{{1,0{source}}}"
    text = f"""ENTRY %main (a: bf16[2,64]) -> bf16[2,64] {{
  %a = {out} parameter(0)
  %copy-start.1 = ({into}, {out}, u32[]{{:S(2)}}) copy-start(%a)
  ROOT %copy-done.1 = {into} copy-done(%copy-start.1)
}}
"""
    counted = costs.count(parse.parse_program(text), kernel_work=lambda kernel: None, taken=1.0)
    assert counted.fixed["hbm"] == passes * 2 * 2 * 64


@pytest.mark.parametrize(
    "stride,low,left,right", [(1, 0, 1, 1), (1, 2, 1, 1), (2, 1, 1, 1), (1, 1, 3, 1), (3, 0, 4, 2), (1, -1, 1, 2)]
)
def test_positions_of_a_convolution(stride, low, left, right):
    for size, kernel, out in itertools.product((1, 4, 5), (1, 3, 4), (1, 4, 7)):
        meets = 0
        for o, k in itertools.product(range(out), range(kernel)):
            at = o * stride + k * right - low
            meets += at >= 0 and at % left == 0 and at // left < size
        assert costs.valid_positions(size, kernel, out, stride=stride, low=low, left=left, right=right) == meets


@pytest.mark.parametrize(
    "layout,length",
    [
        (("full",), 1024),
        (("causal",), 1536),
        (("grouped", 700, 255), 2048),
        (("grouped", 1024, 63), 1536),
        (("full",), 1764),  # these are padded
        (("causal",), 130),
        (("grouped", 640, 256), 640 + 4 * 256),
    ],
)
def test_blocks_that_splash_visits(layout, length):
    """As many as the kernel's own list of blocks has, in each of its passes."""
    kernel, block = splash.make_kernel(layout, length, 1, True), splash.block_size(length)
    name, length = "_".join(map(str, layout)), splash.padded_length(length)
    count = kernels.visited_blocks(name, length, block)
    for info in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
        listed = info.block_mask  # None: all of them
        assert count == ((length // block) ** 2 if listed is None else np.count_nonzero(listed))
    queries = parse.HloShape("bf16", (4, length, 128), True)
    call = kernels.Kernel("x", f"jit(f)/attend_{name}_by_{block}/vmap(splash)/splash_mha_dkv_no_residuals/pallas_call", [queries])
    flops, moved = kernels.splash_work(call)
    assert flops == 4 * count * block * block * 128 * 2 * 4
    assert moved == 4 * count * block * 128 * 4
    assert kernels.splash_work(call._replace(op_name="jit(f)/pallas_call")) is None


def small_run(moe: bool = False) -> tuple[Config, object]:
    """A model whose matrices outweigh its attention, and a run that fits it."""
    model = tiny.config(layers=3, blocks=2, moe=moe)
    cfg = Config()
    cfg.model.path, cfg.data.tasks, cfg.model.experts = "tiny", ("technical",), "dense"
    cfg.mesh = MeshConfig(data=1, fsdp=-1)
    cfg.data.prompt_tokens, cfg.data.patches = 16, 16
    cfg.rollout.prompts, cfg.rollout.group_size, cfg.rollout.completion_tokens = 16, 4, 8
    cfg.update.prompts, cfg.update.micro_prompts = 8, 8
    return cfg, model


@functools.cache
def counted_phases(remat: str, lora: int = 0, freeze: tuple[str, ...] = ()) -> tuple[dict, dict]:
    cfg, model = small_run()
    text = dataclasses.replace(model.text, hidden_size=64, intermediate_size=256, vocab_size=512)
    model = dataclasses.replace(
        model, text=text, vision=dataclasses.replace(model.vision, out_hidden_size=64, hidden_size=32, intermediate_size=96)
    )
    cfg = changed(cfg, {"model.remat": remat, "lora.rank": lora, "model.freeze": freeze})
    setup = make_setup(cfg, model, jax.devices()[:1])
    phases = step_phases(cfg, quickly(setup, ["rollout", "logp", "update"]), Slice("test", None, (1,)))
    return {p.name: p.costs["flops"] for p in phases}, analytic.flops(model, cfg)


def quickly(setup: Setup, phases: list[str]) -> dict[str, Compiled]:
    """`compile_all` without what would make the programs fast."""
    compile = jax.stages.Lowered.compile
    with mock.patch.object(jax.stages.Lowered, "compile", lambda lowered: compile(lowered, compiler_options=tiny.QUICK)):
        return compile_all(setup, phases)


def sampled_run() -> tuple[Plan, object]:
    """16 prompts of 4 answers of up to 24 tokens: lanes for 64, 48, 32 or 16 answers."""
    cfg, model = small_run()
    cfg.rollout.completion_tokens = 24
    setup = make_setup(cfg, model, jax.devices()[:1])
    return Plan(setup, Slice("test", None, (1,)), quickly(setup, ["rollout", "logp", "update"])), model


def test_a_step_whose_lengths_are_the_limits_costs_what_the_plan_says():
    plan, model = sampled_run()
    cfg, want = plan.setup.cfg, step_phases(plan.setup.cfg, plan.compiled, plan.place)
    with mock.patch.object(natural, "compile_all", quickly):
        got = natural.at_lengths(plan, model, jax.devices()[:1], draw_lengths(cfg, {}, []))
        half = natural.at_lengths(plan, model, jax.devices()[:1], draw_lengths(cfg, read_spreads(["answer:12"], cfg), []))
        points = natural._points(plan, half.decoded, 1)
        assert list(points) == [(64, 23), (32, 23)]
        alone = make_setup(changed(cfg, {"rollout.group_size": 1}), model, jax.devices()[:1])
        turn = quickly(alone, ["rollout"])["rollout"].counted.loop
    assert {p.name: p.costs for p in got.phases} == {p.name: pytest.approx(p.costs) for p in want}
    of = {p.name: p.costs for p in half.phases}
    assert of["prefill"] == pytest.approx(want[0].costs) and half.decoded.steps == {(64, 23): 11}
    assert of["decode"]["flops"] == pytest.approx(want[1].costs["flops"] * 11 / 23)
    assert of["update"] == pytest.approx(want[3].costs), "so few answers so short are not packed"
    turns = {at: quickly(make_setup(changed(cfg, c), model, jax.devices()[:1]), ["rollout"])["rollout"].counted.loop
             for at, c in points.items()}  # fmt: skip
    few = natural._summed(turns, {(16, 23): 3})  # a third size, through the two
    assert few["flops"] == pytest.approx(3 * turn["flops"], rel=0.02)
    assert few["hbm"] == pytest.approx(3 * turn["hbm"], rel=0.1)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_weights_that_are_gathered_first_are_not_gathered_for_every_token(moe):
    cfg, model = small_run(moe)
    cfg.mesh = MeshConfig(data=1, fsdp=4, expert=2 if moe else 1, tensor=1 if moe else 2)
    sent = {}
    for gather in (False, True):
        setup = make_setup(changed(cfg, {"rollout.gather_weights": gather}), model, jax.devices()[:8])
        counted = quickly(setup, ["rollout"])["rollout"].counted
        sent[gather] = counted.loop["all-gather"]
    # The experts of a CPU are gathered along `expert` too, which is another matter.
    assert sent[False] > 10_000 and sent[True] < (0.6 if moe else 0.01) * sent[False], sent


def test_a_stage_without_rollouts_has_no_decoding():
    cfg, model = small_run()
    cfg.stage, devices = "sft", jax.devices()[:1]
    setup = make_setup(cfg, model, devices)
    plan = Plan(setup, Slice("test", None, (1,)), quickly(setup, ["update"]))
    with mock.patch.object(natural, "compile_all", quickly):
        got = natural.at_lengths(plan, model, devices, draw_lengths(cfg, {}, []))
    (want,) = step_phases(cfg, plan.compiled, plan.place)
    assert got.decoded is None and [p.name for p in got.phases] == ["update"]
    assert got.phases[0].costs == pytest.approx(want.costs)
    assert "decoding" not in lengths_text(cfg, got, plan.place) and "update" in lengths_text(cfg, got, plan.place)


def test_products_of_the_model_are_those_of_the_formula():
    counted, formula = counted_phases("none", 0)
    calls = {"prefill": 1, "decode": 1, "logp": 2, "update": 2}
    assert set(counted) == set(calls)
    for name, times in calls.items():
        assert counted[name] == pytest.approx(times * formula[name], rel=0.15), name
    again, _ = counted_phases("full", 0)
    assert again["update"] == pytest.approx(2 * formula["update"] * 4 / 3, rel=0.15), "the forward pass a second time"
    assert again["logp"] == counted["logp"]
    assert counted["update"] == pytest.approx(3 * counted["logp"] / 2, rel=0.15)


def test_the_operations_that_a_step_reports_are_those_of_its_programs():
    """`model_tflops` of a step without padding, against XLA's products; wide, so that attention, which XLA computes with the
    pairs that are masked, is a small part."""
    cfg, model = small_run()
    text = dataclasses.replace(model.text, hidden_size=256, intermediate_size=1024, vocab_size=2048)
    vision = dataclasses.replace(model.vision, out_hidden_size=256, hidden_size=128, intermediate_size=512)
    model = dataclasses.replace(model, text=text, vision=vision)
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 8
    setup = make_setup(cfg, model, jax.devices()[:1])
    phases = step_phases(cfg, quickly(setup, ["rollout", "logp", "update"]), Slice("test", None, (1,)))
    counted = {phase.name: phase.costs["flops"] for phase in phases}
    one = analytic.full_lengths(cfg)
    lengths = Lengths(*[np.repeat(x, 8, axis=0) for x in one])
    own = step_flops(model, cfg, sampled=lengths, learned=lengths, passes=1)
    assert own == pytest.approx(sum(counted.values()), rel=0.03)
    assert step_flops(model, cfg, sampled=None, learned=lengths, passes=0) == pytest.approx(counted["update"], rel=0.03)


@pytest.mark.parametrize("lora,freeze", [
    (0, ("vision",)),
    (0, ("mergers",)),
    (0, ("vision", "mergers")),
    (0, ("vision", "mergers", "embeddings")),
    (4, ()),
])  # fmt: skip
def test_what_stands_still_needs_no_gradient(lora, freeze):
    """The update counted in the compiled program against the formula, and how much less it is than of training everything."""
    (counted, formula), (whole, all_trained) = counted_phases("none", lora, freeze), counted_phases("none")
    assert counted["update"] == pytest.approx(2 * formula["update"], rel=0.1)
    assert counted["logp"] == pytest.approx(whole["logp"], rel=0.1)
    saved = (whole["update"] - counted["update"]) / 2
    assert saved > 0 and all_trained["update"] - formula["update"] == pytest.approx(saved, rel=0.25)


def test_shards_of_the_state_and_what_is_sent_for_them():
    cfg, model = small_run()
    setup = make_setup(cfg, model, jax.devices()[:4])
    compiled = quickly(setup, ["update"])
    rows = memory_rows(setup, compiled, "update")
    whole = sum(leaf.size * 4 for leaf in jax.tree.leaves(setup.state.params))
    assert whole / 4 <= rows["parameters"] < whole / 2, "divided by four, but for small weights"
    assert 2 * rows["parameters"] <= rows["optimizer"] <= 2 * rows["parameters"] + 64
    assert rows["reference"] == rows["parameters"], "same dtype, a copy of its own"
    assert rows["gradients"] == rows["parameters"]
    counted = compiled["update"].counted.fixed
    assert counted["all-gather"] > 0.5 * whole, "weights come together at least once"
    assert counted["all-reduce"] + counted["reduce-scatter"] > 0.5 * whole, "and their gradients once"
    assert peak(rows) == sum(rows.values()) > 4 * rows["parameters"]
