"""Warnings about a run that goes on, but not well: a task that collapses, a host that the others wait for."""

import collections
import math
import statistics

WINDOW = 10  # steps with a task: the first so many are compared with the last
# By how much less of it a task must have than it began with, and what that means.
COLLAPSE = {
    "entropy": (0.02, "its answers hardly vary any more: raise loss.kl_coef or lower optim.lr"),
    "format": (0.5, "its answers lose their form: raise reward.alpha or lower optim.lr"),
    "completion_tokens": (0.25, "its answers shrink: look at them, the reward may pay for answers without reasoning"),
}
FORMLESS_STEPS = 5
SLOW = 2.0  # times the median of the hosts
SLOW_SHARE = 0.1  # of the step, at least
SLOW_STEPS = 3  # in a row


class Health:
    """Follows the metrics lines of training steps, those of GRPO."""

    def __init__(self):
        self._first: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        self._last: dict[tuple[str, str], collections.deque] = collections.defaultdict(lambda: collections.deque(maxlen=WINDOW))
        self._collapsed: set[tuple[str, str]] = set()
        self._formless: int | None = 0  # steps without a well-formed answer, from the first on; None once there was one
        self._slow: collections.Counter[int] = collections.Counter()

    def add(self, line: dict) -> list[str]:
        """Takes the line of a step; returns what is to be said after it, each thing once until it has passed."""
        said = self._nothing_paid(line)
        for task, means in line.get("tasks", {}).items():
            for name in COLLAPSE:
                if means.get(name) is not None and math.isfinite(means[name]):
                    said += self._collapse(task, name, means[name])
        return said + self._slow_hosts(line)

    def _nothing_paid(self, line: dict) -> list[str]:
        """Once, where no answer of the first steps had the form that the reward asks for: then there is nothing to learn from."""
        if line.get("format") is None or self._formless is None:
            return []
        self._formless = self._formless + 1 if line["format"] == 0 else None
        if self._formless != FORMLESS_STEPS:
            return []
        return [
            f"warning: no answer in the first {FORMLESS_STEPS} steps has the form <think>reasoning</think><answer>label</answer>"
            "; none is rewarded, nothing is learned. Their texts are in eval/val_*.predictions.jsonl; start from a model that "
            "answers so, an instruction-tuned one or one that SFT has taught with reasoning"
        ]

    def _collapse(self, task: str, name: str, value: float) -> list[str]:
        key = (task, name)
        if len(self._first[key]) < WINDOW:
            self._first[key].append(value)
            return []
        self._last[key].append(value)
        share, meaning = COLLAPSE[name]
        began, now = statistics.fmean(self._first[key]), statistics.fmean(self._last[key])
        if len(self._last[key]) < WINDOW or now >= share * began:
            self._collapsed.discard(key)
            return []
        if key in self._collapsed:
            return []
        self._collapsed.add(key)
        return [f"warning: {task}: {name} fell from {began:.3g} to {now:.3g}: {meaning}"]

    def _slow_hosts(self, line: dict) -> list[str]:
        own = line.get("hosts", {}).get("own_seconds", [])
        if len(own) < 2:
            return []
        whole, said = sum(line["seconds"].values()), []
        for host, seconds in enumerate(own):
            others = statistics.median(own[:host] + own[host + 1 :])
            late = seconds > SLOW * others and seconds - others > SLOW_SHARE * whole
            self._slow[host] = self._slow[host] + 1 if late else 0
            if self._slow[host] == SLOW_STEPS:
                said.append(
                    f"warning: host {host} keeps the others waiting: {seconds:.2f} s of its own work (data, rewards) a step, the "
                    f"median of the others is {others:.2f} s"
                )
        return said
