"""Whether a step that was just written can be restored, found out without restoring it.

Orbax writes the arrays of each process into a folder of its own and then joins their indexes. If that step finds nothing it
only logs a line (google/orbax#924), and if it misses one process the restored arrays have zeros in that process's place. The
files are all there then and their checksums are right. So the joined index is compared with the indexes that it was made
from, and some arrays are read through it and compared with their digests.
"""

import math
import os
from typing import Any

import tensorstore as ts

from mtjudge_jax.checkpoint.digest import host_digest
from mtjudge_jax.checkpoint.structure import first_few
from mtjudge_jax.paths import AnyPath, in_bucket

_READ_BYTES = 32 << 20  # of arrays, per step
_OWN = "ocdbt.process_"
_ARRAY = "/zarr.json"


def restore_problem(path: AnyPath, record: dict) -> str:
    """The reason that the step in `path` cannot be restored, or "". One process calls, when all have written.

    record: the step's record with its leaves (dtype, shape, digest) and files. Reads the indexes and at most _READ_BYTES of
    arrays, or the smallest one; a later step reads others.
    """
    owns = sorted({name[: name.index("/", name.index(_OWN))] for name in record["files"] if _OWN in name})
    if not owns:
        return "Orbax has written no arrays"
    joined = owns[0][: owns[0].index(_OWN)].rstrip("/")
    index = _keys(path / joined)
    wanted = set[str]().union(*(_keys(path / own) for own in owns))
    keys = {key.removesuffix(_ARRAY).replace("/", "."): key.removesuffix(_ARRAY) for key in index if key.endswith(_ARRAY)}
    names = {leaf: leaf.replace("/", ".") for leaf in record["leaves"]}
    if missing := sorted(wanted - index) or [leaf for leaf, name in names.items() if name not in keys]:
        what = f"the joined index of {joined}/ has {len(index)} of {len(wanted)} entries"
        return f"{what}, without {first_few(missing, 3)}: Orbax has not joined what its processes wrote"
    for name in _some_of(record["leaves"], record["step"]):
        leaf, key = record["leaves"][name], keys[names[name]]
        spec = {"driver": "zarr3", "kvstore": {**_store(path / joined), "path": f"{key}/"}}
        array = ts.open(spec).result().read().result()
        if list(array.shape) != leaf["shape"] or str(array.dtype) != leaf["dtype"] or host_digest(array) != leaf["digest"]:
            return f"{name} reads back with other numbers than were saved"
    return ""


def _keys(folder: AnyPath) -> set[str]:
    """What an index names: the arrays' metadata and their chunks."""
    return {key.decode() for key in ts.KvStore.open(_store(folder)).result().list().result()}


def _some_of(leaves: dict[str, dict], step: int) -> list[str]:
    """Leaves that together have at most _READ_BYTES, beginning at another one with each step; at least the smallest."""
    sizes = {name: math.prod(leaf["shape"]) * ts.dtype(leaf["dtype"]).numpy_dtype.itemsize for name, leaf in leaves.items()}
    names, taken, room = sorted(sizes), [], _READ_BYTES
    start = step % len(names)
    for name in (*names[start:], *names[:start]):
        if sizes[name] <= room:
            taken.append(name)
            room -= sizes[name]
    return taken or [min(names, key=sizes.__getitem__)]


def _store(folder: AnyPath) -> dict[str, Any]:
    if not in_bucket(folder):
        return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    bucket, _, name = os.fspath(folder).removeprefix("gs://").partition("/")
    return {"driver": "ocdbt", "base": {"driver": "gcs", "bucket": bucket, "path": f"{name}/"}}
