"""Times a rollout whose answers have lengths of a given distribution: the sampler beside all answers decoded to the last end.

    python benchmarks/rollout_lengths.py                       # 64 prompts x 8 answers, equal and lognormal lengths
    python benchmarks/rollout_lengths.py --micro=16 --by-cpu   # caches of 16 prompts at a time; own CPU seconds

The lengths come from a table, whatever is drawn: `equal` gives every answer the limit, `lognormal` a mean of --mean of it.
`live` is the share of the decoded lanes and steps in which an answer lived. The last line is the same as JSON.
"""

import argparse
import json
import os
import statistics
import time

from sizes import parser


def parse_args() -> argparse.Namespace:
    p = parser(__doc__, prompts=64, G=8, new=256)
    p.add_argument("--micro", type=int, default=0, help="rollout.micro_prompts: prompts whose caches exist at a time; 0: all")
    p.add_argument("--mean", type=float, default=0.2, help="mean length of lognormal lengths, as a share of the limit")
    p.add_argument("--sigma", type=float, default=0.8, help="standard deviation of their logarithm")
    p.add_argument("--lengths", nargs="+", default=["equal", "lognormal"], choices=["equal", "lognormal"])
    p.add_argument("--reps", type=int, default=3, help="timed rollouts of each, in turn, after one that compiles")
    return p.parse_args()


def main() -> None:
    args = parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # before jax makes its threads
    clock = time.process_time if args.by_cpu else time.perf_counter
    print(f"{args.prompts} prompts x {args.G} answers, at most {args.new} tokens, micro_prompts {args.micro}")
    unit = "CPU" if args.by_cpu else "wall"
    print(f"{args.threads} threads, load {os.getloadavg()[0]:.1f} before; {unit} seconds, medians of {args.reps}")
    print(f"{'lengths':12}{'mean':>8}{'longest':>9}{'at once':>10}{'sampler':>10}{'ratio':>8}{'live':>8}{'programs':>10}")
    results = {name: compare(args, name, clock) for name in args.lengths}
    print("JSON " + json.dumps(vars(args) | results))


def compare(args: argparse.Namespace, name: str, clock) -> dict:
    """Both ways in turn, on the same prompts and lengths."""
    import jax
    import numpy as np
    import workload

    from mtjudge_jax.policy.programs import make_programs, stage_key
    from mtjudge_jax.sharding import make_mesh, shard_batch

    lengths = table(args, name)
    force(lengths)
    args.remat, args.head_chunk, args.updates = "none", 4096, 1
    cfg, model_cfg = workload.run_config(args), workload.model_config(args)
    cfg.rollout.micro_prompts = args.micro
    mesh = make_mesh(cfg.mesh, jax.devices()[:1])
    programs = make_programs(cfg, model_cfg, workload.Ids((workload.EOS,), workload.PAD), mesh)
    params, prompts = workload.vlm.init_params(model_cfg, seed=0), shard_batch(workload.random_prompts(args), mesh)
    temperature, seconds = np.ones(args.G, np.float32), {"at once": [], "sampler": []}
    for rep in range(1 + args.reps):
        for way, run in (("at once", programs.sample_at_once), ("sampler", programs.sample)):
            before, steps = clock(), programs.work["lane steps"]
            out = jax.block_until_ready(run(params, prompts, stage_key(0, rep, "sample"), temperature, args.new))
            seconds[way] += [clock() - before] if rep else []
            if not np.array_equal(out.mask.sum(-1), lengths):
                raise AssertionError(f"{way}: answers of other lengths than the table's")
    steps = programs.work["lane steps"] - steps
    found = {way: round(statistics.median(all_), 3) for way, all_ in seconds.items()}
    found |= {"ratio": round(found["at once"] / found["sampler"], 3)}
    found |= {"live": round(float((lengths - 1).sum()) / steps, 3), "programs": len(programs.traces) - 1}
    line = f"{name:12}{lengths.mean():8.1f}{lengths.max():9}{found['at once']:10.2f}{found['sampler']:10.2f}"
    print(f"{line}{found['ratio']:8.2f}{found['live']:8.2f}{found['programs']:10}", flush=True)
    return {name: found} and found


def table(args: argparse.Namespace, name: str):
    """int [Q, G], the length of each answer."""
    import numpy as np

    shape = (args.prompts, args.G)
    if name == "equal":
        return np.full(shape, args.new)
    rng = np.random.default_rng(0)
    drawn = rng.lognormal(0, args.sigma, shape) * args.mean * args.new / np.exp(args.sigma**2 / 2)
    return np.clip(drawn.round().astype(int), 1, args.new)


def force(lengths) -> None:
    """Lets answers end by the table, on one device. A prompt's uid is its row."""
    import jax.numpy as jnp

    from mtjudge_jax.policy import lanes

    draw, look_up = force.__dict__.setdefault("before", (lanes._draw, lanes._owners))
    most = [None]  # [1, B], of the lanes that were looked up last

    def looked_up(draws, held, now):
        most[0] = jnp.asarray(lengths)[held.uid[0][now.place[0]], now.answer[0]][None]
        return look_up(draws, held, now)

    def ended(rules, draws, hidden, owners, now, drawn):
        new, drawn = draw(rules._replace(eos=-1), draws, hidden, owners, now, drawn)
        return new._replace(live=new.live & (new.count < most[0])), drawn

    lanes._draw, lanes._owners = ended, looked_up


if __name__ == "__main__":
    main()
