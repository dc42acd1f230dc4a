"""What the trackers of a run hold, for the tests: TensorBoard's event files, and the stubs of the others."""

import collections
import json
import os
import struct
import sys
from pathlib import Path

STUBS = Path(__file__).parent / "stubs"
OTHERS = ("wandb", "mlflow", "swanlab", "trackio")
Points = dict[str, list[tuple[int, object]]]  # by name: (step, value) in the order in which they came


def tensorboard_points(folder: Path) -> Points:
    """All of its event files, the oldest first. A picture is its (height, width), a text is its bytes."""
    from tensorboardX.proto.event_pb2 import Event

    found = collections.defaultdict(list)
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):  # TFRecord: length, its CRC, the content, its CRC
            (size,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                shown = {"simple_value": lambda v=value: v.simple_value, "image": lambda v=value: (v.image.height, v.image.width),
                         "tensor": lambda v=value: v.tensor.string_val[0]}[kind]  # fmt: skip
                found[value.tag].append((event.step, shown()))
    return dict(found)


def stub_points(name: str, kept: Path, tracking: Path) -> Points:
    """kept: the stubs' folder, their servers. tracking: the run's own, with what is written on this machine."""
    places = {"wandb": tracking / "wandb", "swanlab": tracking / "swanlab"}
    folders = [kept / name, *([places[name]] if name in places else [])]
    files = [path for folder in folders for path in sorted(folder.rglob("*.jsonl"))]
    found = collections.defaultdict(list)
    for path in files:
        if path.name in ("runs.jsonl", "ended.jsonl") or path.stem.endswith((".images", ".tables")):
            continue
        for record in map(json.loads, path.read_text().splitlines()):
            if "key" in record:
                found[record["key"]].append((record["step"], record.get("value")))
                continue
            values = record.get("metrics", record)
            step = next(value for key, value in values.items() if key in ("train/step", "validation/step", "rollouts/step"))
            for key, value in values.items():
                found[key].append((step, value))
    return dict(found)


def use_stubs(kept: str | Path) -> None:
    """The four packages are the stubs from now on."""
    os.environ["STUB_TRACKERS"] = str(kept)
    for name in [name for name in sys.modules if name.split(".")[0] in (*OTHERS, "_stub_store")]:
        del sys.modules[name]
    sys.path.insert(0, str(STUBS))


def train(*, argv: list[str], kept: str, env: dict[str, str]) -> None:
    """`mtjudge ARGV` with the stubs, in a process of its own (see commands.py)."""
    from mtjudge_jax import cli

    os.environ.update(env)
    use_stubs(kept)
    sys.argv = ["mtjudge", *argv]
    cli.main()
