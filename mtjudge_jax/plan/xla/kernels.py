"""The work of kernels that tell XLA nothing of it: splash attention."""

import re
from math import prod

import numpy as np

from mtjudge_jax.plan.xla.costs import Kernel
from mtjudge_jax.plan.xla.parse import Shape

# Products of one query with one key, each two operations a number of the head: scores and output; in the backward pass of
# the queries scores, their gradient and that of the queries; in that of keys and values two gradients beside these two.
PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
NAME = re.compile(r"splash_mha_(fwd|dq|dkv)")
SCOPE = re.compile(r"attend_(full|causal|grouped_\d+_\d+)\b")


def splash_work(kernel: Kernel) -> tuple[float, float] | None:
    """(flops, bytes) of a call: of each block of the mask that is not empty, as the kernel computes it whole.

    Keys and values are read again for every block of queries, and the other way round in the gradient of keys and values.
    """
    name, layout = NAME.search(kernel.op_name), SCOPE.search(kernel.op_name)
    if kernel.name.startswith("ragged-dot-metadata"):
        return 0.0, 0.0  # it sorts tiles
    if not name or not layout:
        return None
    query = next(shape for shape in kernel.operands if shape.dtype in ("bf16", "f32") and len(shape.dims) >= 3)
    *heads, length, size = query.dims
    block = block_of(length)
    visits = prod(heads) * visited_blocks(layout.group(1), length, block)
    return 2.0 * PRODUCTS[name.group(1)] * visits * block**2 * size, visits * block * size * 2.0 * item_bytes(query)


def item_bytes(shape: Shape) -> int:
    return shape.bytes // prod(shape.dims)


def block_of(length: int) -> int:
    """Of a length that splash has already filled up to a multiple of it."""
    from mtjudge_jax.models.attention.splash import BLOCKS

    return next(block for block in BLOCKS if length % block == 0)


def visited_blocks(layout: str, length: int, block: int) -> int:
    """Blocks of queries and keys in which some query sees some key; `full`, `causal`, or `grouped_2048_1023`, as in splash."""
    count = -(-length // block)
    if layout == "full":
        return count**2
    if layout == "causal":
        return count * (count + 1) // 2
    prompt, completion = map(int, layout.split("_")[1:])
    query = np.arange(length)
    start = np.where(query < prompt, 0, prompt + (query - prompt) // completion * completion)
    visited = np.zeros((count, count), bool)
    for rows in range(count):
        mine = slice(rows * block, (rows + 1) * block)
        last_of_prompt = min(prompt, query[mine][-1] + 1) - 1
        visited[rows, : last_of_prompt // block + 1] = True
        for first in set((start[mine] // block).tolist()):
            own = query[mine][start[mine] // block == first]
            visited[rows, first : own[-1] // block + 1] = True
    return int(visited.sum())
