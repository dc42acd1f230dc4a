"""The pages' site, built as a user would."""

import os
import subprocess
import sys

import pytest
from places import ROOT


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason='pip install -e ".[docs]"')
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"]
    ended = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert (ended.returncode, "WARNING" in ended.stderr) == (0, False), ended.stderr
    assert "Where things are" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "search" / "search_index.json").exists()
