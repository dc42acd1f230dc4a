"""The client against the server, over a real socket, with a judge that has no model."""

import asyncio
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
from fake_judge import FakeJudge, png
from PIL import Image
from running import running
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mtjudge_jax.client import Client, ServerError, Verdict
from mtjudge_jax.client.trainers import flow_grpo, trl_texts, verl_omni
from mtjudge_jax.errors import UserError
from mtjudge_jax.serve.app import Limits, Service

LIGHT = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.fixture
def judge():
    return FakeJudge()


@pytest.fixture
def url(judge):
    limits = Limits(body_bytes=10**6, body_seconds=5, images=16, questions=100, wait=0.0, samples=(1, 3))
    service = Service(judge, limits, batch=4, token="secret")
    with running(service.app()) as url:
        yield url
    service.queue.close()


@pytest.fixture
def client(url):
    with Client(url, token="secret", retries=1, together=2) as made:
        yield made


def near(*values):
    return [pytest.approx(value, abs=0.003) for value in values]


def test_scores_come_back_in_order(client, judge):
    assert client.score([png(light) for light in LIGHT], task="technical") == near(*LIGHT)
    assert sum(count for count, _ in judge.asked) == 6
    texts = [f"a dog {i}" for i in range(6)]
    assert client.score([png(light) for light in LIGHT], task="alignment", instructions=texts, samples=3) == near(*LIGHT)
    assert client.health()["tasks"][0] == "technical"


def test_every_form_of_a_picture(client, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(0.6))
    array = np.full((12, 20, 3), round(255 * 0.6), np.uint8)
    forms = [path, str(path), path.read_bytes(), Image.fromarray(array), array, array.transpose(2, 0, 1), array[..., 0]]
    assert client.score(forms, task="technical") == near(*[0.6] * 7)
    assert client.score(path, task="technical") == client.score(array[None], task="technical") == near(0.6)
    with pytest.raises(UserError, match=r"an array of float64 \[4, 4, 3\] is no picture.*x \* 255"):
        client.score([np.zeros((4, 4, 3))], task="technical")
    with pytest.raises(UserError, match=r"'/no/file.png': No such file or directory; give a path"):
        client.score(["/no/file.png"], task="technical")


class Tensor:
    """As torch's: it has a method `mode`, numpy reads it, and a batch has the channels first."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def mode(self):
        raise AssertionError

    def __array__(self, dtype=None, copy=None):
        return self.array

    def __iter__(self):
        return iter(map(Tensor, self.array))


def test_a_batch_of_tensors_is_so_many_pictures(client):
    batch = np.stack([np.full((3, 12, 20), round(255 * light), np.uint8) for light in (0.2, 0.6)])
    assert client.score(Tensor(batch), task="technical") == client.score(batch, task="technical") == near(0.2, 0.6)
    assert client.score(Tensor(batch[0]), task="technical") == near(0.2)


def test_many_verdicts_of_which_one_cannot_be_given(client):
    found = client.judge_all([png(0.2), b"no picture", [png(0.8)]], task="alignment", instruction=["a", "b", "c"])
    assert [one.verdict for one in found] == ["no", None, "yes"] and "refused the request: images" in found[1].error
    forms = [([png(0.8)], "a dog"), {"image": png(0.8), "instruction": "a dog"}, {"images": [png(0.8)]}, {"picture": png(0.8)}]
    said = client.judge_all(forms, task="alignment", instruction="a cat")
    assert [one.verdict for one in said] == ["yes", "yes", "yes", None]
    assert "unknown field 'picture'" in said[3].error
    pairs = client.judge_all([[png(0.2), png(0.8)]], task="pairwise_technical", both_orders=True)
    assert pairs[0].agreement == 1.0


def test_comparisons_and_verdicts(client):
    found = client.compare([png(light) for light in (0.2, 0.6, 1.0)], task="pairwise_technical")
    assert sum(found.win_rate) == 1.5 and found.win_rate == near(0.2, 0.5, 0.8) and math.isnan(found.matrix[1][1])
    assert all(found.matrix[i][j] + found.matrix[j][i] == 1 for i in range(3) for j in range(i))
    verdict = client.judge([png(0.2), png(0.8)], task="pairwise_technical", both_orders=True)
    assert isinstance(verdict, Verdict) and (verdict.verdict, verdict.agreement) == ("second", 1.0)
    assert verdict.score_expected == pytest.approx(0.8, abs=0.003)


def test_what_the_server_refuses_is_the_users_error(client, url):
    with pytest.raises(UserError, match=r"refused the request: task: unknown task 'tecnical', did you mean 'technical'"):
        client.score([png(0.5)], task="tecnical")
    with pytest.raises(UserError, match=r"images\[1\]: "):
        client.score([png(0.5), b"no picture"], task="technical")
    with pytest.raises(UserError, match="2 images, but 1 instructions"):
        client.score([png(0.5)] * 2, task="technical", instructions=["a"])
    with pytest.raises(UserError, match=r"url = 'localhost:8000': begin with http://"):
        Client("localhost:8000")
    with Client(url, token="wrong") as other, pytest.raises(UserError, match="send the server's token"):
        other.score([png(0.5)], task="technical")


def test_a_task_that_the_judge_never_learned_is_warned_of_once(url):
    own = Client(url, token="secret", retries=0)
    with pytest.warns(UserWarning, match="never trained on the task 'safety'") as caught:
        own.score([png(1)] * 3, task="safety")
        own.score([png(1)], task="safety")
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="the task 'technical' shows no instruction: what was given is not asked"):
        own.score([png(1)], task="technical", instructions="a round thing")
    own.close()


def test_a_busy_server_is_asked_again():
    """Refused twice, then answered; a bug of the server is told at once; nobody there is told after all tries."""
    calls = []

    async def busy(request):
        calls.append("busy")
        if len(calls) < 3:
            return JSONResponse({"error": {"field": "", "message": "full"}}, status_code=503, headers={"Retry-After": "0"})
        return JSONResponse({"scores": [0.25, None]})

    async def broken(request):
        calls.append("broken")
        return JSONResponse({"detail": "bug"}, status_code=500)

    with running(Starlette(routes=[Route("/v1/score", busy, methods=["POST"]), Route("/health", broken)])) as url:
        with Client(url, retries=3) as client:
            scores = client.score([png(0.1), png(0.2)], task="technical")
            assert scores[0] == 0.25 and math.isnan(scores[1]) and calls == ["busy"] * 3
            with pytest.raises(ServerError, match="failed with status 500") as failed:
                client.health()
            assert failed.value.status == 500 and calls.count("broken") == 1
        del calls[:]
        with Client(url, retries=0) as client, pytest.raises(ServerError, match=r"no answer in 1 tries: full") as failed:
            client.score([png(0.1)], task="technical")
        assert failed.value.status == 503
    with Client(url, retries=1) as client, pytest.raises(ServerError, match=r"no answer in 2 tries: ConnectError"):
        client.health()


def test_many_threads_share_a_client(client):
    found = {}

    def ask(number):
        found[number] = client.score([png(number / 16)], task="technical")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [found[number] for number in range(16)] == [near(number / 16) for number in range(16)]


def test_the_rewards_of_trainers(client):
    images = np.stack([np.full((3, 8, 8), light, np.float32) for light in (0.2, 0.8)])  # as a decoder leaves them
    reward = flow_grpo(client, "alignment")
    assert reward(images, ["a dog", "a cat"], {}) == (near(0.2, 0.8), {})
    assert reward((images.transpose(0, 2, 3, 1) * 255).astype(np.uint8), ["a dog", "a cat"]) == (near(0.2, 0.8), {})
    score = verl_omni(client, "alignment")
    one = (images * 255).astype(np.uint8)
    assert asyncio.run(score(one[1], "a dog", extra_info={})) == {"score": near(0.8)[0]}
    assert asyncio.run(score(one[:1], "a dog")) == {"score": near(0.2)[0]}

    class Unread:
        def score(self, images, **_):
            return [math.nan, 0.5]

    assert flow_grpo(Unread(), "alignment", unread=-1.0)(images, ["a", "b"]) == ([-1.0, 0.5], {})


def test_a_reward_for_texts():
    asked = []

    class Texts:
        def judge(self, images, **how):
            asked.append((images, how))
            return Verdict("yes", "", None, "", "", None, "strict", 0.25 * len(asked))

    prompts = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}], "Where?"]
    answers = [[{"role": "assistant", "content": "A dog."}], "Here."]
    found = trl_texts(Texts(), "answers", samples=3)(prompts, answers, image=["a.png", "b.png"])
    assert found == [0.25, 0.5]
    assert asked[0] == ("a.png", {"task": "answers", "instruction": "What is it?", "texts": ["A dog."], "samples": 3})
    assert asked[1] == ("b.png", {"task": "answers", "instruction": "Where?", "texts": ["Here."], "samples": 3})
    with pytest.raises(UserError, match=r"no column 'image' among photo: name that of the pictures"):
        trl_texts(Texts(), "answers")(prompts, answers, photo=["a.png", "b.png"])


def test_it_is_light():
    """Nothing of what judges is imported, so that a program with torch has one framework."""
    code = "import sys, mtjudge_jax.client as c; c.Client(); print(sorted({m.split('.')[0] for m in sys.modules}))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"jax", "jaxlib", "flax", "torch", "transformers", "numpy", "PIL", "msgpack", "absl", "scipy"}
    assert heavy.isdisjoint(eval(ended.stdout)) and "httpx" in ended.stdout
