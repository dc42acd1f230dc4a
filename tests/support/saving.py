"""What test_processes.py runs in several processes: `python saving.py WHAT FOLDER PROCESS PROCESSES PORT`. Prints JSON."""

import contextlib
import json
import resource
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from orbax.checkpoint._src.serialization import ocdbt_utils

from mtjudge_jax import checkpoint as ck
from mtjudge_jax.checkpoint import record, restoring, saving
from mtjudge_jax.config import CheckpointConfig, MeshConfig
from mtjudge_jax.hosts.exchange import together
from mtjudge_jax.sharding import make_mesh, tree_shardings

SHAPES = {"text/embed_vd": (64, 32), "text/norm_d": (32,), "text/layers/q_ldnh": (2, 32, 4, 8)}


def numbers(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def placed(seed: int, mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    made = numbers(seed)
    shardings = tree_shardings(made, mesh)
    return {name: jax.make_array_from_callback(x.shape, shardings[name], lambda at, x=x: x[at]) for name, x in made.items()}


def abstract(mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    made = numbers(0)
    shardings = tree_shardings(made, mesh)
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in made.items()}


def save(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    opened, said = ck.open_checkpoints(folder, CheckpointConfig()), []
    for step in (1, 2):
        data = {"global_next_index": 8 * step}
        said += ck.save(opened, step, state=placed(step, mesh), data_state=data, meta={"best": 0.5})
    ck.close(opened)
    return {"said": said, "devices": jax.device_count()}


def restore(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    began = time.monotonic()
    got = ck.restore_latest(ck.open_checkpoints(folder, CheckpointConfig()), abstract(mesh))
    want = numbers(got.step)
    equal = all(
        np.array_equal(np.asarray(shard.data), want[name][shard.index])
        for name, leaf in got.state.items()
        for shard in leaf.addressable_shards
    )
    return {"restored": [got.step, equal, list(got.damaged)], "seconds": time.monotonic() - began}


def refusing(step: int):
    """A file system that does not let this host read the files of a step."""

    def refuse(path, *arguments):
        if path.name == str(step):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments)

    real = record.damage_in
    return mock.patch.object(restoring, "damage_in", refuse)


def unreadable(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    with refusing(2) if jax.process_index() == 1 else contextlib.nullcontext(), kept(folder):
        return restore(folder, mesh)


def undecodable(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    """The record itself is what process 1 cannot read."""

    def refuse(path, step):
        if step == 2:
            raise PermissionError(13, "Permission denied")
        return real(path, step)

    real = record.read_record
    refusing = mock.patch.object(restoring, "read_record", refuse)
    with refusing if jax.process_index() == 1 else contextlib.nullcontext(), kept(folder):
        return restore(folder, mesh)


def kept(folder: Path):
    """Nothing is set aside: the next test reads the same folder."""
    return mock.patch.object(restoring, "set_aside", lambda *arguments: None)


def failing(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    """Step 2 cannot be finished on process 1, as on a host whose mount has gone."""
    opened, said = ck.open_checkpoints(folder, CheckpointConfig()), []
    real = saving.checksums

    def full(path, names):
        if path.name.startswith("2") and jax.process_index() == 1:
            raise OSError(28, "No space left on device")
        return real(path, names)

    with mock.patch.object(saving, "checksums", full):
        for step in (1, 2, 3):
            said += ck.save(opened, step, state=placed(step, mesh), data_state={}, meta={})
        said += ck.wait(opened)
    return {"said": said, "steps": ck.saved_steps(opened), "unjoined": unjoined(opened, mesh)}


def unjoined(opened: ck.Checkpoints, mesh: jax.sharding.Mesh) -> dict:
    """Orbax overlooks what process 1 wrote when it joins step 4, as where a file system shows it too late."""
    real = ocdbt_utils.merge_ocdbt_per_process_files

    async def merge(directory, *arguments, **more):
        own, aside = directory / "ocdbt.process_1", directory / "aside"
        own.rename(aside)
        await real(directory, *arguments, **more)
        aside.rename(own)

    with mock.patch.object(ocdbt_utils, "merge_ocdbt_per_process_files", merge):
        ck.save(opened, 4, state=placed(4, mesh), data_state={}, meta={})
        said = ck.wait(opened)
    ck.save(opened, 5, state=placed(5, mesh), data_state={}, meta={})
    ck.close(opened)
    return {"said": said, "steps": ck.saved_steps(opened)}


def filling(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    """While step 2's arrays are written process 1 may write no file longer than a kilobyte, as on a disk that fills up."""
    opened, said, seconds = ck.open_checkpoints(folder, CheckpointConfig()), [], 0.0
    for step in (1, 2, 3):
        full, began = step == 2 and jax.process_index() == 1, time.monotonic()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if full else resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        said += ck.save(opened, step, state=placed(step, mesh), data_state={}, meta={})
        said += ck.wait(opened)
        seconds = max(seconds, time.monotonic() - began)
    ck.close(opened)
    return {"said": said, "steps": ck.saved_steps(opened), "seconds": seconds}


def leave_together(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    with together():
        pass
    try:
        with together():
            if jax.process_index() == 1:
                raise ValueError("my file is damaged")
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


WHAT = {"save": save, "restore": restore, "unreadable": unreadable, "undecodable": undecodable, "failing": failing}
WHAT |= {"filling": filling, "together": leave_together}


def main(what: str, folder: str, process: int, processes: int, port: int) -> None:
    jax.config.update("jax_num_cpu_devices", 8 // processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, process)
    print(json.dumps(WHAT[what](Path(folder), make_mesh(MeshConfig(data=1, fsdp=8)))))
    jax.distributed.shutdown()  # as hosts.joined does: it also ends what Orbax still waits for


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
