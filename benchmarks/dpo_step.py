"""Times one DPO step of a random tiny Qwen3-VL with the package's own stages: the reference's log-probabilities, the update.

    python benchmarks/dpo_step.py --text-tokens=192 --image=256 --new=16                     # P = 256, C = 16
    python benchmarks/dpo_step.py --threads=1 --by-cpu                       # own CPU seconds, on a machine others use
    python benchmarks/dpo_step.py --peer=benchmarks/peer_trl_dpo.py --peer-python=trl-venv/bin/python --rounds=3    # beside TRL

Both answers of a pair have full length. A prompt has one image and text-tokens other tokens, and (image / 32)^2 image tokens
besides. The last line is the same as JSON.
"""

import argparse
import json
import os
import resource
import statistics
import time

import peer
from sizes import parser

STAGES = ("ref_logp", "update", "step")


def parse_args() -> argparse.Namespace:
    p = parser(__doc__, prompts=8, new=16)
    p.add_argument("--remat", default="dots", choices=["none", "dots", "full"])
    p.add_argument("--head-chunk", type=int, default=4096)
    p.add_argument("--reps", type=int, default=5, help="timed steps, after two that compile and warm up")
    p.add_argument("--peer", default="", help="path of a script that times another trainer at these sizes (see peer.py)")
    p.add_argument("--peer-python", default="python3", help="the interpreter that has it")
    p.add_argument("--rounds", type=int, default=1, help="how often ours and the peer take turns")
    args = p.parse_args()
    args.G, args.updates, args.micro, args.share = 2, 1, 0, 1.0  # as the GRPO workload has them
    return args


def main() -> None:
    args = parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # XLA's thread pool follows the cores it may use
    step, parameters = build(args)
    for _ in range(2):
        step()
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours += [step() for _ in range(args.reps)]
        theirs += [peer.run(args)] if args.peer else []
    median = {name: round(statistics.median(one[name] for one in ours), 3) for name in STAGES}
    result = {"clock": "cpu" if args.by_cpu else "wall", "pairs": args.prompts, "new": args.new, "threads": args.threads}
    result |= {"prompt_tokens": args.text_tokens + (args.image // 32) ** 2, "params_m": round(parameters / 1e6, 2)}
    result |= {"median": median, "min_max_step": [round(f(one["step"] for one in ours), 3) for f in (min, max)]}
    result |= {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "load": round(os.getloadavg()[0], 1)}
    print_table(result, peer.mean(theirs) if theirs else None)


def build(args: argparse.Namespace):
    """The step, a function without arguments that returns {stage: seconds}, and the number of parameters."""
    from functools import partial

    import jax
    import jax.numpy as jnp
    import numpy as np
    import workload

    from mtjudge_jax.models.qwen3_vl import vlm
    from mtjudge_jax.policy.programs import make_programs
    from mtjudge_jax.policy.update import init_state, make_update
    from mtjudge_jax.rl.loss import dpo_loss
    from mtjudge_jax.rl.optim import make_optimizer
    from mtjudge_jax.rl.streams import place_answers
    from mtjudge_jax.sharding import make_mesh, shard_batch, tree_shardings
    from mtjudge_jax.types import DpoBatch

    cfg, model_cfg = workload.run_config(args), workload.model_config(args)
    cfg.stage = "dpo"
    mesh = make_mesh(cfg.mesh)
    programs = make_programs(cfg, model_cfg, workload.Ids((workload.EOS,), workload.PAD), mesh)
    params = vlm.init_params(model_cfg, seed=0)
    params = jax.device_put(params, tree_shardings(params, mesh))
    optimizer = make_optimizer(cfg.optim, cfg.steps)
    state = [init_state(params, optimizer, mesh)]
    update = make_update(state[0], partial(dpo_loss, cfg=cfg.dpo, logp_fn=programs.logp_fn), optimizer, mesh, cfg)
    shape = (args.prompts, 2, args.new)
    drawn = np.random.default_rng(3).integers(workload.FIRST_TEXT, args.vocab, shape).astype(np.int32)
    prompts, tokens, mask = shard_batch((workload.random_prompts(args), drawn, np.ones(shape, bool)), mesh)
    clock = time.process_time if args.by_cpu else time.perf_counter

    def step() -> dict[str, float]:
        began = clock()
        places = place_answers(prompts, mask, mesh)
        ref_logp = jax.block_until_ready(programs.reference_logp(params, prompts, tokens, places))
        scored = clock()
        state[0], metrics = jax.block_until_ready(update(state[0], {}, DpoBatch(prompts, tokens, mask, places, ref_logp)))
        ended = clock()
        if not metrics["finite"]:
            raise FloatingPointError(f"loss {metrics['loss']}, must be finite")
        return {"ref_logp": scored - began, "update": ended - scored, "step": ended - began}

    return step, sum(jnp.size(x) for x in jax.tree.leaves(params))


def print_table(ours: dict, theirs: dict | None) -> None:
    """Ours, and where there is a peer, the peer and how many times ours goes into it."""
    print("{pairs} pairs, P = {prompt_tokens}, C = {new}, {threads} threads, load {load}".format_map(ours))
    print(f"{'':24}{'ours':>10}" + (f"{theirs['peer']:>10}{'ratio':>8}" if theirs else ""))
    rows = [(f"{name}, {ours['clock']} s", ours["median"][name], theirs and theirs["median"].get(name)) for name in STAGES]
    for name, mine, other in [*rows, ("peak rss mb", ours["peak_rss_mb"], theirs and theirs["peak_rss_mb"])]:
        print(f"{name:24}{mine:10}" + ("" if other is None else f"{other:10}{other / mine:8.2f}"))
    print("JSON " + json.dumps(ours | ({"peer": theirs} if theirs else {})))


if __name__ == "__main__":
    main()
