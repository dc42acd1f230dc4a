"""What the host holds while a model folder is read: loads a synthetic one of several GB in a fresh process.

    python benchmarks/load_weights.py                       # layers of 8B, 5 GB, one device
    python benchmarks/load_weights.py --size=30b-a3b        # mixture of experts
    python benchmarks/load_weights.py --devices=8           # a fake mesh of 8, parameters sharded over fsdp

The folder has the published widths and fewer layers, random bfloat16 numbers in shards of 1 GB, and is deleted afterwards.
Sampled is RssAnon: memory of the process's own, without the pages of mapped files. From its peak are taken what the process
had before and the loaded arrays, which a CPU has in the same memory; what is left must stay under one decoder layer plus
200 MB. Loaded is both ways: through pieces into buffers on the device, as on an accelerator (with the files dropped from the
page cache before), and as on CPUs, put together in place. The last line is JSON.

jax below 0.11 on a CPU passes over the whole buffer to write a piece of bfloat16: the first way is slow there, its memory is
what is measured.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from math import prod
from pathlib import Path

SLACK = 200e6
WAYS = ("accelerator", "cpu")


def parse_args() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", default="8b", help="a published size, see models/qwen3_vl/presets.py")
    p.add_argument("--layers", type=int, default=5, help="decoder layers, at least 3 (one a DeepStack tap)")
    p.add_argument("--blocks", type=int, default=25, help="blocks of the vision tower, at least 25 (18 for 2b and 4b)")
    p.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the loaded arrays")
    p.add_argument("--devices", type=int, default=1, help="fake CPU devices")
    p.add_argument("--least-gb", type=float, default=4.0, help="refuse to measure a smaller folder")
    p.add_argument("--folder", default="", help="where the folder is made (default: the system's temporary folder)")
    p.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    p.add_argument("--load", default="", help=argparse.SUPPRESS)  # in the fresh process: the folder to load
    return p.parse_args()


def main() -> None:
    args = parse_args()
    if args.load:
        print(json.dumps(load(Path(args.load), dtype=args.dtype, devices=args.devices, way=args.ways[0])))
        return
    with tempfile.TemporaryDirectory(prefix="mtjudge-load-", dir=args.folder or None) as parent:
        folder = Path(parent) / "model"
        facts = make(folder, args)
        runs = {}
        for way in args.ways:
            if way == "accelerator":
                drop_from_cache(folder)
            flags = [f"--load={folder}", f"--dtype={args.dtype}", f"--devices={args.devices}", f"--ways={way}"]
            done = subprocess.run([sys.executable, __file__, *flags], check=True, stdout=subprocess.PIPE, text=True)
            runs[way] = json.loads(done.stdout.splitlines()[-1])
    report(args, facts, runs)


def make(folder: Path, args: argparse.Namespace) -> dict:
    """Writes the folder, a tensor at a time."""
    import numpy as np

    from mtjudge_jax.models.hf.folder import Tensor, write_folder
    from mtjudge_jax.models.hf.table import model_weights
    from mtjudge_jax.models.qwen3_vl.config import from_hf
    from mtjudge_jax.models.qwen3_vl.presets import PRESETS, preset

    preset(args.size)  # names the near one where there is none
    raw = PRESETS[args.size]
    text = raw["text_config"] | {"num_hidden_layers": args.layers}
    raw = raw | {"text_config": text, "vision_config": raw["vision_config"] | {"depth": args.blocks}}
    leaves = model_weights(from_hf(raw))
    total = 2 * sum(prod(weight.shape) for weight in leaves)
    layer = 2 * sum(prod(weight.layer_shape) for weight in leaves if weight.path.startswith("text/layers/"))
    if total < args.least_gb * 1e9:
        raise SystemExit(f"{total / 1e9:.1f} GB are too little, at least {args.least_gb} are asked for: give more --layers")
    free, need = shutil.disk_usage(folder.parent).free, 1.1 * total
    if free < need:
        raise SystemExit(f"{folder.parent}: {free / 1e9:.1f} GB are free, {need / 1e9:.1f} are needed: give another --folder")
    block = np.random.default_rng(0).normal(0, 0.02, 1_000_003).astype(np.float32).astype("bfloat16")
    tensors = [
        Tensor(name, weight.tensor_shape, partial(np.resize, block, weight.tensor_shape))
        for weight in leaves
        for name in weight.names
    ]
    write_folder(
        folder,
        sorted(tensors),
        {"config.json": json.dumps(raw).encode()},
        dtype=block.dtype,
        overwrite=False,
        writes=True,
        shard_bytes=1_000_000_000,
    )
    return {"folder_bytes": total, "layer_bytes": layer, "shards": len(list(folder.glob("*.safetensors")))}


def drop_from_cache(folder: Path) -> None:
    """Writes the files out and lets the kernel forget them."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def own_bytes() -> int:
    """RssAnon of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no RssAnon in /proc/self/status: this needs Linux")


def load(folder: Path, *, dtype: str, devices: int, way: str) -> dict:
    """Loads in this process and samples its memory every two milliseconds."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    from mtjudge_jax.config import MeshConfig
    from mtjudge_jax.models.hf.load import load_params
    from mtjudge_jax.models.hf.place import SMALL_BYTES
    from mtjudge_jax.models.qwen3_vl.config import load_config
    from mtjudge_jax.sharding import make_mesh, param_sharding

    cfg = load_config(folder)
    mesh = make_mesh(MeshConfig(data=1, fsdp=devices)) if devices > 1 else None
    jax.jit(lambda x: x + 1)(0).block_until_ready()  # what a first compilation allocates is not the loader's
    peak, ended = own_bytes(), threading.Event()
    start = peak

    def watch() -> None:
        nonlocal peak
        while not ended.is_set():
            peak = max(peak, own_bytes())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    params = load_params(
        folder,
        cfg,
        dtype=dtype,
        sharding_of=lambda path, shape: None if mesh is None else param_sharding(path, shape, mesh),
        host_bytes=SMALL_BYTES if way == "accelerator" else None,
    )
    jax.block_until_ready(params)
    seconds = time.perf_counter() - began
    ended.set()
    watcher.join()
    leaves = jax.tree.leaves(params)
    arrays = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    return {"start": start, "peak": peak, "end": own_bytes(), "arrays": arrays, "seconds": seconds}


def report(args: argparse.Namespace, facts: dict, runs: dict) -> None:
    """Prints a line a run; ends with status 1 over the limit."""
    limit, size = facts["layer_bytes"] + SLACK, facts["folder_bytes"] / 1e9
    print(f"{args.size}, {args.layers} layers, {size:.2f} GB in {facts['shards']} shards; {args.dtype}, devices: {args.devices}")
    print(f"one decoder layer {facts['layer_bytes'] / 1e6:.0f} MB, limit {limit / 1e6:.0f} MB")
    for way, run in runs.items():
        run["over"] = run["peak"] - run["start"] - run["arrays"]
        print(
            f"  {way:12} {run['over'] / 1e6:5.0f} MB above the start ({run['start'] / 1e6:.0f} MB) and the arrays "
            f"({run['arrays'] / 1e9:.2f} GB); {run['seconds']:.1f} s, {size / run['seconds']:.2f} GB/s"
        )
    print(json.dumps(vars(args) | facts | {"limit": limit, "python": sys.version.split()[0], "runs": runs}))
    if max(run["over"] for run in runs.values()) > limit:
        raise SystemExit("over the limit")


if __name__ == "__main__":
    main()
