"""Readers of data sets in their native form: a module a data set, each with `read`, TASKS, LICENSE, TERMS, OPTIONS, HOW."""

from types import ModuleType

from mtjudge_jax.data.readers import agin, imagereward, jsonl, mjbench, parquet, seetrue, unsafebench

READERS: dict[str, ModuleType] = {
    "agin": agin,
    "seetrue": seetrue,
    "imagereward": imagereward,
    "unsafebench": unsafebench,
    "mjbench": mjbench,
    "jsonl": jsonl,
    "parquet": parquet,
}
