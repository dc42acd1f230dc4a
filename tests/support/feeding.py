"""Three tasks of a few records each, and iterators over them."""

import hashlib
import json

from data_fixtures import WHOLE, data_config, example, write_records

from mtjudge_jax.data.pipeline import open_split, train_iterator

NAMES = ("technical", "safety", "alignment")


COUNTS = {"technical": 31, "safety": 20, "alignment": 41}


def write_data(folder, counts=COUNTS):
    files = {}
    for task, count in counts.items():
        path = write_records(folder / "train" / f"{task}.array_record", [example(i, task) for i in range(count)])
        files[f"train/{task}"] = {"count": count, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "dataset": "test", "files": files}))
    return folder


def iterator(data, fmt, *, tasks=NAMES, shard=WHOLE, threads=2, **changes):
    return train_iterator(data, fmt, data_config(tasks, **changes), shard, threads=threads)


def sources(data):
    return {name: open_split(data, "train", name) for name in NAMES}
