"""Times one GRPO step of a random tiny Qwen3-VL, stage by stage, with the package's own stages.

    python benchmarks/grpo_step.py --text-tokens=192 --image=256 --new=16
    python benchmarks/grpo_step.py --threads=1 --by-cpu                     # own CPU seconds, on a machine others use
    python benchmarks/grpo_step.py --peer=peer_trl_grpo.py --peer-python=trl-venv/bin/python    # beside TRL, same sizes

    python benchmarks/grpo_step.py --share=0.2 --new=256 --G=8              # answers of unequal lengths, beside padded ones

Every answer is sampled at full length (the end-of-sequence token cannot be drawn). With --share the answers are then cut to drawn
lengths, and each step is timed twice: with what the answers hold, and with every answer at full length. A prompt has one image
and text-tokens other tokens, and (image / 32)^2 image tokens besides. The last line is the same as JSON.
"""

import argparse
import json
import os
import resource
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import peer
from sizes import parser

STAGES = ("rollout", "old_logp", "ref_logp", "update")


def parse_args() -> argparse.Namespace:
    p = parser(__doc__, prompts=8, G=8, new=64)
    p.add_argument("--share", type=float, default=1.0, help="mean length of the answers over --new; 1: all are full")
    p.add_argument("--sigma", type=float, default=0.6, help="of the logarithm of the lengths, with --share")
    p.add_argument("--updates", type=int, default=1, help="updates a rollout; more than one needs old log-probabilities")
    p.add_argument("--micro", type=int, default=0, help="prompts whose activations exist at a time; 0: all of an update")
    p.add_argument("--remat", default="dots", choices=["none", "dots", "full"])
    p.add_argument("--head-chunk", type=int, default=4096)
    p.add_argument("--reps", type=int, default=5, help="timed steps, after one that compiles and one that warms up")
    p.add_argument("--peer", default="", help="path of a script that times another trainer at these sizes (see peer.py)")
    p.add_argument("--peer-python", default="python3", help="the interpreter that has it")
    p.add_argument("--rounds", type=int, default=1, help="how often ours and the peer take turns")
    return p.parse_args()


def main() -> None:
    args = parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # XLA's thread pool follows the cores it may use
    bench = prepare(args)
    step, compile_seconds = bench.step, compile_and_warm_up(bench)
    ours, padded, theirs = [], [], []
    for _ in range(args.rounds):
        for i in range(args.reps):
            ours.append(step(i))
            padded += [step(i, padded=True)] if args.share < 1 else []
        theirs += [peer.run(args)] if args.peer else []
    result = summarise(args, bench, ours, compile_seconds)
    print_table(result, peer.mean(theirs) if theirs else {"peer": "padded", "median": medians(padded)} if padded else None)


class Bench(NamedTuple):
    step: Any  # int -> {stage: seconds}
    parameters: int
    compiled: list[float]  # seconds of each tracing, lowering and compilation so far


def prepare(args: argparse.Namespace) -> Bench:
    """Imports the package (after the cores are set) and builds the step."""
    import jax
    import workload

    compiled: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(seconds) if name.startswith("/jax/core/compile/") else None
    )
    clock = time.process_time if args.by_cpu else time.perf_counter
    work = workload.build(args)
    return Bench(partial(workload.run_step, work, clock=clock), work.parameters, compiled)


def compile_and_warm_up(bench: Bench) -> float:
    """Seconds of compilation of everything a step needs."""
    before = len(bench.compiled)
    for number in range(2):
        bench.step(number)
        bench.step(number, padded=True)
    return sum(bench.compiled[before:])


def medians(steps: list[dict]) -> dict[str, float]:
    return {name: round(statistics.median(s[name] for s in steps), 3) for name in (*STAGES, "step", "real")}


def summarise(args: argparse.Namespace, bench: Bench, steps: list[dict], compile_seconds: float) -> dict:
    median = medians(steps)
    return {
        "clock": "cpu" if args.by_cpu else "wall",
        "prompts": args.prompts,
        "G": args.G,
        "prompt_tokens": args.text_tokens + (args.image // 32) ** 2,
        "new": args.new,
        "threads": args.threads,
        "params_m": round(bench.parameters / 1e6, 2),
        "load": round(os.getloadavg()[0], 1),
        "median": median,
        "min_max_step": [round(f(s["step"] for s in steps), 3) for f in (min, max)],
        "completion_tokens_per_s": round(args.prompts * args.G * args.new / median["step"], 1),
        "decode_tokens_per_s": round(args.prompts * args.G * args.new / median["rollout"], 1),
        "compile_s": round(compile_seconds, 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def print_table(ours: dict, theirs: dict | None) -> None:
    """One table: ours, and where there is a peer, the peer and how many times ours goes into it."""
    unit = f"{ours['clock']} s"
    beside = theirs["median"] if theirs else {}
    lines = [(f"{name}, {unit}", ours["median"][name], beside.get(name)) for name in (*STAGES, "step")]
    lines += [(name.replace("_", " "), ours[name], theirs and theirs.get(name)) for name in ("peak_rss_mb", "params_m")]
    lines += [(name.replace("_per_s", "/s"), ours[name], None) for name in ("completion_tokens_per_s", "decode_tokens_per_s")]
    lines += [("compilation, wall s", ours["compile_s"], None), ("load of the machine", ours["load"], None)]
    lines += [("share of places that are real", ours["median"]["real"], beside.get("real"))]
    print("{prompts} prompts x {G} answers, P = {prompt_tokens}, C = {new}, {threads} threads".format_map(ours))
    print(f"{'':30}{'ours':>10}" + (f"{theirs['peer']:>10}{'ratio':>8}" if theirs else ""))
    for name, mine, other in lines:
        print(f"{name:30}{mine:10}" + ("" if other is None else f"{other:10}{other / mine:8.2f}"))
    print("JSON " + json.dumps(ours | ({"peer": theirs} if theirs else {})))


if __name__ == "__main__":
    main()
