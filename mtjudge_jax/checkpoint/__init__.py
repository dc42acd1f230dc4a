"""Checkpoints that detect their own damage. Only this folder imports Orbax.

A step holds the arrays of the state and a record (record.py): step, data position, the caller's meta, dtype, shape and digest
of every leaf, and a checksum of every file. Orbax has no checksum on array data, so it restores a flipped bit silently, and it
casts a leaf of another dtype without a warning. The record lets `restore_latest` detect both. The checksums prove the files,
including bytes that nothing reads. The digests prove the arrays that came out of them, on any mesh.

A save blocks only until the devices have the request or, on CPUs, until the state is copied. Fetching, writing and checking run
in the background, and the next call reports an error in them. A failed save costs the run only that save. A step is deleted only
after a newer one has been written and read back, so the last good step stays.

The folder is in a bucket or on a file system that all processes share. Every function is called by all processes.
"""

from mtjudge_jax.checkpoint.folders import CheckpointError, check_workdir, complete_steps
from mtjudge_jax.checkpoint.restoring import Restored, Saved, read_saved, restore_latest, restore_part
from mtjudge_jax.checkpoint.saving import Checkpoints, close, open_checkpoints, save, saved_steps, wait

__all__ = [
    "CheckpointError", "Checkpoints", "Restored", "Saved", "check_workdir", "close", "complete_steps", "open_checkpoints",
    "read_saved", "restore_latest", "restore_part", "save", "saved_steps", "wait",
]  # fmt: skip
