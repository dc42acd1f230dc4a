"""From completions to rewards, on the host."""

import importlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mtjudge_jax.config import Config
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.tasks import TASKS, Task, get_task
from mtjudge_jax.tasks.parse import Parsed, parse_strict
from mtjudge_jax.tasks.reward import CustomReward, Rule, check_alpha, consistency, earned_parts, overlong, weights_of
from mtjudge_jax.tasks.truth import Truth, read_truth


class Scores(NamedTuple):
    """Rewards of a batch, all `[Q, G]`. By the paper's rule `total` is in [0, 1]; `accuracy` and `format` are 0 or 1.

    `parts` has each further part of the reward by name, if the rule has any.
    """

    total: np.ndarray  # float32
    accuracy: np.ndarray  # float32
    format: np.ndarray  # float32
    verdict: np.ndarray  # int32, index of the answered label, of a list 0; -1 where there is no valid answer, or it was truncated
    parts: Mapping[str, np.ndarray] = {}


def rule_of(cfg: Config) -> Rule:
    """The reward rule of a config, with the user's functions loaded. Raises ConfigError if one cannot be loaded."""
    try:
        custom = {name: load_custom(name) for name in cfg.reward.custom}
        weights = weights_of(cfg.reward.weights, cfg.reward.custom, cfg.reward.alpha)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    most = cfg.rollout.completion_tokens
    return Rule(cfg.reward.alpha, weights, cfg.reward.tie_credit, most, cfg.reward.overlong_buffer, custom)


def load_custom(name: str) -> CustomReward:
    """Imports the callable that `module:function` names. Raises UserError if there is none."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UserError(f"reward.custom: {name!r} is not of the form module:function")
    try:
        found = vars(importlib.import_module(module)).get(function)
    except Exception as error:  # a module of the user's may raise anything
        raise UserError(f"reward.custom: {name!r}: importing {module} fails, {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"reward.custom: module {module} has no function {function!r}")
    return found


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
) -> Scores:
    """Rewards of Q times G completions.

    texts: Q lists of G completions, without the end-of-sequence token. truncated: bool [Q, G], True where a completion
    ran out of room before that token. tasks: Q names of `known`. labels: int [Q], the true label indices. alpha: of the paper's
    rule, or a Rule. truths: Q texts of `write_truth`, needed where the answer words differ from example to example; "" for a
    row that was not asked. tokens: int [Q, G], lengths, for the part `overlong`. For the part `consistency` rows 2i and 2i + 1
    of a task of pairs are one pair in its two orders.

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
    pairs = {}
    for q, (group, name, label) in enumerate(zip(texts, tasks, labels.tolist(), strict=True)):
        if truths is not None and not truths[q]:  # it was not asked
            continue
        truth = read_truth(truths[q]) if truths else _truth_of_label(name, label, q, known)
        for g, text in enumerate(group):
            _score_one(scores, (q, g), text, truth, rule, cut=bool(truncated[q, g]), length=int(lengths[q, g]))
        if truth.kind == "pairwise":
            pairs[q] = truth.facts.get("example_id")
    if "consistency" in rule.weights:
        _add_consistency(scores, pairs, rule.weights["consistency"])
    return scores


def _add_consistency(scores: Scores, pairs: Mapping[int, str | None], weight: float) -> None:
    """Fills the part `consistency` of the rows that are pairs, by row their ids, once all verdicts are known.

    Where the other order could not be shown there is nothing to agree with.
    """
    said = [[None if v < 0 else v for v in group] for group in scores.verdict.tolist()]
    for q, name in pairs.items():
        other = q ^ 1
        if other not in pairs:
            continue
        if pairs[other] != name:
            raise ValueError(f"rows {q} and {other} are {name} and {pairs[other]}: consistency needs both orders of a pair there")
        part = np.array(consistency(said[q], said[other]), np.float32)
        scores.parts["consistency"][q] = part
        scores.total[q] += np.float32(weight) * part


def _score_one(scores: Scores, at: tuple[int, int], text: str, truth: Truth, rule: Rule, *, cut: bool, length: int) -> None:
    parsed = parse_strict(text, truth.words, ranked=truth.ranked)
    parts = earned_parts(parsed, truth, truncated=cut, tie_credit=rule.tie_credit)
    scores.accuracy[at], scores.format[at] = parts["accuracy"], parts["format"]
    if parsed.verdict is not None and not cut:
        scores.verdict[at] = 0 if truth.ranked else parsed.verdict
    if not rule.weights:
        scores.total[at] = (1.0 - rule.alpha) * parts["accuracy"] + rule.alpha * parts["format"]
        return
    parts |= {"overlong": overlong(length, most=rule.most_tokens, buffer=rule.overlong_buffer), "consistency": 0.0}
    parts |= {name: _call(name, function, truth, text, parsed) for name, function in rule.custom.items()}
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
