"""`mtjudge prepare` as a process: killed and continued, its memory, what it prints and refuses."""

import subprocess
import sys
import time

import pytest
from places import SUPPORT


@pytest.mark.parametrize("side", [24, 96])  # records below and above the size of a file's buffer
def test_killed_while_it_checks_it_goes_on(tmp_path, source, side):
    argv = ("--dataset=fake", f"--source={source}", f"--out={tmp_path / 'out'}")
    journal = tmp_path / ".out.partial" / "journal.jsonl"
    child = subprocess.Popen([sys.executable, "-c", FAKE.format(tests=TESTS, count=300, side=side, hang=True), *argv])
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not (journal.exists() and journal.read_bytes().count(b"\n") >= 64):
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert journal.read_bytes().count(b"\n") >= 64 and not (tmp_path / "out").exists()
    ended = called(*argv, count=300, side=side)
    assert ended.returncode == 0 and ended.stdout.startswith("resuming the check of an earlier command, in ")
    called(*argv[:2], f"--out={tmp_path / 'twin'}", count=300, side=side)
    for split in ("train", "val", "test"):
        name = f"judge_examples/1.0.0/judge_examples-{split}_sharp.array_record-00000-of-00001"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "twin" / name).read_bytes()
    assert not (tmp_path / ".out.partial").exists()


TESTS = str(SUPPORT)


MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import preparing as t
class Reader:
    LICENSE, TERMS, HOW = "CC0", "open", ""
    @staticmethod
    def read(source, options):
        for i in range(int(sys.argv[3])):
            yield t.made(i, images=(t.picture(i, "BMP", 256),))
t.prepare(Reader, t.arguments(Path(sys.argv[1])), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
"""


def test_memory_does_not_grow_with_the_images(tmp_path, source):
    """900 images of 197 kB are 157 MB more than 100 are."""
    code = MEMORY.format(tests=TESTS)
    ended = [
        subprocess.run([sys.executable, "-c", code, source, tmp_path / count, count], capture_output=True, text=True, check=True)
        for count in ("100", "900")
    ]
    few, many = (int(e.stdout) for e in ended)
    assert many - few < 40


FAKE = """
import runpy, sys, time
from mtjudge_jax.prepare.readers import READERS
sys.path.insert(0, {tests!r})
import preparing as t
bad = t.BadRecord("missing_image", "rows.csv line 9: no 9.png", "fake/9")
examples = [t.made(i, images=(t.picture(i, side={side}),)) for i in range({count})]
READERS["fake"] = t.reader_of([*examples, bad])
if {hang}:
    def read(source, options):
        yield from examples[:150]
        time.sleep(600)
    READERS["fake"].read = read
sys.argv = ["mtjudge prepare", *sys.argv[1:]]
runpy.run_module("mtjudge_jax.prepare", run_name="__main__", alter_sys=True)
"""


def called(*argv, count: int = 40, side: int = 24) -> subprocess.CompletedProcess:
    """The command in an interpreter of its own, with a reader named `fake`."""
    code = FAKE.format(tests=TESTS, count=count, side=side, hang=False)
    return subprocess.run([sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, check=False)


def test_the_command_tells_what_it_did(tmp_path, source):
    argv = ("--dataset=fake", f"--source={source}", f"--out={tmp_path / 'out'}")
    ended = called(*argv)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "# fake: 40 of 41 records\n\nLicence: CC0. Terms: open. Split: by group, 80 % train," in ended.stdout
    assert "- missing_image: 1\n  - fake/9: rows.csv line 9: no 9.png" in ended.stdout
    assert ended.stdout.splitlines()[-1] == f"40 records in {tmp_path / 'out'}"
    assert "train/sharp                          32 records" in ended.stdout
    again = called(*argv)
    assert again.stdout.splitlines()[0] == f"{tmp_path / 'out'} already holds these data: nothing to do"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--dataset=fake",), "--dataset=fake needs --source=FOLDER. Draw them. Options: --option=margin=.. default 0"),
        (("--dataset=fake", "--source=@source", "--option=margin"), "--option=margin: write --option=name=value"),
        (("--dataset=demo", "--source=@source"), "--source: the demo's data are drawn"),
        (("--dataset=fake", "--source=@source", "--option=nonsense=1"), "unknown option 'nonsense'"),
        (("--dataset=fake", "--source=@source", "--val=0.6", "--test=0.5"), "together below 1"),
    ],
)
def test_what_the_command_refuses(tmp_path, source, argv, said):
    ended = called(f"--out={tmp_path / 'out'}", *[a.replace("@source", str(source)) for a in argv])
    assert ended.returncode == 2 and said in ended.stderr and list(tmp_path.iterdir()) == [source]
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1


def test_without_out_the_command_says_so_and_without_source_where_to_get_it():
    for flags, text in (([], "--out=FOLDER is missing"), (["--dataset=agin"], "--dataset=agin needs --source=FOLDER. Get AGIN")):
        done = subprocess.run([sys.executable, "-m", "mtjudge_jax.cli", "prepare", *flags], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {text}") and len(done.stderr.splitlines()) == 1
