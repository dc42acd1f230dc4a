"""Many clients ask `mtjudge serve` at once, some send garbage: `python benchmarks/serve_soak.py --model=runs/demo --minutes=10`.

Every good answer is compared with the judge in process. Garbage is a bomb, a cut file, wrong JSON, a body that is too large or
too slow, a client that leaves. At the end SIGTERM comes while requests are under way. Prints requests a second, latencies, the
server's memory after the first tenth and at the end, statuses, and what was wrong; exit status 1 if anything was.
"""

import argparse
import base64
import collections
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import httpx
import numpy as np
from PIL import Image

import mtjudge_jax

TASK, LIMIT_MB, BODY_SECONDS = "technical", 8, 5
GARBAGE = ("bomb", "cut", "json", "large", "slow", "leaves")


def photos() -> list[bytes]:
    out = []
    for number, path in enumerate(sorted((Path(mtjudge_jax.__file__).parent / "demo/assets/photos").glob("*.jpg"))):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize((96 + 16 * (number % 3), 96)).save(buffer, "PNG")
        out.append(buffer.getvalue())
    return out


def bomb() -> bytes:
    """A small PNG that says it has 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def body_of(images: list[bytes]) -> bytes:
    return json.dumps({"task": TASK, "images": [base64.b64encode(image).decode() for image in images]}).encode()


class Clients:
    """What they all share: the server, the right scores, and what was seen."""

    def __init__(self, url: str, pictures: list[bytes], right: np.ndarray):
        self.url, self.pictures, self.right = url, pictures, right
        self.lock, self.ending = threading.Lock(), threading.Event()
        self.statuses: collections.Counter = collections.Counter()
        self.latencies: list[float] = []
        self.wrong: list[str] = []

    def note(self, kind: str, status: int | str, seconds: float = 0.0, wrong: str = "") -> None:
        with self.lock:
            self.statuses[kind, status] += 1
            if kind == "good" and status == 200:
                self.latencies.append(seconds)
            if wrong:
                self.wrong.append(wrong)

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        with httpx.Client(timeout=120, trust_env=False) as http:
            while not self.ending.is_set():
                if rng.random() < 0.05:
                    self.garbage(rng.choice(GARBAGE), http, rng)
                else:
                    self.good(http, rng)

    def good(self, http: httpx.Client, rng: random.Random) -> None:
        chosen = rng.choices(range(len(self.pictures)), k=rng.choice((1, 1, 1, 4)))
        began = time.monotonic()
        try:
            got = http.post(f"{self.url}/v1/score", content=body_of([self.pictures[i] for i in chosen]), headers=JSON)
        except httpx.ConnectError:  # it listens no more: never sent
            return self.note("good", "not sent", wrong="" if self.ending.is_set() else "no connection")
        except httpx.TransportError as error:
            return self.note("good", "lost", wrong=f"lost: {type(error).__name__}")
        if got.status_code == 503:
            self.note("good", 503)
            time.sleep(min(2.0, float(got.headers["retry-after"])))
            return None
        off = np.abs(np.array(got.json()["scores"]) - self.right[chosen]).max() if got.status_code == 200 else None
        bad = f"status {got.status_code}: {got.text[:100]}" if off is None else f"a score is off by {off}" if off > 1e-6 else ""
        return self.note("good", got.status_code, time.monotonic() - began, bad)

    def garbage(self, kind: str, http: httpx.Client, rng: random.Random) -> None:
        picture = rng.choice(self.pictures)
        bodies = {"bomb": body_of([picture, bomb()]), "cut": body_of([picture[:-300]]), "json": body_of([picture])[:-5]}
        try:
            if kind in ("slow", "leaves"):
                status = self.socket_only(kind, body_of([picture]))
            else:
                status = http.post(f"{self.url}/v1/score", content=bodies.get(kind, b"x" * (50 << 20)), headers=JSON).status_code
        except (httpx.TransportError, OSError):  # the server closed while a large body was sent, or has ended
            status = "closed"
        right = status in ("left", "closed") if kind in ("leaves", "large") else isinstance(status, int) and 400 <= status < 500
        right = right or (kind == "large" and status == 413) or self.ending.is_set()
        self.note(kind, status, wrong="" if right else f"{kind} got {status}")

    def socket_only(self, kind: str, body: bytes) -> int | str:
        where = urlsplit(self.url)
        lines = ("POST /v1/score HTTP/1.1", f"Host: {where.netloc}", *HEADERS, f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""])
        with socket.create_connection((where.hostname, where.port), timeout=60) as wire:
            if kind == "leaves":
                wire.sendall(head.encode() + body)
                return "left"
            wire.sendall(head.encode() + body[:100])
            return int(wire.recv(4096).split()[1])


HEADERS = ("Content-Type: application/json",)
JSON = {"Content-Type": "application/json"}


def megabytes(pid: int) -> float:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def served(model: str, batch: int) -> tuple[subprocess.Popen, str]:
    flags = [f"--model={model}", "--port=0", f"--tasks={TASK}", f"--batch={batch}", f"--body_mb={LIMIT_MB}"]
    command = [sys.executable, "-m", "mtjudge_jax.serve", *flags, f"--body_seconds={BODY_SECONDS}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if found := re.match(r"serving .* at (http://\S+)", line):
            return process, found[1]
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    from mtjudge_jax.judge import Judge

    pictures = photos()
    right = Judge.from_pretrained(args.model, batch=args.batch).score(pictures, task=TASK)
    process, url = served(args.model, args.batch)
    clients = Clients(url, pictures, right)
    threads = [threading.Thread(target=clients.run, args=(seed,), daemon=True) for seed in range(args.clients)]
    for thread in threads:
        thread.start()
    time.sleep(args.minutes * 6)
    before = megabytes(process.pid)
    time.sleep(args.minutes * 54)
    after = megabytes(process.pid)
    clients.ending.set()
    os.kill(process.pid, signal.SIGTERM)  # while requests are under way
    for thread in threads:
        thread.join(120)
    status = process.wait(60)
    seconds = np.array(clients.latencies)
    p50, p99 = np.percentile(seconds, (50, 99))
    rate = len(seconds) / args.minutes / 60
    print(f"{len(seconds)} good requests in {args.minutes:g} min, {rate:.1f}/s; p50 {p50:.2f} s, p99 {p99:.2f} s")
    print(f"memory {before:.0f} MB after a tenth of the time, {after:.0f} MB at the end; exit status {status}")
    for (kind, got), count in sorted(clients.statuses.items(), key=str):
        print(f"  {kind:7} {got!s:9} {count}")
    wrong = clients.wrong + [f"memory grew by {after - before:.0f} MB"] * (after - before > 50) + ["exit status"] * (status != 0)
    print(f"wrong: {len(wrong)} {collections.Counter(wrong).most_common(5)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
