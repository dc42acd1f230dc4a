"""Shows a run in the trackers of `log.to`: TensorBoard, Weights & Biases, MLflow, SwanLab, Trackio. On process 0 alone.

A tracker shows what metrics.jsonl and rollouts/ hold, each step once. trackers.json has the id of its run, so a run that is
started again goes on in the same run of the tracker: it sends what is missing there, and not what is there. A step that is done
again after a kill has the same numbers, so it need not be sent again.

Each tracker has a thread, so that one that hangs or fails never holds up a step.
"""

import collections
import contextlib
import hashlib
import importlib.util
import json
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mtjudge_jax.config import Config, flatten
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.paths import AnyPath, in_bucket
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.monitor.metrics_file import REWRITE_SECONDS, as_plain, write_json_atomic
from mtjudge_jax.train.monitor.shown import read_shown, shown_steps
from mtjudge_jax.train.monitor.trackers.services import PACKAGES, TRACKERS, TrackedRun, Tracker
from mtjudge_jax.train.monitor.trackers.values import scalars_of

CLOSE_SECONDS = 120.0  # that the end of a run waits for the trackers
STOP_SECONDS = 5.0  # the same where the run was asked to stop, or failed
_KIND_NAMES = {"train": "train", "eval": "validation"}  # of a line of metrics.jsonl: the name in a tracker


class ToSend(NamedTuple):
    """What is sent of a step: its numbers, or, without a line, its rollouts."""

    kind: str  # train | validation | rollouts
    step: int
    line: dict | None
    warnings: int  # in the run so far


class Trackers:
    """The open trackers of a run; without names it does nothing. Raises ConfigError for one that cannot be used here."""

    def __init__(self, cfg: Config, workdir: AnyPath, names: tuple[str, ...]):
        self._senders: list[_Sender] = []
        if not names:
            return
        for name in names:
            if importlib.util.find_spec(PACKAGES[name]) is None:
                raise ConfigError(f"log.to has {name!r}, which is not installed: pip install 'mtjudge_jax[{name}]'")
        if in_bucket(workdir) and not cfg.log.folder:
            raise ConfigError(f"log.to = {names} with a workdir in a bucket: name a folder on a disk in log.folder")
        folder = Path(cfg.log.folder) if cfg.log.folder else Path(workdir) / "tracking"
        self._warnings, self._shown = 0, workdir / "rollouts"
        computed = {name: value for name, value in flatten(cfg).items() if not name.startswith("log.")}
        self._computed = hashlib.sha256(json.dumps(computed).encode()).hexdigest()[:16]
        self._kept = _Kept(workdir / "trackers.json")
        place = TrackedRun(folder.absolute(), cfg.log.project, cfg.log.name or workdir.name, flatten(cfg))
        self._senders = [_Sender(name, place, self._kept, self._shown) for name in names]

    def begin(self, lines: list[dict], *, resumed: bool) -> None:
        """Opens the trackers and sends what they lack of `lines`, those of metrics.jsonl, and of the rollouts beside it.

        resumed: whether the run goes on. One that begins anew with another config gets a new run in each tracker.
        """
        if not self._senders:
            return
        if not resumed and self._kept.entries.get("config") != self._computed:
            self._kept.entries = {}
        self._kept.entries["config"] = self._computed
        items = [item for line in lines if (item := self._item(line))]
        items += [ToSend("rollouts", step, None, 0) for step in shown_steps(self._shown)]
        for sender in self._senders:
            sender.items.extend(sorted(items, key=lambda item: item.step))
            sender.start()

    def scalars(self, line: dict) -> None:
        """Sends the numbers of a line of metrics.jsonl. A warning is counted, and the number is sent with the next step."""
        if self._senders and (item := self._item(line)):
            self._put(item)

    def rollouts(self, step: int) -> None:
        """Sends the rollouts of a step, which are in their file."""
        self._put(ToSend("rollouts", step, None, 0))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Sends the rest and closes the trackers, in so many seconds together. What is not sent then, the next start sends."""
        end = time.monotonic() + seconds
        for sender in self._senders:
            sender.put(None)
        for sender in self._senders:
            if sender.ident is not None:
                sender.join(max(0.0, end - time.monotonic()))
            if sender.is_alive():
                say(f"warning: {sender.name} did not take its last steps in {seconds:.0f} s; they are in metrics.jsonl")
        if self._senders:
            self._kept.write()
        self._senders = []

    def _item(self, line: dict) -> ToSend | None:
        if line["kind"] == "warning":
            self._warnings += 1
            return None
        return ToSend(_KIND_NAMES[line["kind"]], line["step"], line, self._warnings)

    def _put(self, item: ToSend) -> None:
        for sender in self._senders:
            sender.put(item)


class _Kept:
    """trackers.json: by tracker, the id of its run and the last step that it has of each kind."""

    def __init__(self, path: AnyPath):
        self._path, self._lock, self._at = path, threading.Lock(), -float(REWRITE_SECONDS)
        try:
            self.entries = json.loads(path.read_text())
        except (OSError, ValueError):  # there is none yet, or it was damaged: the trackers are asked, or begin anew
            self.entries = {}

    def put(self, name: str, entry: dict) -> None:
        """At once on a disk; in a bucket, whose objects are written whole, now and then."""
        self.entries[name] = entry
        if not in_bucket(self._path) or time.monotonic() - self._at > REWRITE_SECONDS:
            self.write()

    def write(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # a full disk: the next write has this one's news too
            self._at = time.monotonic()
            write_json_atomic(self._path, dict(self.entries))


class _Sender(threading.Thread):
    """The thread of a tracker. All calls of its package are made here, since some tie a run to the thread that opened it."""

    def __init__(self, name: str, place: TrackedRun, kept: _Kept, shown: AnyPath):
        super().__init__(name=name, daemon=True)
        self.items: collections.deque[ToSend] = collections.deque()  # not sent yet, in order; of the thread once it runs
        self._place, self._kept, self._shown = place, kept, shown
        self._queue: queue.SimpleQueue[ToSend | None] = queue.SimpleQueue()
        self._complained, self._tracker = False, None

    def put(self, item: ToSend | None) -> None:
        """None closes the tracker."""
        self._queue.put(item)

    def run(self) -> None:
        if not self._try("could not be opened", self._open):
            return
        self._send_all()
        while (item := self._queue.get()) is not None:
            self.items.append(item)
            self._send_all()
        self._try("could not be closed", self._tracker.close)

    def _open(self) -> None:
        before = self._kept.entries.get(self.name, {})
        tracker: Tracker = TRACKERS[self.name](self._place, before.get("id", ""))
        known = tracker.reached  # what it says itself counts; else what was noted of this run
        noted = before.get("sent", {}) if tracker.id == before.get("id") else {}
        self._reached = dict(noted if known is None else known)
        self._tracker = tracker
        self._note()

    def _note(self) -> None:
        self._kept.put(self.name, {"id": self._tracker.id, "sent": dict(self._reached)})

    def _send_all(self) -> None:
        """Sends in order. Numbers that fail are sent again before the next ones; rollouts that fail are left out."""
        while self.items:
            item = self.items[0]
            sent = self._try(f"did not take the {item.kind} of step {item.step}", partial(self._send, item))
            if not sent and item.kind != "rollouts":
                return
            self.items.popleft()

    def _send(self, item: ToSend) -> None:
        if item.step <= self._reached.get(item.kind, -1):
            return
        if item.line is None:
            self._tracker.rollouts(item.step, read_shown(self._shown, item.step))
        else:
            warned = {"train/warnings": float(item.warnings)} if item.kind == "train" else {}
            self._tracker.scalars(item.kind, item.step, scalars_of(as_plain(item.line)) | warned)
        self._reached[item.kind] = item.step
        self._note()

    def _try(self, what: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except BaseException as error:  # whatever a package raises, to leave the process among it, is not the run's concern
            if not self._complained:
                text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                say(f"warning: {self.name} {what} ({text}); the run goes on, and its next start sends what is missing there")
            self._complained = True
            return False
        return True
