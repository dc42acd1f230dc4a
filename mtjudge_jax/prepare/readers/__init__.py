"""Readers of data sets in their native form, each with `read`, TASKS, LICENSE, TERMS, OPTIONS and HOW."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import prepared, user_files
from mtjudge_jax.prepare.readers.benchmarks import (
    genai_bench,
    hpdv2,
    mllm_judge,
    multimodal_rewardbench,
    pickapic,
    vl_rewardbench,
)
from mtjudge_jax.prepare.readers.paper import agin, imagereward, mjbench, seetrue, unsafebench
from mtjudge_jax.records import BadRecord, JudgeExample


class Reader(Protocol):
    """A module, or an object with the same names."""

    TASKS: tuple[str, ...]  # () if the data name their tasks
    LICENSE: str
    TERMS: str  # of records.TERMS
    OPTIONS: Mapping[str, str]  # name -> meaning, as `mtjudge prepare` lists them
    HOW: str  # how to get the data and what to give as --source

    def read(self, source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
        """The records in the source's order. Raises UserError if the source or an option cannot be used at all."""


READERS: dict[str, Reader] = {
    "jsonl": user_files.JSONL,
    "parquet": user_files.PARQUET,
    "prepared": prepared,
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
}
