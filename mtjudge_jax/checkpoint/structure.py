"""The structure of a saved state, by leaf path (`params/text/norm_d`): dtype and shape, and whether they fit the run's state."""

from typing import Any

import jax

from mtjudge_jax.checkpoint.folders import CheckpointError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.sharding import path_name


def describe_leaves(state: Any) -> dict[str, dict]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {path_name(path): {"dtype": str(x.dtype), "shape": list(x.shape)} for path, x in leaves}


def check_structure(path: AnyPath, saved: dict[str, dict], abstract_state: Any) -> None:
    """Raises CheckpointError, which names every leaf that is missing, extra, or of another dtype or shape. Orbax would cast some
    and explain the others only in part.
    """
    wanted = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(abstract_state)}
    faults = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    faults += [f"{name} is not in the state" for name in saved if name not in wanted]
    for name in wanted:
        if name in saved:
            have = f"{saved[name]['dtype']}{saved[name]['shape']}"
            want = f"{wanted[name].dtype}{list(wanted[name].shape)}"
            if have != want:
                faults.append(f"{name} is {have} in the checkpoint, {want} in the state")
    if faults:
        raise CheckpointError(
            f"{path} holds another state, {first_few(faults)}: resume with the model, optimizer and dtype it was saved with"
        )


def with_saved_dtypes(abstract_state: Any, saved: dict[str, dict]) -> Any:
    """The same shapes and shardings in the dtypes that were saved."""

    def one(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dtype = saved.get(path_name(path), {"dtype": str(x.dtype)})["dtype"]
        return jax.ShapeDtypeStruct(x.shape, jax.numpy.dtype(dtype), sharding=x.sharding)

    return jax.tree_util.tree_map_with_path(one, abstract_state)


def first_few(items: list[str], most: int = 5) -> str:
    """The first items of a long list, and how many more there are."""
    return "; ".join(items[:most]) + (f"; and {len(items) - most} more" if len(items) > most else "")
