"""Steps whose update was not finite: which examples are named, and what is kept of their batch."""

import contextlib
import json
import math
from typing import NamedTuple

import jax
import numpy as np

from mtjudge_jax.errors import UserError
from mtjudge_jax.hosts.exchange import gather
from mtjudge_jax.paths import AnyPath, write_whole
from mtjudge_jax.sharding import local_rows
from mtjudge_jax.tasks.reward import Scores
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.run import Progress, Run
from mtjudge_jax.types import TrainBatch

MOST_FILES = 50  # a run that skips every third step must not fill the disk


class NonFiniteUpdate(UserError):
    """Too many updates in a row were not finite; the saved state is that of the last good update."""


def suspects(rows: dict, scores: Scores, logps: dict[str, np.ndarray], mask: np.ndarray) -> list[str]:
    """`example_id (task)` of the prompts with a number that is not finite; of all prompts if only the gradient was not.

    logps: named log-probabilities [Q, G, C]; mask bool [Q, G, C].
    """
    bad = ~np.isfinite(scores.total).all(-1)
    for logp in logps.values():
        bad |= ~np.isfinite(np.where(mask, logp, 0)).all((1, 2))
    chosen = bad if bad.any() else np.ones(len(bad), bool)
    return [f"{rows['example_id'][i]} ({rows['task'][i]})" for i in np.flatnonzero(chosen)]


def dump_batch(
    path: AnyPath, rows: dict, texts: list[list[str]], scores: Scores, logps: dict[str, np.ndarray], mask: np.ndarray
) -> bool:
    """Writes one line of JSON per prompt: its id, task and label, and each answer with its rewards and summed log-probabilities.

    A number that is not finite becomes its name in quotes. Returns False if the folder already holds enough files.
    """
    if path.parent.is_dir() and sum(1 for _ in path.parent.iterdir()) >= MOST_FILES:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    sums = {name: np.where(mask, logp, 0).sum(-1) for name, logp in logps.items()}
    lines = []
    for q, group in enumerate(texts):
        answers = [
            {"text": text, "reward": _number(scores.total[q, g]), "accuracy": _number(scores.accuracy[q, g])}
            | {"tokens": int(mask[q, g].sum())}
            | {name: _number(value[q, g]) for name, value in sums.items()}
            for g, text in enumerate(group)
        ]
        known = {"example_id": str(rows["example_id"][q]), "task": str(rows["task"][q]), "label": int(rows["label"][q])}
        lines.append(json.dumps(known | {"answers": answers}))
    write_whole(path, ("\n".join(lines) + "\n").encode())
    return True


def _number(x) -> float | str:
    return float(x) if math.isfinite(x) else str(float(x))


def skipped_line(step: int, names: list[str], in_a_row: int, most: int, where: AnyPath | None) -> str:
    """The line to print for a skipped step."""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    kept = f"; its batch is in {where}" if where else ""
    return (
        f"step {step}: the loss, a gradient or a reward is not finite; the update was skipped and changed nothing "
        f"({in_a_row} in a row, the run stops at {most}); examples: {shown}{kept}"
    )


class Evidence(NamedTuple):
    """This process's answers of a step, and the batch made from them."""

    texts: list[list[str]]
    scores: Scores
    batch: TrainBatch


def note_skipped(run: Run, progress: Progress, skipped: int, rows: dict, evidence: Evidence | None = None) -> Progress:
    """Counts a step with an update that was not finite, names its examples and writes its batch to skipped/. `progress` has the
    state after the step, `skipped` is the number of its updates that were not applied.
    """
    if not skipped:
        return progress._replace(skipped=0)
    progress, step = progress._replace(skipped=progress.skipped + 1), progress.step + 1
    names, where = [f"{name} ({task})" for name, task in zip(rows["example_id"], rows["task"], strict=True)], None
    if evidence is not None:
        mesh, batch = run.model.programs.mesh, evidence.batch
        logps = {"old_logp": local_rows(batch.old_logp, mesh), "ref_logp": local_rows(batch.ref_logp, mesh)}
        mask = local_rows(batch.mask, mesh)
        names = suspects(rows, evidence.scores, logps, mask)
        path = run.workdir / "skipped" / f"step_{step:06d}.host_{jax.process_index()}.jsonl"
        with contextlib.suppress(OSError):  # a full disk costs only this file
            where = path.parent if dump_batch(path, rows, evidence.texts, evidence.scores, logps, mask) else None
    everyone = [name for some in gather(names) for name in some]
    say(skipped_line(step, everyone, progress.skipped, run.cfg.update.max_skipped, where))
    return progress
