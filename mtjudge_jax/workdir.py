"""A workdir belongs to one run: what must be the same when it is started again, and what may change."""

import hashlib
import json

from mtjudge_jax.config import Config, ConfigError, differences, to_dict
from mtjudge_jax.data.sources import fingerprint
from mtjudge_jax.digest import digests
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.types import Params

# A resumed run may differ in these; they change where and how fast it computes, not what.
FREE_TO_CHANGE = (
    "mesh.", "checkpoint.", "model.remat", "model.attention", "model.experts", "model.head_chunk", "update.micro_prompts"
)  # fmt: skip


def data_folder(cfg: Config, workdir: AnyPath) -> AnyPath:
    return as_path(cfg.data.path) if cfg.data.path else workdir / "data"


def refuse_other_config(cfg: Config, path: AnyPath) -> None:
    """A workdir belongs to one config: that of the run in it. Raises ConfigError with the difference."""
    if not path.exists():
        return
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): put it back, or take another --workdir") from error
    changed = [line for line in differences(stored, to_dict(cfg)) if not line.startswith(FREE_TO_CHANGE)]
    if changed:
        raise ConfigError(
            f"{path.parent} holds a run of another config: {'; '.join(changed)}. Take another --workdir, or undo the change"
        )


def sources_of(cfg: Config, workdir: AnyPath, base: Params) -> dict[str, str]:
    """What a run is made of beside its config, as hashes: kept in its checkpoints and compared when it goes on."""
    folder, validation = data_folder(cfg, workdir), cfg.eval.tasks or cfg.data.tasks
    return {
        "training data": fingerprint(folder, tasks=cfg.data.tasks, split="train"),
        "validation data": fingerprint(folder, tasks=validation, split="val"),
        "starting model": weights_hash(base),
    } | {f"wording of {name}": wording for name, wording in templates(cfg).items()}


def weights_hash(base: Params) -> str:
    """Of the starting model as it was read, the same on every mesh."""
    return hashlib.sha256(json.dumps(digests(base), sort_keys=True).encode()).hexdigest()[:16]


def refuse_other_sources(workdir: AnyPath, sources: dict[str, str], meta: dict) -> None:
    """Raises ConfigError where something is not what the checkpoint of this `meta` was made with."""
    if changed := [name for name in sources if sources[name] != meta["sources"][name]]:
        raise ConfigError(
            f"{', '.join(changed)}: not what the checkpoints of {workdir} were made with: put back what was there, or take "
            "another --workdir"
        )


def templates(cfg: Config) -> dict[str, str]:
    """What the tasks' questions were worded like, by hash."""
    return {name: TASKS[name].template_hash for name in cfg.data.tasks}
