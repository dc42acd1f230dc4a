"""Warnings about a run that continues, but not well: a task that collapses, a host that the others wait for."""

import collections
import math
import statistics
from collections.abc import Sequence

from mtjudge_jax.config import Config, offline

WINDOW = 10  # steps of a task: the mean of its first ones is compared with the mean of its last ones
# The share of its first mean below which a metric of a task has collapsed, and the advice.
COLLAPSE = {
    "entropy": (0.02, "its answers hardly vary any more; raise loss.kl_coef or lower optim.lr"),
    "format": (0.5, "its answers lose the required format; raise reward.alpha or lower optim.lr"),
    "completion_tokens": (0.25, "its answers get short; read some, the reward may favour answers without reasoning"),
}
FORMLESS_STEPS = 5
_FORM = "<think>reasoning</think><answer>label</answer>"
_TEACH = (
    "teach the form first (--config.stage=sft on records with a rationale, then --config.model.path=ITS_WORKDIR/best), or start "
    "from an instruction-tuned model"
)
_DRIFT, _DRIFT_TIMES = 0.01, 3.0  # nats a token, and times the gap of the first steps
_SLOW = 2.0  # times the median of the other hosts
_SLOW_SHARE = 0.1  # of the whole step, at least
_SLOW_STEPS = 3  # in a row


class Health:
    """Follows the metrics lines of the training steps of GRPO."""

    def __init__(self):
        self._first: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        self._last: dict[tuple[str, str], collections.deque] = collections.defaultdict(lambda: collections.deque(maxlen=WINDOW))
        self._collapsed: set[tuple[str, str]] = set()
        self._formless: int | None = 0  # first steps without a well-formed answer; None once there was one
        self._flat, self._drifting = False, False
        self._gaps: list[float] = []  # of the first WINDOW steps
        self._last_gaps: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self._slow: collections.Counter[int] = collections.Counter()

    def add(self, line: dict) -> list[str]:
        """Takes the line of a step and returns the warnings after it. A warning is not repeated until its cause has passed."""
        said = self._flat_groups(line) + self._formless_answers(line) + self._sampler_drift(line)
        for task, means in line.get("tasks", {}).items():
            for name in COLLAPSE:
                if means.get(name) is not None and math.isfinite(means[name]):
                    said += self._collapse(task, name, means[name])
        return said + self._slow_hosts(line)

    def _flat_groups(self, line: dict) -> list[str]:
        """Warns of a step that teaches nothing, because all answers of a group have one reward; once until there is another."""
        before, self._flat = self._flat, line.get("zero_variance") == 1
        if before or not self._flat:
            return []
        if line["format"] == 0:
            why = f"no answer has the format {_FORM}: {_TEACH}"
        elif line["accuracy"] in (0, 1):
            why = (
                f"all are {'right' if line['accuracy'] else 'wrong'}: take harder or easier records, or raise rollout.temperature"
            )
        else:
            why = "raise rollout.group_size or rollout.temperature, or check that the reward tells answers apart"
        said = f"within every group, all answers earn the same reward in this step ({line['reward']:.3f} in the mean)"
        return [f"warning: {said}, so nothing is learned from it; {why}"]

    def _formless_answers(self, line: dict) -> list[str]:
        """Warns once if no answer of the first steps had the format that the reward asks for: nothing can be learned then."""
        if line.get("format") is None or self._formless is None:
            return []
        self._formless = self._formless + 1 if line["format"] == 0 else None
        if self._formless != FORMLESS_STEPS:
            return []
        return [
            f"warning: no answer in the first {FORMLESS_STEPS} steps has the format <think>reasoning</think>"
            "<answer>label</answer>, so none is rewarded and nothing is learned. Read answers in eval/val_*.predictions.jsonl, "
            "and start from a model that answers in this format: an instruction-tuned one, or one trained by SFT with reasoning"
        ]

    def _sampler_drift(self, line: dict) -> list[str]:
        """Warns once where the sampler's log-probabilities move away from the update's: it then samples another policy."""
        gap = line.get("sampler_gap")
        if gap is None or not math.isfinite(gap):
            return []
        if len(self._gaps) < WINDOW:
            self._gaps.append(gap)
            return []
        self._last_gaps.append(gap)
        began, now = statistics.fmean(self._gaps), statistics.fmean(self._last_gaps)
        far = len(self._last_gaps) == WINDOW and now > max(_DRIFT, _DRIFT_TIMES * began)
        before, self._drifting = self._drifting, far
        if before or not self._drifting:
            return []
        return [
            f"warning: the log-probabilities of the sampler and of the update differ by {now:.3g} in the mean of the last "
            f"{WINDOW} steps, at the start by {began:.3g}: set loss.sampler_weight=token, "
            "for a mixture of experts loss.replay_routing=True, or compute in model.dtype=float32"
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
            late = seconds > _SLOW * others and seconds - others > _SLOW_SHARE * whole
            self._slow[host] = self._slow[host] + 1 if late else 0
            if self._slow[host] == _SLOW_STEPS:
                said.append(
                    f"warning: host {host} keeps the others waiting: {seconds:.2f} s of its own work (data, rewards) per step, "
                    f"the median of the others is {others:.2f} s"
                )
        return said


def unreadable(predictions: Sequence[dict], cfg: Config) -> list[str]:
    """What a validation shows about answers that RL cannot reward or nobody can read: one text for the tasks without any other.

    predictions: lines of predictions.jsonl. In RL an answer needs the whole form, after SFT and DPO a verdict that can be read.
    """
    good, what = ("strict",), f"have the format {_FORM}, which alone is rewarded"
    if offline(cfg):
        good, what = ("strict", "lenient"), "have a verdict that can be read"
    answered = [p for p in predictions if not p["unusable"]]
    by_task = collections.defaultdict(list)
    for p in answered:
        by_task[p["task"]].append(p)
    lost = {task: lines for task, lines in by_task.items() if not any(p["parse"] in good for p in lines)}
    if not lost:
        return []
    lines = [p for group in lost.values() for p in group]
    cut = sum(p["tokens"] >= cfg.rollout.completion_tokens for p in lines)
    errors = collections.Counter(p["error"] or "no reasoning before the verdict" for p in lines).most_common(2)
    found = ", ".join(f"{error} {count}" for error, count in errors)
    # The answers that SFT learns from fit: it is the model that does not know yet where an answer ends.
    longer = "they do not end yet" if cfg.stage == "sft" else "raise it"
    longer = f"; {cut} were cut at rollout.completion_tokens = {cfg.rollout.completion_tokens}: {longer}" if cut else ""
    advice = f"RL learns nothing from them: {_TEACH}"
    if offline(cfg):
        advice = {"sft": "train longer, or raise optim.lr", "dpo": f"DPO prefers answers, it teaches no form: {_TEACH}"}[
            cfg.stage
        ]
    return [f"{', '.join(lost)}: 0 of {len(lines)} validation answers {what} ({found}){longer}; {advice}"]
