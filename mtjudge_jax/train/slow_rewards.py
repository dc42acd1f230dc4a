"""`reward.batch` in a run: asks the user's functions about the answers of a rollout, and counts what failed."""

from collections.abc import Mapping
from functools import partial

import jax
import numpy as np

from mtjudge_jax import checkpoint
from mtjudge_jax.data.rows import row_pictures
from mtjudge_jax.errors import UserError
from mtjudge_jax.hosts.exchange import gather
from mtjudge_jax.paths import as_path
from mtjudge_jax.rl.reward_rule import load_function
from mtjudge_jax.tasks.batch_reward import HowAsked, Paid, forget, pay
from mtjudge_jax.tasks.reward import Rule, Scores
from mtjudge_jax.train.run import Run, warn


class SlowRewards:
    """Makes no difference where a config has no `reward.batch`. Raises UserError for a function that cannot be loaded."""

    def __init__(self, run: Run, rule: Rule):
        reward = run.cfg.reward
        self._run, self._weights = run, rule.weights
        self._functions = {name: load_function(name, "reward.batch") for name in rule.batch}
        self._folder = as_path(run.workdir) / "rewards"
        how = (reward.batch_answers, reward.batch_threads, reward.batch_timeout, reward.batch_retries, reward.batch_max_failed)
        self._how, self._failed, self._asked = HowAsked(*how), 0, 0

    def add(self, scores: Scores, texts: list[list[str]], rows: Mapping[str, np.ndarray], step: int) -> Scores:
        """scores and texts of this process's rows, with the parts that the functions pay. Every process calls.

        step: that the answers are learned from. Raises UserError where more than reward.batch_max_failed of the step's answers
        have a reward that failed.
        """
        if not self._functions:
            return scores
        paid = Paid(self._folder, step, jax.process_index())
        images = partial(row_pictures, rows, fmt=self._run.model.fmt)
        given = {"functions": self._functions, "weights": self._weights, "how": self._how, "paid": paid, "images": images}
        scores, failed = pay(scores, texts, truths=rows["truth"].tolist(), **given)
        counts = np.sum(gather([failed, sum(map(len, texts))]), axis=0)
        self._failed, self._asked = self._failed + int(counts[0]), self._asked + int(counts[1])
        share = self._failed / max(1, self._asked)
        if share > self._how.most_failed:
            raise UserError(
                f"reward.batch: {share:.0%} of the answers of step {step} have a reward that failed, more than "
                f"reward.batch_max_failed = {self._how.most_failed:.0%}: see that the functions' server answers, then run the "
                "same command again, which asks for what is missing"
            )
        return scores

    def numbers(self, step: int) -> dict:
        """The share of the step's answers whose reward failed, for metrics.jsonl; begins the next step's count."""
        if not self._functions:
            return {}
        share, self._failed, self._asked = self._failed / max(1, self._asked), 0, 0
        if share:
            warn(self._run, step, f"step {step}: {share:.1%} of the answers have a reward that failed; it is left out")
        if jax.process_index() == 0 and (kept := checkpoint.complete_steps(as_path(self._run.workdir) / "checkpoints")):
            forget(self._folder, kept[0])
        return {"reward_failed": share}
