"""Rewards that are asked about many answers at a time: another model, a service. Slow, and they may fail.

A user's function gets lists and returns a number or None for each answer. Calls run side by side in threads, each is tried again
where it fails, and what was paid is written down, so that a step that is done again after a stop pays the same.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, in_bucket
from mtjudge_jax.tasks.answer import Parsed, parse_strict, read_truth
from mtjudge_jax.tasks.reward import Scores

# (facts of each example, whole answers, strictly parsed answers, the pictures of each) -> a reward for each, None: not mine
BatchReward = Callable[[list[dict], list[str], list[Parsed], list[list[np.ndarray]]], Sequence[float | None]]
_FAILED = "failed"


class HowAsked(NamedTuple):
    answers: int  # per call
    threads: int  # calls side by side
    timeout: float  # seconds for a call
    retries: int  # further tries of a call that fails or takes too long
    most_failed: float  # share of a step's answers; above it the run stops


class Paid:
    """What was paid for the answers of one step, in a file per process: written as it comes, read when the step is done again.

    In a bucket, which has no appending, the file is written when the step's last answer is paid.
    """

    def __init__(self, folder: AnyPath, step: int, process: int):
        self._path = folder / f"{step:06d}.{process}.jsonl"
        self._lock, self._new = threading.Lock(), []
        self.known: dict[str, float | str | None] = {}
        for path in sorted(folder.glob(f"{step:06d}.*.jsonl")) if folder.is_dir() else ():
            for line in path.read_text().splitlines():
                try:
                    self.known |= dict([json.loads(line)])
                except ValueError:  # the end of a line was not written
                    continue

    def add(self, items: Iterable[tuple[str, float | str | None]]) -> None:
        lines = [json.dumps(item) + "\n" for item in items]
        with self._lock:
            self._new += lines
            if not in_bucket(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a") as file:
                    file.writelines(lines)

    def close(self) -> None:
        if self._new and in_bucket(self._path):
            before = self._path.read_text() if self._path.exists() else ""
            self._path.write_text(before + "".join(self._new))


class _Job(NamedTuple):
    """One answer that has not been paid."""

    at: tuple[int, int]
    key: str
    facts: dict
    text: str
    parsed: Parsed
    images: list[np.ndarray]


def pay(
    scores: Scores,
    texts: Sequence[Sequence[str]],
    *,
    truths: Sequence[str],
    images: Callable[[int], list[np.ndarray]],
    functions: Mapping[str, BatchReward],
    weights: Mapping[str, float],
    how: HowAsked,
    paid: Paid,
) -> tuple[Scores, int]:
    """Adds the parts of `functions` to scores [Q, G], and says how many answers have one that failed.

    truths: Q texts of `write_truth`, "" for a row that was not asked. images: of a row, uint8 [h, w, 3] as the model saw them.
    None pays nothing. Where a call failed to its last try, its part is left out for the answer's whole group, so that the group
    stays comparable. Raises UserError for a function that returns something else than one number or None for each answer.
    """
    total, parts, failed = scores.total.copy(), dict(scores.parts), np.zeros(scores.total.shape, bool)
    with ThreadPoolExecutor(how.threads, thread_name_prefix="reward") as pool:
        for name, function in functions.items():
            jobs = list(_jobs(name, texts, truths, images))
            waiting = list({job.key: job for job in jobs if job.key not in paid.known}.values())  # equal answers are asked once
            calls = [waiting[at : at + how.answers] for at in range(0, len(waiting), how.answers)]
            for found in _all(pool, [partial(_call, name, function, jobs, how, paid) for jobs in calls]):
                paid.known |= found
            part, lost = np.zeros(total.shape, np.float32), np.zeros(total.shape, bool)
            for job in jobs:
                value = paid.known[job.key]
                lost[job.at] = value == _FAILED
                part[job.at] = 0.0 if value in (None, _FAILED) else value
            part[lost.any(axis=1)] = 0.0
            failed |= lost
            parts[name] = part
            total += np.float32(weights[name]) * part
    paid.close()
    return scores._replace(total=total, parts=parts), int(failed.sum())


def _jobs(name: str, texts: Sequence[Sequence[str]], truths: Sequence[str], images: Callable[[int], list]) -> Iterator[_Job]:
    for q, (written, group) in enumerate(zip(truths, texts, strict=True)):
        if not written:
            continue
        truth, pictures = read_truth(written), images(q)
        for g, text in enumerate(group):
            parsed = parse_strict(text, truth.words, ranked=truth.ranked)
            # the question as it was asked, its candidates in the order shown, and the answer
            key = hashlib.sha256(f"{written}\0{text}".encode(errors="surrogatepass")).hexdigest()[:32]
            yield _Job((q, g), f"{name}/{key}", truth.facts, text, parsed, pictures)


def _all(pool: ThreadPoolExecutor, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of all; the first error ends the rest."""
    futures = [pool.submit(call) for call in calls]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


def _call(name: str, function: BatchReward, jobs: Sequence[_Job], how: HowAsked, paid: Paid) -> dict[str, float | str | None]:
    """What a call pays, after its retries; all `failed` where none came through."""
    lists = [[getattr(job, field) for job in jobs] for field in ("facts", "text", "parsed", "images")]
    found: Sequence[float | str | None] = [_FAILED] * len(jobs)
    for attempt in range(how.retries + 1):
        if attempt:
            time.sleep(min(10.0, 0.1 * 2**attempt))
        try:
            found = _numbers(name, _in_time(function, lists, how.timeout), len(jobs))
            break
        except UserError:
            raise
        except Exception:  # a function of the user's may raise anything
            continue
    result = {job.key: value for job, value in zip(jobs, found, strict=True)}
    paid.add(result.items())
    return result


def _in_time(function: BatchReward, lists: Sequence[list], seconds: float) -> Any:
    """The function's result, or TimeoutError. A call that hangs keeps its thread until it returns, and nobody waits for it."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*lists))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="reward-call").start()
    return future.result(seconds)


def _numbers(name: str, found: Any, count: int) -> list[float | None]:
    try:
        values = [None if value is None else float(value) for value in found]
    except TypeError:
        raise UserError(f"reward.batch: {name} returned {found!r:.60}: give a list of a number or None for each answer") from None
    if len(values) != count:
        raise UserError(f"reward.batch: {name} returned {len(values)} rewards for {count} answers: give one each, or None")
    return values


def forget(folder: AnyPath, before: int) -> None:
    """Removes the files of steps up to `before`, which no checkpoint can go back to."""
    for path in folder.glob("*.jsonl") if folder.is_dir() else ():
        if path.name.partition(".")[0].isdecimal() and int(path.name.partition(".")[0]) <= before:
            path.unlink(missing_ok=True)
