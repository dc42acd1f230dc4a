"""Records of an invented data set, a reader that yields them, and `prepare` over it."""

import io
import json
import types

import numpy as np
from PIL import Image

from mtjudge_jax.data.pipeline import read_manifest, read_split
from mtjudge_jax.prepare.prepare import Arguments, prepare
from mtjudge_jax.records import BadRecord, JudgeExample, Label


def picture(seed: int, kind: str = "PNG", side: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def made(number: int, **changes) -> JudgeExample:
    fields = {
        "example_id": f"fake/{number}", "dataset": "fake", "split": "", "group_id": f"g{number}", "task": "sharp",
        "criterion": "sharp", "kind": "pointwise_binary", "instruction": f"a dog {number}", "images": (picture(number),),
        "label": Label(binary=number % 2), "license": "CC0", "terms": "open",
    }  # fmt: skip
    return JudgeExample(**{**fields, **changes})


def reader_of(examples, *, terms: str = "open"):
    """A reader module of these records; counts its calls, and raises an exception among the records."""
    calls = []

    def read(source, options):
        calls.append(options)
        if "nonsense" in options:
            raise ValueError("unknown option 'nonsense'")
        for example in examples:
            if isinstance(example, Exception) and not isinstance(example, BadRecord):
                raise example
            yield example

    return types.SimpleNamespace(
        read=read, calls=calls, TASKS=("sharp",), LICENSE="CC0", TERMS=terms, OPTIONS={"margin": "default 0"}, HOW="Draw them."
    )


def arguments(source, **changes) -> Arguments:
    return Arguments(**{"dataset": "fake", "source": str(source), "options": {}, **changes})


def run(tmp_path, source, examples, *, max_bad=0.05, name="out", **changes):
    prepare(reader_of(examples), arguments(source, **changes), tmp_path / name, max_bad=max_bad)
    return tmp_path / name, json.loads((tmp_path / name / "report.json").read_text())


def by_split(out) -> dict[str, list[JudgeExample]]:
    names = [name.split("/") for name in read_manifest(out)["files"]]
    found: dict[str, list[JudgeExample]] = {}
    for split, task in names:
        found.setdefault(split, []).extend(read_split(out, split, task))
    return found
