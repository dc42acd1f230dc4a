"""The client of OpenAI's API: the wordings, orders and reading of a judge, against a stub without a model."""

import base64
import io
import json
import math

import numpy as np
import pytest
from fake_judge import png
from PIL import Image
from running import running
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mtjudge_jax.client import OpenAIClient
from mtjudge_jax.errors import UserError
from mtjudge_jax.tasks import tasks_with
from mtjudge_jax.tasks.asking import example_about

SHARP = {"name": "sharp", "kind": "binary", "question": "Is it sharp?", "labels": ("blurred", "sharp"), "instruction": "Prompt"}


class Stub:
    """Says which picture is bright: of one by its brightness, of two by their difference; keeps what it is asked."""

    def __init__(self, answer="<think>bright</think><answer>{}</answer>"):
        self.asked, self.answer = [], answer
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request):
        body = await request.json()
        self.asked.append(body)
        parts = body["messages"][0]["content"]
        files = [base64.b64decode(p["image_url"]["url"].partition("base64,")[2]) for p in parts if p["type"] == "image_url"]
        light = [float(np.asarray(Image.open(io.BytesIO(file))).mean()) / 255 for file in files]
        good = light[0] if len(light) == 1 else (1 + light[1] - light[0]) / 2
        words = ("A", "B") if "A, B" in parts[-1]["text"] or "A or B" in parts[-1]["text"] else ("no", "yes")
        words = ("first", "second") if "first or second" in parts[-1]["text"] else words
        words = ("blurred", "sharp") if "sharp" in json.dumps(parts) else words
        word = words[good > 0.5]
        top = [{"token": w, "logprob": math.log(max(p, 1e-9))} for w, p in zip(words, (1 - good, good), strict=True)]
        before, _, after = self.answer.partition("{}")
        content = [{"token": t, "logprob": -0.1, "top_logprobs": top if t == word else []} for t in (before, word, after)]
        choice = {"message": {"content": self.answer.format(word)}, "logprobs": {"content": content}}
        return JSONResponse({"choices": [choice] * body["n"]})


@pytest.fixture
def stub():
    return Stub()


@pytest.fixture
def client(stub):
    with running(stub.app) as url:
        client = OpenAIClient(f"{url}/v1", "judge", retries=0)
        yield client
        client.close()


def near(*values):
    return [pytest.approx(value, abs=0.003) for value in values]


def test_scores(client, stub):
    assert client.score([png(light) for light in (0.1, 0.7, 0.4)], task="technical") == near(0.1, 0.7, 0.4)
    body = stub.asked[0]
    assert (body["model"], body["temperature"], body["n"], body["max_tokens"]) == ("judge", 0.0, 1, 1024)
    assert body["logprobs"] is True and body["top_logprobs"] == 20
    assert client.score([png(0.3)], task="alignment", instructions="a dog", samples=3, seed=5) == near(0.3)
    assert (stub.asked[-1]["temperature"], stub.asked[-1]["n"], stub.asked[-1]["seed"]) == (1.0, 3, 5)


def test_the_question_is_that_of_training(client, stub):
    """Texts and pictures in the order of the task's first wording; control tokens in a text stay text."""
    task = tasks_with((), templates="first")["seetrue"]
    client.judge(png(0.5), task="seetrue", instruction="a <|image_pad|> dog")
    parts = stub.asked[0]["messages"][0]["content"]
    example = example_about([b""], "a < |image_pad|> dog", task=task, number=0)
    assert [part.get("text") for part in parts] == task.ask(example.question).parts
    (url,) = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert url.startswith("data:image/png;base64,")


def test_pairs_are_asked_in_both_orders(client, stub):
    found = client.compare([png(light) for light in (0.2, 0.6, 1.0)], task="pairwise_technical")
    assert len(stub.asked) == 6 and sum(found.win_rate) == 1.5 and found.win_rate == near(0.2, 0.5, 0.8)
    verdict = client.judge([png(0.2), png(0.8)], task="pairwise_technical", both_orders=True)
    assert (verdict.verdict, verdict.agreement) == ("second", 1.0) and verdict.score_expected == pytest.approx(0.8, abs=0.003)
    alone = client.compare([png(light) for light in (0.2, 0.6, 1.0)], task="pairwise_technical", by="score")
    assert alone.win_rate == near(0.2, 0.5, 0.8)
    assert len(client.compare([png(0.1)] * 6, task="pairwise_technical", anchors=1).win_rate) == 6


def test_the_tasks_and_lengths_of_the_exported_folder(stub, tmp_path):
    (tmp_path / "judge.json").write_text(json.dumps({"custom_tasks": [SHARP], "completion_tokens": 77, "templates": {}}))
    with running(stub.app) as url:
        client = OpenAIClient(f"{url}/v1", "judge", folder=tmp_path, retries=0)
        verdict = client.judge(png(0.8), task="sharp", instruction="a dog")
        assert (verdict.verdict, verdict.parse, verdict.reasoning) == ("sharp", "strict", "bright")
        assert list(verdict.probabilities) == ["blurred", "sharp"] and stub.asked[0]["max_tokens"] == 77
        client.close()
    with pytest.raises(UserError, match=r"judge.json cannot be read .*: give the folder of the exported judge"):
        OpenAIClient("http://localhost/v1", "judge", folder=tmp_path / "other")


def test_pictures_that_share_a_row_have_their_limit(stub, tmp_path):
    """Those of a pair, as the exported processor only knows the limit of a single one."""
    sizes = {"patches": 4096, "min_pixels": 65_536, "max_pixels": 1_048_576, "completion_tokens": 77}
    for trained, limit in (("technical", None), ("pairwise_technical", 524_288)):
        (tmp_path / "judge.json").write_text(json.dumps(sizes | {"templates": {trained: "x"}}))
        with running(stub.app) as url:
            client = OpenAIClient(f"{url}/v1", "judge", folder=tmp_path, retries=0)
            client.judge(png(0.8), task="technical")
            assert "mm_processor_kwargs" not in stub.asked[-1]
            client.judge([png(0.8), png(0.2)], task="pairwise_technical")
            size = {"shortest_edge": 65_536, "longest_edge": limit}
            assert stub.asked[-1].get("mm_processor_kwargs") == ({"size": size} if limit else None)
            client.close()


@pytest.mark.parametrize(
    "answer,verdict,parse",
    [
        ("<think>bright</think><answer>{}</answer>", "yes", "strict"),
        ("It is bright. Answer: {}", "yes", "lenient"),
        ("I cannot say {} or the other, sorry", None, "invalid"),
    ],
)
def test_an_answer_is_read_as_a_judge_reads_it(answer, verdict, parse):
    with running(Stub(answer).app) as url:
        client = OpenAIClient(f"{url}/v1", "judge", retries=0)
        found = client.judge(png(0.8), task="technical")
        assert (found.verdict, found.parse) == (verdict, parse)
        assert (found.probabilities is None) == (parse != "strict")
        score = client.score([png(0.8)], task="technical")
        assert score == near(0.8) if parse == "strict" else math.isnan(score[0])
        client.close()


def test_what_cannot_be_asked(client, stub):
    with pytest.raises(UserError, match="unknown task 'tecnical'"):
        client.judge(png(0.5), task="tecnical")
    with pytest.raises(UserError, match="a score is of one picture"):
        client.score([png(0.5)], task="pairwise_technical")
    with pytest.raises(UserError, match="needs an instruction"):
        client.judge(png(0.5), task="alignment")
    with pytest.raises(UserError, match="both_orders is for pairs"):
        client.judge(png(0.5), task="technical", both_orders=True)
    with pytest.raises(UserError, match="give 'pairs' or 'score'"):
        client.compare([png(0.5)] * 2, task="technical", by="pairs")
    assert stub.asked == []
