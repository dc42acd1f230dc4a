"""How a forward pass is computed: nothing here changes what it computes."""

from typing import Literal, NamedTuple

from jax.sharding import Mesh

Remat = Literal["none", "dots", "full"]


class Backend(NamedTuple):
    """Hashable, so it can be a static argument. Each choice gives the numbers of the reference, the first one named.

    attention: xla | chunked (never the whole score matrix) | splash (TPU) | tokamax (GPU); experts: dense | ragged | tokamax;
    remat: what the backward pass computes again; mesh: of the devices, None on one device.
    """

    attention: str = "xla"
    experts: str = "dense"
    remat: Remat = "none"
    mesh: Mesh | None = None
