"""Runs another trainer's timing script in its own interpreter, at the same sizes.

The script takes this benchmark's size flags and prints a last line `JSON {...}` with `peer`, `clock`, `params_m`, `rows`,
`prompt_tokens`, `new`, `peak_rss_mb` and `median`: seconds of `step`, `generate`, `ref_logps` and `update`; without `generate`
where a step draws no answers.
"""

import argparse
import json
import statistics
import subprocess

SIZES = ("prompts", "G", "new", "text_tokens", "image", "vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "mlp")
SIZES += ("vis_depth", "vis_hidden", "vis_heads", "threads")
NAMES = {"rollout": "generate", "ref_logp": "ref_logps", "update": "update", "step": "step"}


def run(args: argparse.Namespace) -> dict:
    """The peer's result, its stages under our names. Raises ValueError when it ran at other sizes."""
    flags = [f"--{name.replace('_', '-')}={vars(args)[name]}" for name in SIZES]
    flags += [f"--steps={args.reps}", *(["--by-cpu"] if args.by_cpu else [])]
    done = subprocess.run([args.peer_python, args.peer, *flags], stdout=subprocess.PIPE, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("JSON ")]
    if not lines:
        raise ValueError(f"{args.peer} printed no line that starts with 'JSON '; its output was {done.stdout[-500:]!r}")
    out = json.loads(lines[-1].removeprefix("JSON "))
    expected = {"rows": args.prompts * args.G, "new": args.new, "prompt_tokens": args.text_tokens + (args.image // 32) ** 2}
    for name, value in expected.items():
        if out[name] != value:
            raise ValueError(f"the peer ran with {name} = {out[name]}, this benchmark with {value}: not comparable")
    return out | {"median": {ours: out["median"][theirs] for ours, theirs in NAMES.items() if theirs in out["median"]}}


def mean(runs: list[dict]) -> dict:
    """The last run with the medians of the stages over all runs, and the largest memory."""
    median = {name: round(statistics.median(r["median"][name] for r in runs), 3) for name in runs[-1]["median"]}
    return runs[-1] | {"median": median, "peak_rss_mb": max(r["peak_rss_mb"] for r in runs)}
