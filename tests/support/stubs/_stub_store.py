"""What the stub trackers keep: lines of JSON in a file each, under the folder of $STUB_TRACKERS.

A store that is late keeps the newest records in memory, as the real packages do, so a kill loses them.
"""

import json
import os
from pathlib import Path


class Store:
    def __init__(self, name, *, late=0):
        self.path = Path(os.environ["STUB_TRACKERS"]) / name
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._late, self._waiting = late, []

    def add(self, *records):
        """What one call adds is written whole or not at all, as in a database's transaction."""
        self._waiting += [json.dumps(record) + "\n" for record in records]
        if len(self._waiting) > self._late:
            self.flush()

    def flush(self):
        with self.path.open("ab", buffering=0) as file:
            file.write("".join(self._waiting).encode())
        self._waiting = []

    def read(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
