"""Watches one process: its last sign of life and its stacks are on disk before anything ends it.

When a peer dies, JAX's runtime aborts this process without a Python exception, and a hung collective never returns. So the file
is opened at the start, faulthandler writes the stack of every thread into it on a fatal signal, and a thread ends a process that
makes no progress.
"""

import contextlib
import faulthandler
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

BEAT_BYTES = 200  # at the beginning of the file, for the last sign of life; stacks follow
_GRACE_SECONDS = 30  # faulthandler ends the process so much later, in case the thread cannot run either


class Watch:
    """From the first beat to `close`, ends the process with exit status 1 after `seconds` without a beat; 0: never."""

    def __init__(self, path: Path, seconds: float):
        self.path, self._seconds = path, seconds
        self._fd: int | None = None
        self._closed = threading.Event()
        self._where, self._at = "", time.monotonic()

    def beat(self, where: str) -> None:
        """A sign of life. `where` is what the process has reached, such as `step 12 rollout`."""
        self._where, self._at = where, time.monotonic()
        with contextlib.suppress(OSError):  # a full disk costs the file, not the run
            if self._fd is None:
                self._fd = self._open()
            if self._seconds:
                faulthandler.dump_traceback_later(self._seconds + _GRACE_SECONDS, exit=True, file=self._fd)
            line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} reached: {where}"
            os.pwrite(self._fd, f"{line:{BEAT_BYTES - 1}.{BEAT_BYTES - 1}}\n".encode("ascii", "replace"), 0)

    def note(self, text: str) -> None:
        """Adds a text below the stacks, such as the traceback that a process ends with by itself."""
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, text.encode())

    def close(self) -> None:
        self._closed.set()
        if self._fd is not None:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
            os.close(self._fd)

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():  # of the previous start
            self.path.replace(self.path.with_suffix(".before.txt"))
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.lseek(fd, BEAT_BYTES, os.SEEK_SET)
        faulthandler.enable(fd)
        if self._seconds:
            threading.Thread(target=self._look, name="watch", daemon=True).start()
        return fd

    def _look(self) -> None:
        while not self._closed.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._at > self._seconds:
                text = f"error: no progress for {self._seconds:.0f} s after: {self._where}; the stacks are in {self.path}"
                print(text, file=sys.stderr, flush=True)
                faulthandler.dump_traceback(self._fd)
                os._exit(1)


def watch_path(workdir: str, process: int) -> Path:
    """The file of a process: `<workdir>/hosts/<process>.txt`, or in the temporary folder if the workdir is in a bucket."""
    folder = Path(tempfile.gettempdir()) / "mtjudge-hosts" if "://" in workdir else Path(workdir) / "hosts"
    return folder / f"{process}.txt"
