"""What test_loading.py runs in two processes: a folder loaded over a mesh of 8 devices, 4 of each process.

    python loading.py FOLDER PROCESS PORT HOST_BYTES

Prints JSON: bytes this process read, a digest of every part on its devices, and how many parts it has of an expert leaf.
"""

import hashlib
import json
import sys
from unittest import mock

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mtjudge_jax.models.hf import place
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.qwen3_vl.config import load_config
from mtjudge_jax.sharding import param_sharding

AXES = ("data", "fsdp", "expert", "tensor")


class Bytes:
    """Counts what is copied out of files, and watches the largest copy."""

    def __enter__(self):
        self.total, self.largest, real = 0, 0, place.copy_part

        def counted(tensor, index):
            part = real(tensor, index)
            self.total, self.largest = self.total + part.nbytes, max(self.largest, part.nbytes)
            return part

        self.patch = mock.patch.object(place, "copy_part", counted)
        self.patch.start()
        return self

    def __exit__(self, *_):
        self.patch.stop()


def mesh(*shape: int) -> jax.sharding.Mesh:
    """(data, fsdp, expert, tensor) over the first devices."""
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def main(folder: str, process: int, port: int, host_bytes: int) -> None:
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    over = mesh(1, 2, 2, 2)
    with Bytes() as read:
        params = load_params(
            folder,
            load_config(folder),
            dtype="float32",
            sharding_of=lambda path, shape: param_sharding(path, shape, over),
            piece_bytes=10_000,
            host_bytes=host_bytes,
        )
    parts = [
        [path, [list(part.indices(size)[:2]) for part, size in zip(shard.index, leaf.shape, strict=True)], digest(shard.data)]
        for path, leaf in flatten_dict(params, sep="/").items()
        for shard in leaf.addressable_shards
    ]
    experts = params["text"]["layers"]["experts_gate_up_led2f"]
    most = place.plan_leaf("", experts.shape, dtype="float32", sharding=experts.sharding, stacked=True).most
    print(json.dumps({"devices": jax.device_count(), "read": read.total, "parts": parts, "most": most}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
