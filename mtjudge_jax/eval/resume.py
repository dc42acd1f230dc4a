"""The finished batches of an evaluation that is still going on, so that a killed one goes on where it was."""

import json
from typing import Any

import jax

from mtjudge_jax.errors import ConfigError
from mtjudge_jax.hosts.exchange import gather, together
from mtjudge_jax.paths import AnyPath, address, remove_tree, write_whole

_SETTINGS = "settings.json"


class Kept:
    """Batches in the order in which they are judged, a file each. Process 0 reads and writes; all processes call."""

    def __init__(self, folder: AnyPath, batches: list[list[dict]]):
        self._folder, self._batches, self._written = folder, batches, len(batches)
        self.prompts = self.tokens = 0  # judged by this command, not found

    def take(self, most: int) -> list[list[dict]]:
        """The next batches that are there, at most so many; they are not given again."""
        taken, self._batches = self._batches[:most], self._batches[most:]
        return taken

    def add(self, rows: list[dict]) -> None:
        """Keeps the batch that was judged next; every batch before it was taken."""
        with together():
            if jax.process_index() == 0:
                write_whole(self._folder / f"{self._written:06d}.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
        self._written += 1
        self._batches.append(rows)
        self.prompts += len(rows)
        self.tokens += sum(row["tokens"] + row["sampled_tokens"] for row in rows)

    def __len__(self) -> int:
        return self._written


def open_kept(folder: AnyPath, settings: dict[str, Any]) -> Kept:
    """The batches of an evaluation that was stopped, none where there was none. Raises ConfigError where it was another one."""
    batches: list[list[dict]] = []
    with together():
        if jax.process_index() == 0:
            found = read_settings(folder / _SETTINGS)
            if found is None:
                remove_tree(folder)  # what a kill left before the settings were there
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / _SETTINGS, json.dumps(settings, indent=1).encode())
            else:
                refuse_other(found, settings, f"{address(folder)} holds a part of another evaluation")
                batches = _read_batches(folder)
    return Kept(folder, gather(batches)[0])


def read_settings(path: AnyPath) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _read_batches(folder: AnyPath) -> list[list[dict]]:
    """Those from the first without a gap. Files are written whole, so one that is there is not torn."""
    batches: list[list[dict]] = []
    while (path := folder / f"{len(batches):06d}.jsonl").is_file():
        batches.append([json.loads(line) for line in path.read_text().splitlines()])
    return batches


def refuse_other(found: dict[str, Any], settings: dict[str, Any], where: str) -> None:
    """Raises ConfigError that names each setting that differs."""
    names = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
    if names:
        told = "; ".join(f"{name} is {found.get(name)!r} there and {settings.get(name)!r} now" for name in names)
        raise ConfigError(f"{where}: {told}: give the same flags, or another --out or --name")
