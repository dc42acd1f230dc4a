"""A workdir belongs to one run: what must stay the same when it is started again and on all its hosts, and what may change."""

import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path

import jax

from mtjudge_jax.checkpoint.digest import digests
from mtjudge_jax.config import Config, differences, flatten, get_tasks, to_dict, with_defaults
from mtjudge_jax.data.pipeline import fingerprint
from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.types import Params

# A resumed run may differ in these: they change where and how fast it computes and what shows it, not what it computes.
_FREE_TO_CHANGE = (
    "mesh.", "checkpoint.", "hosts.", "log.", "model.remat", "model.attention", "model.experts", "model.head_chunk",
    "update.micro_prompts", "rollout.micro_prompts", "rollout.gather_weights", "update.max_skipped",
)  # fmt: skip
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "tokenizers", "numpy", "pillow")


def data_folder(cfg: Config, workdir: AnyPath) -> AnyPath:
    return as_path(cfg.data.path) if cfg.data.path else workdir / "data"


def refuse_other_config(cfg: Config, path: AnyPath, allowed: tuple[str, ...] = ()) -> list[str]:
    """Compares `cfg` with the config of the run in the workdir, stored at `path`. Returns the differences that are allowed by
    name, and raises ConfigError for the others.
    """
    if not path.exists():
        return []
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): put a copy of it back, or choose another --workdir") from error
    changed = [line for line in differences(with_defaults(stored), to_dict(cfg)) if not line.startswith(_FREE_TO_CHANGE)]
    refused = [line for line in changed if line.partition(":")[0] not in allowed]
    if refused:
        names = ",".join(dict.fromkeys([*allowed, *(line.partition(":")[0] for line in refused)]))
        raise ConfigError(
            f"{path.parent} holds a run of another config: {'; '.join(refused)}. Choose another --workdir, undo the change, or "
            f"allow it by --allow_change={names}"
        )
    return changed


def check_allowed(cfg: Config, allowed: tuple[str, ...]) -> None:
    """Raises ConfigError for a name in --allow_change that is neither a field of the config nor one of a run's sources."""
    labels = ("training data", "validation data", "starting model", *(f"wording of {name}" for name in cfg.data.tasks))
    known = [*flatten(cfg), *map(_source_name, labels)]
    for name in allowed:
        if name not in known:
            raise ConfigError(f"--allow_change: {unknown('name', name, known)}")


def _source_name(label: str) -> str:
    """The name of a source in --allow_change: `training_data`."""
    return label.replace(" ", "_")


def facts_of_host(cfg: Config, workdir: AnyPath) -> dict[str, str]:
    """What must be the same on all hosts before the first step: code, versions, config, data."""
    packages = {name: metadata.version(name) for name in _PACKAGES}
    return (
        {"code": _code_hash(), "python": platform.python_version(), "device": jax.devices()[0].device_kind}
        | packages
        | _data_fingerprints(cfg, workdir)
        | {name: str(value) for name, value in flatten(cfg).items()}
    )


def _code_hash() -> str:
    """A hash of the package's own files."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _data_fingerprints(cfg: Config, workdir: AnyPath) -> dict[str, str]:
    folder, validation = data_folder(cfg, workdir), cfg.eval.tasks or cfg.data.tasks
    return {
        "training data": fingerprint(folder, tasks=cfg.data.tasks, split="train"),
        "validation data": fingerprint(folder, tasks=validation, split="val"),
    }


def sources_of(cfg: Config, workdir: AnyPath, base: Params) -> dict[str, str]:
    """Hashes of what a run is made of beside its config. They are kept in its checkpoints and compared when it resumes."""
    wordings = {f"wording of {name}": wording for name, wording in wording_hashes(cfg).items()}
    return _data_fingerprints(cfg, workdir) | {"starting model": weights_hash(base)} | wordings


def weights_hash(base: Params) -> str:
    """A hash of the starting model as it was read, the same on every mesh."""
    return hashlib.sha256(json.dumps(digests(base), sort_keys=True).encode()).hexdigest()[:16]


def refuse_other_sources(workdir: AnyPath, sources: dict[str, str], meta: dict, *, allowed: tuple[str, ...] = ()) -> None:
    """Raises ConfigError if a source differs from that of the checkpoint with this `meta` and is not allowed by name."""
    before = meta["sources"]
    if {"model.dtype", "model.param_dtype"} & set(allowed):
        allowed = (*allowed, "starting_model")  # its hash is of the numbers as read, in that dtype
    changed = [name for name in sources if sources[name] != before.get(name) and _source_name(name) not in allowed]
    if changed:
        shown = ", ".join(f"{name} ({before.get(name, 'none')} -> {sources[name]})" for name in changed)
        raise ConfigError(
            f"{shown}: not what the checkpoints of {workdir} were made with: put back what was there, choose another --workdir, "
            f"or allow it by --allow_change={','.join(dict.fromkeys([*allowed, *map(_source_name, changed)]))}"
        )


def wording_hashes(cfg: Config) -> dict[str, str]:
    """A hash of the wordings that each training task is asked in."""
    tasks = get_tasks(cfg)
    return {name: tasks[name].template_hash for name in cfg.data.tasks}
