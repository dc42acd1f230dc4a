"""A workdir belongs to one run: what must be the same when it is started again and on all its hosts, and what may change."""

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path

import jax

from mtjudge_jax.checkpoint.digest import digests
from mtjudge_jax.config import Config, differences, flatten, get_tasks, to_dict
from mtjudge_jax.data.sources import fingerprint
from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.types import Params

# A resumed run may differ in these; they change where and how fast it computes, not what.
FREE_TO_CHANGE = (
    "mesh.", "checkpoint.", "hosts.", "model.remat", "model.attention", "model.experts", "model.head_chunk",
    "update.micro_prompts", "rollout.micro_prompts", "update.max_skipped",
)  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "numpy", "pillow")


def data_folder(cfg: Config, workdir: AnyPath) -> AnyPath:
    return as_path(cfg.data.path) if cfg.data.path else workdir / "data"


def refuse_other_config(cfg: Config, path: AnyPath, allowed: tuple[str, ...] = ()) -> list[str]:
    """A workdir belongs to one config: that of the run in it. Returns the differences that are allowed by name; raises
    ConfigError with the others.
    """
    if not path.exists():
        return []
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): put it back, or take another --workdir") from error
    changed = [line for line in differences(stored, to_dict(cfg)) if not line.startswith(FREE_TO_CHANGE)]
    refused = [line for line in changed if line.partition(":")[0] not in allowed]
    if refused:
        names = ",".join(line.partition(":")[0] for line in refused)
        raise ConfigError(
            f"{path.parent} holds a run of another config: {'; '.join(refused)}. Take another --workdir, undo the change, or go "
            f"on with it by --allow_change={names}"
        )
    return changed


def check_allowed(cfg: Config, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError for a name in --allow_change that is neither a field of the config nor one of a run's sources."""
    known = [*flatten(cfg), *(source_name(name) for name in source_labels(cfg))]
    for name in allowed:
        if name not in known:
            raise ConfigError(f"--allow_change: {unknown('name', name, known)}")


def source_labels(cfg: Config) -> list[str]:
    return ["training data", "validation data", "starting model", *(f"wording of {name}" for name in cfg.data.tasks)]


def source_name(label: str) -> str:
    """How a flag calls it: `training_data`."""
    return label.replace(" ", "_")


def facts_of_host(cfg: Config, workdir: AnyPath) -> dict[str, str]:
    """What must be the same on all hosts before the first step: code, versions, config, data."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return (
        {"code": code_hash(), "python": platform.python_version(), "device": jax.devices()[0].device_kind}
        | packages
        | data_fingerprints(cfg, workdir)
        | {name: str(value) for name, value in flatten(cfg).items()}
    )


def code_hash() -> str:
    """Of this package's own files."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def data_fingerprints(cfg: Config, workdir: AnyPath) -> dict[str, str]:
    folder, validation = data_folder(cfg, workdir), cfg.eval.tasks or cfg.data.tasks
    return {
        "training data": fingerprint(folder, tasks=cfg.data.tasks, split="train"),
        "validation data": fingerprint(folder, tasks=validation, split="val"),
    }


def sources_of(cfg: Config, workdir: AnyPath, base: Params) -> dict[str, str]:
    """What a run is made of beside its config, as hashes: kept in its checkpoints and compared when it goes on."""
    wordings = {f"wording of {name}": wording for name, wording in templates(cfg).items()}
    return data_fingerprints(cfg, workdir) | {"starting model": weights_hash(base)} | wordings


def weights_hash(base: Params) -> str:
    """Of the starting model as it was read, the same on every mesh."""
    return hashlib.sha256(json.dumps(digests(base), sort_keys=True).encode()).hexdigest()[:16]


def refuse_other_sources(workdir: AnyPath, sources: dict[str, str], meta: dict, *, allowed: tuple[str, ...] = ()) -> None:
    """Raises ConfigError where something is not what the checkpoint of this `meta` was made with."""
    before = meta["sources"]
    if {"model.dtype", "model.param_dtype"} & set(allowed):
        allowed = (*allowed, "starting_model")  # its hash is of the numbers as they were read
    changed = [name for name in sources if sources[name] != before.get(name) and source_name(name) not in allowed]
    if changed:
        shown = ", ".join(f"{name} ({before.get(name, 'none')} -> {sources[name]})" for name in changed)
        raise ConfigError(
            f"{shown}: not what the checkpoints of {workdir} were made with: put back what was there, take another --workdir, or "
            f"go on with it by --allow_change={','.join(map(source_name, changed))}"
        )


def templates(cfg: Config) -> dict[str, str]:
    """What the tasks' questions were worded like, by hash."""
    tasks = get_tasks(cfg)
    return {name: tasks[name].template_hash for name in cfg.data.tasks}
