"""The work of splash attention's kernels, which report no estimate to XLA."""

import re
from math import prod

import numpy as np

from mtjudge_jax.plan.xla.costs import Kernel

# Products per pair of a query and a key, each of two operations per number of the head. fwd: scores, output. dq: scores, their
# gradient, the queries' gradient. dkv: scores, their gradient, the gradients of keys and of values.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_NAME = re.compile(r"splash_mha_(fwd|dq|dkv)")
_SCOPE = re.compile(r"attend_(full|causal|grouped_\d+_\d+)_by_(\d+)\b")  # as splash names a call: its layout and its block


def splash_work(kernel: Kernel) -> tuple[float, float] | None:
    """(flops, bytes) of a call, None for another kernel.

    The kernel computes every non-empty block of the mask as a whole. It reads keys and values again for every block of queries;
    for the gradient of keys and values it reads queries again for every block of keys.
    """
    name, layout = _NAME.search(kernel.op_name), _SCOPE.search(kernel.op_name)
    if kernel.name.startswith("ragged-dot-metadata"):
        return 0.0, 0.0  # sorts tiles, multiplies nothing
    if not name or not layout:
        return None
    query = next(shape for shape in kernel.operands if shape.dtype in ("bf16", "f32") and len(shape.dims) >= 3)
    *heads, length, size = query.dims
    block = int(layout.group(2))
    visits = prod(heads) * visited_blocks(layout.group(1), length, block)
    item_bytes = query.bytes // prod(query.dims)
    return 2.0 * _PRODUCTS[name.group(1)] * visits * block**2 * size, visits * block * size * 2.0 * item_bytes


def visited_blocks(layout: str, length: int, block: int) -> int:
    """Blocks in which some query sees some key. `layout` is `full`, `causal` or `grouped_2048_1023`, as in splash."""
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
