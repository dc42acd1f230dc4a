"""What a step computes where prompts and answers have the lengths of a data set, not the longest ones.

Lengths are drawn for some batches, and the run's own rules lay them out: rooms for prompts, bins for answers, lanes for decoding.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from mtjudge_jax.config import Config, answers_learned, offline
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.policy.programs import Now, column_ladder, decodes_at_once, lane_ladder, next_segment, refill_of
from mtjudge_jax.rl.rooms import Rooms, rooms_of
from mtjudge_jax.rl.streams import BIN_SHARES, bins_of, split_rows
from mtjudge_jax.types import Lengths, PromptRoom

_HIGH = 1.6449  # of the standard normal distribution: 95 % lie below
_WIDEST = math.exp(_HIGH**2 / 2)  # 95 % of a lognormal distribution lie below so many means at most
_DRAWN = 256  # prompts drawn at least, in whole batches
_WHAT = {"prompt": "data.prompt_tokens", "patches": "data.patches", "answer": "rollout.completion_tokens"}


class Spread(NamedTuple):
    """A lognormal distribution, cut at a limit."""

    mean: float
    high: float  # 95 % lie below it

    def at(self, z: np.ndarray, most: int) -> np.ndarray:
        """The lengths, from 1 to `most`, where a standard normal variable is z."""
        sigma = _HIGH - math.sqrt(_HIGH**2 - 2 * math.log(self.high / self.mean))
        return np.clip(np.rint(np.exp(math.log(self.mean) - sigma**2 / 2 + sigma * z)), 1, most).astype(int)


def read_spreads(given: list[str], cfg: Config) -> dict[str, Spread]:
    """From `prompt:600/1500`, the mean and what 95 % lie below; without the second number all have the first.

    Raises ConfigError for another name, for what is no number, above the limit of the config or not a lognormal distribution.
    """
    out = {}
    for text in given:
        name, _, numbers = text.partition(":")
        try:
            mean, high = (float(number) for number in (numbers.split("/") * 2)[:2])
        except ValueError:
            mean = high = -1.0
        if name not in _WHAT or name in out or numbers.count("/") > 1 or not 1 <= mean <= high:
            example = "prompt:600/1500, patches:1200 or answer:200/600"
            raise ConfigError(f"--lengths={text!r}: give each of {', '.join(_WHAT)} once, as a mean or mean/95 %, e.g. {example}")
        if mean > (most := limits(cfg)[name]):
            raise ConfigError(f"--lengths={text!r}: the mean is above {_WHAT[name]} = {most:,}: raise that or lower the mean")
        if high > mean * _WIDEST:
            most = f"give {mean * _WIDEST:,.0f} at most"
            raise ConfigError(f"--lengths={text!r}: 95 % of a lognormal distribution lie below {_WIDEST:.2f} means: {most}")
        out[name] = Spread(mean, high)
    return out


def limits(cfg: Config) -> dict[str, int]:
    return {"prompt": cfg.data.prompt_tokens, "patches": cfg.data.patches, "answer": cfg.rollout.completion_tokens}


def draw_lengths(cfg: Config, spreads: dict[str, Spread], measured: list[tuple[int, int]]) -> Lengths:
    """Of whole batches. measured: tokens and patches of some prompts, in place of their spreads; may be empty. What is in neither
    is as long as it may be.
    """
    rng, most = np.random.default_rng(0), limits(cfg)
    batch = cfg.update.prompts if offline(cfg) else cfg.rollout.prompts
    rows, group = batch * -(-_DRAWN // batch), answers_learned(cfg)
    spread = lambda name, z: spreads[name].at(z, most[name]) if name in spreads else np.full(z.shape, most[name])  # noqa: E731
    if measured:
        prompt, patches = np.array(measured)[rng.integers(len(measured), size=rows)].T
    else:
        z = rng.normal(size=rows)  # of both: long prompts have many patches
        prompt, patches = (spread(name, z) for name in ("prompt", "patches"))
    return Lengths(prompt, patches, spread("answer", rng.normal(size=(rows, group))))


class Learned(NamedTuple):
    """What reference, old policy and update compute of a prompt in the mean, and how many rows of a device run together."""

    prompt: float  # tokens
    patches: float
    answer: float  # places of an answer
    together: int  # in the mean, rounded down to what divides a device's rows
    real: tuple[float, float, float]  # shares of the three that are there


def learned(cfg: Config, lengths: Lengths, devices: int) -> Learned:
    """devices: over how many the rows of a batch are sharded."""
    length, group, size = cfg.rollout.completion_tokens, answers_learned(cfg), cfg.update.prompts
    rooms = _rooms(cfg, lengths, devices)
    rows, computed, calls = len(lengths.prompt), np.zeros(3), 0
    for start in range(0, rows, size):
        some = Lengths(*(x[start : start + size] for x in lengths))
        if rooms is None:
            bins = bins_of(some.answers, length, BIN_SHARES)
            computed += np.array([cfg.data.prompt_tokens, cfg.data.patches, math.prod(bins) / group]) * size
            continue
        for one in split_rows(some, rooms, devices=devices, length=length):
            computed += np.array([*one.shape, math.prod(one.bins) / group]) * one.streams
            calls += 1
    there = np.array([lengths.prompt.sum(), lengths.patches.sum(), np.minimum(lengths.answers, length - 1).sum() / group])
    most = rows / devices / calls if calls else max(1, cfg.update.micro_prompts // devices)
    together = max(count for count in range(1, size // devices + 1) if size // devices % count == 0 and count <= most)
    return Learned(*(computed / rows).tolist(), together, tuple((there / computed).tolist()))


def _rooms(cfg: Config, lengths: Lengths, devices: int) -> Rooms | None:
    return rooms_of(cfg, list(zip(lengths.prompt.tolist(), lengths.patches.tolist(), strict=True)), devices=devices)


class Decoded(NamedTuple):
    """What decoding a batch takes."""

    room: PromptRoom  # of its prompts
    steps: Counter  # by (lanes of a device, columns of their own caches)
    live: float  # share of the lanes' steps with a live answer


def decoded(cfg: Config, lengths: Lengths, devices: int) -> Decoded:
    """The mean of the batches: counts of steps may be broken."""
    size, length = cfg.rollout.prompts, cfg.rollout.completion_tokens
    held = (cfg.rollout.micro_prompts or size) // devices
    batches, steps = len(lengths.prompt) // size, Counter()
    for start in range(0, len(lengths.prompt), size):
        answers = lengths.answers[start : start + size]
        for at, count in decode_steps(answers.reshape(devices, -1, answers.shape[1]), held=held, length=length).items():
            steps[at] += count / batches
    rooms = _rooms(cfg, lengths, devices)
    longest = np.stack([lengths.prompt, lengths.patches], -1).reshape(batches, size, 2).max(1)
    shapes = rooms.shapes if rooms else (PromptRoom(cfg.data.prompt_tokens, cfg.data.patches),)
    room = max(next(one for one in shapes if (batch <= one).all()) for batch in longest)
    computed = sum(lanes * count for (lanes, _), count in steps.items()) * devices * batches
    return Decoded(room, steps, float((lengths.answers - 1).sum() / computed) if computed else 1.0)


def decode_steps(answers: np.ndarray, *, held: int, length: int) -> Counter:
    """How many steps the sampler takes with (lanes, columns), for answers of so many tokens, int [D, q, G].

    held: prompts whose caches a device holds at a time. It follows the sampler's loop in policy/programs.py.
    """
    _, rows, group = answers.shape
    steps: Counter = Counter()
    if decodes_at_once(held, rows, group, length):
        for start in range(0, rows, held):
            steps[held * group, length - 1] += int(answers[:, start : start + held].max()) - 1
        return steps
    rungs, columns = lane_ladder(held * group), column_ladder(length - 1)
    refill = refill_of(held) if held < rows else 0
    left, row, step = answers[:, :held] - 1, held, 0  # the first token comes with the prompt
    while (left > 0).any() or row < rows:
        free = int((left.max(2) <= 0).sum(1).min())
        if row < rows and free >= refill:
            step = step if (left > 0).any() else 0
            order = np.argsort(left.max(2) > 0, axis=1, kind="stable")[:, :refill]
            np.put_along_axis(left, order[..., None], answers[:, row : row + refill] - 1, 1)
            row += refill
            continue
        live = int((left > 0).sum((1, 2)).max())
        segment, below = next_segment(Now(live, step, free, 0), rungs, columns, refill)
        while (left > 0).sum((1, 2)).max() > below and (segment.columns == length - 1 or step < segment.columns):
            if row < rows and (left.max(2) <= 0).sum(1).min() >= refill:
                break
            left, step = left - 1, step + 1
            steps[segment.lanes, segment.columns] += 1
    return steps
