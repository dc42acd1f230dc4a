"""Requests and what they are answered: every bad one a 4xx that names its field, and the next one works."""

import base64
import json
import threading
import time

import pytest
from fake_judge import FakeJudge, png
from starlette.testclient import TestClient

from mtjudge_jax.serve.app import Limits, Service

LIMITS = Limits(body_bytes=200_000, body_seconds=0.5, images=6, questions=20, wait=0.0, samples=(1, 3))


def text(light: float) -> str:
    return base64.b64encode(png(light)).decode()


@pytest.fixture
def judge():
    return FakeJudge()


@pytest.fixture
def service(judge):
    made = Service(judge, LIMITS, batch=4)
    yield made
    made.queue.close()


@pytest.fixture
def http(service):
    return TestClient(service.app(), raise_server_exceptions=False)


def test_scores(http):
    body = {"task": "technical", "images": [text(0.2), text(0.8)]}
    found = http.post("/v1/score", json=body)
    assert found.status_code == 200 and found.json() == {"scores": [pytest.approx(0.2), pytest.approx(0.8)]}
    again = {"task": "alignment", "images": [f"data:image/png;base64,{text(0.4)}"], "prompts": ["a dog"], "samples": 3, "seed": 7}
    assert http.post("/v1/score", json=again).json() == {"scores": [pytest.approx(0.4)]}


def test_a_form_is_the_same(http):
    files = [("images", ("a.png", png(0.2))), ("images", ("b.png", png(0.8)))]
    found = http.post("/v1/score", data={"task": "technical", "samples": "3"}, files=files)
    assert found.status_code == 200 and found.json() == {"scores": [pytest.approx(0.2), pytest.approx(0.8)]}
    found = http.post("/v1/score", data={"task": "alignment", "instructions": ["a dog", "a cat"]}, files=files)
    assert found.json() == {"scores": [pytest.approx(0.2), pytest.approx(0.8)]}
    one = http.post("/v1/judge", data={"task": "alignment", "instruction": "a dog"}, files=files[1:])
    assert one.json()["verdict"] == "yes" and one.json()["probability"] == pytest.approx(0.8)


def test_comparisons(http):
    images = [text(light) for light in (0.2, 0.6, 1.0)]
    found = http.post("/v1/compare", json={"task": "pairwise_technical", "images": images}).json()
    assert sum(found["win_rates"]) == 1.5 and found["win_rates"] == sorted(found["win_rates"]) and found["unread"] == 0
    matrix = found["matrix"]
    assert matrix[0][0] is None and all(matrix[i][j] + matrix[j][i] == 1 for i in range(3) for j in range(i))
    alone = http.post("/v1/compare", json={"task": "technical", "images": images}).json()
    assert sum(alone["win_rates"]) == 1.5 and alone["matrix"][2][0] == pytest.approx(0.9)


def test_a_verdict(http):
    pair = {"task": "pairwise_technical", "images": [text(0.2), text(0.8)], "both_orders": True}
    found = http.post("/v1/judge", json=pair).json()
    assert found["verdict"] == "second" and found["agreement"] == 1.0 and found["text"].startswith("<think>")
    assert found["probabilities"] == {"first": pytest.approx(0.2), "second": pytest.approx(0.8)}


BAD = {
    "no JSON": (b"{", 400, ""),
    "deep": (b"[" * 100_000, 400, ""),
    "no object": (b"[]", 422, ""),
    "no task": ({"images": ["x"]}, 422, "task"),
    "unknown task": ({"task": "tecnical", "images": ["+"]}, 422, "images[0]"),
    "unknown task, fine picture": ({"task": "tecnical", "images": ["OK"]}, 422, "task"),
    "task of pairs": ({"task": "pairwise_technical", "images": ["OK"]}, 422, "task"),
    "no images": ({"task": "technical", "images": []}, 422, "images"),
    "images missing": ({"task": "technical"}, 422, "images"),
    "no base64": ({"task": "technical", "images": ["OK", "%%%"]}, 422, "images[1]"),
    "URL": ({"task": "technical", "images": ["http://localhost/a.png"]}, 422, "images[0]"),
    "path": ({"task": "technical", "images": ["file:///etc/passwd"]}, 422, "images[0]"),
    "no picture": ({"task": "technical", "images": ["OK", "bm8gcGljdHVyZQ=="]}, 422, "images[1]"),
    "cut picture": ({"task": "technical", "images": ["OK", "CUT"]}, 422, "images[1]"),
    "bomb": ({"task": "technical", "images": ["BOMB"]}, 422, "images[0]"),
    "too many": ({"task": "technical", "images": ["OK"] * 7}, 422, "images"),
    "instructions": ({"task": "alignment", "images": ["OK"], "instructions": ["a", "b"]}, 422, "images"),
    "no instruction": ({"task": "alignment", "images": ["OK"]}, 422, "instructions"),
    "number as text": ({"task": "technical", "images": ["OK"], "samples": "many"}, 422, "samples"),
    "samples": ({"task": "technical", "images": ["OK"], "samples": 2}, 422, "samples"),
    "seed": ({"task": "technical", "images": ["OK"], "seed": -1}, 422, "seed"),
    "stray": ({"task": "technical", "images": ["OK"], "smaples": 3}, 422, "smaples"),
    "surrogate": (b'{"task": "alignment", "images": ["OK"], "instructions": "\\ud83d"}', 400, ""),
}


def test_a_field_that_is_none_gets_the_nearest_name(http):
    body = {"task": "technical", "images": [text(0.5)], "smaples": 3}
    said = http.post("/v1/score", json=body).json()["error"]
    assert said == {"field": "smaples", "message": "unknown field 'smaples', did you mean 'samples'?"}


def bomb() -> str:
    """A small file of a picture with 400 million pixels."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"\0" * 1000)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")).decode()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_names_its_field_and_the_next_one_works(http, name):
    body, status, field = BAD[name]
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    cut = base64.b64encode(png(0.5)[:-30]).decode()
    raw = raw.replace(b'"OK"', f'"{text(0.5)}"'.encode()).replace(b"CUT", cut.encode()).replace(b"BOMB", bomb().encode())
    found = http.post("/v1/score", content=raw, headers={"Content-Type": "application/json"})
    assert (found.status_code, found.json()["error"]["field"]) == (status, field), found.text
    assert len(found.json()["error"]["message"]) < 500
    assert http.post("/v1/score", json={"task": "technical", "images": [text(0.4)]}).json() == {"scores": [pytest.approx(0.4)]}


def test_bodies_that_are_refused_unread(http):
    assert http.post("/v1/score", content=b"x" * 200_001, headers={"Content-Type": "application/json"}).status_code == 413

    def pieces():
        for _ in range(201):
            yield b"x" * 1000

    assert http.post("/v1/score", content=pieces(), headers={"Content-Type": "application/json"}).status_code == 413
    pickled = http.post("/v1/score", content=b"\x80\x04", headers={"Content-Type": "application/octet-stream"})
    assert pickled.status_code == 415 and "application/json" in pickled.json()["error"]["message"]
    for boundary in ("", "; boundary=a"):
        form = {"Content-Type": f"multipart/form-data{boundary}"}
        assert http.post("/v1/score", content=b"x", headers=form).status_code in (400, 422)
    assert http.get("/v1/score").status_code == 405 and http.post("/v1/other").status_code == 404


def test_comparisons_that_are_too_many_or_impossible(judge):
    limits = LIMITS._replace(images=50)
    service = Service(judge, limits, batch=4)
    http = TestClient(service.app())
    found = http.post("/v1/compare", json={"task": "pairwise_technical", "images": [text(0.1)] * 8})
    assert found.status_code == 422 and "28 questions in one request: this server takes 20" in found.json()["error"]["message"]
    fits = http.post("/v1/compare", json={"task": "pairwise_technical", "images": [text(0.1)] * 8, "anchors": 2})
    assert fits.status_code == 200 and sum(fits.json()["win_rates"]) == 4
    one = http.post("/v1/compare", json={"task": "pairwise_technical", "images": [text(0.1)]})
    assert one.status_code == 422 and "give two or more" in one.json()["error"]["message"]
    by = http.post("/v1/compare", json={"task": "technical", "images": [text(0.1)] * 2, "by": "pairs"})
    assert (by.status_code, by.json()["error"]["field"]) == (422, "by")
    orders = http.post("/v1/judge", json={"task": "technical", "images": [text(0.1)], "both_orders": True})
    assert (orders.status_code, orders.json()["error"]["field"]) == (422, "both_orders")
    service.queue.close()


def test_a_token(judge):
    service = Service(judge, LIMITS, batch=4, token="secret")
    http = TestClient(service.app())
    body = {"task": "technical", "images": [text(0.4)]}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        assert http.post("/v1/score", json=body, headers=headers).status_code == 401
    assert http.post("/v1/score", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert http.get("/health").status_code == 200
    service.queue.close()


def test_a_full_queue_is_503_with_a_time(judge, service, http):
    judge.gate.acquire()
    body = {"task": "technical", "images": [text(0.1)] * 6}
    busy = [threading.Thread(target=http.post, args=("/v1/score",), kwargs={"json": body}) for _ in range(4)]
    for number, thread in enumerate(busy):
        thread.start()
        while len(judge.asked) + service.queue.depth // 6 < number + 1:
            time.sleep(0.001)
    found = http.post("/v1/score", json=body)
    assert found.status_code == 503 and int(found.headers["retry-after"]) >= 1
    judge.gate.release()
    for thread in busy:
        thread.join(5)
    assert http.post("/v1/score", json=body).status_code == 200


def test_a_bug_is_a_500_and_the_next_request_works(http):
    body = {"task": "alignment", "images": [text(0.4)], "instruction": "crash"}
    assert http.post("/v1/judge", json=body).status_code == 500
    assert http.post("/v1/judge", json=body | {"instruction": "a dog"}).status_code == 200


def test_a_server_that_ends_asks_clients_to_close(service, http):
    body = {"task": "technical", "images": [text(0.4)]}
    assert "close" not in http.post("/v1/score", json=body).headers.get("connection", "")
    service.ending = True
    ended = http.post("/v1/score", json=body)
    assert ended.status_code == 200 and ended.headers["connection"] == "close"


def test_health_and_metrics(http):
    http.post("/v1/score", json={"task": "technical", "images": [text(0.4)] * 3})
    http.post("/v1/score", json={"task": "technical"})
    health = http.get("/health").json()
    assert health == {"status": "ok", "tasks": ["technical", "pairwise_technical", "alignment"], "waiting": 0}
    lines = http.get("/metrics").text.splitlines()
    assert 'mtjudge_requests_total{route="score",status="200"} 1.0' in lines
    assert 'mtjudge_requests_total{route="score",status="422"} 1.0' in lines
    assert "mtjudge_questions_total 3.0" in lines and "mtjudge_waiting 0.0" in lines
    assert "mtjudge_judged_together_count 1.0" in lines
