"""Writes records as an ArrayRecord file, the form in which every data folder has them."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from mtjudge_jax.data.tf_example import FEATURE, tf_example
from mtjudge_jax.records import JudgeExample, Label, pack


def label_feature(label: Label) -> str:
    """A label as the readable feature of a file: `1`, `winner 0`, `ranks 2 1 3`, `score 3.5`."""
    if label.binary is not None:
        return str(label.binary)
    if label.winner is not None:
        return f"winner {label.winner}"
    if label.ranks is not None:
        return f"ranks {' '.join(map(str, label.ranks))}"
    return f"score {label.score:g}"


def write_records(
    path: Path, examples: Iterable[JudgeExample], progress: Callable[[], object] = lambda: None
) -> dict[str, int | str]:
    """Writes one file, whose folder it makes; returns its entry in the manifest. progress: called after every record."""
    from array_record.python.array_record_module import ArrayRecordWriter  # slow to import

    path.parent.mkdir(parents=True, exist_ok=True)
    writer, count = ArrayRecordWriter(str(path), "group_size:1"), 0
    for example in examples:
        texts = {"example_id": example.example_id, "task": example.task, "label": label_feature(example.label)}
        writer.write(tf_example({name: text.encode() for name, text in texts.items()} | {FEATURE: pack(example)}))
        count += 1
        progress()
    writer.close()
    with path.open("rb") as file:
        return {"count": count, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
