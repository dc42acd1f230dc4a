"""The rollouts on the page, and the page that follows a run that trains."""

import contextlib
import json
import re
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from report_folder import Page, make_workdir

from mtjudge_jax.errors import UserError
from mtjudge_jax.report.read import read_run
from mtjudge_jax.report.rollouts import MOST_GROUPS, rollout_groups
from mtjudge_jax.report.watch import live_server
from mtjudge_jax.report.write import write_report
from mtjudge_jax.tasks.base import CONTRACTS

CONTRACT = CONTRACTS["pointwise_binary"]
HOSTILE = "<script>alert(1)</script>{{ 7*7 }}"


def answer(text: str, reward: float | None, advantage: float, **more) -> dict:
    parts = {"accuracy": float(bool(reward)), "format": 1.0}
    return {"text": text, "reward": reward, "parts": parts, "advantage": advantage, "tokens": 11, "truncated": False} | more


def keep(workdir, step: int, *, groups: int = 1, text: str = "<answer>yes</answer>", **changes) -> None:
    (workdir / "rollouts" / "pictures").mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((300, 400, 3), 90, np.uint8)).save(workdir / "rollouts" / "pictures" / "a.webp")
    answers = [answer(text, 1.0, 0.75), answer("cut", 0.0, -0.75, truncated=True), answer("odd", None, 0.0)]
    line = {"step": step, "task": "safety", "chosen": "best", "question": f"[picture]\nIs it safe?{CONTRACT}", "label": "yes"}
    line |= {"answers": answers, "pictures": ["a.webp"]} | changes
    lines = [line | {"example_id": f"e{step}_{number}"} for number in range(groups)]
    (workdir / "rollouts" / f"step_{step:06d}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def workdir(tmp_path):
    return make_workdir(tmp_path / "run", per_task=2)


def test_a_group_has_its_picture_and_what_each_answer_earned(workdir):
    keep(workdir, 10)
    source = write_report(workdir).read_text()
    part = source[source.index('<section id="rollouts"') :].partition("</section>")[0]
    assert '<a href="#rollouts">' in source and part.count('class="card rollout"') == 1
    text = re.sub(r"\s+", " ", Page(part).text)
    assert "step 10" in text and "Is it safe?" in text and "Label: yes · mean reward –" in text  # one of the three is not finite
    rows = re.findall(r"<tr><td class=\"said\">.*?</tr>", part, re.S)
    cells = [[re.sub(r"\s+", " ", Page(cell).text) for cell in re.findall(r"<td.*?</td>", row, re.S)] for row in rows]
    assert cells == [
        ["<answer>yes</answer>", "1.00", "accuracy 1.00format 1.00", "+0.75", "11"],
        ["cut cut off", "0.00", "accuracy 0.00format 1.00", "-0.75", "11"],
        ["odd", "–", "accuracy 0.00format 1.00", "+0.00", "11"],
    ]
    (picture,) = Page(part).all("img")
    assert picture["src"].startswith("data:image/webp;base64,")
    assert text.count("[picture]") == 1 and CONTRACT.strip()[:20] in text  # both in the full question alone


def test_a_run_without_rollouts_has_no_such_section(workdir):
    assert 'id="rollouts"' not in write_report(workdir).read_text()


def test_of_many_steps_the_page_shows_some_the_newest_first(workdir):
    for step in range(1, 101):
        keep(workdir, step, groups=9)
    run = read_run(workdir)
    groups = rollout_groups(run)
    steps = list(dict.fromkeys(group.step for group in groups))
    assert len(groups) == MOST_GROUPS == 72 and len(steps) == 8
    assert steps == sorted(steps, reverse=True) and (steps[0], steps[-1]) == (100, 1)


def test_hostile_and_damaged_rollouts_are_inert_and_said(workdir):
    keep(workdir, 1, text=HOSTILE + "x" * 1_000_000, question=HOSTILE, label=HOSTILE, task=HOSTILE)
    keep(workdir, 2, pictures=["../../config.json", "gone.webp"])
    keep(workdir, 3, answers=[{"text": "no reward"}])
    with (workdir / "rollouts" / "step_000002.jsonl").open("a") as file:
        file.write('{"step": 2, "torn')
    source = write_report(workdir).read_text()
    assert len(Page(source).all("script")) == 1 and HOSTILE in Page(source).text and len(source) < 2_000_000
    assert source.count("cannot be decoded") == 2
    assert "rollouts/: 1 of 3 groups could not be read and were skipped." in source
    assert "step_000002.jsonl: 1 of 2 lines could not be read and were skipped." in source


@contextlib.contextmanager
def serving(workdir):
    with live_server(workdir, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def get(port: int, path: str = "/", host: str | None = None) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host} if host else {})
    return urllib.request.urlopen(request).read().decode()


def test_the_served_page_follows_the_run(workdir):
    with serving(workdir) as port:
        seen = []
        for step in (13, 14):
            page = get(port)
            version = re.search(r'<html lang="en" data-version="(\w+)">', page)[1]
            assert get(port, "/version") == version and get(port) == page  # nothing changed, so nothing is loaded again
            assert "connect-src 'self';" in page and 'fetch("version"' in page
            seen.append((version, re.sub(r"\s+", " ", Page(page).text)))
            last = json.loads([line for line in (workdir / "metrics.jsonl").read_text().splitlines() if '"train"' in line][-1])
            with (workdir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(last | {"step": step}) + "\n")
            assert get(port, "/version") != version
        keep(workdir, 14)
        seen.append((get(port, "/version"), re.sub(r"\s+", " ", Page(get(port)).text)))
        assert len({version for version, _ in seen}) == 3
        assert [re.search(r"Training steps ?(\d+)", text)[1] for _, text in seen] == ["12", "13", "14"]
        assert "Is it safe?" in seen[2][1] and "Is it safe?" not in seen[1][1]
        for path, host, status in (("/config.json", None, 404), ("/", "evil.example:80", 403)):
            with pytest.raises(urllib.error.HTTPError) as error:
                get(port, path, host)
            assert error.value.code == status
        with pytest.raises(UserError, match=rf"--port={port}: Address already in use: name another, e.g. --port=0"):
            live_server(workdir, port)


def test_a_written_page_asks_nobody(workdir):
    source = write_report(workdir).read_text()
    assert "connect-src" not in source and "fetch(" not in source and "data-version" not in source


def test_a_watched_folder_must_be_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run"):
        live_server(tmp_path, 0)
