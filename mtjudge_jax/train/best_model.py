"""The best model of a run, as a Hugging Face folder in its workdir; kept in memory for as long as it cannot be written."""

from typing import Any, NamedTuple

import jax
import numpy as np

from mtjudge_jax.hosts.exchange import AnotherProcess
from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.policy.judge_file import JUDGE_FILE, judge_file
from mtjudge_jax.policy.model import exportable
from mtjudge_jax.policy.trainable import join
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.run import Progress, Run, Unwritten, warn
from mtjudge_jax.train.workdir import templates
from mtjudge_jax.types import Params


class _Parts(NamedTuple):
    """This process's parts of an array, on the host."""

    shape: tuple[int, ...]
    sharding: jax.sharding.Sharding
    parts: list[tuple[Any, np.ndarray]]  # device, what is on it


def write_best(run: Run, progress: Progress, mean: float) -> Progress:
    """Writes the model of this step, which a validation found to be the best, with mean macro-F1 `mean`."""
    before = progress.best if progress.unwritten is None else progress.unwritten.before
    progress = progress._replace(best=mean, since_best=0, unwritten=None)
    if problem := _write(run, progress.params, progress.step):
        warn(run, progress.step, _told(progress.step, problem))
        trained = jax.tree.map(_take, progress.state.params)
        return progress._replace(unwritten=Unwritten(progress.step, before, trained))
    return progress


def write_unwritten(run: Run, progress: Progress) -> Progress:
    """Tries again what could not be written, if there is such a model."""
    if (held := progress.unwritten) is None:
        return progress
    trained = jax.tree.map(_put, held.trained, is_leaf=lambda x: isinstance(x, _Parts))
    if problem := _write(run, join(progress.frozen, trained), held.step):
        warn(run, progress.step, _told(held.step, problem))
        return progress
    say(f"the best model, of step {held.step}, is written now")
    return progress._replace(unwritten=None)


def _write(run: Run, params: Params, step: int) -> str:
    """Why it could not be written, "" where it is. The same on every process."""
    run.watch.beat(f"step {step} best model")
    files = {JUDGE_FILE: judge_file(run.cfg, step, templates(run.cfg))}
    how = {"source_folder": run.model.folder, "dtype": run.cfg.model.dtype, "overwrite": True, "files": files}
    try:
        save_hf(exportable(params, run.model), run.workdir / "best", **how)
    except FileExistsError:  # somebody else's folder: no later try would be better
        raise
    except (OSError, AnotherProcess) as error:  # the older best is whole
        return str(error)
    return ""


def _told(step: int, problem: str) -> str:
    return f"the best model, of step {step}, was not written, and is tried again at the next checkpoint: {problem}"


def _take(leaf: jax.Array) -> _Parts:
    """A copy on the host: the array itself is donated to the next step."""
    return _Parts(leaf.shape, leaf.sharding, [(shard.device, np.array(shard.data)) for shard in leaf.addressable_shards])


def _put(taken: _Parts) -> jax.Array:
    parts = [jax.device_put(data, device) for device, data in taken.parts]
    return jax.make_array_from_single_device_arrays(taken.shape, taken.sharding, parts)
