"""A bucket of Google Cloud Storage on loopback: as much of its JSON API as gcsfs, TensorStore and Orbax use.

Strongly consistent as the real one: an object appears whole, a listing sees it at once, conditions on generations hold.
`Bucket.deny` and `Bucket.room` make what a user meets: no permission, a quota that is used up. See
https://cloud.google.com/storage/docs/json_api/v1
"""

import base64
import contextlib
import email.parser
import hashlib
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

ROUTES = (
    ("upload", r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o"),
    ("rewrite", r"(?:/storage/v1)?/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)"),
    ("object", r"(?:/download)?(?:/storage/v1)?/b/([^/]+)/o/([^/]+)"),
    ("listing", r"(?:/storage/v1)?/b/([^/]+)/o"),
    ("bucket", r"(?:/storage/v1)?/b/([^/]+)"),
    ("batch", r"/batch/storage/v1"),
)


class Stored(NamedTuple):
    data: bytes
    generation: int


class Bucket:
    """The server and one bucket, `name`. Use as a context; `env` is what clients need to find it."""

    def __init__(self, name: str = "bucket"):
        self.name, self.objects, self.lock = name, {}, threading.RLock()
        self.deny: set[str] = set()  # read, write
        self.room = 1 << 40  # bytes
        self.read = 0  # bytes of objects that were sent
        self.requests: list[str] = []
        self.uploads: dict[str, tuple[str, dict, bytearray]] = {}
        self.generations = itertools.count(1_000_000)
        owner = self

        class Handler(_Handler):
            bucket = owner

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.env = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "nobody",  # TensorStore looks for no other
            "FSSPEC_GCS_TOKEN": "anon",
            "NO_GCE_CHECK": "true",
        }

    def __enter__(self) -> "Bucket":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, data: bytes) -> Stored:
        with self.lock:
            self.objects[name] = Stored(bytes(data), next(self.generations))
            return self.objects[name]


class _Refused(Exception):
    def __init__(self, status: int, text: str):
        self.status, self.text = status, text


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, else the client's delayed acknowledgement costs 40 ms
    disable_nagle_algorithm = True
    bucket: Bucket

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do(self):
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self._body()
        self.bucket.requests.append(f"{self.command} {unquote(parts.path)}")
        try:
            self._send(*self._answer(self.command, parts.path, query, dict(self.headers), body))
        except _Refused as error:
            self._send(error.status, {}, json.dumps({"error": {"code": error.status, "message": error.text}}).encode())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            out = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, headers: dict, body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _answer(self, method: str, path: str, query: dict, headers: dict, body: bytes) -> tuple[int, dict, bytes]:
        for name, pattern in ROUTES:
            if match := re.fullmatch(pattern, path):
                groups = [unquote(group) for group in match.groups()]
                if groups and groups[0] != self.bucket.name:
                    raise _Refused(404, "The specified bucket does not exist.")
                return self.__getattribute__(f"_{name}")(method, query, headers, body, *groups)
        raise _Refused(404, f"no route for {method} {path}")

    # one method a route: (method, query, headers, body, *names in the path) -> (status, headers, body)

    def _bucket(self, method, query, headers, body, bucket):
        self._may("read")
        about = {"kind": "storage#bucket", "name": bucket, "location": "US", "locationType": "region"}
        return 200, {}, json.dumps(about).encode()

    def _listing(self, method, query, headers, body, bucket):
        self._may("read")
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, last = query.get("startOffset", ""), query.get("endOffset")
        after, most = query.get("pageToken", ""), int(query.get("maxResults", 1000))
        items, folders, more = [], [], None
        with self.bucket.lock:
            for name in self.bucket.names(prefix):
                if name < first or (last is not None and name >= last):
                    continue
                rest = name[len(prefix) :]
                folder = prefix + rest[: rest.index(delimiter) + 1] if delimiter and delimiter in rest else None
                key = folder or name
                if key <= after or key in folders:
                    continue
                if len(items) + len(folders) == most:
                    more = max(items[-1]["name"] if items else "", folders[-1] if folders else "")
                    break
                if folder:
                    folders.append(folder)
                else:
                    items.append(self._about(name))
        page = {"kind": "storage#objects", "items": items, "prefixes": folders} | ({"nextPageToken": more} if more else {})
        return 200, {}, json.dumps(page).encode()

    def _object(self, method, query, headers, body, bucket, name):
        with self.bucket.lock:
            if method == "DELETE":
                self._may("write")
                self._conditions(query, name)
                if self.bucket.objects.pop(name, None) is None:
                    raise _Refused(404, f"No such object: {bucket}/{name}")
                return 204, {}, b""
            self._may("read")
            self._conditions(query, name)
            if name not in self.bucket.objects:
                raise _Refused(404, f"No such object: {bucket}/{name}")
            stored = self.bucket.objects[name]
            if query.get("alt") != "media":
                return 200, {}, json.dumps(self._about(name)).encode()
        return self._media(stored, headers)

    def _media(self, stored: Stored, headers: dict):
        marks = {"x-goog-generation": str(stored.generation), "Content-Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", {k.lower(): v for k, v in headers.items()}.get("range", ""))
        if not wanted:
            self.bucket.read += len(stored.data)
            return 200, marks, stored.data
        size = len(stored.data)
        first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        last = min(size - 1, int(wanted[2])) if wanted[1] and wanted[2] else size - 1
        if first >= size:
            raise _Refused(416, "range not satisfiable")
        self.bucket.read += last - first + 1
        return 206, marks | {"Content-Range": f"bytes {first}-{last}/{size}"}, stored.data[first : last + 1]

    def _upload(self, method, query, headers, body, bucket):
        self._may("write")
        lower = {k.lower(): v for k, v in headers.items()}
        if "upload_id" in query:
            return self._part(query["upload_id"], lower, body)
        kind = query.get("uploadType")
        if kind == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            number = hashlib.sha256(f"{name}{next(self.bucket.generations)}".encode()).hexdigest()[:16]
            self.bucket.uploads[number] = (name, query, bytearray())
            target = f"{self.bucket.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return 200, {"Location": target}, b""
        name, data = query.get("name"), body
        if kind == "multipart":
            meta, data = _multipart(lower["content-type"], body)
            name = name or meta["name"]
        return self._store(name, data, query)

    def _part(self, number: str, lower: dict, body: bytes):
        name, query, data = self.bucket.uploads[number]
        data += body
        span = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", lower.get("content-range", "bytes */*"))
        if span and span[3] == "*":
            return 308, {"Range": f"bytes=0-{len(data) - 1}"}, b""
        return self._store(name, bytes(data), query)

    def _store(self, name: str, data: bytes, query: dict):
        with self.bucket.lock:
            self._conditions(query, name)
            others = sum(len(stored.data) for other, stored in self.bucket.objects.items() if other != name)
            if others + len(data) > self.bucket.room:
                raise _Refused(403, "The quota for this bucket has been exceeded.")
            self.bucket.put(name, data)
            return 200, {}, json.dumps(self._about(name)).encode()

    def _rewrite(self, method, query, headers, body, bucket, name, other, target):
        self._may("write")
        with self.bucket.lock:
            if name not in self.bucket.objects:
                raise _Refused(404, f"No such object: {bucket}/{name}")
            size = len(self.bucket.put(target, self.bucket.objects[name].data).data)
            done = {"done": True, "resource": self._about(target), "totalBytesRewritten": str(size), "objectSize": str(size)}
            return 200, {}, json.dumps(done).encode()

    def _batch(self, method, query, headers, body):
        boundary = re.search(r"boundary=\"?([^\";]+)", {k.lower(): v for k, v in headers.items()}["content-type"])[1]
        parts = []
        for number, part in enumerate(body.split(b"--" + boundary.encode())[1:-1], 1):
            line = re.search(rb"(GET|POST|PUT|DELETE) (\S+) HTTP", part)
            url = urlsplit(line[2].decode())
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            try:
                status, _, content = self._answer(line[1].decode(), url.path, query, {}, b"")
            except _Refused as error:
                status, content = error.status, json.dumps({"error": {"code": error.status, "message": error.text}}).encode()
            head = f"Content-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\nHTTP/1.1 {status} x\r\n"
            parts.append(f"--batch\r\n{head}Content-Type: application/json\r\n\r\n".encode() + content + b"\r\n")
        return 200, {"Content-Type": "multipart/mixed; boundary=batch"}, b"".join(parts) + b"--batch--\r\n"

    def _may(self, what: str) -> None:
        if what in self.bucket.deny:
            raise _Refused(403, f"nobody does not have storage.objects.{what} access.")

    def _conditions(self, query: dict, name: str) -> None:
        stored = self.bucket.objects.get(name)
        generation = stored.generation if stored else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            raise _Refused(304, "not modified")

    def _about(self, name: str) -> dict:
        data, generation = self.bucket.objects[name]
        crc = google_crc32c.Checksum(data).digest()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket.name,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "crc32c": base64.b64encode(crc).decode(),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "etag": str(generation),
            "storageClass": "STANDARD",
        }


def _multipart(content_type: str, body: bytes) -> tuple[dict, bytes]:
    """The JSON and the data of an upload in one request."""
    message = email.parser.BytesParser().parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode())
    mark = b"--" + message.get_param("boundary").encode()
    first, second = (part.split(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n", 1)[1] for part in body.split(mark)[1:3])
    return json.loads(first), second[: -2 if second.endswith(b"\r\n") else -1]
