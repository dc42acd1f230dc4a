"""Readers of data sets in their native form: a module a data set, each with `read`, TASKS, LICENSE, TERMS, OPTIONS, HOW."""

from types import ModuleType

from mtjudge_jax.data.readers import (
    agin,
    genai_bench,
    hpdv2,
    imagereward,
    jsonl,
    mjbench,
    mllm_judge,
    multimodal_rewardbench,
    parquet,
    pickapic,
    prepared,
    seetrue,
    unsafebench,
    vl_rewardbench,
)

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
