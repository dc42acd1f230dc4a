"""Runs whose disk is full where the best model is written, for test_run.py (see commands.py)."""

import errno
import hashlib
import json
from pathlib import Path
from unittest import mock

import drills

from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.policy.judge_file import JUDGE_FILE


def late_best(*, folder: str, data: str) -> dict:
    """Three steps, the model before the first is the best: written at once, and at the third try."""
    from mtjudge_jax.policy.model import open_model
    from mtjudge_jax.train import grpo

    # A learning rate of almost nothing: no step makes the model better.
    cfg = drills.config(steps=3, data__path=data, eval__every_steps=3, checkpoint__every_steps=1, optim__lr=1e-12)
    model = open_model(cfg)
    with drills.one_update(grpo):
        return {name: train(cfg, Path(folder) / name, model, refused) for name, refused in (("whole", 0), ("late", 2))}


def train(cfg, workdir: Path, model, refused: int) -> dict:
    """`refused`: how many writings of a best model find no room. `saved` of the facts: step, best and since_best as saved."""
    from mtjudge_jax import checkpoint
    from mtjudge_jax.train.fit import fit

    lines, written, saved, left = [], [], [], iter(range(refused))
    save = checkpoint.save

    def write(*arguments, files, **more):
        if next(left, None) is not None:
            written.append("no")
            raise OSError(errno.ENOSPC, "full")
        save_hf(*arguments, files=files, **more)
        written.append(json.loads(files[JUDGE_FILE])["step"])

    def noted(checkpoints, step, **what):
        saved.append([step, what["meta"]["best"], what["meta"]["since_best"]])
        return save(checkpoints, step, **what)

    writing = mock.patch("mtjudge_jax.train.best_model.save_hf", write)
    with drills.said_lines(lines), writing, mock.patch.object(checkpoint, "save", noted):
        fit(cfg, workdir, model)
    ending = drills.ending(workdir)
    ending["metrics"] = [line for line in ending["metrics"] if line["kind"] != "warning"]
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((workdir / "best").iterdir())}
    said = [line for line in lines if "best model" in line]
    return {"written": written, "said": said, "files": files, "saved": saved, "ending": ending}
