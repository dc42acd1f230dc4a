"""Writes docs/fields.md, the fields of a config and of an own task as they stand in the source: python docs/write_fields.py"""

import dataclasses
import inspect
import re
from pathlib import Path

from mtjudge_jax import config
from mtjudge_jax.tasks.custom import TaskEntry

PAGE = Path(__file__).parent / "fields.md"
_HEAD = """# Fields

Every field of a config, with its type, its default and what it does. A config file sets them in
Python, and a flag changes one: `--config.optim.lr=1e-5`. [Training](training.md) says which to
think about first. This page is written from the source by `python docs/write_fields.py`.
"""
_TASK = """## An own task

Each dict of `data.custom_tasks` has these fields. Only `name`, `kind` and `question` are needed, see
[Tasks and rewards](tasks_and_rewards.md).
"""


def page() -> str:
    """The text of the page."""
    groups = {f.name: f.type for f in dataclasses.fields(config.Config) if dataclasses.is_dataclass(f.type)}
    parts = [_HEAD, "## The run\n", _source(config.Config, "field(")]
    parts += [f"## {name}\n\n{_source(kind)}" for name, kind in groups.items()]
    return "\n".join([*parts, _TASK, _source(TaskEntry)])


def _source(cls: type, leave_out: str = "\0") -> str:
    """The lines of a class's fields as a block of Python."""
    lines = [line for line in inspect.getsource(cls).splitlines()[1:] if leave_out not in line]
    text = re.sub(r'""".*?"""\n', "", inspect.cleandoc("\n".join(lines[1:])), flags=re.S)
    return f"```python\n{text.strip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page())
