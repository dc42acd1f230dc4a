"""The search for settings that fit: what it turns first, and what it leaves alone. Compiling is replaced by arithmetic."""

from unittest import mock

import numpy as np
import pytest

from mtjudge_jax.config import Config
from mtjudge_jax.config_check import mesh_shape
from mtjudge_jax.models.qwen3_vl.presets import preset
from mtjudge_jax.plan import search
from mtjudge_jax.plan.slices import tpu_slice

GB = 1e9
PLACE = tpu_slice("v5e:4x4")  # 16 devices of 16.9 GB


def held(cfg: Config) -> float:
    """8B as XLA holds it: 16 bytes a weight for full training in float32, 8 in bfloat16, 2 under adapters; by fsdp and tensor."""
    shape = mesh_shape(cfg.mesh, PLACE.devices)
    return (
        8.8 * GB * (2 if cfg.lora.rank else 8 if cfg.model.param_dtype == "bfloat16" else 16) / (shape["fsdp"] * shape["tensor"])
    )


def searched(cfg: Config, activations, tries: int = 6) -> tuple[search.Changes | None, list[search.Changes], list[str]]:
    """`repair` where a program needs what is held and `activations(cfg)` by phase: its result, what it compiled, what it said."""

    class Plan(search.Plan):
        peaks = property(
            lambda plan: {phase: held(plan.setup.cfg) + activations(plan.setup.cfg)[phase] for phase in plan.compiled}
        )
        crowded = property(lambda plan: held(plan.setup.cfg) > PLACE.chip.memory)

    tried, said = [], []

    def compile_plan(cfg, model, place, devices, phases=("rollout", "update")):
        tried.append(cfg)
        setup = mock.Mock(cfg=cfg, mesh=mock.Mock(devices=np.array([None] * PLACE.devices)))
        return Plan(setup, place, {phase: mock.Mock(memory=object()) for phase in phases})

    with (
        mock.patch.object(search, "compile_plan", compile_plan),
        mock.patch.object(search, "programs_of", lambda _: ["rollout", "update"]),
    ):
        plan = compile_plan(cfg, preset("8b"), PLACE, [])
        found = search.repair(plan, preset("8b"), tries, said.append)
    return found, tried[1:], said


def adapters() -> Config:
    cfg = Config()
    cfg.lora.rank, cfg.mesh.data, cfg.mesh.fsdp = 16, -1, 1
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 64
    return cfg


def test_weights_that_do_not_fit_are_sharded_first_and_nothing_else_is_turned():
    """8B with adapters and a copy on every device: 17.6 GB of 16.9, whatever a program needs beside them."""
    found, tried, said = searched(adapters(), lambda cfg: {"rollout": GB, "update": 2 * GB})
    assert set(found) == {"mesh.data", "mesh.fsdp", "mesh.expert", "mesh.tensor"} and len(tried) == 1
    assert "fits" in said[0]


def test_after_the_mesh_come_the_knobs_of_what_still_does_not_fit():
    sizes = lambda cfg: {"rollout": GB, "update": 0.4 * GB * cfg.update.micro_prompts}  # noqa: E731
    found, tried, _ = searched(adapters(), sizes)
    assert found["update.micro_prompts"] == 32 and found["mesh.fsdp"] * found["mesh.tensor"] > 1
    assert "rollout.micro_prompts" not in found and "model.remat" not in found
    assert tried[0].update.micro_prompts == 64, "the mesh alone"


def test_where_no_mesh_is_enough_what_changes_the_learning_comes_before_knobs():
    cfg = adapters()
    cfg.lora.rank, cfg.mesh.data, cfg.mesh.fsdp = 0, 1, -1
    with mock.patch.object(search, "_leanest_mesh", lambda cfg, model, place, **_: mesh_shape(cfg.mesh, place.devices)):
        cfg.mesh.data, cfg.mesh.fsdp = 4, 4  # 35 GB a device, 17.6 in bfloat16, 4.4 with adapters
        found, tried, _ = searched(cfg, lambda cfg: {"rollout": GB, "update": GB})
    assert found == {"lora.rank": 16}, "and not bfloat16, which proved needless"
    assert all(one.update.micro_prompts == 64 and one.model.remat == "dots" for one in tried)


def test_a_knob_that_the_mesh_makes_needless_is_dropped_after_a_plan_without_it():
    """What fits was found with three knobs; without the first two it still fits, and that is compiled too."""
    cfg = adapters()
    cfg.mesh.data, cfg.mesh.fsdp = 8, 2

    def sizes(cfg):
        shape = mesh_shape(cfg.mesh, PLACE.devices)
        spread = shape["fsdp"] * shape["tensor"]
        update = 24 * (0.9 if cfg.update.micro_prompts < 64 else 1) * (0.9 if cfg.model.remat == "full" else 1) / (spread / 2)
        return {"rollout": GB, "update": update * GB}

    lean = {"data": 1, "fsdp": 16, "expert": 1, "tensor": 1}
    with mock.patch.object(search, "_leanest_mesh", lambda *_, **__: lean):
        found, tried, said = searched(cfg, sizes, tries=8)
    assert set(found) == {"mesh.data", "mesh.fsdp", "mesh.expert", "mesh.tensor"}
    assert sum(line.startswith("  without --config.") for line in said) >= 2
    last = tried[-1]
    assert (last.update.micro_prompts, last.model.remat) == (64, "dots")


@pytest.mark.parametrize("room,kept", [(1.2, True), (3.0, False)])
def test_a_knob_that_is_needed_stays(room, kept):
    """It is only tried without where its gain fits into the room that is left."""
    cfg = adapters()
    plan = mock.Mock(place=PLACE, setup=mock.Mock(cfg=cfg, mesh=mock.Mock(devices=np.array([]))))
    fits, without = (
        mock.Mock(peaks={"update": PLACE.chip.memory / room}),
        mock.Mock(failing=["update"] if room < 2 else [], peaks={}),
    )
    without.place = PLACE
    changes = {"update.micro_prompts": 32, "model.remat": "full"}
    with mock.patch.object(search, "compile_plan", lambda *_: without) as _:
        found = search._without_needless(
            plan, None, changes, {"model.remat": "full"}, {"update.micro_prompts": 2.0}, fits, [].append
        )
    assert ("update.micro_prompts" in found) == kept and "model.remat" in found
