"""Calls that wait, judged together: a queue with a limit and one thread that empties it."""

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from mtjudge_jax.errors import UserError
from mtjudge_jax.judge.engine import Answered, AskedAs, Call

_AT_ONCE = 8  # full batches that are asked together: threads decode one while another is judged


class Full(Exception):
    """The queue takes no more. `seconds`: when to try again."""

    def __init__(self, seconds: float):
        super().__init__(f"the queue is full: try again in {seconds:.0f} s")
        self.seconds = seconds


class NotAsked(UserError):
    """A question of a call cannot be asked. `number`: which."""

    def __init__(self, number: int, text: str):
        super().__init__(text)
        self.number = number


class Asks(Protocol):
    def ask(self, questions: Sequence[Any], asked: AskedAs) -> list[Answered]: ...


class _Waiting(NamedTuple):
    call: Call
    future: Future
    since: float


class CallQueue:
    """Calls from many threads to one judge. What waits and is asked alike is judged in one go."""

    def __init__(self, judge: Asks, *, batch: int, most: int, wait: float, judged: Callable[[int, float], None] | None = None):
        """batch: questions that fill a batch of the judge. most: questions that may wait. wait: seconds that the first of them
        waits for others to fill a batch. judged: told the questions and seconds of each go.
        """
        self._judge, self._batch, self._most, self._wait = judge, batch, most, wait
        self._judged = judged or (lambda questions, seconds: None)
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closing, self._pace = False, 0.1  # seconds a question
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Questions that wait."""
        return sum(len(one.call.questions) for one in [*self._waiting])

    def put(self, call: Call) -> Future:
        """A future of what the call says. Cancelled before its turn, it is never judged. Raises Full, also for a closed queue."""
        with self._changed:
            waiting = self.depth
            if self._closing or (waiting and waiting + len(call.questions) > self._most):
                raise Full(max(1.0, waiting * self._pace))
            future: Future = Future()
            self._waiting.append(_Waiting(call, future, time.monotonic()))
            self._changed.notify()
            return future

    def close(self) -> None:
        """Judges what waits, takes no more, and returns when all is answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while taken := self._take():
            began = time.monotonic()
            questions = [question for one in taken for question in one.call.questions]
            try:
                answered = self._judge.ask(questions, taken[0].call.asked)
            except Exception as error:  # of these calls alone: the next ones are judged
                for one in taken:
                    one.future.set_exception(error)
                continue
            seconds = time.monotonic() - began
            self._pace = 0.8 * self._pace + 0.2 * seconds / max(1, len(questions))
            self._judged(len(questions), seconds)
            for one in taken:
                own, answered = answered[: len(one.call.questions)], answered[len(one.call.questions) :]
                _finish(one, own)

    def _take(self) -> list[_Waiting]:
        """The calls for the next go: those that are asked like the first, until a few batches are full. [] when closed."""
        with self._changed:
            while True:
                while self._waiting and self._waiting[0].future.cancelled():
                    self._waiting.popleft()
                if not self._waiting:
                    if self._closing:
                        return []
                    self._changed.wait()
                    continue
                left = self._waiting[0].since + self._wait - time.monotonic()
                if left <= 0 or self._closing or self.depth >= self._batch:
                    break
                self._changed.wait(left)
            asked, room, taken, later = self._waiting[0].call.asked, _AT_ONCE * self._batch, [], deque()
            while self._waiting:
                one = self._waiting.popleft()
                if one.call.asked != asked or (taken and len(one.call.questions) > room):
                    later.append(one)
                elif one.future.set_running_or_notify_cancel():
                    taken.append(one)
                    room -= len(one.call.questions)
            self._waiting = later
        return taken or self._take()


def _finish(one: _Waiting, answered: Sequence[Answered]) -> None:
    try:
        for number, found in enumerate(answered):
            if isinstance(found, UserError):
                raise NotAsked(number, str(found))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of unread answers: the response itself tells them
            one.future.set_result(one.call.finish(answered))
    except Exception as error:
        one.future.set_exception(error)
