"""The work of kernels that report no estimate to XLA: splash attention on a TPU, tokamax on a GPU."""

import re
from math import prod

import numpy as np

from mtjudge_jax.plan.xla.costs import Kernel

# Products per pair of a query and a key, each of two operations per number of the head. fwd: scores, output. dq: scores, their
# gradient, the queries' gradient. dkv: scores, their gradient, the gradients of keys and of values.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
_NAME = re.compile(r"splash_mha_(fwd|dq|dkv)")
_SCOPE = re.compile(r"attend_(full|causal|grouped_\d+_\d+)_by_(\d+)\b")  # as splash names a call: its layout and its block

# tokamax writes its operation and the shapes of its arguments, as JSON, into the name of a kernel.
_TOKAMAX = re.compile(r"tokamax\._src\.ops\.(attention|ragged_dot)\.(\w+)\.")
_ARGUMENT = re.compile(r'"(q|k|lhs|rhs)":"\w+\[([\d,]+)\]"')


def kernel_work(kernel: Kernel) -> tuple[float, float] | None:
    """(flops, bytes) of a call, None for a kernel that is not known."""
    return tokamax_work(kernel) if _TOKAMAX.search(kernel.op_name) else splash_work(kernel)


def tokamax_work(kernel: Kernel) -> tuple[float, float] | None:
    """Of flash attention, or of one product of the rows of experts. Bytes are one pass over the operands, counted elsewhere."""
    text = kernel.op_name.replace("\\", "")
    kind, module = _TOKAMAX.search(text).groups()
    shapes = {name: [int(size) for size in dims.split(",")] for name, dims in _ARGUMENT.findall(text)}
    if kind == "ragged_dot" and {"lhs", "rhs"} <= set(shapes):
        lhs, rhs = shapes["lhs"], shapes["rhs"]
        return (2.0 * lhs[-2] * prod(rhs[-2:]) if len(rhs) == 3 else 2.0 * prod(lhs) * rhs[-1]), 0.0
    if kind != "attention" or not {"q", "k"} <= set(shapes):
        return None
    # Backward: the queries' gradient has one result, that of keys and values two; the kernel with all three computes both.
    products = {1: 3, 2: 4, 3: 7}[kernel.results] if module.endswith("_vjp") else 2
    pairs = prod(shapes["q"][:-1]) * shapes["k"][-3] / (2 if '"is_causal":true' in text else 1)
    return 2.0 * products * pairs * shapes["q"][-1], 0.0


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
