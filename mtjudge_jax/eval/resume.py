"""Keeps the finished batches of an evaluation, so that a killed one continues where it stopped."""

import json
from typing import Any

import jax

from mtjudge_jax.errors import ConfigError
from mtjudge_jax.hosts.exchange import gather, together
from mtjudge_jax.paths import AnyPath, address, remove_tree, write_whole

_SETTINGS = "settings.json"


class Kept:
    """Batches in the order in which they are judged, one file each. Process 0 reads and writes; all processes must call."""

    def __init__(self, folder: AnyPath, batches: list[list[dict]]):
        self._folder, self._batches, self._written = folder, batches, len(batches)
        self.prompts = self.tokens = 0  # those that this command judged

    def take(self, most: int) -> list[list[dict]]:
        """Removes and returns the next kept batches, at most `most`."""
        taken, self._batches = self._batches[:most], self._batches[most:]
        return taken

    def add(self, rows: list[dict]) -> None:
        """Keeps a batch that was just judged; every batch before it must have been taken."""
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
    """The batches of an evaluation that was stopped, if any. Raises ConfigError if the folder has those of another evaluation."""
    batches: list[list[dict]] = []
    with together():
        if jax.process_index() == 0:
            if not (folder / _SETTINGS).is_file():
                remove_tree(folder)  # what a kill left before it wrote the settings
                folder.mkdir(parents=True, exist_ok=True)
                write_whole(folder / _SETTINGS, json.dumps(settings, indent=1).encode())
            else:
                found = json.loads((folder / _SETTINGS).read_text())
                refuse_other(found, settings, f"{address(folder)} has batches of another evaluation")
                batches = _read_batches(folder)
    return Kept(folder, gather(batches)[0])


def _read_batches(folder: AnyPath) -> list[list[dict]]:
    """The batches up to the first gap. Each file is written atomically, so none is torn."""
    batches: list[list[dict]] = []
    while (path := folder / f"{len(batches):06d}.jsonl").is_file():
        batches.append([json.loads(line) for line in path.read_text().splitlines()])
    return batches


def refuse_other(found: dict[str, Any], settings: dict[str, Any], where: str) -> None:
    """Raises ConfigError that names every setting that differs."""
    names = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
    if names:
        changes = "; ".join(f"{name} is {found.get(name)!r} there and {settings.get(name)!r} now" for name in names)
        raise ConfigError(f"{where}: {changes}: give the same flags, or another --out or --name")
