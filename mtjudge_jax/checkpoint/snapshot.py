"""What a save in the background reads while the next steps go on: arrays that nobody donates, and their digests."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mtjudge_jax.checkpoint.digest import finish_digests, start_digests

Digest = Callable[[], dict[str, int]]


def held(state: Any, copies: Any) -> tuple[Any, Digest, Any]:
    """What is written, what gives its digests once it is, and the copies to be handed in with the next save.

    Orbax looks at arrays on CPUs where they are, and whoever donates them would wait until it has written them: there they are
    copied, into the copies of the save before, since memory that is new costs four times as long; and the digests are left for
    later. From other devices Orbax fetches them before it returns, and the digests take milliseconds and come first.
    """
    if jax.default_backend() != "cpu":
        return state, partial(finish_digests, start_digests(state)), None
    copies = jax.block_until_ready(_copy(state) if copies is None else _copy_into(state, copies))
    return copies, lambda: finish_digests(start_digests(copies)), copies


@jax.jit
def _copy(state: Any) -> Any:
    return jax.tree.map(jnp.copy, state)


@partial(jax.jit, donate_argnums=1, keep_unused=True)
def _copy_into(state: Any, old: Any) -> Any:
    return jax.tree.map(jnp.copy, state)
