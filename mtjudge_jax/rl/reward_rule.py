"""The reward rule that a config asks for, with the user's own functions loaded."""

import importlib
from collections.abc import Callable

from mtjudge_jax.config import Config
from mtjudge_jax.config_check import task_settings
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.tasks.reward import OwnRule, Rule, weights_of


def rule_of(cfg: Config) -> Rule:
    """The reward rule of a config, with the user's functions loaded. Raises ConfigError if one cannot be loaded."""
    try:
        custom = {name: load_function(name, "reward.custom") for name in cfg.reward.custom}
        weights = weights_of(cfg.reward.weights, (*cfg.reward.custom, *cfg.reward.batch), cfg.reward.alpha)
    except UserError as error:
        raise ConfigError(str(error)) from error
    most, own = cfg.rollout.completion_tokens, task_settings(cfg)
    overlong = {"most_tokens": most, "overlong_buffer": cfg.reward.overlong_buffer}
    rule = Rule(cfg.reward.alpha, weights, cfg.reward.tie_credit, **overlong, custom=custom, batch=cfg.reward.batch)
    changed = {name: OwnRule(one.weights, one.completion_tokens) for name, one in own.items()}
    return rule._replace(weights=rule.paid if own and not weights else rule.weights, own=changed)


def load_function(name: str, field: str) -> Callable:
    """Imports the callable that `module:function` names in a field. Raises UserError if there is none."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UserError(f"{field}: {name!r} is not of the form module:function")
    try:
        found = vars(importlib.import_module(module)).get(function)
    except Exception as error:  # a module of the user's may raise anything
        raise UserError(f"{field}: {name!r}: importing {module} fails, {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(f"{field}: module {module} has no function {function!r}")
    return found
