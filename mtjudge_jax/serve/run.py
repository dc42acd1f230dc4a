"""Loads a judge, compiles what it will need, and serves until it is told to stop."""

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mtjudge_jax.errors import ConfigError
from mtjudge_jax.judge.judge import Judge

_CLOSING_SECONDS = 0.5  # in which every connection in use gets a response with Connection: close
_ALONE = ("127.0.0.1", "localhost", "::1")


class Place(NamedTuple):
    host: str
    port: int
    token_file: str | None


def serve(
    model: str,
    place: Place,
    limits: tuple,
    tasks: Sequence[str],
    samples: Sequence[str],
    batch: int,
    dtype: str | None,
    mesh: list[str] | None,
) -> None:
    """Serves until SIGTERM or Ctrl-C. limits: those of app.Limits without `samples`. Raises ConfigError for what cannot be."""
    try:
        import uvicorn

        from mtjudge_jax.serve.app import Limits, Service
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'mtjudge_jax[serve]'") from None
    token = _token(place)
    counts = _counts(samples)
    listener = _listen(place)
    judge = Judge.from_pretrained(model, batch=batch, dtype=dtype, mesh=mesh)
    if jax.process_count() > 1:
        raise ConfigError(f"{jax.process_count()} processes: a server runs in one")
    known = ", ".join(tasks or judge.trained_tasks) or "all known ones"
    print(f"compiling for the tasks {known}; this takes a minute or two, the next time less", flush=True)
    began = time.perf_counter()
    for count in counts:
        judge.warm_up(tasks=tasks, samples=count)
    print(f"compiled in {time.perf_counter() - began:.0f} s")
    service = Service(judge, Limits(*limits, counts), batch=batch, token=token)
    host, port = listener.getsockname()[:2]
    print(f"serving {model} at http://{host}:{port}", flush=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn drains at either, then raises it once more

    class Server(uvicorn.Server):
        """Tells clients to close their connections before it closes them: a request may be on its way on an open one."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            wait = 0.0 if service.ending else _CLOSING_SECONDS
            service.ending = True
            threading.Timer(wait, super().handle_exit, (sig, frame)).start()

    Server(uvicorn.Config(service.app(), log_level="warning", access_log=False)).run(sockets=[listener])
    service.queue.close()
    print("stopped: all requests are answered")


def _token(place: Place) -> str | None:
    if place.token_file is None:
        if place.host not in _ALONE:
            print(f"warning: anyone who reaches {place.host} can use this server: give --token_file, or --host=127.0.0.1")
        return None
    path = Path(place.token_file)
    if not path.is_file() or not path.read_text().strip():
        raise ConfigError(f"--token_file={path}: give a file with one line, the token")
    return path.read_text().strip()


def _counts(samples: Sequence[str]) -> tuple[int, ...]:
    if not samples or not all(count.isdecimal() and int(count) for count in samples):
        raise ConfigError(f"--samples={','.join(samples)}: give whole numbers from 1, e.g. --samples=1,5")
    return tuple(sorted({*map(int, samples)}))


def _listen(place: Place) -> socket.socket:
    """Taken before the model is loaded, so that a port in use is told at once."""
    try:
        return socket.create_server((place.host, place.port), family=socket.AF_INET6 if ":" in place.host else socket.AF_INET)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise ConfigError(f"--host={place.host} --port={place.port}: {why}: name another, e.g. --port=0") from error
