"""The page's own task, followed to the letter: SFT, then RL, to the score that the page states."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from commands import fast_compile
from places import ROOT

PAGE = ROOT / "docs" / "tasks_and_rewards.md"


def follow(folder: Path) -> dict[str, str]:
    """Writes the two files of the page into a folder and runs its commands there; what each printed, by its first words."""
    section = PAGE.read_text().partition("## A task of your own")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, re.M | re.S)
    rows, config, *_ = (text for language, text in blocks if language == "python")
    (folder / "make_rows.py").write_text(rows)
    (folder / "mine.py").write_text(config)
    (commands,) = (text for language, text in blocks if language == "bash")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": fast_compile()}  # so short a training compiles longer than it runs
    said = {}
    for line in commands.splitlines():
        program, *rest = shlex.split(line, comments=True)
        argv = rest if program == "python" else ["-m", f"mtjudge_jax.{rest[0]}", *rest[1:]]
        assert program in ("python", "mtjudge")
        ended = subprocess.run([sys.executable, *argv], cwd=folder, env=env, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr[-3000:]
        said[" ".join([program, *rest[:2]])] = ended.stdout
    return said


def test_the_page_trains_a_judge_of_its_own_task(tmp_path):
    said = follow(tmp_path)
    assert not [text for text in said.values() if " validation answers have " in text], said
    taught, trained = (said[f"mtjudge train --config=mine.py:{stage}"] for stage in ("sft", "grpo"))
    assert "validation after step 0: mean macro-F1 0.000" in taught
    best = [float(re.search(r"best mean validation macro-F1 (\d\.\d+)", text)[1]) for text in (taught, trained)]
    assert best[1] >= best[0] >= 0.8
    result = json.loads(next((tmp_path / "runs" / "mine_test").glob("*.json")).read_text())
    assert result["mean"]["macro_f1"] >= 0.8 and result["tasks"]["blur"]["count"] == 42
