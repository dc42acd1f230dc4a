"""Times a GRPO step on prompts and answers of natural, unequal lengths, with the weights and prompts of a folder.

    python benchmarks/natural_lengths.py --peer=peer_trl_natural.py --peer-python=trl-venv/bin/python    # beside TRL
    python benchmarks/natural_lengths.py --folder=DIR                                          # ours, on a peer's folder

The work: images of 64 to 256 pixels a side, 30 to 250 other tokens, answers that end at each token with a chance of 1 in 32 (32
tokens may be drawn, one of them the end), at most --new. 8 prompts of 8 answers a step, with a reference policy. "at the mean":
the same step with every prompt, picture and answer at the mean length of this one.

The peer takes the size flags, --folder and --steps. It writes model/ (a Hugging Face folder) and prompts.npz there: `ids`, int32
[prompts, longest], the tokens with each image token repeated, -1 in front; `image_i` uint8 [h, w, 3]. It prints a last line `JSON
{..}` with `median` (seconds of `generate`, `ref_logps`, `update`, `step`), `mean_answer` and `peak_rss_mb`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sizes import parser

FIRST, KEPT = 1000, 31  # the tokens that may be drawn beside the end
NAMES = {"rollout": "generate", "ref_logp": "ref_logps", "update": "update", "step": "step"}


def parse_args() -> argparse.Namespace:
    p = parser(__doc__, prompts=8, G=8, new=256)
    p.add_argument("--micro", type=int, default=0, help="prompts whose activations exist at a time; 0: all")
    p.add_argument("--reps", type=int, default=6, help="timed steps")
    p.add_argument("--folder", type=Path, help="of the weights and prompts; without it a temporary one, which the peer fills")
    p.add_argument("--peer", default="", help="path of a script that times another trainer on this work")
    p.add_argument("--peer-python", default="python3", help="the interpreter that has it")
    p.add_argument("--rounds", type=int, default=1, help="how often ours and the peer take turns")
    return p.parse_args()


def main() -> None:
    args = parse_args()
    if not args.peer and not args.folder:
        raise SystemExit("give --peer, or the --folder that one has filled")
    args.folder = args.folder or Path(tempfile.mkdtemp())
    theirs = [peer(args)] if args.peer else []
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # XLA's thread pool follows the cores it may use
    step = prepare(args)
    ours = timed(step, args)
    for _ in range(args.rounds - 1 if args.peer else 0):
        theirs.append(peer(args))
        ours += timed(step, args)
    at_mean = timed(prepare(args, mean_answer=statistics.mean(one["answer"] for one in ours)), args)
    report(args, ours, at_mean, theirs)


def peer(args: argparse.Namespace) -> dict:
    flags = [f"--{name.replace('_', '-')}={vars(args)[name]}" for name in ("prompts", "G", "new", "threads", "folder")]
    command = [args.peer_python, args.peer, *flags, f"--steps={args.reps}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("JSON "))[5:])


def prepare(args: argparse.Namespace, mean_answer: float = 0.0) -> Callable[[int], dict[str, float]]:
    """Imports the package (after the cores are set) and builds the step, a function of its number; with `mean_answer` that of the
    mean lengths.
    """
    import jax
    import numpy as np
    import workload
    from workload import Work

    from mtjudge_jax.models.hf.load import load_params
    from mtjudge_jax.models.qwen3_vl.config import load_config
    from mtjudge_jax.policy.programs import make_programs
    from mtjudge_jax.policy.update import init_state, make_update
    from mtjudge_jax.rl.loss import grpo_loss
    from mtjudge_jax.rl.optim import make_optimizer
    from mtjudge_jax.rl.rooms import make_rooms
    from mtjudge_jax.sharding import make_mesh, param_sharding, shard_batch
    from mtjudge_jax.types import PromptRoom

    args.updates, args.remat, args.head_chunk, args.share = 1, "dots", 4096, 1.0
    model_cfg, cfg = load_config(args.folder / "model"), workload.run_config(args)
    end = json.loads((args.folder / "model" / "config.json").read_text())["text_config"]["eos_token_id"]
    if mean_answer:  # none ends before its place
        args.new, end = round(mean_answer), model_cfg.text.vocab_size
        cfg.rollout.completion_tokens = args.new

    class Drawn(workload.Ids):
        def allowed_mask(self, vocab_size: int) -> np.ndarray:
            ids = np.arange(vocab_size)
            return (ids == end) | ((ids >= FIRST) & (ids < FIRST + KEPT))

    mesh = make_mesh(cfg.mesh)
    programs = make_programs(cfg, model_cfg, Drawn((end,), workload.PAD), mesh)
    params = load_params(args.folder / "model", model_cfg, dtype="float32", sharding_of=partial(param_sharding, mesh=mesh))
    optimizer = make_optimizer(cfg.optim, cfg.steps)
    state = init_state(params, optimizer, mesh)
    loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=programs.logp_fn, on_policy=True)
    rows = prompt_rows(args.folder / "prompts.npz", model_cfg, mean=bool(mean_answer))
    parameters = sum(x.size for x in jax.tree.leaves(params))
    update = make_update(state, loss, optimizer, mesh, cfg)
    sizes = list(zip(rows.valid.sum(1).tolist(), (rows.patch_segment > 0).sum(1).tolist(), strict=True))
    largest = PromptRoom(rows.tokens.shape[1], rows.patches.shape[1])
    batch = {"most": cfg.update.micro_prompts, "rows": cfg.update.prompts, "devices": 1}
    rooms = make_rooms(sizes, largest, answers=args.G * (args.new - 1), **batch)
    print(f"rooms: {rooms}")
    work = Work(cfg, programs, update, None, shard_batch(rows, mesh), params, state, parameters, None, rooms)
    return partial(natural_step, work, clock=time.process_time if args.by_cpu else time.perf_counter)


def prompt_rows(path: Path, model_cfg, *, mean: bool):
    """The peer's prompts as a padded batch. mean: as many, each with the mean number of tokens and patches."""
    import jax
    import numpy as np

    from mtjudge_jax.data.image_config import ImageConfig
    from mtjudge_jax.data.images import patch_coordinates, patchify
    from mtjudge_jax.data.rows import rope_positions
    from mtjudge_jax.types import PromptBatch

    stored, image_id = np.load(path), model_cfg.image_token_id
    ids = [row[row >= 0].tolist() for row in stored["ids"]]
    images = [stored[f"image_{number}"] for number in range(len(ids))]
    if mean:
        side = max(2, round(np.sqrt(np.mean([image.shape[0] * image.shape[1] for image in images])) / 32)) * 32
        words = round(np.mean([sum(token != image_id for token in row) for row in ids]))
        first = ids[0].index(image_id)
        text = [[token for token in row if token != image_id] for row in ids]
        text = [(row * words)[: max(words, first + 1)] for row in text]
        ids = [[*row[:first], *[image_id] * (side // 32) ** 2, *row[first:]] for row in text]
        images = [np.resize(image, (side, side, 3)) for image in images]
    limits = ImageConfig(16, 2, 32 * 32, 4096 * 4096, (0.5,) * 3, (0.5,) * 3)
    patches = [patchify(image, limits) for image in images]
    length, most = max(map(len, ids)), max(len(one.patches) for one in patches)
    rows = []
    for number, (tokens, one) in enumerate(zip(ids, patches, strict=True)):
        pad, count = length - len(tokens), len(one.patches)
        positions, after = rope_positions(tokens, image_id=image_id, grids=[one.grid], merge=2)
        row = np.array([0] * pad + tokens, np.int32)
        is_image = row == image_id
        behind = lambda x, fill=0, gap=most - count: np.pad(x, [(0, gap), *[(0, 0)] * (x.ndim - 1)], constant_values=fill)  # noqa: E731
        rows.append(
            PromptBatch(
                tokens=row,
                valid=np.arange(length) >= pad,
                positions=np.pad(positions, [(pad, 0), (0, 0)]),
                next_position=np.int32(after),
                image_index=np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32),
                patches=behind(one.patches),
                patch_hw=behind(patch_coordinates(one.grid, 2).astype(np.int32)),
                patch_grid=behind(np.tile(np.int32(one.grid), (count, 1)), 1),
                patch_segment=behind(np.ones(count, np.int32)),
                uid=np.uint32(number + 1),
            )
        )
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def natural_step(work, number: int, *, clock) -> dict[str, float]:
    """One step as `train` makes it, with a toy reward: seconds of each stage, the mean answer, shares of what is computed."""
    import jax
    import numpy as np
    from workload import toy_reward

    from mtjudge_jax.policy.programs import stage_key
    from mtjudge_jax.rl.loss import group_advantages
    from mtjudge_jax.rl.streams import lengths_of, place_answers
    from mtjudge_jax.sharding import local_rows
    from mtjudge_jax.train.monitor.work import stream_places
    from mtjudge_jax.types import TrainBatch

    laps = [clock()]

    def lap(*outputs) -> None:
        jax.block_until_ready(outputs)
        laps.append(clock())

    cfg, programs, params, prompts = work.cfg, work.programs, work.state.params, work.prompts
    temperature, before = np.full(cfg.rollout.group_size, 1.0, np.float32), programs.work["lane steps"]
    out = programs.sample(params, prompts, stage_key(cfg.seed, number, "sample"), temperature, cfg.rollout.completion_tokens)
    lap(out)
    places = place_answers(prompts, out.mask, programs.mesh, work.rooms)
    ref_logp = programs.logp(work.reference, prompts, out.tokens, places)
    lap(ref_logp)
    advantages = group_advantages(toy_reward(out.tokens * out.mask), std=cfg.loss.advantage_std, eps=cfg.loss.advantage_eps)
    batch = TrainBatch(prompts, out.tokens, out.mask, advantages, out.logp, ref_logp, places)
    work.state, metrics = work.update(work.state, {}, batch)
    lap(work.state, metrics)
    real = lengths_of(prompts, out.mask, programs.mesh)
    answers = int(local_rows(out.mask, programs.mesh).sum())
    steps = programs.work["lane steps"] - before or out.tokens.shape[0] * out.tokens.shape[1] * int(real.answers.max())
    shares = {
        "prompts": real.prompt.sum() / prompts.tokens.size,
        "patches": real.patches.sum() / prompts.patch_segment.size,
        "stream": (real.prompt.sum() + answers) / stream_places(prompts, places),
        "decode": (answers - real.answers.size) / max(1, steps),
    }
    seconds = dict(zip(("rollout", "ref_logp", "update"), np.diff(laps).tolist(), strict=True)) | {"step": laps[-1] - laps[0]}
    return seconds | {"answer": answers / real.answers.size} | {f"real {name}": float(x) for name, x in shares.items()}


def timed(step: Callable[[int], dict[str, float]], args: argparse.Namespace) -> list[dict]:
    """Every step runs twice and counts once: which programs it compiles depends on its lengths."""
    return [(step(number), step(number))[1] for number in range(args.reps)]


def report(args: argparse.Namespace, ours: list[dict], at_mean: list[dict], theirs: list[dict]) -> None:
    median = {name: round(statistics.median(one[name] for one in ours), 3) for name in ours[0]}
    even = round(statistics.median(one["step"] for one in at_mean), 3)
    result = {"clock": "cpu" if args.by_cpu else "wall", "threads": args.threads, "median": median, "step_at_the_mean": even}
    result |= {"natural_over_mean": round(median["step"] / even, 2), "load": round(os.getloadavg()[0], 1)}
    result |= {"peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    for name in ("rollout", "ref_logp", "update", "step"):
        line = f"{name:9} {median[name]:8.3f} s"
        if theirs:
            other = statistics.median(one["median"][NAMES[name]] for one in theirs)
            line += f"   peer {other:8.3f} s   {other / median[name]:5.2f} times"
        print(line)
    print("real shares: " + ", ".join(f"{name[5:]} {x:.2f}" for name, x in median.items() if name.startswith("real ")))
    print(f"a natural step over one at the mean lengths: {result['natural_over_mean']}")
    if theirs:
        last = theirs[-1]
        result |= {"peer": {"median": last["median"], "mean_answer": last["mean_answer"], "peak_rss_mb": last["peak_rss_mb"]}}
        print(f"mean answer {median['answer']:.1f}, peer {last['mean_answer']:.1f}")
        print(f"peak memory {result['peak_rss_mb']} MB, peer {last['peak_rss_mb']} MB")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
