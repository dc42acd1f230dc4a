"""Where the seconds of a step go."""

import time
from collections.abc import Callable


class Clock:
    """Seconds by phase, of all its times together; a phase ends when its results are on the host or waited for. `reached` is told
    each end."""

    def __init__(self, reached: Callable[[str], None]):
        self.seconds: dict[str, float] = {}
        self._reached, self._last = reached, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
        self._reached(name)
