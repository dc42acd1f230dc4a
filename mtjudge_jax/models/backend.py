"""The choices of how a forward pass is computed. None of them changes its result."""

from types import ModuleType
from typing import Literal, NamedTuple

import jax
from absl import flags
from jax.sharding import Mesh

from mtjudge_jax.errors import UserError

Remat = Literal["none", "dots", "full"]


class Backend(NamedTuple):
    """Hashable, so it can be a static argument. The first choice of a field is the reference; the others give its numbers."""

    attention: str = "xla"  # xla | chunked (never the whole score matrix) | splash (TPU) | tokamax (GPU)
    experts: str = "dense"  # dense | ragged | tokamax
    remat: Remat = "none"  # what the backward pass computes again
    mesh: Mesh | None = None  # None on one device
    gathered: bool = False  # the weights come whole along the mesh's axis fsdp


def default_platform() -> str:
    """cpu, gpu or tpu: the default device's. `mtjudge plan` makes that one for which it compiles, which need not be here."""
    device = jax.config.jax_default_device
    return device.platform if isinstance(device, jax.Device) else device or jax.default_backend()


def import_tokamax(asked: str, instead: str) -> ModuleType:
    """The optional kernels for GPUs. Raises UserError that names the setting which asked for them, and another choice."""
    try:
        import tokamax
    except ImportError as error:
        raise UserError(
            f"{asked} needs the package tokamax, which cannot be imported here: "
            f"pip install -e '.[tokamax]', or set it to {instead}"
        ) from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # otherwise tokamax parses the command line of this program, and refuses it
    return tokamax
