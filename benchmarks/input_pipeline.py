"""Times the data path up to a training step: `mtjudge prepare`, then decode, resize, patch and batch.

    python benchmarks/input_pipeline.py                                   # 10,000 JPEGs of 512 px, made first
    python benchmarks/input_pipeline.py --images=2000 --folder=/tmp/bench # keeps the pictures for the next run
    python benchmarks/input_pipeline.py --workdir=runs/demo               # also prints what a step of that run consumed

`prepare` reads the files, decodes and hashes every image, splits, and writes ArrayRecord and the report; it runs in a process
of its own, whose peak memory is printed. Then the training iterator reads the records again, shuffled, and two threads make
batches of 24 rows with 1024 patches each (a 512 px image keeps its size). The last line is the same as JSON.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mtjudge_jax.config import Config
from mtjudge_jax.data.image_config import load_image_config
from mtjudge_jax.data.pipeline import Shard, train_iterator
from mtjudge_jax.data.rows import RowFormat
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.policy.model import model_folder
from mtjudge_jax.prepare.prepare import Arguments, prepare
from mtjudge_jax.records import JudgeExample, Label
from mtjudge_jax.tasks import TASKS

BATCH, PATCHES, PROMPT_TOKENS = 24, 1024, 300


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--images", type=int, default=10_000)
    p.add_argument("--side", type=int, default=512, help="pixels")
    p.add_argument("--batches", type=int, default=40, help="batches timed, after two that warm up")
    p.add_argument("--folder", default="", help="folder that keeps pictures and records; default: a temporary one")
    p.add_argument("--workdir", default="", help="a run to compare the pipeline with")
    args = p.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="mtjudge-bench-"))
    try:
        source = make_pictures(folder / f"pictures-{args.images}-{args.side}", args.images, args.side)
        shutil.rmtree(folder / "out", ignore_errors=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            result = pool.submit(timed_prepare, source, folder / "out").result()
        result |= timed_rows(folder / "out", args.batches, args.side)
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)
    print_result(result, args)


def make_pictures(folder: Path, count: int, side: int) -> Path:
    """JPEGs of quality 90 with smooth shapes and grain, no two alike; keeps those of an earlier call."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(count) if not (folder / f"{number:06d}.jpg").exists()]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(make_picture, [folder] * len(missing), missing, [side] * len(missing), chunksize=50))
    return folder


def make_picture(folder: Path, number: int, side: int) -> None:
    rng = np.random.default_rng(number)
    shapes = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), np.uint8)).resize((side, side), 3)
    grainy = np.asarray(shapes).astype(np.int16) + rng.integers(-8, 9, (side, side, 3), np.int16)
    out = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    (folder / f"{number:06d}.jpg").write_bytes(out.getvalue())


def read(source: Path, options: dict[str, str]) -> Iterator[JudgeExample]:
    for number, path in enumerate(sorted(source.glob("*.jpg"))):
        yield JudgeExample(
            example_id=f"bench/{number}", dataset="bench", split="", group_id=str(number), task="technical",
            criterion="technical", kind="pointwise_binary", instruction="", images=(path.read_bytes(),),
            label=Label(binary=number % 2),
        )  # fmt: skip


def timed_prepare(source: Path, out: Path) -> dict:
    reader = types.SimpleNamespace(read=read, TASKS=("technical",), LICENSE="none", TERMS="open", OPTIONS={}, HOW="")
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    prepare(reader, Arguments("bench", str(source), {}), out)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    return {
        "images": len(list(source.glob("*.jpg"))),
        "source_mb": round(sum(path.stat().st_size for path in source.iterdir()) / 1e6),
        "prepare_seconds": round(seconds, 1),
        "prepare_cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "prepare_peak_mb": round(after.ru_maxrss / 1e3),
        "before_mb": round(before.ru_maxrss / 1e3),
    }


def timed_rows(data: Path, batches: int, side: int) -> dict:
    """Images per second of the iterator that training uses."""
    base = model_folder("demo")
    image_cfg = load_image_config(base)._replace(min_pixels=65536, max_pixels=PATCHES * 256)
    fmt = RowFormat(TASKS, load_tokenizer(base), image_cfg, PROMPT_TOKENS, PATCHES)
    cfg = Config()
    cfg.data.tasks, cfg.data.mixture, cfg.data.balance_labels, cfg.rollout.prompts = ("technical",), "uniform", True, BATCH
    rows = train_iterator(data, fmt, cfg, Shard())
    try:
        for _ in range(2):
            first = next(rows)
        used, began = time.process_time(), time.perf_counter()
        for _ in range(batches):
            batch = next(rows)
        seconds, used = time.perf_counter() - began, time.process_time() - used
    finally:
        rows.close()
    assert (batch["weight"] > 0).all(), batch["error"]
    patches = int((first["patch_segment"][0] > 0).sum())
    count = batches * BATCH
    rate, own = round(count / seconds, 1), round(used / count * 1e3, 2)
    return {"side": side, "images_a_second": rate, "ms_cpu_an_image": own, "patches": patches}


def step_of(workdir: str) -> tuple[float, float]:
    """Median seconds per step of a run, and of its wait for data."""
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    steps = [line["seconds"] for line in lines if line["kind"] == "train"][1:]
    return statistics.median(sum(step.values()) for step in steps), statistics.median(step["data"] for step in steps)


def print_result(result: dict, args: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    made = f"{result['images']} JPEGs of {args.side} px, {result['source_mb']} MB"
    print(f"Python {platform.python_version()}, {cores} cores, {made}")
    print(
        f"prepare: {result['prepare_seconds']} s wall, {result['prepare_cpu_seconds']} s of CPU time, memory up to "
        f"{result['prepare_peak_mb']} MB ({result['before_mb']} MB at the start)"
    )
    rate = result["images_a_second"]
    print(f"decode, resize, patch, batch: {rate} images per second, {result['ms_cpu_an_image']} ms of CPU time per image")
    if args.workdir:
        seconds, waited = step_of(args.workdir)
        result |= {"step_seconds": round(seconds, 3), "step_data_seconds": round(waited, 4)}
        print(
            f"a step of {args.workdir}: {BATCH} prompts in {seconds:.2f} s, so {BATCH / seconds:.0f} prompts per second; it "
            f"waited {waited * 1e3:.1f} ms for data"
        )
    print(json.dumps({"python": platform.python_version(), "cores": cores, **result}))


if __name__ == "__main__":
    main()
