"""Fields of a config by name: all of them, how two differ, and the nearest right name of a wrong one."""

import dataclasses
import difflib
import json
import typing


class ConfigError(ValueError):
    """One line: the field, its value, the limit, the remedy."""


def flatten(cfg: object) -> dict[str, object]:
    """Every field by its dotted name, `optim.lr`."""
    out = {}
    for f in dataclasses.fields(cfg):
        value = getattr(cfg, f.name)
        if dataclasses.is_dataclass(value):
            out |= {f"{f.name}.{k}": v for k, v in flatten(value).items()}
        else:
            out[f.name] = value
    return out


def differences(old: dict, new: dict, where: str = "") -> list[str]:
    """Dotted fields that differ, `optim.lr: 1e-06 -> 1e-05`; both are compared as JSON, so a tuple equals its list."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    out = []
    for key in [*old, *[key for key in new if key not in old]]:
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{where}{key}.")
        elif a != b:
            out.append(f"{where}{key}: {a} -> {b}")
    return out


def unknown(what: str, name: str, known: typing.Iterable[str]) -> str:
    """One line that names the nearest right name."""
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"unknown {what} {name!r}" + (f", did you mean {near[0]!r}?" if near else f": known are {', '.join(known)}")
