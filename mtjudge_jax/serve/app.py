"""The routes: reads a request within limits, waits for the judge, answers in JSON."""

import asyncio
import functools
import hmac
import math
import re
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, NamedTuple

import anyio.to_thread
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mtjudge_jax.client.requests import WARNING_HEADER
from mtjudge_jax.errors import UserError
from mtjudge_jax.judge.calls import compare_call, judge_call, score_call
from mtjudge_jax.judge.engine import AskedAs, Call
from mtjudge_jax.judge.judge import Judge
from mtjudge_jax.judge.questions import warnings_about
from mtjudge_jax.serve.bodies import BadBody, CompareBody, JudgeBody, ScoreBody, form_body, json_body
from mtjudge_jax.serve.queue import CallQueue, Full, NotAsked
from mtjudge_jax.tasks.comparison import WinRates
from mtjudge_jax.tasks.verdicts import Verdict

_LEFT = 499  # the status in the metrics of a client that did not wait


class Limits(NamedTuple):
    body_bytes: int
    body_seconds: float  # to send the body in
    images: int  # of a request
    questions: int  # that may wait
    wait: float  # seconds that a question waits for others
    samples: Collection[int]  # that a request may name: others would be compiled while all wait


class _Meters:
    """What /metrics shows."""

    def __init__(self, depth: Callable[[], int]):
        self.registry = CollectorRegistry()
        made = functools.partial(Counter, registry=self.registry)
        self.requests = made("mtjudge_requests", "Requests answered.", ["route", "status"])
        self.questions = made("mtjudge_questions", "Questions judged.")
        timed = functools.partial(Histogram, registry=self.registry)
        self.seconds = timed("mtjudge_request_seconds", "From the first byte to the answer.", ["route"])
        self.judging = timed("mtjudge_judging_seconds", "Of one go of the judge.")
        self.together = timed("mtjudge_judged_together", "Questions in one go.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256))
        Gauge("mtjudge_waiting", "Questions that wait.", registry=self.registry).set_function(depth)

    def judged(self, questions: int, seconds: float) -> None:
        self.questions.inc(questions)
        self.judging.observe(seconds)
        self.together.observe(questions)


class Service:
    """A judge, the queue before it, and the routes."""

    def __init__(self, judge: Judge, limits: Limits, *, batch: int, token: str | None = None):
        self._judge, self._limits, self._token = judge, limits, token
        self.ending = False  # responses then ask the client to close its connection
        self._meters = _Meters(lambda: self.queue.depth)
        self.queue = CallQueue(judge, batch=batch, most=limits.questions, wait=limits.wait, judged=self._meters.judged)

    def app(self) -> Starlette:
        kinds = {"score": (ScoreBody, self._score), "compare": (CompareBody, self._compare), "judge": (JudgeBody, self._ask)}
        routes = [
            Route(f"/v1/{name}", functools.partial(self._answer, name, *kind), methods=["POST"]) for name, kind in kinds.items()
        ]
        routes += [Route("/health", self._health), Route("/metrics", self._metrics)]
        return Starlette(routes=routes)

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "tasks": list(self._judge.trained_tasks), "waiting": self.queue.depth})

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(generate_latest(self._meters.registry), media_type=CONTENT_TYPE_LATEST)

    async def _answer(self, route: str, kind: type, make: Callable[[Any], Call], request: Request) -> Response:
        began = time.monotonic()
        response = await self._within_limits(kind, make, request)
        if self.ending:
            response.headers["Connection"] = "close"
        self._meters.requests.labels(route, str(response.status_code)).inc()
        self._meters.seconds.labels(route).observe(time.monotonic() - began)
        return response

    async def _within_limits(self, kind: type, make: Callable[[Any], Call], request: Request) -> Response:
        try:
            self._authorize(request)
            body = await self._body(kind, request)
            call = await anyio.to_thread.run_sync(make, body)
            if len(call.questions) > self._limits.questions:
                most = f"this server takes {self._limits.questions} (mtjudge serve --queue)"
                raise BadBody("images", f"{len(call.questions)} questions in one request: {most}; compare with anchors=3")
            found = await _unless_gone(request, asyncio.wrap_future(self.queue.put(call)))
            return JSONResponse(_plain(found), headers=self._said_of(body))
        except BadBody as error:
            return _refusal(error.status, error.field, str(error))
        except NotAsked as error:
            of_score = kind is ScoreBody and _field(kind, str(error)) in ("", "images")
            return _refusal(422, f"images[{error.number}]" if of_score else _field(kind, str(error)) or "images", str(error))
        except UserError as error:
            return _refusal(422, _field(kind, str(error)) or "images", str(error))
        except Full as error:
            return _refusal(503, "", str(error), {"Retry-After": str(math.ceil(error.seconds))})
        except ClientDisconnect:
            return Response(status_code=_LEFT)

    def _authorize(self, request: Request) -> None:
        given = request.headers.get("authorization", "")
        if self._token and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise BadBody("", "send the server's token, as Authorization: Bearer TOKEN", 401)

    async def _body(self, kind: type, request: Request) -> Any:
        declared = request.headers.get("content-length", "")
        most = self._limits.body_bytes
        too_large = BadBody("", f"the body is over {most} bytes: send fewer or smaller images", 413)
        if declared.isdecimal() and int(declared) > most:
            raise too_large
        sort = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sort not in ("application/json", "multipart/form-data"):
            raise BadBody("", f"Content-Type {sort!r:.60} is neither application/json nor multipart/form-data", 415)
        raw = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for chunk in request.stream():
                    raw += chunk
                    if len(raw) > most:
                        raise too_large
        except TimeoutError:
            raise BadBody("", f"the body took over {self._limits.body_seconds:g} s: send it faster", 408) from None
        if sort == "application/json":
            body = await anyio.to_thread.run_sync(json_body, kind, bytes(raw))
        else:
            body = form_body(kind, await _form(request, bytes(raw), self._limits.images))
        if len(body.images) > self._limits.images:
            raise BadBody("images", f"{len(body.images)} images: send at most {self._limits.images} in a request")
        if body.samples not in self._limits.samples:
            allowed = " or ".join(map(str, sorted(self._limits.samples)))
            raise BadBody("samples", f"samples = {body.samples}: this server takes {allowed} (mtjudge serve --samples)")
        return body

    def _said_of(self, body: Any) -> dict[str, str]:
        """A header with what the caller should know beside the answer, which the client warns of."""
        texts = next(t for name in ("prompts", "instructions", "instruction") if (t := getattr(body, name, None)) is not None)
        text = texts if isinstance(texts, str) else "".join(texts)
        said = "; ".join(warnings_about(self._task(body.task), self._judge.trained_tasks, text))
        return {WARNING_HEADER: said.encode("ascii", "backslashreplace").decode()} if said else {}

    def _task(self, name: str):
        try:
            return self._judge.task(name)
        except UserError as error:
            raise BadBody("task", str(error)) from None

    def _score(self, body: ScoreBody) -> Call:
        instructions = body.instructions if body.prompts is None else body.prompts
        asked = AskedAs(None, body.samples, seed=body.seed)
        return score_call(self._task(body.task), body.images, instructions=instructions, asked=asked)

    def _compare(self, body: CompareBody) -> Call:
        how = {"instruction": body.instruction, "by": body.by, "anchors": body.anchors}
        how |= {"samples": body.samples, "seed": body.seed}
        return compare_call(self._task(body.task), body.images, find=self._judge.task, **how)

    def _ask(self, body: JudgeBody) -> Call:
        asked = AskedAs(None, body.samples, body.both_orders, body.seed)
        return judge_call(self._task(body.task), body.images, instruction=body.instruction, texts=body.texts, asked=asked)


def _field(kind: type, message: str) -> str:
    """The field of the body that a message names, or "". Most messages name the task beside it."""
    words = [word for found in re.findall(r"[a-z_]+", message) for word in (found, f"{found}s") if word in kind.model_fields]
    return next((word for word in words if word != "task"), next(iter(words), ""))


def _refusal(status: int, field: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"field": field, "message": message}}, status_code=status, headers=headers)


def _plain(found: Any) -> dict:
    """A result as JSON has it; NaN is null."""
    if isinstance(found, Verdict):
        return found._asdict()
    if isinstance(found, WinRates):
        matrix = [_numbers(row) for row in found.matrix]
        return {"win_rates": _numbers(found.win_rate), "matrix": matrix, "unread": found.unread}
    return {"scores": _numbers(found)}


def _numbers(values) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


async def _unless_gone(request: Request, answer: Awaitable[Any]) -> Any:
    """The answer, or ClientDisconnect as soon as nobody waits for it; it is then never judged, if its turn had not come."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, left = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientDisconnect
    finally:
        left.cancel()
        answer.cancel()


async def _form(request: Request, raw: bytes, images: int) -> list[tuple[str, str | bytes]]:
    async def once():
        yield raw

    try:
        form = await MultiPartParser(request.headers, once(), max_files=images + 1, max_fields=images + 16).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise BadBody("", f"the form cannot be read: {error}", 400) from None
    return [(name, value if isinstance(value, str) else await value.read()) for name, value in form.multi_items()]
