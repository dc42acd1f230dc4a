"""`mtjudge report --watch`: serves the page of a run to this machine alone, and makes it anew when the run went on."""

import hashlib
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path, in_bucket, size_of
from mtjudge_jax.report.read import read_run
from mtjudge_jax.report.write import render_report

_HOST = "127.0.0.1"
_OURS = ("127.0.0.1", "localhost", "[::1]")  # any other name in a request is a foreign page that found this port


def version_of(workdir: AnyPath) -> str:
    """16 hex digits that change when the run wrote something that its page shows."""
    shown = [workdir / "config.json", workdir / "metrics.jsonl"]
    for pattern in ("eval/*.json", "rollouts/step_*.jsonl"):
        shown += sorted((workdir / pattern).parent.glob(pattern.partition("/")[2]))
    digest = hashlib.sha256()
    for path in shown:
        if path.exists():
            changed = path.stat().mtime if in_bucket(path) else path.stat().st_mtime_ns
            digest.update(f"{path}\0{size_of(path)}\0{changed}\0".encode())
    return digest.hexdigest()[:16]


class _Made(NamedTuple):
    version: str
    page: bytes


class LivePage:
    """The newest page of a run. Several requests may ask at once."""

    def __init__(self, workdir: AnyPath):
        self._workdir, self._lock, self._made = workdir, threading.Lock(), _Made("", b"")

    def version(self) -> str:
        return version_of(self._workdir)

    def page(self) -> bytes:
        """Made anew if the run went on. Raises FileNotFoundError if the workdir is no run."""
        with self._lock:
            version = self.version()  # before reading: what is written meanwhile counts as new
            if version != self._made.version:
                html = render_report(read_run(self._workdir), version=version)
                self._made = _Made(version, html.encode(errors="replace"))
            return self._made.page


def live_server(workdir: str | os.PathLike, port: int) -> ThreadingHTTPServer:
    """The server, which does not serve yet. port: 0 = a free one. Raises UserError for a port that cannot be had, and
    FileNotFoundError if the workdir is no run.
    """
    live = LivePage(as_path(workdir))
    live.page()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Host", "").rpartition(":")[0] not in _OURS:
                self.send_error(403)
            elif self.path == "/":
                self._answer("text/html; charset=utf-8", live.page())
            elif self.path == "/version":
                self._answer("text/plain", live.version().encode())
            else:
                self.send_error(404)

        def _answer(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            """Says nothing: the terminal would fill with requests."""

    try:
        return ThreadingHTTPServer((_HOST, port), Handler)
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UserError(f"--port={port}: {why}: name another, e.g. --port=0") from error


def watch_report(workdir: str | os.PathLike, port: int) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    with live_server(workdir, port) as server:
        signal.set_wakeup_fd(-1)  # Ctrl-C is the usual end here, and needs no words about the run
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"watching {workdir} at http://{_HOST}:{server.server_port}/ until Ctrl-C", flush=True)
        server.serve_forever()
    print("stopped")
