"""The flags that benchmarks of a random tiny Qwen3-VL share. Imports no jax: its cores are chosen first."""

import argparse

MODEL = {
    "text-tokens": 64, "image": 128, "vocab": 4096, "hidden": 256, "layers": 6, "heads": 4, "kv-heads": 2, "head-dim": 64,
    "mlp": 768, "vis-depth": 4, "vis-hidden": 192, "vis-heads": 3,
}  # fmt: skip


def parser(text: str, **work: int) -> argparse.ArgumentParser:
    """A parser with the sizes of the work, as `prompts=8`, those of the model, and what every timed run has."""
    p = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {**work, **MODEL}.items():
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--threads", type=int, default=2, help="cores to run on")
    p.add_argument("--by-cpu", action="store_true", help="own CPU seconds instead of wall seconds; use with --threads=1")
    return p
