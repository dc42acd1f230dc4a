"""Readers of data sets in their native form: a module a data set, each with `read`, TASKS, LICENSE, TERMS, OPTIONS, HOW."""

from types import ModuleType

from mtjudge_jax.prepare.readers import jsonl, parquet, prepared
from mtjudge_jax.prepare.readers.benchmarks import (
    genai_bench,
    hpdv2,
    mllm_judge,
    multimodal_rewardbench,
    pickapic,
    vl_rewardbench,
)
from mtjudge_jax.prepare.readers.paper import agin, imagereward, mjbench, seetrue, unsafebench

READERS: dict[str, ModuleType] = {
    "agin": agin,
    "seetrue": seetrue,
    "imagereward": imagereward,
    "unsafebench": unsafebench,
    "mjbench": mjbench,
    "vl_rewardbench": vl_rewardbench,
    "multimodal_rewardbench": multimodal_rewardbench,
    "genai_bench": genai_bench,
    "mllm_judge": mllm_judge,
    "pickapic": pickapic,
    "hpdv2": hpdv2,
    "jsonl": jsonl,
    "parquet": parquet,
    "prepared": prepared,
}
