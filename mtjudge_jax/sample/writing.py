"""The data folder of sampled answers: the training records that were kept, and the other splits as they were."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from mtjudge_jax.data.pipeline import MANIFEST_VERSION, read_manifest
from mtjudge_jax.data.record_file import write_records
from mtjudge_jax.paths import as_path, copy_file
from mtjudge_jax.records import JudgeExample

SAMPLES_FILE = "samples.jsonl"
_TOLD = ("example_id", "task", "label", "pass_rate", "readable", "error")  # of a line


def write_sampled(
    folder: Path,
    data: str,
    shown: Mapping[str, list[JudgeExample]],
    lines: Mapping[str, list[dict]],
    ids: Mapping[str, set[str]],
    *,
    keep: str,
    given: dict,
) -> Path:
    """Writes a complete data folder, the manifest last, and returns it. `shown` and `lines` are in the same order.

    A record is stored in the order that the model saw: its reasoning names the candidates by the names they had there. The files
    of all splits but train are copied, so their digests stay. samples.jsonl has a line for every prompt that was sampled.
    """
    folder.mkdir(parents=True)
    source, files = read_manifest(data), {}
    for name, group in shown.items():
        pairs = zip(group, lines[name], strict=True)
        kept = (_taught(example, line, keep) for example, line in pairs if line["example_id"] in ids[name])
        if ids[name]:
            files[f"train/{name}"] = write_records(folder / "train" / f"{name}.array_record", kept)
    for name, entry in source["files"].items():
        if not name.startswith("train/"):
            target = folder / f"{name}.array_record"
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(as_path(data) / entry.get("path", f"{name}.array_record"), target)
            files[name] = {"count": entry["count"], "sha256": entry["sha256"]}
    with (folder / SAMPLES_FILE).open("w") as file:
        for name, found in lines.items():
            for line in found:
                told = {key: line.get(key) for key in _TOLD} | {"kept": line["example_id"] in ids[name]}
                file.write(json.dumps(told) + "\n")
    about = {"version": MANIFEST_VERSION, "dataset": source.get("dataset", ""), "arguments": given, "files": files}
    (folder / "manifest.json").write_text(json.dumps(about, indent=1) + "\n")
    return folder


def _taught(example: JudgeExample, line: dict, keep: str) -> JudgeExample:
    """The record with its sampled reasoning; for DPO with both answers too."""
    pair = {"chosen": line["chosen"], "rejected": line["rejected"]} if keep == "pairs" else {"chosen": "", "rejected": ""}
    return dataclasses.replace(example, rationale=line["reasoning"], pass_rate=line["pass_rate"], **pair)
