"""Photographs of any size, judged and laid out by a folder; what test_pictures_of_any_size.py runs in a process of its own."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

HUB = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}  # fmt: skip
# width, height: from 0.1 to 12 megapixels, and two panoramas
SIZES = [(400, 250), (640, 480), (1024, 1024), (1920, 1080), (2400, 1800), (4032, 3024), (3000, 20), (134, 20_000)]
TASKS = (
    {"name": "bright", "kind": "binary", "question": "Is it bright?"},
    {"name": "which", "kind": "pairwise", "question": "Which is better?"},
    {"name": "polite", "kind": "binary", "question": "Is it polite?", "noun": "Answer"},
)
CONFIG = '''"""Single pictures, pairs and texts with the settings of images as they are downloaded."""

from mtjudge_jax.config import Config


def get_config():
    cfg = Config(steps=2)
    cfg.model.path, cfg.data.custom_tasks, cfg.data.tasks = "{model}", {tasks}, ("bright", "which", "polite")
    cfg.data.path, cfg.data.mixture = "{data}", "uniform"
    cfg.data.prompt_tokens, cfg.data.patches, cfg.data.min_pixels = 192, 256, 128 * 128
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 6
    cfg.rollout.group_size = cfg.eval.samples = 2
    cfg.rollout.completion_tokens, cfg.optim.lr = 8, 1e-4
    cfg.eval.every_steps = cfg.checkpoint.every_steps = 2
    cfg.eval.limit, cfg.eval.tasks = 2, ("bright",)
    return cfg
'''


def photo(number: int, width: int, height: int) -> bytes:
    small = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR).save(out, "JPEG", quality=60)
    return out.getvalue()


def write_inputs(folder: Path) -> None:
    """A model with the hub's settings, photographs, their questions, and a config."""
    from mtjudge_jax.policy.model import DEMO_BASE

    shutil.copytree(DEMO_BASE, folder / "model")
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(HUB))
    (folder / "model" / "judge.json").unlink()
    (folder / "photos").mkdir()
    for number, size in enumerate(SIZES):
        (folder / "photos" / f"{number}.jpg").write_bytes(photo(number, *size))
    rows = []
    for split, numbers in (("val", (0, 4)), ("train", (1, 2, 3, 5, 6, 7))):
        for at, i in enumerate(numbers):
            row, label = {"split": split, "group": split}, ("no", "yes")[at % 2]
            pair = {"candidates": [f"{i}.jpg", f"{numbers[(at + 1) % len(numbers)]}.jpg"], "label": "AB"[at % 2]}
            rows.append(row | {"task": "bright", "kind": "binary", "image": f"{i}.jpg", "label": label})
            rows.append(row | {"task": "which", "kind": "pairwise"} | pair)
            text = {"text": f"Thank you, {i}.", "group": f"t{i}", "label": label}
            rows.append(row | {"task": "polite", "kind": "binary"} | text)
    rows.pop(4)  # the pair of val the other way round
    (folder / "photos" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = CONFIG.format(model=folder / "model", tasks=repr(TASKS), data=folder / "data")
    (folder / "config.py").write_text(text)


def judged(*, folder: str) -> dict:
    """Verdicts and grids of the exported judge about each photograph and a pair of the largest; the sizes of the rows."""
    from mtjudge_jax.judge import engine
    from mtjudge_jax.judge.judge import Judge

    folder, rooms, grids = Path(folder), [], []
    judge = Judge.from_pretrained(folder / "judge", batch=1)
    make = engine.prompt_row

    def watched(parts, pictures, fmt, **named):
        row = make(parts, pictures, fmt, **named)
        segment = row["patch_segment"]
        rooms.append([fmt.prompt_tokens, fmt.patch_count])
        grids.append([row["patch_grid"][segment == n][0].tolist() for n in range(1, int(segment.max(initial=0)) + 1)])
        return row

    engine.prompt_row = watched
    photos = [folder / "photos" / f"{number}.jpg" for number in range(len(SIZES))]
    found = [judge.judge(images=one, task="bright")._asdict() for one in photos]
    found.append(judge.judge(images=[photos[5], photos[4]], task="which")._asdict())
    return {"verdicts": found, "rooms": rooms, "grids": grids}
