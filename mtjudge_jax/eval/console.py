"""What an evaluation shows in a terminal: its progress and its scores."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping

import jax
from tqdm import tqdm

from mtjudge_jax.eval.evaluate import count_rows
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.tasks import TASKS, Task

# Shown below the line of a task, if its score has the key.
_BESIDE = {
    "kappa": "kappa", "quadratic_kappa": "quadratic kappa", "mae": "MAE", "auroc": "AUROC", "spearman": "Spearman",
    "tau_b": "tau-b", "levenshtein": "Levenshtein", "ece": "ECE", "brier": "Brier", "majority_accuracy": "majority",
    "self_agreement": "self-agreement", "flip_rate": "flips", "position_bias": "position bias", "mean_tokens": "tokens",
}  # fmt: skip
# The same for a pair, which is judged in both orders.
_BOTH_ORDERS = {
    "accuracy": "accuracy", "consistency": "same winner", "consistent_accuracy": "both right", "first_share": "first wins",
    "probability_accuracy": "by probability", "single_accuracy": "each picture alone",
}  # fmt: skip


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _values(score: Mapping[str, float | None], labels: Mapping[str, str]) -> str:
    """The values that the score has: "kappa 0.400, tokens 7.000"."""
    return ", ".join(f"{label} {score[key]:.3f}" for key, label in labels.items() if score.get(key) is not None)


def _remarks(score: Mapping[str, float | None]) -> list[str]:
    """What a reader would take amiss: a good order of the probabilities beside verdicts that do not follow it, or the reverse."""
    found = []
    best, constant, order = score["macro_f1"], score["constant_macro_f1"], score.get("auroc")
    if order is not None and None not in (best, constant) and order >= 0.7 and best <= constant + 0.05:
        found.append("AUROC asks only for the order of the probabilities: the verdicts are hardly better than a constant answer")
    paired, first = score.get("probability_accuracy"), score.get("first_share")
    if paired is not None and paired < 0.45:
        found.append("by probability below 0.5: the probabilities prefer the worse picture")
    if paired is not None and first is not None and paired >= 0.7 and not 0.2 <= first <= 0.8:
        found.append("the place decides the answer; added over both orders the probabilities still tell the better picture")
    return found


def table(result: dict) -> str:
    """The scores as text, one line per task."""
    lines = [f"{'task':20s} count  macro-F1   95 % interval  constant  sampled  invalid"]
    for name, score in result["tasks"].items():
        low, high = score["macro_f1_ci"] or ("", "")
        interval = "" if low == "" else f"{low:.3f}-{high:.3f}"
        lines.append(
            f"{name:20s} {score['count']:5d} {_number(score['macro_f1']):>9s}     {interval:11s}"
            f" {_number(score['constant_macro_f1']):>9s} {_number(score['sampled_accuracy']):>8s} {score['invalid_rate']:8.3f}"
        )
        if beside := _values(score, _BESIDE):
            lines.append(f"{'':20s} {beside}")
        if score.get("official"):
            official = {key: key for key in score["official"]}
            lines.append(f"{'':20s} official: {_values(score['official'], official)}")
        if "consistency" in score:
            lines.append(f"{'':20s} both orders: {_values(score, _BOTH_ORDERS)}")
        lines += [f"{'':20s} note: {remark}" for remark in _remarks(score)]
    if result["mean"]:
        sampled = _number(result["mean"]["sampled_accuracy"])
        lines.append(f"{'mean, trained tasks':20s} {'':5s} {result['mean']['macro_f1']:9.3f} {'':25s} {sampled:>8s}")
    if result["unusable"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in result["unusable"].items())
        lines.append(f"skipped, cannot be used: {reasons}")
    return "\n".join(lines)


@contextlib.contextmanager
def progress_bar(examples: dict[str, list[JudgeExample]], known: Mapping[str, Task] = TASKS) -> Iterator[Callable[[int], None]]:
    """Yields what `evaluate` calls with the number of prompts that it has judged. The bar is shown on a terminal only."""
    quiet = not sys.stderr.isatty() or jax.process_index() > 0
    with tqdm(total=count_rows(examples, known), unit="prompt", disable=quiet) as bar:
        yield bar.update
