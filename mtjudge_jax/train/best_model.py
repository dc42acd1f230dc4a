"""The best model of a run, as a Hugging Face folder in its workdir, or in memory while it cannot be written.

A checkpoint is no substitute for the copy in memory: only the newest `checkpoint.keep` steps are kept, so that the best step is
soon deleted, and on a full disk it may not have been saved at all. So the trained weights are held on the host and written at
the first checkpoint that finds room. Until then the checkpoints hold the score of the best model that is on disk: a run that is
killed meanwhile looks for a better one than that.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from mtjudge_jax.data.folder_files import settled
from mtjudge_jax.data.image_config import exported_limits
from mtjudge_jax.hosts.exchange import AnotherProcess, together
from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.policy.judge_file import JUDGE_FILE, judge_file
from mtjudge_jax.policy.model import exportable
from mtjudge_jax.policy.trainable import join
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.run import Progress, Run, Unwritten, warn
from mtjudge_jax.train.workdir import wording_hashes
from mtjudge_jax.types import Params


class _HostCopy(NamedTuple):
    """A copy on the host of this process's parts of an array."""

    shape: tuple[int, ...]
    sharding: jax.sharding.Sharding
    parts: list[tuple[Any, np.ndarray]]  # device, the part on it


def write_best(run: Run, progress: Progress, mean: float) -> Progress:
    """Writes the model of this step, which is the best so far with a mean macro-F1 of `mean`, or keeps it in memory."""
    before = progress.best if progress.unwritten is None else progress.unwritten.before
    progress = progress._replace(best=mean, since_best=0, unwritten=None)
    if problem := _write(run, progress.params, progress.step):
        warn(run, progress.step, _warning(progress.step, problem))
        trained = jax.tree.map(_to_host, progress.state.params)
        return progress._replace(unwritten=Unwritten(progress.step, before, trained))
    return progress


def write_unwritten(run: Run, progress: Progress) -> Progress:
    """Tries again to write the best model, if it is still in memory."""
    if (held := progress.unwritten) is None:
        return progress
    trained = jax.tree.map(_to_devices, held.trained, is_leaf=lambda x: isinstance(x, _HostCopy))
    if problem := _write(run, join(progress.frozen, trained), held.step):
        warn(run, progress.step, _warning(held.step, problem))
        return progress
    say(f"the best model (step {held.step}) is written now")
    return progress._replace(unwritten=None)


def _write(run: Run, params: Params, step: int) -> str:
    """Returns the reason that the model could not be written, or "". The answer is the same on every process."""
    run.watch.beat(f"step {step} best model")
    pixels = exported_limits(run.model.fmt.image_cfg, run.cfg.data.patches)
    judge = {JUDGE_FILE: judge_file(run.cfg, step, wording_hashes(run.cfg), pixels)}
    how = {"source_folder": run.model.folder, "dtype": run.cfg.model.dtype, "overwrite": True}
    try:
        with together():
            how["files"] = settled(run.model.folder, run.model.fmt.tokenizer, pixels) | judge
        save_hf(exportable(params, run.model), run.workdir / "best", **how)
    except FileExistsError:  # the folder of somebody else: a retry would not help
        raise
    except (OSError, AnotherProcess) as error:  # the previous best model is still whole
        return str(error)
    return ""


def _warning(step: int, problem: str) -> str:
    return f"could not write the best model (step {step}), retrying at the next checkpoint: {problem}"


def _to_host(leaf: jax.Array) -> _HostCopy:
    """Copies an array to the host, because the next step donates it."""
    return _HostCopy(leaf.shape, leaf.sharding, [(shard.device, np.array(shard.data)) for shard in leaf.addressable_shards])


def _to_devices(copy: _HostCopy) -> jax.Array:
    parts = [jax.device_put(data, device) for device, data in copy.parts]
    return jax.make_array_from_single_device_arrays(copy.shape, copy.sharding, parts)
