"""The package's written order: a module imports only from modules above it. And sizes that keep it readable."""

import ast
from pathlib import Path

import pytest
from places import PACKAGE

ROOT = PACKAGE
# Folders as wholes, and the modules of the root.
ORDER = [
    "errors",
    "metrics",
    "types",
    "paths",
    "locks",
    "records",
    "tasks",
    "client",
    "config",
    "config_check",
    "flags",
    "hosts",
    "jax_setup",
    "cli",
    "sharding",
    "checkpoint",
    "models",
    "rl",
    "data",
    "policy",
    "eval",
    "judge",
    "serve",
    "report",
    "train",
    "export",
    "plan",
    "demo",
    "prepare",
    "sample",
]
LIGHT = ("errors", "metrics", "paths", "locks", "records", "tasks", "client")
WITHOUT_JAX = (*LIGHT, "config", "config_check", "data", "rl.mt_grpo")
FILE_LINES, FUNCTION_LINES = 400, 60
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """`data.rows` of mtjudge_jax/data/rows.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[str]:
    """Full names of all that a file imports, inside functions too; of `from a import b`, a.b."""
    out = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            out += [f"{node.module}.{alias.name}" for alias in node.names]
    return out


def place(name: str) -> int:
    """Place in ORDER of a module, or of what is imported from it."""
    head = name.split(".")[0]
    assert head in ORDER, f"{name} is not in the written order: add it where it belongs"
    return ORDER.index(head)


def inside(path: Path) -> list[str]:
    """What a file imports from the package itself, without the package's name."""
    return [name.removeprefix("mtjudge_jax.") for name in imports(path) if name.startswith("mtjudge_jax.")]


@pytest.mark.parametrize("path", [p for p in FILES if module(p)], ids=module)
def test_imports_point_up(path):
    below = [name for name in inside(path) if place(name) > place(module(path))]
    assert below == [], f"{module(path)} imports from below itself"


def test_tasks_and_data_know_nothing_of_jax():
    for path in FILES:
        if module(path).startswith(("tasks", "client", "data")) or module(path) == "config":
            assert [name for name in imports(path) if name.split(".")[0] in ("jax", "flax", "optax", "orbax")] == [], path
            assert [name for name in inside(path) if not name.startswith(WITHOUT_JAX)] == [], path


def test_only_the_checkpoint_knows_orbax():
    knowing = [module(path) for path in FILES if any(name.startswith("orbax") for name in imports(path))]
    assert {name.split(".")[0] for name in knowing} == {"checkpoint"}


def test_files_and_functions_are_short():
    long = []
    for path in FILES:
        text = path.read_text()
        if len(text.splitlines()) > FILE_LINES:
            long.append(f"{module(path)} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                long.append(f"{module(path)}.{node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert long == []


def test_the_root_holds_what_everyone_imports():
    assert len(list(ROOT.glob("*.py"))) <= 12
    assert len(ORDER) <= 30


# The same name in each module of a kind: readers of data sets, attention backends, commands.
PROTOCOLS = {"read", "TASKS", "LICENSE", "TERMS", "OPTIONS", "HOW", "attend", "run", "main"}


def test_one_public_name_has_one_meaning():
    """A name without an underscore is defined in one module only. The `__main__` of a command is never imported."""
    homes: dict[str, set[str]] = {}
    for path in FILES:
        if path.name == "__main__.py":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                homes.setdefault(node.name, set()).add(module(path))
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        homes.setdefault(target.id, set()).add(module(path))
    shared = {name: where for name, where in homes.items() if len(where) > 1 and not name.startswith("_")}
    assert {name: sorted(where) for name, where in shared.items() if name not in PROTOCOLS} == {}
