"""The rollouts of training on the page: groups of answers with what each of them earned, from the files that the run keeps."""

import math
from typing import NamedTuple

from mtjudge_jax.paths import AnyPath
from mtjudge_jax.report.examples import thumbnail
from mtjudge_jax.report.read import RunFolder, read_lines
from mtjudge_jax.tasks.base import without_contract

MOST_GROUPS = 72  # on the page: of many steps those that are spread evenly, the first and the last among them
_MAX_ANSWER = 1500  # characters of an answer that the page keeps


class RolloutAnswer(NamedTuple):
    """One answer. A number is None where it was not finite."""

    text: str
    reward: float | None
    parts: dict[str, float | None]
    advantage: float | None
    tokens: int
    truncated: bool


class RolloutGroup(NamedTuple):
    """A prompt with all its answers. `pictures` are data URIs, "" for one that cannot be read."""

    key: str  # the example's id
    step: int
    task: str
    chosen: str  # best | worst | random
    question: str
    asked: str  # the question with what it says about the form of the answer
    label: str
    mean: float | None
    pictures: list[str]
    answers: list[RolloutAnswer]


def rollout_groups(run: RunFolder) -> list[RolloutGroup]:
    """The groups of the newest step first; [] for a run that keeps none. Adds to `run.problems` what could not be read."""
    folder = run.workdir / "rollouts"
    files = sorted(folder.glob("step_*.jsonl")) if folder.is_dir() else []
    if not files:
        return []
    newest = read_lines(files[-1], run.problems)
    files = _spread(files, max(2, MOST_GROUPS // max(1, len(newest))))
    lines = [line for path in reversed(files) for line in (newest if path == files[-1] else read_lines(path, run.problems))]
    groups, bad = [], 0
    for line in lines:
        try:
            groups.append(_group(line, folder / "pictures"))
        except (KeyError, TypeError, ValueError):
            bad += 1
    if bad:
        run.problems.append(f"rollouts/: {bad} of {len(lines)} groups could not be read and were skipped.")
    return groups


def _spread(files: list[AnyPath], most: int) -> list[AnyPath]:
    """So many of the files, in order, with the first and the last. 5 files and 3 -> the first, the third, the fifth."""
    if len(files) <= most:
        return files
    return [files[round(place * (len(files) - 1) / (most - 1))] for place in range(most)]


def _group(line: dict, pictures: AnyPath) -> RolloutGroup:
    answers = [_answer(a) for a in line["answers"]]
    rewards = [a.reward for a in answers]
    mean = sum(rewards) / len(rewards) if rewards and None not in rewards else None
    asked = str(line["question"])
    short = without_contract(asked).removeprefix("[picture]\n" if asked.count("[picture]") == 1 else "").strip()
    return RolloutGroup(
        str(line["example_id"]), int(line["step"]), str(line["task"]), str(line["chosen"]), short,
        asked, str(line["label"]), mean, [_picture(pictures / str(name)) for name in line["pictures"]], answers,
    )  # fmt: skip


def _answer(a: dict) -> RolloutAnswer:
    text = str(a["text"])
    text = text if len(text) <= _MAX_ANSWER else f"{text[:_MAX_ANSWER]} … ({len(text):,} characters in total)"
    parts = {str(name): _finite(value) for name, value in a["parts"].items()}
    return RolloutAnswer(text, _finite(a["reward"]), parts, _finite(a["advantage"]), int(a["tokens"]), bool(a["truncated"]))


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _picture(path: AnyPath) -> str:
    if path.parent.name != "pictures":  # a name that leads elsewhere
        return ""
    try:
        return thumbnail(path.read_bytes())
    except OSError:
        return ""
