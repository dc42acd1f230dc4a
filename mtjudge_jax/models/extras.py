"""Optional packages, imported only where they are asked for."""

from types import ModuleType

from absl import flags

from mtjudge_jax.errors import UserError


def import_tokamax(asked: str, instead: str) -> ModuleType:
    """Kernels for GPUs. Raises ValueError that names what asked for them and what can be set instead."""
    try:
        import tokamax
    except ImportError as error:
        raise UserError(
            f"{asked} needs the package tokamax, which cannot be imported here: "
            f"pip install 'mtjudge_jax[tokamax]', or set it to {instead}"
        ) from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # else it takes the command line of whatever runs here for its own, and refuses it
    return tokamax
