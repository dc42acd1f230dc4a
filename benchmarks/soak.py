"""Disturbs training on this machine and compares what comes out, bit by bit, with a run that nothing disturbed.

    python benchmarks/soak.py --kills=20      # so many runs, each killed -9 once at a random moment, every fourth in a save
    python benchmarks/soak.py --minutes=30    # one run of two processes: kills, SIGTERM, a full disk, freezes, bad records

Every run is started once, by launch/local_multiprocess.sh, which starts it again by itself; nothing else mends anything. The
workdirs are on a tmpfs of their own, so that the disk can be full (root is needed for --minutes). The data are the demo's, with
one record in 200 damaged. The last line is JSON; the exit status is 0 only if every end is equal.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAUNCHER = ROOT / "launch" / "local_multiprocess.sh"
CONFIG = """
from mtjudge_jax.demo.config import get_config as demo


def get_config():
    cfg = demo()
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 12
    cfg.rollout.group_size = cfg.eval.samples = 4
    cfg.eval.every_steps, cfg.eval.limit = 20, 4
    cfg.checkpoint.every_steps = 1
    cfg.checkpoint.max_failed_saves = 100  # the disk is full for up to 20 s, which are many steps
    cfg.data.max_bad_share = 0.1
    cfg.hosts.heartbeat_seconds = 10
    return cfg
"""
EVENTS = ("kill", "kill", "term", "full", "freeze")
DISK_MB = 400


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=0)
    p.add_argument("--minutes", type=float, default=0)
    p.add_argument("--steps", type=int, default=0, help="of a run; default 8 with --kills, 4 a minute else")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--events", default=",".join(EVENTS), help="of --minutes; one that is named twice comes twice as often")
    p.add_argument("--between", type=int, nargs=2, default=(30, 90), metavar="SECONDS", help="from one event to the next")
    p.add_argument("--logs", type=Path, help="where the logs of a run that is not equal are put")
    args = p.parse_args()
    if unknown := set(args.events.split(",")) - set(EVENTS):
        p.error(f"--events: there is no {', '.join(sorted(unknown))}, only {', '.join(sorted(set(EVENTS)))}")
    if not args.kills and not args.minutes:
        p.error("say --kills=20 or --minutes=30")
    random.seed(args.seed)
    with tempfile.TemporaryDirectory(prefix="mtjudge-soak-") as name:
        folder = Path(name)
        (folder / "config.py").write_text(CONFIG)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        prepare(folder / "data")
        results = []
        if args.kills:
            results.append(killed_runs(folder, args.kills, args.steps or 8))
        if args.minutes:
            results.append(soak(folder, args))
    for result in results:
        print(json.dumps(result))
    return int(not all(result["equal"] == result["runs"] for result in results))


def prepare(folder: Path) -> None:
    """The demo's data with every 200th training record damaged."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from mtjudge_jax.data.pipeline import open_split
    from mtjudge_jax.demo.cases import TRAINED_TASKS
    from mtjudge_jax.demo.dataset import write_demo_data
    from mtjudge_jax.records import pack

    write_demo_data(folder, seed=0)
    for task in TRAINED_TASKS:
        source = open_split(folder, "train", task)
        examples = [source[index] for index in range(len(source))]
        path = folder / "train" / f"{task}.array_record"
        path.unlink()
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for number, example in enumerate(examples):
            writer.write(b"nonsense" if number % 200 == 7 else pack(example))
        writer.close()


def command(folder: Path, workdir: Path, *, processes: int, steps: int, restarts: int) -> list[str]:
    launcher = [str(LAUNCHER), f"--processes={processes}", "--devices=1", f"--restarts={restarts}", f"--logs={workdir}-logs"]
    flags = {"config": folder / "config.py", "config.data.path": folder / "data", "config.steps": steps, "workdir": workdir}
    train = [sys.executable, "-m", "mtjudge_jax.cli", "train", *(f"--{name}={value}" for name, value in flags.items())]
    return [*launcher, "--grace=30", "--", *train]


def started(argv: list[str]) -> subprocess.Popen:
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)


def trainers(launcher: subprocess.Popen) -> list[int]:
    """The training processes below the launcher."""
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher.pid and b"mtjudge_jax.cli" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def ending(workdir: Path, steps: int) -> dict:
    """What a run ended with, without times and without what tells of the disturbance alone."""
    from mtjudge_jax.checkpoint import read_saved

    saved = read_saved(workdir / "checkpoints", steps)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] != "warning"]
    for line in lines:
        for timing in ("seconds", "tokens_per_s", "hosts"):
            line.pop(timing, None)
    files = {str(path.relative_to(workdir)): path.read_bytes() for path in sorted((workdir / "best").iterdir())}
    return {"leaves": saved.leaves, "meta": saved.meta, "metrics": lines, "best": files}


def differences(got: dict, want: dict) -> list[str]:
    """What differs between two endings, in words."""
    out = [f"leaf {name}" for name in want["leaves"] if got["leaves"].get(name) != want["leaves"][name]]
    out += [
        f"meta {name}: {got['meta'].get(name)} for {value}"
        for name, value in want["meta"].items()
        if got["meta"].get(name) != value
    ]
    lines = [{(line["kind"], line["step"]): line for line in one["metrics"]} for one in (got, want)]
    out += [f"{key} of metrics.jsonl" for key in lines[1] if lines[0].get(key) != lines[1][key]]
    return out + [f"best/{name}" for name in want["best"] if got["best"].get(name) != want["best"][name]]


def killed_runs(folder: Path, runs: int, steps: int) -> dict:
    """So many runs, each killed once; the launcher starts them again."""
    reference = folder / "undisturbed"
    for _ in range(2):  # the first compiles for the others
        shutil.rmtree(reference, ignore_errors=True)
        began = time.monotonic()
        assert started(command(folder, reference, processes=1, steps=steps, restarts=0)).wait() == 0, logs(reference)
        whole = time.monotonic() - began
    want, equal, missed, moments = ending(reference, steps), 0, 0, []
    while len(moments) < runs and missed < runs:
        workdir = folder / f"killed-{len(moments)}-{missed}"
        run = started(command(folder, workdir, processes=1, steps=steps, restarts=3))
        moment = kill_once(run, workdir, whole, in_save=len(moments) % 4 == 3)
        status = run.wait()
        same = status == 0 and ending(workdir, steps) == want
        if moment:
            moments.append(moment)
            equal += same
        missed += not moment
        told = f"killed {moment}" if moment else "not counted: it had ended before the moment drawn"
        print(f"{len(moments)} of {runs}: {told}; status {status}, {'equal' if same else 'DIFFERENT'}", flush=True)
        if same:
            shutil.rmtree(workdir)
    facts = {"what": "kills", "runs": runs, "equal": equal, "steps": steps, "undisturbed_seconds": round(whole, 1)}
    return facts | {"missed": missed, "moments": moments}


def kill_once(run: subprocess.Popen, workdir: Path, whole: float, *, in_save: bool) -> str | None:
    """SIGKILL after a random part of the time that a run takes, or as soon as a save of a random step is on its way.
    Gives when; None if the run had ended before."""
    began, folder = time.monotonic(), workdir / "checkpoints"
    wanted = random.uniform(0.05, 0.95) * whole
    mark = f"{random.randint(1, 6)}.unfinished"
    while run.poll() is None:
        now = time.monotonic() - began
        saving = in_save and folder.is_dir() and any(path.name.startswith(mark) for path in folder.iterdir())
        if (saving or (not in_save and now > wanted)) and (pids := trainers(run)):
            os.kill(pids[0], signal.SIGKILL)
            return f"after {now:.1f} s{', in a save' if saving else ''}"
        time.sleep(0.001 if in_save else 0.02)
    return None


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def soak(folder: Path, args: argparse.Namespace) -> dict:
    """One run of two processes, disturbed until the time is over, then left alone to its end."""
    minutes, steps, reference = args.minutes, args.steps or int(4 * args.minutes), folder / "two"
    began = time.monotonic()
    assert started(command(folder, reference, processes=2, steps=steps, restarts=0)).wait() == 0, logs(reference)
    whole = time.monotonic() - began
    print(f"undisturbed: {steps} steps in {whole:.0f} s", flush=True)
    counts: collections.Counter[str] = collections.Counter()
    with small_disk(folder / "disk") as disk:
        workdir = disk / "run"
        run = started(command(folder, workdir, processes=2, steps=steps, restarts=1000))
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end and run.poll() is None:
            time.sleep(random.uniform(*args.between))
            if run.poll() is None and (pids := trainers(run)):
                event = random.choice(args.events.split(","))
                if event == "full" and not trains(workdir):
                    continue  # a command that finds a full disk at its start says so with status 2, which is not started again
                counts[event] += 1
                print(f"{(time.monotonic() - end) / 60 + minutes:5.1f} min: {event}", flush=True)
                disturb(event, random.choice(pids), disk)
        status = run.wait()
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        trained = [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]
        missing = sorted(set(range(1, steps + 1)) - set(trained)) + [step for step in set(trained) if trained.count(step) > 1]
        differ = [f"exit status {status}"] if status else differences(ending(workdir, steps), ending(reference, steps))
        differ += [f"steps {missing} are not in metrics.jsonl once"] if missing else []
        same, text = not differ, logs(workdir)
        if differ:
            print("\n".join(differ), flush=True)
            if args.logs:
                shutil.copytree(f"{workdir}-logs", args.logs, dirs_exist_ok=True)
    facts = {"what": "soak", "runs": 1, "equal": int(same), "status": status, "steps": steps, "events": dict(counts)}
    facts |= {"undisturbed_seconds": round(whole), "seconds": round(time.monotonic() - began - whole)}
    return facts | {name: text.count(mark) for name, mark in TOLD.items()}


def trains(workdir: Path, seconds: float = 40) -> bool:
    """Whether a step ends soon: the processes are past their start."""
    path, end = workdir / "metrics.jsonl", time.monotonic() + seconds
    size = path.stat().st_size if path.exists() else 0
    while time.monotonic() < end:
        time.sleep(0.2)
        if path.exists() and path.stat().st_size > size:
            return True
    return False


TOLD = {"resumed": "resumed ", "saved_at_sigterm": "asked to stop: step", "not_saved": "was not written", "no_room": "are free"}


def disturb(event: str, pid: int, disk: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        if event == "kill":
            os.kill(pid, signal.SIGKILL)
        if event == "term":
            os.kill(pid, signal.SIGTERM)
        if event == "freeze":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(4)
            os.kill(pid, signal.SIGCONT)
        if event == "full":
            ballast = disk / "ballast"
            with contextlib.suppress(OSError), open(ballast, "wb") as file:
                for _ in range(DISK_MB):
                    file.write(bytes(1 << 20))
            time.sleep(random.uniform(5, 20))
            ballast.unlink()


def logs(workdir: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(Path(f"{workdir}-logs").glob("*.log")))


if __name__ == "__main__":
    sys.exit(main())
