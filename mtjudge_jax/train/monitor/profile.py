"""A trace of some steps, `log.profile`, by JAX's profiler: for xprof (in TensorBoard) and for Perfetto."""

import jax

from mtjudge_jax.paths import AnyPath
from mtjudge_jax.train.monitor.messages import say


class Profile:
    """Traces the steps from the first to the last of `steps`, on every process; none without steps."""

    def __init__(self, steps: tuple[int, ...], workdir: AnyPath):
        self._steps, self._folder, self._open = steps, workdir / "profile", False

    def before(self, step: int) -> None:
        """Call before a step. A run that goes on in the middle of these steps traces the rest of them."""
        if self._steps and not self._open and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=jax.process_count() == 1)
            self._open = True

    def after(self, step: int) -> None:
        """Call after a step."""
        if self._open and step >= self._steps[1]:
            self.close()

    def close(self) -> None:
        """Writes the trace, if one is open."""
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
            say(f"trace of steps {self._steps[0]} to {self._steps[1]} in {self._folder}; docs/watching.md says how to read it")
