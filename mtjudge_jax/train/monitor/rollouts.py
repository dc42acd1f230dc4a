"""The rollouts of training that are kept to be read (`log.rollouts`): which prompts, and what is said of them."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from mtjudge_jax.data.rows import row_pictures
from mtjudge_jax.data.tokenizer import Tokenizer
from mtjudge_jax.hosts.exchange import gather
from mtjudge_jax.sharding import local_row, local_rows
from mtjudge_jax.tasks.answer import answer_text, read_truth
from mtjudge_jax.tasks.reward import Scores
from mtjudge_jax.train.monitor.metrics_file import as_plain
from mtjudge_jax.train.monitor.shown import write_shown
from mtjudge_jax.train.run import Run, warn
from mtjudge_jax.types import Array, PromptBatch, Rollout

CHOSEN = ("best", "worst", "random")
_PICTURE = "[picture]"
_QUALITY = 90  # of WEBP


class Round(NamedTuple):
    """Q prompts with their answers. Arrays on the host hold this process's rows only."""

    rows: dict[str, np.ndarray]  # the arrays of data/rows.py that stay on the host
    prompts: PromptBatch
    out: Rollout
    texts: list[list[str]]
    scores: Scores


class _Candidate(NamedTuple):
    process: int
    row: int  # of this process's rows
    task: str
    reward: float  # the mean of the group; very low where it is not finite
    key: str  # tells prompts apart, the same on any number of processes


def keep_rollouts(run: Run, step: int, batch: Round, advantages: Array) -> None:
    """Writes the rollouts of this step, if it is one whose rollouts are kept, and shows them in the trackers.

    All processes call. advantages: float32 [Q, G]. The choice and the file are the same on any number of processes.
    """
    log = run.cfg.log
    if not log.rollouts or step % log.rollouts_every:
        return
    me = jax.process_index()
    everyone = [_Candidate(process, *one) for process, own in enumerate(gather(_candidates(batch))) for one in own]
    chosen = [(found, which) for found, which in choose_shown(everyone, log.rollouts, step) if found.process == me]
    told = _tell(run, batch, [(found.row, which) for found, which in chosen], local_rows(advantages, run.model.programs.mesh))
    told = [one for own in gather(told) for one in own]
    if me:
        return
    told.sort(key=lambda one: (one["task"], CHOSEN.index(one["chosen"]), one["example_id"]))
    pictures = {name: base64.b64decode(one["files"][name]) for one in told for name in one["files"]}
    lines = [{"step": step} | {name: value for name, value in one.items() if name != "files"} for one in told]
    try:
        write_shown(run.workdir / "rollouts", step, lines, pictures)
    except OSError as error:
        warn(run, step, f"could not write the rollouts of step {step}: {error}")
        return
    run.trackers.rollouts(step)


def choose_shown(everyone: Sequence[_Candidate], count: int, step: int) -> list[tuple[_Candidate, str]]:
    """Of each task so many prompts with the best mean reward, so many with the worst of the others and so many random ones of
    the rest, each with its word of CHOSEN.
    """
    out = []
    for task in sorted({one.task for one in everyone}):
        left = sorted((one for one in everyone if one.task == task), key=lambda one: (-one.reward, one.key))
        best, left = left[:count], left[count:]
        worst, left = left[max(0, len(left) - count) :], left[: max(0, len(left) - count)]
        drawn = sorted(left, key=lambda one: hashlib.sha256(f"{step} {one.key}".encode()).digest())[:count]
        out += [(one, which) for which, group in zip(CHOSEN, (best, worst, drawn), strict=True) for one in group]
    return out


def _candidates(batch: Round) -> list[tuple[int, str, float, str]]:
    """What _Candidate has beside the process, of this process's rows that could be read."""
    found = []
    for row in np.flatnonzero(batch.rows["weight"] > 0).tolist():
        said = json.dumps([str(batch.rows["truth"][row]), batch.texts[row]]).encode()  # a pair may be there in both orders
        mean = float(batch.scores.total[row].mean())
        key = f"{batch.rows['example_id'][row]} {hashlib.sha256(said).hexdigest()}"
        found.append((row, str(batch.rows["task"][row]), mean if math.isfinite(mean) else -1e30, key))
    return found


def _tell(run: Run, batch: Round, chosen: list[tuple[int, str]], advantages: np.ndarray) -> list[dict]:
    """A line for each chosen row, with its pictures as base64 by file name in `files`."""
    mesh, tokenizer = run.model.programs.mesh, run.model.fmt.tokenizer
    lengths, cut = local_rows(batch.out.mask, mesh).sum(-1), local_rows(batch.out.truncated, mesh)
    parts = {"accuracy": batch.scores.accuracy, "format": batch.scores.format, **batch.scores.parts}
    told = []
    for row, which in chosen:
        prompt = {name: local_row(x, row)[None] for name, x in batch.prompts._asdict().items() if x is not None}
        truth = read_truth(str(batch.rows["truth"][row]))
        answers = [
            {
                "text": text, "reward": batch.scores.total[row, g], "parts": {name: part[row, g] for name, part in parts.items()},
                "advantage": advantages[row, g], "tokens": lengths[row, g], "truncated": cut[row, g].item(),
            }
            for g, text in enumerate(batch.texts[row])
        ]  # fmt: skip
        files = {}
        for picture in row_pictures(prompt, 0, fmt=run.model.fmt):
            files |= _as_file(picture)
        line = {"task": str(batch.rows["task"][row]), "chosen": which, "example_id": str(batch.rows["example_id"][row])}
        line |= {"question": question_asked(prompt["tokens"][0][prompt["valid"][0]].tolist(), tokenizer)}
        line |= {"label": answer_text(truth), "answers": answers, "pictures": list(files), "files": files}
        told.append(as_plain(line))
    return told


def _as_file(picture: np.ndarray) -> dict[str, str]:
    """{name of its content: WEBP in base64} of a picture uint8 [h, w, 3]."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=_QUALITY, method=4)
    content = file.getvalue()
    return {f"{hashlib.sha256(content).hexdigest()[:20]}.webp": base64.b64encode(content).decode()}


def question_asked(tokens: list[int], tokenizer: Tokenizer) -> str:
    """What a prompt says within its user turn, with [picture] in the place of each picture. tokens: without padding."""
    short = [token for at, token in enumerate(tokens) if token != tokenizer.image or tokens[at - 1] != tokenizer.image]
    before, after = (tokenizer.decode(tokenizer.encode(text)) for text in tokenizer.render_parts(["\n?\n"]).split("\n?\n", 1))
    slot = tokenizer.decode([tokenizer.vision_start, tokenizer.image, tokenizer.vision_end])
    text = tokenizer.decode(short).replace(slot, f"{_PICTURE}\n")
    return text.removeprefix(before).removesuffix(after).strip()
