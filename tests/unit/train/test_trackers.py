"""What trackers are sent: each step once, after a kill too; and a tracker that fails never holds up or stops a run.

TensorBoard writes for real and is read back. The others are stubs with the signatures of the real packages (support/stubs).
"""

import ast
import json
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import trackers
from bucket import Bucket
from PIL import Image

from mtjudge_jax import paths
from mtjudge_jax.config import Config, LogConfig
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.train.monitor.shown import drop_shown, read_shown, write_shown
from mtjudge_jax.train.monitor.trackers import Trackers, services
from mtjudge_jax.train.monitor.trackers.services import PACKAGES, TRACKERS
from mtjudge_jax.train.monitor.trackers.tables import markdown_of
from mtjudge_jax.train.monitor.trackers.values import scalars_of

ANSWER = {"text": "<answer>yes</answer>", "reward": 1.0, "parts": {"accuracy": 1.0}, "advantage": 0.5, "tokens": 7}
GROUP = {"task": "safety", "chosen": "best", "example_id": "e1", "question": "Is it safe?", "label": "yes"}


def train_line(step: int) -> dict:
    tasks = {"safety": {"reward": step / 10, "labels": {"yes": 0.5}}}
    return {"kind": "train", "step": step, "loss": float(step), "kl": None, "seconds": {"rollout": 0.5}, "tasks": tasks}


def eval_line(step: int) -> dict:
    score = {"macro_f1": 0.25 * step, "macro_f1_ci": [0.1, 0.2], "verdict_share": {"yes": 1.0}, "invalid": True}
    return {"kind": "eval", "step": step, "split": "val", "seconds": 2.0, "tasks": {"safety": score}, "mean": {"macro_f1": 0.5}}


def keep_group(workdir: Path, step: int) -> None:
    file = workdir / "red.webp"
    Image.new("RGB", (20, 10), "red").save(file)
    line = GROUP | {"step": step, "pictures": ["red.webp"], "answers": [ANSWER | {"truncated": False}] * 2}
    write_shown(workdir / "rollouts", step, [line], {"red.webp": file.read_bytes()})


def opened(workdir: AnyPath, *names: str, lines: list[dict] = (), resumed: bool = True, **fields) -> Trackers:
    cfg = Config()
    for name, value in fields.items():
        setattr(cfg, name, value)
    made = Trackers(cfg, workdir, names)
    made.begin(list(lines), resumed=resumed)
    return made


def wait(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """The folder of the stubs' servers."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("STUB_TRACKERS", "")
    for name in ("WANDB_MODE", "SWANLAB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    trackers.use_stubs(tmp_path / "kept")
    yield tmp_path / "kept"
    for name in [name for name in sys.modules if name.split(".")[0] in trackers.OTHERS]:
        del sys.modules[name]


def test_the_numbers_of_a_line_by_name():
    assert scalars_of(train_line(3)) == {
        "train/loss": 3.0, "train/seconds/rollout": 0.5, "tasks/safety/reward": 0.3, "tasks/safety/labels/yes": 0.5,
    }  # fmt: skip
    more = scalars_of(train_line(1) | {"hosts": {"memory_mb": [5, 6]}, "lr": float("nan")})
    assert more.keys() - scalars_of(train_line(1)).keys() == {"train/hosts/memory_mb/0", "train/hosts/memory_mb/1"}
    assert scalars_of(eval_line(2)) == {
        "validation/seconds": 2.0,
        "validation/safety/macro_f1": 0.5,
        "validation/mean/macro_f1": 0.5,
    }


def test_a_text_of_a_model_stays_code():
    line = GROUP | {"step": 1, "answers": [ANSWER | {"text": "# <b>big</b>\n\n![](http://x)", "truncated": True, "reward": None}]}
    text = markdown_of(line)
    assert "    # <b>big</b>\n    \n    ![](http://x)" in text
    assert "reward not finite (accuracy 1), advantage 0.5, 7 tokens, truncated" in text


def test_tensorboard_is_read_back(tmp_path):
    keep_group(tmp_path, 2)
    made = opened(tmp_path, "tensorboard", resumed=False)
    for line in (eval_line(0), train_line(1), {"kind": "warning", "step": 1, "text": "slow"}, train_line(2)):
        made.scalars(line)
    made.rollouts(2)
    made.close()
    points = trackers.tensorboard_points(tmp_path / "tracking" / "tensorboard")
    assert points["train/loss"] == [(1, 1.0), (2, 2.0)] and points["train/seconds/rollout"] == [(1, 0.5), (2, 0.5)]
    assert points["train/warnings"] == [(1, 0.0), (2, 1.0)]
    assert points["validation/mean/macro_f1"] == [(0, 0.5)]
    assert points["rollouts/safety/best"] == [(2, (10, 20))]
    ((step, text),) = points["rollouts/safety/best/text_summary"]
    assert step == 2 and b"Is it safe?" in text and text.count(b"advantage 0.5") == 2
    assert "train/kl" not in points


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_goes_on_in_every_tracker_without_a_gap_or_a_repetition(tmp_path, stubs, monkeypatch, mode):
    """The first start is left like a kill leaves it: nothing is closed, and what the packages had in memory is lost."""
    for name in ("WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.setenv(name, mode)
    names, lines = ("tensorboard", *trackers.OTHERS), [eval_line(0), *map(train_line, range(1, 6)), eval_line(5)]
    first = opened(tmp_path, *names, resumed=False)
    for line in lines:
        first.scalars(line)
    for step in (2, 4):
        keep_group(tmp_path, step)
        first.rollouts(step)
    sent = {"validation": 5, "train": 5, "rollouts": 4}

    def noted() -> dict:
        return json.loads((tmp_path / "trackers.json").read_text()) if (tmp_path / "trackers.json").exists() else {}

    wait(lambda: all(noted().get(name, {}).get("sent") == sent for name in names))
    before = noted()

    for file in (tmp_path / "tracking" / "tensorboard").iterdir():
        file.rename(file.with_name("events.out.tfevents.1.host"))  # a name has the second in which its file began

    kept = [line for line in lines if line["step"] <= 3]  # the checkpoint is of step 3
    (tmp_path / "rollouts" / "step_000004.jsonl").unlink()
    second = opened(tmp_path, *names, lines=kept)
    for line in [train_line(4), train_line(5), eval_line(5), *map(train_line, range(6, 9))]:
        second.scalars(line)
        if line["kind"] == "train" and line["step"] in (4, 8):
            keep_group(tmp_path, line["step"])
            second.rollouts(line["step"])
    second.close()
    after = noted()
    assert all(after[name]["id"] == before[name]["id"] for name in names)
    for name in names:
        tracking = tmp_path / "tracking"
        points = trackers.tensorboard_points(tracking / name) if name == "tensorboard" else None
        points = points or trackers.stub_points(name, stubs, tracking)
        assert points["train/loss"] == [(step, float(step)) for step in range(1, 9)], name
        assert [step for step, _ in points["validation/safety/macro_f1"]] == [0, 5], name
        shown = ("rollouts/answers", "rollouts/safety/best/answers", "rollouts/step", "rollouts/safety/best")
        answers = next(key for key in shown if key in points)
        assert [step for step, _ in points[answers]] == [2, 4, 8], name
    tables = list(stubs.glob("mlflow/*.tables.jsonl"))
    assert [json.loads(line)["rows"] for line in tables[0].read_text().splitlines()] == [2, 2, 2]
    first.close(0.1)


def test_a_run_that_begins_anew_goes_on_only_with_the_same_config(tmp_path, stubs):
    ids = []
    for lr in (1e-3, 1e-3, 2e-3):
        cfg = Config()
        cfg.optim.lr = lr
        made = Trackers(cfg, tmp_path, ("wandb",))
        made.begin([], resumed=False)
        made.scalars(train_line(1))
        made.close()
        ids.append(json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"])
    assert ids[0] == ids[1] != ids[2]
    counts = {name: len((stubs / "wandb" / f"{name}.jsonl").read_text().splitlines()) for name in set(ids)}
    assert counts == {ids[0]: 1, ids[2]: 1}


def test_a_run_of_mlflow_that_is_gone_is_begun_again(tmp_path, stubs):
    (tmp_path / "trackers.json").write_text('{"mlflow": {"id": "gone", "sent": {"train": 9}}}')
    opened(tmp_path, "mlflow", lines=[train_line(1)]).close()
    assert trackers.stub_points("mlflow", stubs, tmp_path)["train/loss"] == [(1, 1.0)]


class Fake:
    """A tracker that fails where it is told to."""

    made: list["Fake"] = []
    fails: set = set()

    def __init__(self, place, known):
        if "open" in self.fails:
            raise SystemExit("no key")
        self.id, self.reached, self.got = "x", {}, []
        Fake.made.append(self)

    def scalars(self, kind, step, values):
        if "hang" in self.fails:
            threading.Event().wait()
        if (kind, step) in self.fails:
            self.fails.discard((kind, step))
            raise OSError("no network")
        self.got.append((kind, step))

    def rollouts(self, step, shown):
        raise ValueError("no room")

    def close(self):
        if "close" in self.fails:
            raise RuntimeError("too late")


@pytest.fixture
def fake(monkeypatch):
    """Opens a Fake that fails so; returns it with what was said."""
    said: list[str] = []
    monkeypatch.setattr("mtjudge_jax.train.monitor.trackers.say", said.append)
    monkeypatch.setitem(TRACKERS, "tensorboard", Fake)

    def make(workdir, *fails):
        Fake.made, Fake.fails = [], set(fails)
        return opened(workdir, "tensorboard", resumed=False), said

    return make


def test_a_tracker_that_fails_warns_once_and_is_sent_the_step_again(tmp_path, fake):
    made, said = fake(tmp_path, ("train", 2), ("train", 3), "close")
    keep_group(tmp_path, 2)
    for step in range(1, 5):
        made.scalars(train_line(step))
        made.rollouts(step)
    made.close()
    assert Fake.made[0].got == [("train", 1), ("train", 2), ("train", 3), ("train", 4)]
    assert len(said) == 1 and said[0].startswith("warning: tensorboard did not take the rollouts of step 1 (")
    assert said[0].endswith("the run goes on, and its next start sends what is missing there")


def test_a_tracker_that_cannot_be_opened_is_said_once(tmp_path, fake):
    made, said = fake(tmp_path, "open")
    made.scalars(train_line(1))
    made.close()
    text = "(SystemExit: no key); the run goes on, and its next start sends what is missing there"
    assert said == [f"warning: tensorboard could not be opened {text}"]


def test_a_full_disk_costs_only_the_note(tmp_path, fake):
    with mock.patch("mtjudge_jax.train.monitor.trackers.write_json_atomic", side_effect=OSError(28, "full")):
        made, said = fake(tmp_path)
        made.scalars(train_line(1))
        made.close()
    assert Fake.made[0].got == [("train", 1)] and said == []


def test_a_tracker_that_hangs_holds_up_nothing(tmp_path, fake):
    made, said = fake(tmp_path, "hang")
    began = time.monotonic()
    for step in range(1, 100):
        made.scalars(train_line(step))
    made.close(0.2)
    assert time.monotonic() - began < 2
    assert said == ["warning: tensorboard did not take its last steps in 0 s; they are in metrics.jsonl"]


def test_what_cannot_be_used_is_refused_at_once(tmp_path):
    with (
        mock.patch("importlib.util.find_spec", lambda name: None),
        pytest.raises(ConfigError, match=r"log.to has 'wandb', which is not installed: pip install 'mtjudge_jax\[wandb\]'"),
    ):
        Trackers(Config(), tmp_path, ("wandb",))


def test_a_run_in_a_bucket_goes_on_from_another_machine(tmp_path, monkeypatch):
    """Its disk is new: TensorBoard's files there are made from the bucket's."""
    with Bucket() as made, mock.patch.dict("os.environ", made.env):
        paths.bucket_files.cache_clear()
        paths.reach.cache_clear()
        try:
            workdir = paths.as_path(f"gs://{made.name}/run")
            with pytest.raises(ConfigError, match=r"with a workdir in a bucket: name a folder on a disk in log\.folder"):
                opened(workdir, "tensorboard")
            keep_group(tmp_path, 2)
            (line, picture), file = read_shown(tmp_path / "rollouts", 2)[0], (tmp_path / "red.webp").read_bytes()
            assert picture.size == (20, 10)
            for step in (2, 4):
                write_shown(workdir / "rollouts", step, [line], {"red.webp": file})
            drop_shown(workdir / "rollouts", 3)
            for disk in ("one", "two"):
                log = LogConfig(folder=str(tmp_path / disk))
                opened(workdir, "tensorboard", lines=[train_line(1), train_line(2)], log=log).close()
                points = trackers.tensorboard_points(tmp_path / disk / "tensorboard")
                assert points["train/loss"] == [(1, 1.0), (2, 2.0)] and points["rollouts/safety/best"] == [(2, (10, 20))]
            kept = json.loads((workdir / "trackers.json").read_text())
            assert kept["tensorboard"]["sent"] == {"train": 2, "rollouts": 2}
        finally:
            paths.bucket_files.cache_clear()
            paths.reach.cache_clear()


def test_without_names_nothing_is_imported_written_or_started(tmp_path):
    before = threading.active_count()
    made = opened(tmp_path, resumed=False)
    made.scalars(train_line(1))
    made.rollouts(1)
    made.close()
    assert list(tmp_path.iterdir()) == [] and threading.active_count() == before
    tree = ast.parse(Path(services.__file__).read_text())
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not names & set(PACKAGES.values())
