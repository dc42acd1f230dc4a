"""The reward of one completion: R = (1 - alpha) R_acc + alpha R_for (MT-RL-Judge, arXiv 2603.11665), or named parts by weight.

A part is a pure function of the parsed answer and the truth. Only an answer in the strict form that was not cut off earns
anything: for all others every part except `overlong` is 0. `consistency` compares two rows, see rl/score.py.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.metrics.correlation import kendall_tau_b
from mtjudge_jax.tasks.parse import Parsed
from mtjudge_jax.tasks.truth import Truth

NEEDS_FORM = ("accuracy", "format", "graded", "ties", "ranking")
_PARTS = (*NEEDS_FORM, "consistency", "overlong")
# (facts of the example without images, whole answer, strictly parsed answer) -> reward
CustomReward = Callable[[dict, str, Parsed], float]


class Reward(NamedTuple):
    """All three are in [0, 1]; `accuracy` and `format` are 0 or 1."""

    total: float
    accuracy: float
    format: float


class Rule(NamedTuple):
    """How parts make a reward. Without weights it is the paper's rule, (1 - alpha) accuracy + alpha format."""

    alpha: float
    weights: Mapping[str, float] = {}
    tie_credit: float = 0.0
    most_tokens: int = 0
    overlong_buffer: int = 0
    custom: Mapping[str, CustomReward] = {}


def check_alpha(alpha: float) -> None:
    """Raises UserError unless 0 <= alpha <= 1 (NaN is refused too)."""
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha is {alpha}, must be between 0 (accuracy alone) and 1 (format alone)")


def reward_of(parsed: Parsed, *, label_index: int | tuple[int, ...], truncated: bool, alpha: float) -> Reward:
    """The reward of a strictly parsed completion: only the whole form earns R_for, and only a right verdict in it R_acc.

    label_index: the true verdict, for a list its ranks. truncated: whether the completion was cut off, which earns nothing.
    """
    well_formed = not truncated and parsed.verdict is not None
    accuracy = float(well_formed and parsed.verdict == label_index)
    return Reward((1.0 - alpha) * accuracy + alpha * float(well_formed), accuracy, float(well_formed))


def _accuracy(verdict: int | tuple[int, ...], truth: Truth) -> float:
    """1 for the right verdict: the label, the nearest grade, or exactly the same order of a list, including ties."""
    return float(verdict == (truth.ranks if truth.ranked else truth.label))


def graded(verdict: int | tuple[int, ...], truth: Truth) -> float:
    """For a grade 1 - |answer - truth| / (highest - lowest): on a scale of 1 to 5, answer 4 for truth 2.5 earns
    1 - 1.5 / 4 = 0.625. For other kinds the accuracy.
    """
    if truth.score is None:
        return _accuracy(verdict, truth)
    return 1.0 - abs(truth.low + verdict - truth.score) / (truth.high - truth.low)


def ties(verdict: int | tuple[int, ...], truth: Truth, *, credit: float) -> float:
    """For a pair that may be a tie: 1 for the right verdict, `credit` if exactly one of verdict and truth is the tie, else 0.
    For other kinds the accuracy.
    """
    right = _accuracy(verdict, truth)
    half_right = truth.tie is not None and not right and truth.tie in (verdict, truth.label)
    return credit if half_right else right


def ranking(verdict: int | tuple[int, ...], truth: Truth) -> float:
    """For a list (tau_b + 1) / 2: Kendall's rank correlation with ties, mapped to 0 (reversed) .. 1 (the same). For other kinds
    the accuracy. An order that is all ties has tau_b 0 with any other order and 1 with itself.
    """
    if not truth.ranked:
        return _accuracy(verdict, truth)
    tau = kendall_tau_b(verdict, truth.ranks)
    if tau is None:
        tau = float(len(set(verdict)) == len(set(truth.ranks)))
    return (tau + 1.0) / 2.0


def overlong(tokens: int, *, most: int, buffer: int) -> float:
    """0 up to most - buffer tokens, then falling to -1 at `most` (DAPO, arXiv 2503.14476, equation 13, L_cache = buffer)."""
    if not buffer:
        return 0.0
    return min(0.0, max(-1.0, (most - buffer - tokens) / buffer))


def consistency(verdicts: Sequence[int | None], other: Sequence[int | None], *, tie: int | None = 2) -> list[float]:
    """For each answer to a pair, the share of the answers to the other order of that pair that choose the same candidate.

    An answer without a verdict agrees with nothing. verdicts (0, 1, None) and other order (1, 1): (1, 0, 0).
    """
    mirrored = [v if v is None or v == tie else 1 - v for v in other]
    agree = [mirrored.count(v) / max(1, len(mirrored)) if v is not None else 0.0 for v in verdicts]
    return [float(share) for share in agree]


def earned_parts(parsed: Parsed, truth: Truth, *, truncated: bool, tie_credit: float) -> dict[str, float]:
    """The parts that the answer of a strictly parsed completion earns."""
    if truncated or parsed.verdict is None:
        return dict.fromkeys(NEEDS_FORM, 0.0)
    v = parsed.verdict
    return {
        "accuracy": _accuracy(v, truth),
        "format": 1.0,
        "graded": graded(v, truth),
        "ties": ties(v, truth, credit=tie_credit),
        "ranking": ranking(v, truth),
    }


def weights_of(text: tuple[str, ...], custom: tuple[str, ...], alpha: float) -> dict[str, float]:
    """Weights by part from `("accuracy=0.9", "format=0.1")`; {} for the paper's rule. A custom reward has weight 1 by default,
    and is added to the paper's rule if there is no other weight.

    Raises UserError for an unknown part, a weight that is not a finite number, or a repeated name.
    """
    if not text and not custom:
        return {}
    weights = {} if text else {"accuracy": 1.0 - alpha, "format": alpha}
    for entry in (*text, *custom):
        if not isinstance(entry, str):
            raise UserError(f"reward.weights and reward.custom must hold str, not {entry!r}")
    for entry in text:
        name, _, value = entry.rpartition("=")
        if name not in (*_PARTS, *custom):
            raise UserError(f"reward.weights: {entry!r} names an unknown part: known are {', '.join((*_PARTS, *custom))}")
        if name in weights:
            raise UserError(f"reward.weights names {name} twice: name each part once")
        try:
            weights[name] = float(value)
        except ValueError:
            raise UserError(f"reward.weights: {entry!r} must be name=number") from None
        if not isfinite(weights[name]):
            raise UserError(f"reward.weights: {entry!r} must be a finite number")
    return {**dict.fromkeys(custom, 1.0), **weights}
