"""From completions to rewards: R = (1 - alpha) R_acc + alpha R_for (MT-RL-Judge, arXiv 2603.11665), or named parts by weight.

A part is a pure function of the parsed answer and the truth. Only an answer in the strict form that was not cut off earns
anything: for all others every part except `overlong` is 0. `consistency` compares two rows. `score`
applies the rule to a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.metrics.correlation import kendall_tau_b
from mtjudge_jax.tasks import TASKS, Task, get_task
from mtjudge_jax.tasks.answer import Parsed, Truth, parse_strict, read_truth

NEEDS_FORM = ("accuracy", "format", "graded", "ties", "ranking")
_PARTS = (*NEEDS_FORM, "soft", "consistency", "overlong")
# (facts of the example without images, whole answer, strictly parsed answer) -> reward
CustomReward = Callable[[dict, str, Parsed], float]


class Reward(NamedTuple):
    """All three are in [0, 1]; `accuracy` and `format` are 0 or 1."""

    total: float
    accuracy: float
    format: float


class OwnRule(NamedTuple):
    """What a task has in the place of the rule's."""

    weights: Mapping[str, float]  # of some of its parts
    most_tokens: int


class Rule(NamedTuple):
    """How parts make a reward. Without weights it is the paper's rule, (1 - alpha) accuracy + alpha format."""

    alpha: float
    weights: Mapping[str, float] = {}
    tie_credit: float = 0.0
    most_tokens: int = 0
    overlong_buffer: int = 0
    custom: Mapping[str, CustomReward] = {}
    batch: tuple[str, ...] = ()  # names of those that batch_reward.py adds
    own: Mapping[str, OwnRule] = {}  # by task

    def of_task(self, task: str) -> "Rule":
        """The rule for the answers of a task."""
        if task not in self.own:
            return self
        weights, most = self.own[task]
        return self._replace(weights={**self.weights, **weights}, most_tokens=most)

    @property
    def paid(self) -> dict[str, float]:
        """The weights of the parts that make the reward; a part of weight 0 is only measured."""
        weights = self.weights or {"accuracy": 1.0 - self.alpha, "format": self.alpha}
        return {name: weight for name, weight in weights.items() if weight}


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


def soft(shares: Sequence[float], truth: Truth) -> float:
    """How good the judge's probabilities are after its reasoning, 0 to 1, whatever verdict was drawn: for a grade 1 - |expected
    grade - truth| / (highest - lowest), else 1 - half the squared distance to the truth (Brier). Brier's score is proper: in the
    mean it is best to be as sure as one is right. 0.5 for each of two earns 0.75, 0.9 for the wrong one 0.19.

    shares: of each of the truth's words.
    """
    if truth.score is not None:
        expected = sum((truth.low + index) * share for index, share in enumerate(shares))
        return 1.0 - abs(expected - truth.score) / (truth.high - truth.low)
    return 1.0 - sum((share - (index == truth.label)) ** 2 for index, share in enumerate(shares)) / 2


def over_both_orders(
    shares: Sequence[Sequence[float] | None], other: Sequence[Sequence[float] | None]
) -> list[Sequence[float] | None]:
    """The shares of each answer to a pair, in the mean with those of the other order's answers: what the judge thinks of a pair
    when it is asked in both orders. So an answer that only prefers a place gains nothing from the order in which it is right.

    The two candidates change places between the orders, a tie keeps its own. Answers without shares (None) stay so and count
    nothing; shares without any to meet stay as they are.
    """
    turned = [(one[1], one[0], *one[2:]) for one in other if one is not None]
    if not turned:
        return list(shares)
    mean = np.mean(turned, axis=0)
    return [None if one is None else ((np.asarray(one) + mean) / 2).tolist() for one in shares]


def earned_parts(
    parsed: Parsed, truth: Truth, *, truncated: bool, tie_credit: float, shares: Sequence[float] | None = None
) -> dict[str, float]:
    """The parts that the answer of a strictly parsed completion earns. Without shares `soft` is the accuracy."""
    if truncated or parsed.verdict is None:
        return dict.fromkeys((*NEEDS_FORM, "soft"), 0.0)
    v = parsed.verdict
    return {
        "accuracy": _accuracy(v, truth),
        "format": 1.0,
        "graded": graded(v, truth),
        "ties": ties(v, truth, credit=tie_credit),
        "ranking": ranking(v, truth),
        "soft": _accuracy(v, truth) if shares is None else soft(shares, truth),
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


class Scores(NamedTuple):
    """Rewards of a batch, all `[Q, G]`. By the paper's rule `total` is in [0, 1]; `accuracy` and `format` are 0 or 1.

    `parts` has each further part of the reward by name, if the rule has any.
    """

    total: np.ndarray  # float32
    accuracy: np.ndarray  # float32
    format: np.ndarray  # float32
    verdict: np.ndarray  # int32, index of the answered label, of a list 0; -1 where there is no valid answer, or it was truncated
    parts: Mapping[str, np.ndarray] = {}


def parts_paid(scores: Scores, rule: Rule) -> np.ndarray:
    """The parts that the rewards are made of, float32 [Q, G, K], in the order of `rule.paid`."""
    every = {"accuracy": scores.accuracy, "format": scores.format, **scores.parts}
    return np.stack([every[name] for name in rule.paid], -1).astype(np.float32)


def score(
    texts: list[list[str]],
    truncated: np.ndarray,
    *,
    tasks: list[str],
    labels: np.ndarray,
    alpha: float | Rule,
    truths: list[str] | None = None,
    tokens: np.ndarray | None = None,
    known: Mapping[str, Task] = TASKS,
    shares: Sequence[Sequence[Sequence[float] | None]] | None = None,
) -> Scores:
    """Rewards of Q times G completions.

    texts: Q lists of G completions, without the end-of-sequence token. truncated: bool [Q, G], True where a completion
    ran out of room before that token. tasks: Q names of `known`. labels: int [Q], the true label indices. alpha: of the paper's
    rule, or a Rule. truths: Q texts of `write_truth`, needed where the answer words differ from example to example; "" for a
    row that was not asked. tokens: int [Q, G], lengths, for the part `overlong`. For the part `consistency` rows 2i and 2i + 1
    of a task of pairs are one pair in its two orders. shares: of each completion's words, for the part `soft`, which takes the
    mean over both orders where it has them (`over_both_orders`).

    Raises ValueError for an unknown task, for shapes that do not agree, for a label index that the task does not have,
    for alpha outside [0, 1], and with its name for a user's reward that fails.
    """
    rule = alpha if isinstance(alpha, Rule) else Rule(alpha)
    check_alpha(rule.alpha)
    _check_shapes(texts, truncated, tasks=tasks, labels=labels)
    shape = truncated.shape
    named = {name: np.zeros(shape, np.float32) for name in rule.weights if name not in ("accuracy", "format")}
    scores = Scores(*(np.zeros(shape, np.float32) for _ in range(3)), np.full(shape, -1, np.int32), named)
    lengths = np.zeros(shape, np.int32) if tokens is None else tokens
    asked = [truths is None or bool(text) for text in truths or tasks]
    read = [
        (read_truth(truths[q]) if truths else _truth_of_label(tasks[q], label, q, known)) if asked[q] else None
        for q, label in enumerate(labels.tolist())
    ]
    pairs = {}
    if "consistency" in rule.weights:
        pairs = _pairs({q: truth.facts.get("example_id") for q, truth in enumerate(read) if truth and truth.kind == "pairwise"})
    rules = [rule.of_task(task) for task in tasks]
    for q, (group, truth) in enumerate(zip(texts, read, strict=True)):
        if truth is None:
            continue
        given = shares and (over_both_orders(shares[q], shares[pairs[q]]) if q in pairs else shares[q])
        for g, text in enumerate(group):
            cut, length = bool(truncated[q, g]), int(lengths[q, g])
            _score_one(scores, (q, g), text, truth, rules[q], cut=cut, length=length, shares=given and given[g])
    _add_consistency(scores, pairs, [own.weights.get("consistency", 0.0) for own in rules])
    return scores


def _pairs(ids: Mapping[int, str | None]) -> dict[int, int]:
    """{row: the row of the other order} of rows that are pairs, given their ids. A pair whose other order could not be shown is
    left out.
    """
    for q, name in ids.items():
        if ids.get(q ^ 1, name) != name:
            raise ValueError(f"rows {q} and {q ^ 1} are {name} and {ids[q ^ 1]}: consistency needs both orders of a pair there")
    return {q: q ^ 1 for q in ids if q ^ 1 in ids}


def _add_consistency(scores: Scores, pairs: Mapping[int, int], weights: Sequence[float]) -> None:
    """Fills the part `consistency` of the rows that are pairs in both orders, once all verdicts are known."""
    said = [[None if v < 0 else v for v in group] for group in scores.verdict.tolist()]
    for q, other in pairs.items():
        part = np.array(consistency(said[q], said[other]), np.float32)
        scores.parts["consistency"][q] = part
        scores.total[q] += np.float32(weights[q]) * part


def _score_one(
    scores: Scores,
    at: tuple[int, int],
    text: str,
    truth: Truth,
    rule: Rule,
    *,
    cut: bool,
    length: int,
    shares: Sequence[float] | None,
) -> None:
    parsed = parse_strict(text, truth.words, ranked=truth.ranked)
    parts = earned_parts(parsed, truth, truncated=cut, tie_credit=rule.tie_credit, shares=shares)
    scores.accuracy[at], scores.format[at] = parts["accuracy"], parts["format"]
    if parsed.verdict is not None and not cut:
        scores.verdict[at] = 0 if truth.ranked else parsed.verdict
    if not rule.weights:
        scores.total[at] = (1.0 - rule.alpha) * parts["accuracy"] + rule.alpha * parts["format"]
        return
    parts |= {"overlong": overlong(length, most=rule.most_tokens, buffer=rule.overlong_buffer), "consistency": 0.0}
    parts |= {name: _call(name, function, truth, text, parsed) for name, function in rule.custom.items()}
    parts |= dict.fromkeys(rule.batch, 0.0)
    for name in scores.parts:
        scores.parts[name][at] = parts[name]
    scores.total[at] = sum(weight * parts[name] for name, weight in rule.weights.items())


def _call(name: str, function: CustomReward, truth: Truth, text: str, parsed: Parsed) -> float:
    try:
        return float(function(truth.facts, text, parsed))
    except Exception as error:  # a function of the user's may raise anything
        where, what = truth.facts.get("example_id", "an example"), f"{type(error).__name__}: {error}"
        raise UserError(f"reward.custom: {name} fails on {where}, {what}; its answer: {text[:80]!r}") from error


def _truth_of_label(name: str, label: int, q: int, known: Mapping[str, Task]) -> Truth:
    task = known[name] if name in known else get_task(name)
    if task.kind in ("pointwise_score", "listwise"):
        raise ValueError(f"task {name!r} is scored by more than a label: give truths")
    if not 0 <= label < len(task.labels):
        raise ValueError(f"labels[{q}] is {label}, must be 0 to {len(task.labels) - 1} for task {name!r}")
    return Truth(task.kind, task.labels, label)


def _check_shapes(texts: list[list[str]], truncated: np.ndarray, *, tasks: list[str], labels: np.ndarray) -> None:
    if truncated.ndim != 2:
        raise ValueError(f"truncated has shape {truncated.shape}, must be [Q, G]")
    prompts, completions = truncated.shape
    if not len(texts) == len(tasks) == len(labels) == prompts:
        raise ValueError(
            f"{len(texts)} lists of texts, {len(tasks)} tasks and {len(labels)} labels for {prompts} prompts: one each"
        )
    for q, group in enumerate(texts):
        if len(group) != completions:
            raise ValueError(f"texts[{q}] has {len(group)} completions, truncated has {completions}: give one each")
