"""Counts the work of a compiled program on one device: operations of matrix products, bytes of memory, bytes over the links.

XLA's own `cost_analysis` does not give these figures: it counts the body of a loop once (the layers and the decoded tokens are
loops), has no work for most kernels and no bytes for collectives. The program's text is walked from its entry, and the body of a
loop counts as many times as the loop runs. Memory sizes come from XLA's `memory_analysis`, see compiled.py.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import NamedTuple

from mtjudge_jax.models.grouped_matmul import PRODUCT_OF_LAYER
from mtjudge_jax.plan.xla.parse import Computation, HloShape, Instruction, Module, root_of, trip_count

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# Costs are Counters of "flops" (of matrix products), "hbm" (bytes read and written) and bytes sent, by collective.
Costs = Counter
_INSIDE = ("while", "conditional", "call")  # their costs are those of the computations that they call
_FREE = (*_INSIDE, "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
        "copy-done", "slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done", "async-done", "async-update",
        "opt-barrier", "optimization-barrier", "add-dependency")  # fmt: skip

_KERNELS = ("tpu_custom_call", "mosaic_gpu", "__gpu$xla.gpu.triton")  # how XLA names kernels of Pallas


class Counted(NamedTuple):
    fixed: Costs
    loop: Costs  # of one turn of the loops whose number of turns depends on the data
    unknown: Counter  # kernels of unknown work, by name


class Kernel(NamedTuple):
    """A custom call, as `kernel_work` receives it."""

    name: str
    op_name: str  # the JAX names around it
    operands: list[HloShape]
    results: int = 1


# Returns the flops and bytes of a kernel, or None if it does not know them.
_Work = Callable[[Kernel], tuple[float, float] | None]


def count(module: Module, *, kernel_work: _Work, taken: float) -> Counted:
    """Counts the whole program. In the share `taken` of a loop's turns, rounded up to whole turns, a condition takes its most
    expensive branch.
    """
    unknown: Counter = Counter()

    @functools.cache
    def visit(name: str, turns: int) -> tuple[Costs, Costs]:
        """The costs of a computation that runs `turns` times, for one of these times."""
        computation = module.computations[name]
        fixed, loop = Costs(), Costs()
        for x in computation.values():
            if x.op == "while":
                trips = trip_count(module, computation, x)
                body = visit(x.called("body")[0], trips or 1)
                if trips is None:
                    loop.update(body[0])
                    loop.update(body[1])
                else:
                    fixed.update(scaled(body[0], trips))
                    loop.update(scaled(body[1], trips))
            elif x.op == "conditional":
                names = x.called("branch_computations") or x.called("true_computation") + x.called("false_computation")
                branches = sorted((visit(name, 1) for name in names), key=lambda b: b[0]["flops"] + b[0]["hbm"])
                often = math.ceil(turns * taken) / turns if turns > 1 else taken
                for share, branch in ((often, branches[-1]), (1 - often, branches[0])):
                    fixed.update(scaled(branch[0], share))
                    loop.update(scaled(branch[1], share))
            elif x.op == "call" or (x.op == "async-start" and x.called("calls")):
                for total, part in zip((fixed, loop), visit((x.called("to_apply") or x.called("calls"))[0], turns), strict=True):
                    total.update(part)
            else:
                fixed.update(_of_instruction(module, computation, x, kernel_work, unknown))
        return fixed, loop

    return Counted(*visit(module.entry, 1), unknown)


def scaled(costs: Costs, by: float) -> Costs:
    return Costs({name: value * by for name, value in costs.items()})


def _of_instruction(module: Module, computation: Computation, x: Instruction, kernel_work: _Work, unknown: Counter) -> Costs:
    """The costs of an instruction that is not a loop: its own, and those of the instructions fused into it."""
    if x.op in _FREE:
        return Costs()
    costs = Costs(hbm=_memory_bytes(module, computation, x))
    fused = [(module.computations[name], x.called("calls")[0]) for name in x.called("calls")] if x.op == "fusion" else []
    stack = [(computation, x, "")] + [(inner, y, name) for inner, name in fused for y in inner.values()]
    while stack:
        where, y, fusion = stack.pop()
        if y.op == "fusion" and y is not x:
            inner = module.computations[y.called("calls")[0]]
            stack += [(inner, z, fusion) for z in inner.values()]
        elif y.op in ("convolution", "dot"):
            costs["flops"] += _product_flops(where, y)
        elif (kind := y.op.removesuffix("-start")) in COLLECTIVES:
            if kind == "all-reduce" and fusion.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            costs[kind] += _sent_bytes(kind, where, y)
        elif y.op == "custom-call" and (target := y.attribute("custom_call_target").strip('"')).startswith("__cublas"):
            costs["flops"] += _cublas_flops(where, y)
        elif y.op == "custom-call" and target.startswith(_KERNELS):
            flops, extra = _of_kernel(where, y, kernel_work, unknown)
            costs["flops"] += flops
            costs["hbm"] += extra
    return costs


def _of_kernel(computation: Computation, x: Instruction, kernel_work: _Work, unknown: Counter) -> tuple[float, float]:
    """(flops, bytes beyond one pass over operands and results) of a Pallas kernel, from its own estimate or `kernel_work`."""
    op_name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', x.rest)
    operands = [shape for name in x.operands for shape in computation[name].shapes]
    if found := re.search(r'"cost_estimate":\{"flops":"(\d+)"(?:,"transcendentals":"\d+","bytes_accessed":"(\d+)")?', x.rest):
        if op_name and PRODUCT_OF_LAYER in op_name.group(1):  # reads a part of its largest operand
            passes = sum(shape.bytes for shape in (*operands, *x.shapes) if shape.hbm)
            return float(found.group(1)), float(found.group(2)) - passes
        return float(found.group(1)), 0.0
    work = kernel_work(Kernel(x.name, op_name.group(1) if op_name else "", operands, len(x.shapes)))
    if work is None:
        unknown[re.sub(r"[.\d]+$", "", x.name)] += 1
        return 0.0, 0.0
    return work[0], max(0.0, work[1] - sum(shape.bytes for shape in operands if shape.hbm))


def _cublas_flops(computation: Computation, x: Instruction) -> float:
    """Two per multiplication and addition of a product that XLA gives to cuBLAS."""
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', x.rest)
    lhs = computation[x.operands[0]].shapes[0].dims
    return 2.0 * prod(x.shapes[0].dims) * prod(lhs[int(n)] for n in re.findall(r"\d+", contracted.group(1) if contracted else ""))


def _product_flops(computation: Computation, x: Instruction) -> float:
    """Two per multiplication and addition of a `dot` or a `convolution`, without the positions that are padding."""
    lhs, rhs = (computation[name].shapes[0].dims for name in x.operands[:2])
    if x.op == "dot":
        contracted = [int(n) for n in re.findall(r"\d+", x.attribute("lhs_contracting_dims"))]
        return 2.0 * prod(x.shapes[0].dims) * prod(lhs[n] for n in contracted)
    left, right, out = re.split(r"_|->", x.attribute("dim_labels"))
    window = _window_of(x.rest)
    groups = [int(x.attribute(f"{name}_group_count") or 1) for name in ("feature", "batch")]
    positions = 1
    for n in range(len([c for c in left if c.isdigit()])):
        sizes = lhs[left.index(str(n))], rhs[right.index(str(n))], x.shapes[0].dims[out.index(str(n))]
        positions *= valid_positions(*sizes, **{key: values[n] for key, values in window.items()})
    inputs, outputs = rhs[right.index("i")], rhs[right.index("o")]
    return 2.0 * inputs * outputs * lhs[left.index("b")] / groups[1] * positions


def _window_of(text: str) -> dict[str, list[int]]:
    """The window's stride, low (padding), and dilation of its left and right operand, each by spatial dimension."""
    found = re.search(r"window=\{([^}]*)\}", text)
    parts = dict(part.split("=") for part in found.group(1).split()) if found else {}
    count = len(parts.get("size", "").split("x"))
    each = lambda name, default: [int(v) for v in parts[name].split("x")] if name in parts else [default] * count  # noqa: E731
    low = [int(v.split("_")[0]) for v in parts["pad"].split("x")] if "pad" in parts else [0] * count
    return {"stride": each("stride", 1), "low": low, "left": each("lhs_dilate", 1), "right": each("rhs_dilate", 1)}


def valid_positions(size: int, kernel: int, out: int, *, stride: int, low: int, left: int, right: int) -> int:
    """Pairs of an output and a kernel position, along one dimension, that read an element and not padding."""
    total = 0
    for k in range(kernel):
        shift = k * right - low  # output o reads position o * stride + shift of the left operand, dilated by `left`
        first, last = max(0, -(shift // stride)), min(out - 1, ((size - 1) * left - shift) // stride)
        if left == 1:
            total += max(0, last - first + 1)
        else:
            total += sum((o * stride + shift) % left == 0 for o in range(first, last + 1))
    return total


def _sent_bytes(kind: str, computation: Computation, x: Instruction) -> float:
    """The least bytes that a device sends (and receives), by the best ring or tree on any wiring.

    A gather that XLA splits into steps, each overlapped with a product, counts once, where it starts.
    """
    if "chain_id=" in x.rest and not any("AsyncCollectiveStart" in y.rest for y in computation.values()):
        return 0.0
    size = _group_size(x.rest)
    mine = sum(computation[name].bytes for name in x.operands)
    part = (size - 1) / size
    return {
        "all-gather": mine * (size - 1),
        "reduce-scatter": mine * part,
        "all-reduce": 2 * mine * part,
        "all-to-all": mine * part,
        "collective-permute": mine,
    }[kind]


def _group_size(text: str) -> int:
    """The devices per group of a collective; XLA writes groups in three ways."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        return prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found.group(2)))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(found.group(1))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(found.group(1).split(","))
    return 2  # collective-permute has pairs


def _memory_bytes(module: Module, computation: Computation, x: Instruction) -> float:
    """Bytes of the device's memory that an instruction reads and writes; buffers in fast memory cost nothing."""
    operands = [computation[name] for name in x.operands]
    whole = [sum(shape.bytes for shape in y.shapes if shape.hbm) for y in operands]
    result = sum(shape.bytes for shape in x.shapes if shape.hbm)
    if x.op in ("copy-start", "slice-start"):  # the new buffer is the first result of a copy, the second of a slice
        made = x.shapes[x.op == "slice-start"]
        return made.bytes * (made.hbm + bool(whole and whole[0]))
    if x.op.endswith("-start") and x.op.removesuffix("-start") in COLLECTIVES:
        return float(result)  # operand and result
    if x.op in ("dynamic-slice", "slice", "gather"):
        return result + min(whole[0], x.bytes)
    if x.op == "dynamic-update-slice":
        return 2.0 * whole[1]
    if x.op == "scatter":  # operands are buffer, indices, updates; the rows that are updated are read, changed and written
        return 3.0 * whole[2] + whole[1]
    if x.op == "custom-call" and "AllocateBuffer" in x.rest:
        return 0.0
    if x.op == "fusion":
        inner = module.computations[x.called("calls")[0]]
        parameters = {int(y.operands[0]): y.name for y in inner.values() if y.op == "parameter"}
        read = sum(min(size, _read_bytes(module, inner, parameters[n])) if size else 0 for n, size in enumerate(whole))
        return read + _written_bytes(module, inner, x)
    return float(sum(whole) + result)


def _read_bytes(module: Module, computation: Computation, name: str) -> float:
    """Bytes of a fused computation's parameter that are read; if it is only sliced, the bytes of the slices."""
    total = 0.0
    for y in computation.values():
        if y.op == "parameter" or name not in y.operands:
            continue
        if y.op in ("dynamic-slice", "slice", "gather") and y.operands[0] == name:
            total += y.bytes
        elif y.op == "bitcast":
            total += _read_bytes(module, computation, y.name)
        elif y.op == "scatter" and y.operands[0] == name:
            total += computation[y.operands[2]].bytes
        elif y.op == "fusion":
            inner = module.computations[y.called("calls")[0]]
            numbers = [str(n) for n, operand in enumerate(y.operands) if operand == name]
            total += sum(
                _read_bytes(module, inner, z.name) for z in inner.values() if z.op == "parameter" and z.operands[0] in numbers
            )
        elif not _passes_on(y, name):
            return float(computation[name].bytes)
    return total


def _passes_on(y: Instruction, name: str) -> bool:
    """Whether an instruction passes a buffer on without reading it: a tuple, an in-place update, a step of a gather."""
    in_place = y.op == "dynamic-update-slice" and y.operands[0] == name and name not in y.operands[1:]
    under_way = "AsyncCollective" in y.rest or "chain_id=" in y.rest
    return in_place or under_way or y.op in ("tuple", "get-tuple-element")


def _written_bytes(module: Module, inner: Computation, x: Instruction) -> float:
    """Bytes that a fusion writes: an in-place update writes what it changes, a buffer that is passed on costs nothing."""
    root = root_of(inner)
    if "AsyncCollective" in root.rest:
        return float(sum(s.bytes for s in x.shapes[1:2] if s.hbm)) if "AsyncCollectiveStart" in root.rest else 0.0
    leaves = [inner[name] for name in root.operands] if root.op == "tuple" else [root]
    if len(leaves) != len(x.shapes):
        return float(sum(shape.bytes for shape in x.shapes if shape.hbm))
    return sum(_changed_bytes(module, inner, leaf) for leaf, shape in zip(leaves, x.shapes, strict=True) if shape.hbm)


def _changed_bytes(module: Module, computation: Computation, x: Instruction) -> float:
    """The new bytes of an instruction's result; for an in-place update, those of the slice or the rows."""
    while x.op == "bitcast":
        x = computation[x.operands[0]]
    if x.op in ("parameter", "get-tuple-element") or "chain_id=" in x.rest:
        return 0.0
    if x.op == "fusion" and len(x.shapes) == 1:
        inner = module.computations[x.called("calls")[0]]
        return _changed_bytes(module, inner, root_of(inner))
    updates = {"dynamic-update-slice": 1, "scatter": 2}.get(x.op)
    return float(x.bytes if updates is None else computation[x.operands[updates]].bytes)
