"""Multi-task GRPO: the loop, then the rollouts of a step.

The loop reads from top to bottom: prompts, answers, rewards, advantages, log-probabilities, update.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtjudge_jax import hosts
from mtjudge_jax.config import Config, has_reference
from mtjudge_jax.data.pipeline import Shard, train_iterator
from mtjudge_jax.data.rows import HOST_KEYS
from mtjudge_jax.hosts.exchange import gather, gather_rows, together
from mtjudge_jax.policy.programs import decode_texts, place_prompts, stage_key
from mtjudge_jax.policy.update import make_update
from mtjudge_jax.rl import mt_grpo
from mtjudge_jax.rl.loss import advantages_of, grpo_loss, kl, learned_mask
from mtjudge_jax.rl.per_task import own_draws
from mtjudge_jax.rl.reward_rule import rule_of
from mtjudge_jax.rl.rooms import Rooms
from mtjudge_jax.rl.routing import replaying
from mtjudge_jax.rl.streams import in_least_room, lengths_of, place_answers
from mtjudge_jax.sharding import batch_sharding, local_rows, shard_batch
from mtjudge_jax.tasks.reward import Rule, Scores, parts_paid, score
from mtjudge_jax.train.loop import loop
from mtjudge_jax.train.mixture_feedback import mixture_feedback
from mtjudge_jax.train.monitor.batch_metrics import Answers, all_equal, mean_of_updates, task_numbers, train_metrics
from mtjudge_jax.train.monitor.clock import Clock
from mtjudge_jax.train.monitor.host_numbers import host_numbers
from mtjudge_jax.train.monitor.nonfinite import Evidence, note_skipped
from mtjudge_jax.train.monitor.rollouts import Round, keep_rollouts
from mtjudge_jax.train.monitor.sampler_gap import sampler_gap
from mtjudge_jax.train.monitor.work import Work, stream_places, work_numbers
from mtjudge_jax.train.run import Progress, Run
from mtjudge_jax.train.slow_rewards import SlowRewards
from mtjudge_jax.train.soft_rollout import branches_over, sample_with_shares
from mtjudge_jax.train.start import start_or_resume
from mtjudge_jax.train.workdir import data_folder
from mtjudge_jax.types import Array, Lengths, TrainBatch


def train_grpo(run: Run) -> Progress:
    """The GRPO loop."""
    cfg, programs = run.cfg, run.model.programs
    with together():
        data = train_iterator(data_folder(cfg, run.workdir), run.model.fmt, cfg, Shard(jax.process_index(), jax.process_count()))
    progress, reference = start_or_resume(run, data)
    updates = cfg.rollout.prompts // cfg.update.prompts
    loss = partial(grpo_loss, cfg=cfg.loss, logp_fn=programs.logp_fn, on_policy=updates == 1)
    update = make_update(progress.state, loss, run.optimizer, programs.mesh, cfg)
    take = make_take(updates, programs.mesh, run.rooms)
    feedback = mixture_feedback(run)
    rule = rule_of(cfg)
    slow, shares = SlowRewards(run, rule), np.array(list(rule.paid.values()), np.float32)

    def step_fn(progress: Progress) -> tuple[Progress, dict]:
        clock = Clock(lambda phase: run.watch.beat(f"step {progress.step + 1} {phase}"))
        rolled = roll_out(run, progress, rule, slow, clock)
        rows, prompts, out, texts, scores = rolled.batch
        total, parts, learn = shard_batch((scores.total, compared(scores, rule, cfg), rows["weight"] > 0), programs.mesh)
        mask = learned_mask(out.mask, learn, parts, out.truncated, cfg=cfg.loss)
        places = place_answers(prompts, mask, programs.mesh, run.rooms)
        needs_old = updates > 1 or feedback.needs_old_logp
        passes = needs_old + has_reference(cfg)
        old_logp = programs.logp(progress.params, prompts, out.tokens, places) if needs_old else out.logp
        ref_logp = programs.reference_logp(reference, prompts, out.tokens, places) if has_reference(cfg) else old_logp
        if cfg.loss.kl_in == "reward":
            total = total - cfg.loss.kl_coef * (kl(old_logp, ref_logp, cfg.loss.kl_estimator) * mask).sum(-1)
        advantages = advantages_of(total, parts, shares, learn, cfg=cfg.loss)
        sampler_logp = out.logp if needs_old else None
        batch = TrainBatch(prompts, out.tokens, mask, advantages, old_logp, ref_logp, places, sampler_logp)
        jax.block_until_ready(ref_logp)
        gap = sampler_gap(run, progress, batch, rows)
        clock.lap("logp")
        hosts.stop_if_asked()  # the last moment: the update takes the state's memory
        state, metrics = progress.state, []
        for i in range(updates):
            state, m = update(state, progress.frozen, batch if updates == 1 else take(batch, i))
            metrics.append(jax.device_get(m))
        clock.lap("update")
        keep_rollouts(run, progress.step + 1, rolled.batch, advantages)
        numbers = train_metrics(rolled.answers, run.model.fmt.tasks) | mean_of_updates(metrics, kl=has_reference(cfg))
        progress = note_skipped(run, progress._replace(state=state), numbers["skipped"], rows, Evidence(texts, scores, batch))
        numbers |= feedback.learn(progress, rows, batch, numbers["tasks"], clock)
        numbers |= slow.numbers(progress.step + 1) | gap
        return progress, numbers | rates(run, rolled, batch, passes, clock) | host_numbers(run, rolled.rows, clock)

    return loop(run, progress, step_fn)


class Rolled(NamedTuple):
    """The prompts that a step learns from, and totals over all its rounds."""

    batch: Round
    answers: Answers  # of all rounds, all processes
    rows: dict[str, np.ndarray]  # of all rounds, this process only
    lengths: Lengths  # of all rounds, all processes
    prefill: int  # places of the sampled prompts
    decode: int  # steps of the sampler's lanes
    rounds: int
    met: float | None  # share of the wanted prompts that teach, where there may be several rounds


def roll_out(run: Run, progress: Progress, rule: Rule, slow: SlowRewards, clock: Clock) -> Rolled:
    """One rollout; up to rollout.rounds of them, with the mixture mt_grpo up to mt_grpo_rounds, while a task has too few prompts
    that teach (DAPO's dynamic sampling, arXiv 2503.14476).

    All processes decide alike. The batch has the same rows in the same order on any number of processes.
    """
    cfg, known = run.cfg, run.model.fmt.tasks
    before = run.model.programs.work.copy()
    kept = _one_round(run, progress, next(progress.data), (rule, slow), clock)
    seen, every, lengths, met = [_answers(kept, run)], [kept.rows], [_lengths(kept, run)], None
    adaptive = cfg.data.mixture == "mt_grpo"
    if (most := cfg.data.mt_grpo_rounds if adaptive else cfg.rollout.rounds) > 1 or adaptive:
        wanted = progress.data.wanted() if adaptive else _asked(seen[0], list(known))
        while (met := _met(found := _found(seen, list(known), rule, cfg), wanted)) < 1 and len(seen) < most:
            hosts.stop_if_asked()
            fresh = progress.data.more(found) if adaptive else next(progress.data)
            new = _one_round(run, progress, fresh, (rule, slow), clock, number=len(seen))
            seen, every, lengths = [*seen, _answers(new, run)], [*every, new.rows], [*lengths, _lengths(new, run)]
            kept = _merge(kept, new, run, wanted, rule)
            clock.lap("merge")
    answers, whole = (jax.tree.map(lambda *x: np.concatenate(x), *rounds) for rounds in (seen, lengths))
    done = run.model.programs.work - before
    # Without segments, all answers were drawn at once, to the last end.
    steps = done["lane steps"] or sum(one.answers.size * int(one.answers.max()) for one in lengths)
    rows = {key: np.concatenate([rows[key] for rows in every]) for key in HOST_KEYS}
    return Rolled(kept, answers, rows, whole, done["prefill"], steps, len(seen), met)


def make_take(parts: int, mesh: Mesh, rooms: Rooms | None = None) -> Callable[[TrainBatch, int], TrainBatch]:
    """`(batch, i)` -> the rows of update i of `parts`: one block, so that a batch balanced in every block stays balanced."""
    block = lambda x, i: x.reshape(parts, len(x) // parts, *x.shape[1:])[i]  # noqa: E731
    rows = jax.jit(lambda batch, i: jax.tree.map(partial(block, i=i), batch), out_shardings=batch_sharding(mesh))

    def take(batch: TrainBatch, i: int) -> TrainBatch:
        if rooms is None:
            return rows(batch, i)
        one = rows(batch._replace(places=None), i)
        return one._replace(places=place_answers(one.prompts, one.mask, mesh, rooms))

    return take


def rates(run: Run, rolled: Rolled, batch: TrainBatch, passes: int, clock: Clock) -> dict:
    """How much was computed, how long the answers are, and where the seconds went."""
    prompts, out = rolled.batch.prompts, rolled.batch.out
    learned = rolled.lengths if rolled.rounds == 1 else lengths_of(prompts, out.mask, run.model.programs.mesh)
    work = Work(rolled.lengths, learned, passes, stream_places(prompts, batch.places), rolled.prefill, rolled.decode)
    length = {"completion_tokens": float(rolled.answers.tokens.mean(dtype=np.float64))}
    rounds = {"rounds": rolled.rounds, "wanted_met": rolled.met, "seconds": clock.seconds}
    return work_numbers(run, work, clock) | length | rounds


def _one_round(
    run: Run, progress: Progress, rows: dict, rewards: tuple[Rule, SlowRewards], clock: Clock, number: int = 0
) -> Round:
    rule, slow = rewards
    cfg, programs = run.cfg, run.model.programs
    prompts = place_prompts(rows, programs.mesh, own_draws(cfg, rows["task"].tolist()))
    small = in_least_room(prompts, programs.mesh, run.rooms.shapes if run.rooms else ())
    programs.work["prefill"] += small.tokens.size
    clock.lap("data")
    temperature = np.full(cfg.rollout.group_size, cfg.rollout.temperature, np.float32)
    key = stage_key(cfg.seed, progress.step, "sample", number)
    drawn = {"key": key, "temperature": temperature, "length": cfg.rollout.completion_tokens}
    if "soft" in rule.weights:
        pieces = cfg.rollout.prompts // (cfg.rollout.micro_prompts or cfg.rollout.prompts)
        drawn |= {"pieces": pieces, "branches": branches_over(run.model.fmt.tasks, cfg.data.tasks)}
        out, shares = sample_with_shares(programs, progress.params, small, rows["truth"].tolist(), **drawn)
    else:
        out, shares = programs.sample(progress.params, small, *drawn.values()), None
    prompts, out = replaying(prompts, out, programs.mesh)
    texts, truncated = decode_texts(programs, out), local_rows(out.truncated, programs.mesh)
    clock.lap("rollout")
    lengths = local_rows(out.mask, programs.mesh).sum(-1, dtype=np.int32)
    truth = {"labels": rows["label"], "truths": rows["truth"].tolist(), "known": run.model.fmt.tasks, "shares": shares}
    scores = score(texts, truncated, tasks=rows["task"].tolist(), alpha=rule, tokens=lengths, **truth)
    scores = slow.add(scores, texts, rows, progress.step + 1)
    clock.lap("score")
    return Round({key: rows[key] for key in HOST_KEYS}, prompts, out, texts, scores)


def _answers(one: Round, run: Run) -> Answers:
    """The answers of a round from all processes, for the metrics."""
    mesh = run.model.programs.mesh
    mask, logp, cut = (local_rows(x, mesh) for x in (one.out.mask, one.out.logp, one.out.truncated))
    numbers = task_numbers(one.rows["task"].tolist(), run.model.fmt.tasks)
    return gather_rows(Answers(one.scores, numbers, one.rows["weight"], mask.sum(-1, dtype=np.int32), -logp.sum(-1), cut))


def _lengths(one: Round, run: Run) -> Lengths:
    return lengths_of(one.prompts, one.out.mask, run.model.programs.mesh)


def compared(scores: Scores, rule: Rule, cfg: Config) -> np.ndarray:
    """What is compared within a group, float32 [Q, G, K]: the reward, with GDPO each of its parts."""
    return parts_paid(scores, rule) if cfg.loss.advantage == "gdpo" else scores.total[..., None]


def _teaches(rewards: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """bool [N] of `compared` rewards [N, G, K]: whether the answers differ in any. NaN counts as teaching, so that a broken group
    is never sorted out in silence.
    """
    return ~np.stack([all_equal(part) for part in np.moveaxis(rewards, -1, 0)]).all(0) & (weight > 0)


def _found(seen: list[Answers], names: list[str], rule: Rule, cfg: Config) -> dict[str, int]:
    """Number of prompts that teach, by task, over all rounds."""
    teaching = [one.task[_teaches(compared(one.scores, rule, cfg), one.weight)] for one in seen]
    counts = np.bincount(np.concatenate(teaching), minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def _asked(one: Answers, names: list[str]) -> dict[str, int]:
    """Number of prompts that could be read, by task: as many are to teach."""
    return dict(zip(names, np.bincount(one.task[one.weight > 0], minlength=len(names)).tolist(), strict=True))


def _met(found: dict[str, int], wanted: dict[str, int]) -> float:
    return sum(min(found[name], count) for name, count in wanted.items()) / sum(wanted.values())


def _merge(kept: Round, new: Round, run: Run, wanted: dict[str, int], rule: Rule) -> Round:
    """The prompts of two rounds to learn from. A row may end up on another process than the one that read it."""
    cfg, programs, names = run.cfg, run.model.programs, list(wanted)
    size = cfg.rollout.prompts
    mine = _places(programs.mesh, size)
    order = np.argsort(gather_rows(mine))
    host = [_everywhere({"rows": one.rows, "scores": one.scores}, order) for one in (kept, new)]
    rows, scores = (jax.tree.map(lambda *x: np.concatenate(x), *[one[name] for one in host]) for name in ("rows", "scores"))
    usable = rows["weight"] > 0
    chosen = mt_grpo.select(
        np.array([names.index(name) if name in names else 0 for name in rows["task"].tolist()]),
        teaches=_teaches(compared(scores, rule, cfg), rows["weight"]),
        usable=usable,
        broken=usable & ~np.isfinite(scores.total).all(axis=1),
        wanted=np.array(list(wanted.values())),
        size=size,
        blocks=size // cfg.update.prompts,
    )
    prompts, out = _picker(programs.mesh)((kept.prompts, kept.out), (new.prompts, new.out), chosen)
    rows, scores = jax.tree.map(lambda x: x[chosen[mine]], (rows, scores))
    return Round(rows, prompts, out, decode_texts(programs, out), scores)


def _everywhere(tree: Any, order: np.ndarray) -> Any:
    """Host arrays of this process's rows -> arrays of all rows, in the order of the mesh. Texts travel as JSON."""

    def one(x: np.ndarray) -> np.ndarray:
        whole = gather_rows(x) if x.dtype.kind in "biuf" else np.array([text for part in gather(x.tolist()) for text in part])
        return whole[order]

    return jax.tree.map(one, tree)


@cache
def _places(mesh: Mesh, size: int) -> np.ndarray:
    """int32 indices of this process's rows in an array of `size` rows that is sharded over the mesh."""
    return local_rows(jax.jit(lambda: jnp.arange(size), out_shardings=batch_sharding(mesh))(), mesh)


@cache
def _picker(mesh: Mesh) -> Callable:
    """Jitted: trees a and b of arrays [Q, ..] and Q indices -> those rows of a followed by b."""

    def pick(a: Any, b: Any, places: Array) -> Any:
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y])[places], a, b)

    return jax.jit(pick, out_shardings=batch_sharding(mesh))
