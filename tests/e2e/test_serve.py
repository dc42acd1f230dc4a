"""`mtjudge serve` with the base that ships with the package: the scores of the judge in process, and none lost at the end."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from command_drills import asked_thing
from commands import commands, photos, scoring
from places import ROOT
from running import running

from mtjudge_jax.client import Client, OpenAIClient, ServerError
from mtjudge_jax.errors import UserError
from mtjudge_jax.policy.model import DEMO_BASE


@contextlib.contextmanager
def served(*flags: str):
    """A server of the demo's base in a process of its own: (process, URL)."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "mtjudge_jax.serve", f"--model={DEMO_BASE}", "--port=0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"serving .* at (http://\S+)", line):
                yield process, found[1]
                break
        else:
            raise AssertionError("".join(said))
    finally:
        process.kill()
        process.wait()


def test_scores_over_http_are_those_in_process_and_a_sigterm_loses_none():
    want, images = scoring(), photos()
    with served("--tasks=technical,pairwise_technical,alignment", "--batch=4") as (process, url):
        client = Client(url, retries=0, together=5)
        assert np.abs(np.array(client.score(images, task="technical")) - want["technical"]).max() < 1e-6
        texts = [asked_thing(i) for i in range(len(images))]
        assert np.abs(np.array(client.score(images, task="alignment", instructions=texts)) - want["alignment"]).max() < 1e-6
        found = client.compare(images[:4], task="pairwise_technical")
        assert np.abs(np.array(found.win_rate) - want["win_rate"]).max() < 1e-6 and sum(found.win_rate) == pytest.approx(2)
        verdict, same = client.judge(images[0], task="technical")._asdict(), dict(want["verdict"])
        assert verdict.pop("probabilities") == pytest.approx(same.pop("probabilities"), rel=1e-5)
        for name in ("probability", "score_expected"):
            assert verdict.pop(name) == pytest.approx(same.pop(name), rel=1e-5)
        assert verdict == same
        with pytest.raises(UserError, match=r"images\[0\]"):
            client.score([images[0][:-200]], task="technical")

        first = want["technical"]
        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(client.score, [images[i % 12]], task="technical") for i in range(48)]
            time.sleep(0.3)  # some are answered, some are judged, some wait
            os.kill(process.pid, signal.SIGTERM)
            found = [answer.exception() or answer.result()[0] for answer in answers]
        assert process.wait(60) == 0
        lost = [one for one in found if isinstance(one, Exception)]
        assert all(isinstance(one, ServerError) and "ConnectError" in str(one) for one in lost), lost  # never sent
        answered = [(i % 12, one) for i, one in enumerate(found) if not isinstance(one, Exception)]
        assert len(answered) >= 16 and all(abs(one - first[i]) < 1e-6 for i, one in answered)
        client.close()


def test_transformers_behind_openais_api_gives_the_same_verdicts(tmp_path):
    """The wordings, the parser and the label probabilities of the client, against another implementation of the model."""
    pytest.importorskip("torch", reason="torch is not installed")
    from openai_stub import Stub

    want, images = scoring(), photos()
    with running(Stub(DEMO_BASE).app) as url:
        for exact in (False, True):
            client = OpenAIClient(f"{url}/v1", "judge", folder=DEMO_BASE, exact=exact, at_once=1)
            scores = client.score(images, task="technical")
            assert np.abs(np.array(scores) - want["technical"]).max() < (1e-4 if exact else 5e-3), exact
            verdict = client.judge(images[0], task="technical")
            assert (verdict.verdict, verdict.text) == (want["verdict"]["verdict"], want["verdict"]["text"])
            found = client.compare(images[:4], task="pairwise_technical")
            assert np.abs(np.array(found.win_rate) - want["win_rate"]).max() < (1e-4 if exact else 5e-3)
            client.close()


def test_the_pages_generator_is_paid(tmp_path):
    """The page's own program against a server of the base, which has not learned to judge: it runs, and every step is paid."""
    pytest.importorskip("torch", reason="torch is not installed")
    page = (ROOT / "docs" / "serve.md").read_text()
    (program,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.S) if "optimizer.step()" in text]
    with served("--tasks=technical", "--batch=8") as (_, url):
        (tmp_path / "loop.py").write_text(program.replace("http://127.0.0.1:8000", url))
        ended = subprocess.run([sys.executable, "loop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rewards = [float(one) for one in re.findall(r"^step \d+ reward (\d\.\d+) blur", ended.stdout, re.M)]
    assert len(rewards) == 15 and all(0 < one <= 1 for one in rewards) and ended.stderr == ""


def test_a_server_that_cannot_be_is_refused_before_the_model_is_read():
    def refused(*flags: str) -> str:
        ended = commands().run("serve", *flags)
        assert ended.status == 2, ended.out + ended.err
        return ended.err

    assert "--model is missing" in refused()
    assert "/no/folder" in refused("--model=/no/folder", "--port=0")
    assert "--samples=0: give whole numbers from 1" in refused(f"--model={DEMO_BASE}", "--samples=0")
    assert "--token_file=/no/file: give a file with one line" in refused(f"--model={DEMO_BASE}", "--token_file=/no/file")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port={port}: Address already in use: name another" in refused(f"--model={DEMO_BASE}", f"--port={port}")
