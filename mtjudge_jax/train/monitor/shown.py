"""The rollouts that a run keeps to be read: `rollouts/step_000010.jsonl`, a line a prompt, and their pictures beside them.

A file is written whole and has the name of its step, so a step that is done again after a kill is there once. A picture has the
name of its content, so one that comes again takes no more room.
"""

import io
import json
from typing import NamedTuple

from PIL import Image

from mtjudge_jax.paths import AnyPath, write_whole


class Shown(NamedTuple):
    """A prompt with its answers, a line of the file, and its pictures side by side as the model saw them; None without any."""

    line: dict
    picture: Image.Image | None


def write_shown(folder: AnyPath, step: int, lines: list[dict], pictures: dict[str, bytes]) -> None:
    """lines: those of the step. pictures: the files that they name, by name. The file of the step is written last."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        if not (folder / "pictures" / name).exists():
            write_whole(folder / "pictures" / name, content)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(folder / f"step_{step:06d}.jsonl", text.encode(errors="replace"))


def shown_steps(folder: AnyPath) -> list[int]:
    """The steps whose rollouts are kept, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.stem.removeprefix("step_")) for path in folder.glob("step_*.jsonl"))


def drop_shown(folder: AnyPath, after: int) -> None:
    """Removes the rollouts of the steps after `after`, which a resumed run does again."""
    for step in shown_steps(folder):
        if step > after:
            (folder / f"step_{step:06d}.jsonl").unlink()


def read_shown(folder: AnyPath, step: int) -> list[Shown]:
    lines = [json.loads(line) for line in (folder / f"step_{step:06d}.jsonl").read_text().splitlines()]
    return [
        Shown(line, _side_by_side([(folder / "pictures" / name).read_bytes() for name in line["pictures"]])) for line in lines
    ]


def _side_by_side(files: list[bytes]) -> Image.Image | None:
    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    if not pictures:
        return None
    whole, gap = [sum(p.width for p in pictures) + 4 * (len(pictures) - 1), max(p.height for p in pictures)], 0
    joined = Image.new("RGB", tuple(whole), "white")
    for picture in pictures:
        joined.paste(picture, (gap, 0))
        gap += picture.width + 4
    return joined
