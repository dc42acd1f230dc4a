"""Commands and functions of the tests, each in a process of its own, forked from one that has imported everything.

Importing takes longer than what is tested. The processes have one CPU device and code that compiles fast and runs slowly. They
share the suite's compilation cache, so a second run of the same shapes does not compile again.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

CONFIG = '''"""Six tasks, six prompts of two answers a step."""

from mtjudge_jax.config import Config


def get_config():
    cfg = Config(steps=8)
    cfg.model.path = "demo"
    cfg.data.tasks = ("technical", "rationality", "naturalness", "alignment", "preference", "safety")
    cfg.data.mixture = "uniform"
    cfg.data.prompt_tokens, cfg.data.patches = 48, 36
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 6
    cfg.rollout.group_size = cfg.eval.samples = 2
    cfg.rollout.completion_tokens = 18
    cfg.optim.lr, cfg.optim.schedule, cfg.optim.warmup_steps = 1e-3, "cosine", 2
    cfg.eval.every_steps, cfg.eval.limit, cfg.eval.tasks = 4, 2, ("technical", "safety")
    cfg.checkpoint.every_steps = 1
    return cfg
'''


def fast_compile() -> str:
    """XLA's flags for code that compiles fast and runs slowly."""
    flags = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    # newer versions of XLA do not have it
    return flags if jax.__version_info__ >= (0, 11) else f"{flags} --xla_cpu_use_fusion_emitters=false"


class Started(NamedTuple):
    pid: int
    out: Path
    err: Path


class Ended(NamedTuple):
    status: int  # minus the signal's number where one ended it
    out: str
    err: str


class Commands:
    """A folder with a config and small demo data, and the warm process that forks."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="mtjudge-"))
        self.config = self.folder / "tiny_config.py"
        self.config.write_text(CONFIG)
        settings = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
        settings["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # of a hundred small programs a process
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings | {"XLA_FLAGS": fast_compile()},
            cwd=self.folder,
        )
        self._count = 0
        self.call("commands.write_data", folder=str(self.folder / "data"))

    def start(self, *argv: object, env: dict[str, str] | None = None, compiled: Path | None = None) -> Started:
        """Starts `mtjudge ARGV`. `compiled`: a compilation cache of its own, which shows what was compiled."""
        job = {"argv": [str(a) for a in argv], "env": env or {}}
        return self._fork(job if compiled is None else job | {"compiled": str(compiled)})

    def train(self, workdir: Path, *flags: str, env: dict[str, str] | None = None) -> Started:
        data = f"--config.data.path={self.folder / 'data'}"
        return self.start("train", f"--config={self.config}", data, f"--workdir={workdir}", *flags, env=env)

    def wait(self, started: Started) -> Ended:
        status = self._ask({"wait": started.pid})
        return Ended(status, started.out.read_text(), started.err.read_text())

    def until(self, condition: Callable[[], bool], started: Started, *, seconds: float = 120) -> bool:
        """Waits for a condition; False where the process ended before it held."""
        end = time.monotonic() + seconds
        while not condition():
            if self._ask({"running": started.pid}) == 0:
                return condition()
            assert time.monotonic() < end, f"{seconds} s: {started.out.read_text()[-500:]} {started.err.read_text()[-2000:]}"
            time.sleep(0.001)
        return True

    def run(self, *argv: object, env: dict[str, str] | None = None, compiled: Path | None = None) -> Ended:
        return self.wait(self.start(*argv, env=env, compiled=compiled))

    def start_call(self, name: str, **arguments) -> Started:
        """Starts `module.function(**arguments)`."""
        return self._fork({"call": name, "arguments": arguments})

    def call(self, name: str, **arguments):
        """What `module.function(**arguments)` returns, as JSON; its traceback is an AssertionError here."""
        ended = self.wait(self.start_call(name, **arguments))
        assert ended.status == 0, f"{name} {arguments}: status {ended.status}\n{ended.out[-2000:]}\n{ended.err[-4000:]}"
        return json.loads(ended.out.splitlines()[-1])

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _fork(self, job: dict) -> Started:
        self._count += 1
        out, err = (self.folder / f"{self._count}.{name}" for name in ("out", "err"))
        for path in (out, err):
            path.touch()
        return Started(self._ask(job | {"out": str(out), "err": str(err)}), out, err)

    def _ask(self, job: dict) -> int:
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@functools.cache
def commands() -> Commands:
    """One a test process."""
    made = Commands()
    atexit.register(made.close)
    return made


def write_data(*, folder: str, val: int = 4) -> None:
    """12 training, `val` validation and 4 test records a task."""
    from mtjudge_jax.demo.dataset import write_demo_data

    write_demo_data(folder, train=12, val=val, test=4, unseen=4)


@functools.cache
def scoring() -> dict:
    """What the judge in process says of `photos()`: command_drills.scoring, once a test process."""
    return commands().call("command_drills.scoring")


def photos() -> list[bytes]:
    """Photographs of four shapes, as PNG."""
    import io

    from PIL import Image

    from mtjudge_jax.policy.model import DEMO_BASE

    out = []
    for number, path in enumerate(sorted((DEMO_BASE.parent / "assets" / "photos").glob("*.jpg"))[:12]):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize((96 + 16 * (number % 4), 96)).save(buffer, "PNG")
        out.append(buffer.getvalue())
    return out


def _child(job: dict) -> None:
    os.setsid()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job.get("env", {}))
    if "compiled" in job:  # a cache of its own: jax has read the environment already
        jax.config.update("jax_compilation_cache_dir", job["compiled"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = 1
    try:
        if "argv" in job:
            from mtjudge_jax import cli

            sys.argv = ["mtjudge", *job["argv"]]
            cli.main()
        else:
            module, _, name = job["call"].rpartition(".")
            print(json.dumps(getattr(importlib.import_module(module), name)(**job["arguments"])))
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve() -> None:
    import transformers
    from absl import flags  # noqa: F401

    import mtjudge_jax.demo.run
    import mtjudge_jax.eval.split
    import mtjudge_jax.export.export
    import mtjudge_jax.judge.one_question
    import mtjudge_jax.prepare.prepare
    import mtjudge_jax.report.write
    import mtjudge_jax.sample.sampling
    import mtjudge_jax.train.fit  # noqa: F401

    transformers.AutoTokenizer  # noqa: B018  lazy: this imports it
    gc.freeze()  # what is imported stays
    gc.set_threshold(100_000, 50, 50)
    running = set()
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
            running.discard(job["wait"])
        elif "running" in job:
            answer = int(os.waitid(os.P_PID, job["running"], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None)
        else:
            answer = os.fork()
            if not answer:
                _child(job)
            running.add(answer)
        print(answer, flush=True)
    for pid in running:  # the tests have ended, perhaps not as they should
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    _serve()
