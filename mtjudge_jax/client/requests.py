"""One request with its retries, and many side by side."""

import random
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mtjudge_jax.errors import UserError

_AGAIN = (408, 429, 502, 503, 504)  # a busy or restarting server
WARNING_HEADER = "X-Judge-Warning"  # of a response of our server, in ASCII
_LONGEST_WAIT = 30.0  # seconds between two tries


class ServerError(RuntimeError):
    """No answer after all tries, or a server that failed. `status`: of the last response, None without one."""

    def __init__(self, text: str, status: int | None = None):
        super().__init__(text)
        self.status = status


class Requests:
    """Sends JSON. Threads may share one; its connections are kept."""

    def __init__(self, url: str, *, token: str | None, timeout: float, retries: int, at_once: int):
        if not url.startswith(("http://", "https://")):
            raise UserError(f"url = {url!r}: begin with http:// or https://, e.g. http://127.0.0.1:8000")
        if retries < 0 or at_once < 1 or timeout <= 0:
            raise UserError(f"retries = {retries}, at_once = {at_once}, timeout = {timeout}: give at least 0, 1 and more than 0")
        try:
            import httpx
        except ImportError:
            raise UserError("httpx is not installed: pip install httpx") from None
        self._httpx, self._retries, self._url = httpx, retries, url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # A proxy of the environment is for the world outside: a judge is mostly on this machine or beside it.
        self._http = httpx.Client(headers=headers, timeout=timeout, trust_env=False)
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="judge-client")
        self._closing = threading.Event()
        self._warned: set[str] = set()

    def get(self, path: str) -> Any:
        return self._send("GET", path, None)

    def post(self, path: str, body: dict) -> Any:
        """The response's JSON. A busy server is asked again, with growing pauses. Raises UserError for a request that the server
        refuses and ServerError if there is no answer.
        """
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: dict | None) -> Any:
        said, status, pause = "", None, 0.0
        for attempt in range(self._retries + 1):
            self._closing.wait(min(_LONGEST_WAIT, pause))
            pause = 0.5 * 2**attempt * (0.5 + random.random())
            try:
                response = self._once(method, path, body)
            except self._httpx.TransportError as error:
                said, status = f"{type(error).__name__}: {error}", None
                continue
            if response.status_code in _AGAIN:
                pause = max(pause, _seconds(response.headers.get("retry-after", "")))
                said, status = _message(response), response.status_code
                continue
            if response.status_code >= 500:
                failed = f"{self._url}{path} failed with status {response.status_code}: {_message(response)}"
                raise ServerError(failed, response.status_code)
            if response.status_code >= 400:
                raise UserError(f"{self._url}{path} refused the request: {_message(response)}")
            self._warn(response.headers.get(WARNING_HEADER, ""))
            return response.json()
        raise ServerError(f"{self._url}{path} gave no answer in {self._retries + 1} tries: {said}", status)

    def _warn(self, text: str) -> None:
        """Says once what the server says beside its answers, as that it never learned the task."""
        if text and text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=5)

    def _once(self, method: str, path: str, body: dict | None) -> Any:
        """The response. A connection that was kept and that the server has closed meanwhile is no try: nothing was read of it."""
        try:
            return self._http.request(method, self._url + path, json=body)
        except self._httpx.RemoteProtocolError:
            return self._http.request(method, self._url + path, json=body)

    def each(self, call: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """`call` of each item, several at a time, in their order."""
        return list(self._pool.map(call, *items))

    def close(self) -> None:
        self._closing.set()
        self._pool.shutdown(cancel_futures=True)
        self._http.close()


def _seconds(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0


def _message(response: Any) -> str:
    """What a response says is wrong, in our server's form or another."""
    try:
        found = response.json()
        error = found.get("error", found) if isinstance(found, dict) else found
        if isinstance(error, dict):
            field = f"{error['field']}: " if error.get("field") else ""
            return field + str(error.get("message", error))
        return str(error)
    except ValueError:
        return response.text[:300]


def chunks(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    return [items[at : at + most] for at in range(0, len(items), most)]
