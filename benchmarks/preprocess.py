"""Times the path from an encoded picture to patches: ours and transformers' Qwen2VLImageProcessorPil, on the same bytes.

    python benchmarks/preprocess.py                               # a generated 1024x768 JPEG
    python benchmarks/preprocess.py --picture=photo.jpg --reps=200

All times include decoding. `ours` ends with what the training step takes: uint8 patches, which the device normalises.
`ours, float32` ends where transformers ends: normalised, each patch twice along time. They take turns in one process on one
core, and the medians of the wall times are compared. First it checks that both float32 results are equal bit for bit.
The last line is the same as JSON.
"""

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import transformers
from PIL import Image, ImageOps
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mtjudge_jax.data.image_config import ImageConfig
from mtjudge_jax.data.images import Patches, decode_image, patchify

CFG = ImageConfig(16, 2, 65536, 16777216, (0.5,) * 3, (0.5,) * 3)  # Qwen3-VL's published configuration


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--picture", default="", help="an image file instead of the generated JPEG")
    p.add_argument("--width", type=int, default=1024)
    p.add_argument("--height", type=int, default=768)
    p.add_argument("--reps", type=int, default=101, help="timed runs of each, after three that warm up")
    args = p.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    data = Path(args.picture).read_bytes() if args.picture else generated_jpeg(args.width, args.height)
    processor, table = reference(), byte_values()

    def theirs() -> np.ndarray:
        return processor(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), return_tensors="np")["pixel_values"]

    def ours() -> Patches:
        return patchify(decode_image(data), CFG)

    if not np.array_equal(theirs(), normalised(ours(), table)):
        raise SystemExit("the patches differ from transformers'")
    ways = {"transformers": theirs, "ours": ours, "ours, float32": lambda: normalised(ours(), table)}
    seconds = in_turns(ways, args.reps)
    print_table(seconds, data, args.reps)


def generated_jpeg(width: int, height: int) -> bytes:
    """Smooth shapes with grain, as in a photograph; quality 90."""
    rng = np.random.default_rng(0)
    shapes = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)).resize((width, height), 3)
    grainy = np.asarray(shapes).astype(int) + rng.integers(-8, 9, (height, width, 3))
    out = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def reference() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": CFG.min_pixels, "longest_edge": CFG.max_pixels},
        patch_size=CFG.patch,
        merge_size=CFG.merge,
        image_mean=list(CFG.mean),
        image_std=list(CFG.std),
    )


def byte_values() -> np.ndarray:
    """float32 [256]: the reference's value of each byte, the same for all channels because means and deviations are equal."""
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 256).repeat(3, 0)
    return reference().normalize(reference().rescale(every, 1 / 255), list(CFG.mean), list(CFG.std))[0, 0].astype(np.float32)


def normalised(patches: Patches, table: np.ndarray) -> np.ndarray:
    """float32 [n, 3 * 2 * patch * patch], as the reference returns it."""
    values = table[patches.patches].reshape(-1, 3, 1, CFG.patch**2)
    return np.broadcast_to(values, (len(values), 3, 2, CFG.patch**2)).reshape(len(values), -1)


def in_turns(ways: dict[str, Callable], reps: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for rep in range(reps + 3):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if rep >= 3:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def print_table(seconds: dict[str, list[float]], data: bytes, reps: int) -> None:
    size = "x".join(map(str, Image.open(io.BytesIO(data)).size))
    versions = f"Python {platform.python_version()}, transformers {transformers.__version__}, Pillow {PIL.__version__}"
    print(f"{size}, {len(data)} bytes, {reps} runs of each in turns on one core, {versions}; results equal bit for bit")
    medians = {name: statistics.median(times) * 1e3 for name, times in seconds.items()}
    print(f"{'':16}{'median ms':>10}{'best ms':>10}{'times faster':>14}")
    for name, median in medians.items():
        print(f"{name:16}{median:10.2f}{min(seconds[name]) * 1e3:10.2f}{medians['transformers'] / median:14.2f}")
    rounded = {name: round(median, 3) for name, median in medians.items()}
    print(json.dumps({"size": size, "python": platform.python_version(), "median_ms": rounded}))


if __name__ == "__main__":
    main()
