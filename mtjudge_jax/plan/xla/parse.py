"""Parses the text of a compiled XLA program into computations, instructions, shapes and loops.

The syntax is XLA's (https://openxla.org/xla/operation_semantics, hlo_parser.cc). Only the parts that the costs need are parsed.
"""

import re
from math import prod
from typing import NamedTuple

_ITEM_BYTES = {"pred": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}  # other names hold their bits: bf16, s32, f8e4m3fn
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\) -> .* \{$")
_START = re.compile(r"^\s+(ROOT )?%?([^\s=]+) = ")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class HloShape(NamedTuple):
    dtype: str
    dims: tuple[int, ...]
    hbm: bool  # False: in a TPU's fast memory, S(1), or another small memory

    @property
    def bytes(self) -> int:
        bits = re.match(r"[a-z]+(\d+)", self.dtype)
        one = _ITEM_BYTES.get(self.dtype) if self.dtype in _ITEM_BYTES else int(bits.group(1)) / 8
        return int(prod(self.dims) * one)


class Instruction(NamedTuple):
    name: str
    shapes: tuple[HloShape, ...]  # the leaves of its result
    op: str
    operands: tuple[str, ...]  # names; for a parameter its number, for a constant its value
    rest: str  # attributes, as text
    root: bool

    @property
    def bytes(self) -> int:
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str:
        """The value of `name=..`, or "" if the attribute is missing."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^\s,]+)", self.rest)
        return found.group(1) if found else ""

    def called(self, name: str) -> list[str]:
        """The computations that an attribute names: one name, or a list in braces."""
        return re.findall(r"[^\s%{},]+", self.attribute(name))


Computation = dict[str, Instruction]


class Module(NamedTuple):
    computations: dict[str, Computation]
    entry: str


def parse_program(text: str) -> Module:
    """Parses `compiled.as_text()`. Raises ValueError if the text has no entry computation."""
    computations, entry, current, line = {}, "", None, ""
    for raw in text.splitlines():
        ends = raw == "}" or raw.startswith("}, execution_thread=")  # the latter of a TPU's sparse cores
        if current is not None and (ends or _START.match(raw)):
            if line:
                _add(current, line)
            line, current = ("", None) if ends else (raw, current)
        elif current is not None:
            line += raw  # the instruction has a string with line breaks
        elif header := _HEADER.match(raw):
            current = computations[header.group(2)] = {}
            entry = header.group(2) if header.group(1) else entry
    if not entry:
        raise ValueError("the text of the compiled program has no ENTRY: this version of XLA writes another format")
    return Module(computations, entry)


def _add(computation: Computation, line: str) -> None:
    start = _START.match(line)
    at = _closing(line, start.end()) if line[start.end()] == "(" else line.index(" ", start.end())
    shapes = line[start.end() : at]
    opening = line.index("(", at)
    end = _closing(line, opening)
    op, name = line[at:opening].strip(), start.group(2)
    inside = re.sub(r"/\*.*?\*/", "", line[opening + 1 : end - 1])
    operands = (inside,) if op in ("parameter", "constant") else tuple(re.findall(r"%([^\s,()]+)", inside))
    computation[name] = Instruction(name, _read_shapes(shapes), op, operands, line[end:], bool(start.group(1)))


def _closing(line: str, opening: int) -> int:
    """The position after the parenthesis that closes the one at `opening`."""
    depth = 0
    for at in range(opening, len(line)):
        depth += (line[at] == "(") - (line[at] == ")")
        if depth == 0:
            return at + 1
    raise ValueError(f"unbalanced parentheses in the compiled program: {line[:80]}")


def _read_shapes(text: str) -> tuple[HloShape, ...]:
    """`(bf16[2,3]{1,0:T(8,128)S(1)}, s32[])` as two shapes."""
    out = []
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        out.append(HloShape(dtype, sizes, "S(" not in layout))
    return tuple(out)


def root_of(computation: Computation) -> Instruction:
    return next(i for i in computation.values() if i.root)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Turns of a `while`, from XLA's note or from its condition `counter < bound`; None if they depend on the data."""
    if known := _TRIPS.search(loop.rest):
        return int(known.group(1))
    condition = module.computations[loop.called("condition")[0]]
    sides = _compared(module, condition)
    if sides is None:
        return None
    counter, bound = (_in_loop(computation, condition, loop, name) for name in sides)
    if bound is None:
        return None
    return max(0, bound - (counter or 0))


def _compared(module: Module, condition: Computation) -> tuple[str, str] | None:
    """(counter, bound) of the condition `counter < bound`, as names in the condition. The comparison may be inside a fusion."""
    root = root_of(condition)
    if root.op == "fusion":
        inner = module.computations[root.called("calls")[0]]
        sides = _compared(module, inner)
        if sides is None:
            return None
        outer = [root.operands[int(inner[s].operands[0])] if inner[s].op == "parameter" else None for s in sides]
        if outer[0] and outer[1]:
            return outer[0], outer[1]
        return None
    if root.op != "compare" or "direction=LT" not in root.rest:
        return None
    return root.operands[0], root.operands[1]


def _in_loop(computation: Computation, condition: Computation, loop: Instruction, name: str) -> int | None:
    """The integer value of a name in the condition when the loop starts, or None if it is not a constant."""
    found = condition[name]
    if found.op != "get-tuple-element":
        return _constant(condition, name)
    start = computation[loop.operands[0]]
    return _constant(computation, start.operands[int(found.attribute("index"))]) if start.op == "tuple" else None


def _constant(computation: Computation, name: str) -> int | None:
    found = computation[name]
    while found.op in ("copy", "bitcast", "convert"):
        found = computation[found.operands[0]]
    return int(found.operands[0]) if found.op == "constant" and re.fullmatch(r"-?\d+", found.operands[0]) else None
