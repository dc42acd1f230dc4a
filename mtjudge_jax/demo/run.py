"""The demo: draw the data, judge with the base, train, judge again, report."""

import shlex
import time
from pathlib import Path

import jax

from mtjudge_jax import hosts
from mtjudge_jax.checkpoint import check_workdir
from mtjudge_jax.config import Config
from mtjudge_jax.data.pipeline import read_split
from mtjudge_jax.demo.arms import chosen, run_arms
from mtjudge_jax.demo.cases import DEMO_TASKS
from mtjudge_jax.demo.config import get_config
from mtjudge_jax.demo.dataset import write_demo_data
from mtjudge_jax.eval.console import progress_bar, table
from mtjudge_jax.eval.evaluate import evaluate, write_evaluation
from mtjudge_jax.locks import held
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.paths import AnyPath, address, as_path, copy_file
from mtjudge_jax.policy.model import DEMO_BASE, Model, open_model
from mtjudge_jax.report.write import write_report
from mtjudge_jax.sharding import param_sharding
from mtjudge_jax.train.fit import fit
from mtjudge_jax.train.validation import judging

# The result of SFT on the true verdicts (configs/demo_sft.py, same data): measured once and shipped, not run by the demo.
_REFERENCE = Path(__file__).parent / "reference_sft_test.json"


def _test_once(folder: AnyPath, name: str, model: Model, cfg: Config, workdir: AnyPath) -> None:
    """Judges the test split with the weights of a folder, unless an earlier start of this command has done so."""
    if (workdir / "eval" / f"{name}.json").exists():
        print("    already done", flush=True)
        return
    examples = {task: read_split(workdir / "data", "test", task) for task in DEMO_TASKS}
    params = load_params(
        folder, model.cfg, dtype=cfg.model.dtype, sharding_of=lambda path, shape: param_sharding(path, shape, model.programs.mesh)
    )
    began = time.perf_counter()
    with progress_bar(examples) as progress:
        predictions, result = evaluate(params, examples, judging(cfg, model), step=0, probabilities=True, progress=progress)
    result |= {"split": "test", "seconds": time.perf_counter() - began}
    write_evaluation(workdir / "eval", name, predictions, result)
    print(f"{name}: {len(predictions)} answers in {result['seconds']:.0f} s\n{table(result)}\n", flush=True)


def _count_compilation() -> list[float]:
    """A list that receives the seconds of each compilation from now on."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def run(workdir: str, *, seed: int, arms: list[str], seeds: int) -> None:
    """Runs the demo, or trains and compares the named arms."""
    cfg = get_config()
    cfg.seed = seed
    names = chosen(arms) if arms else []
    folder = as_path(workdir)
    with hosts.joined(cfg.hosts):
        check_workdir(folder)
        with held(folder):
            if names:
                run_arms(folder, names, seeds)
            else:
                _demonstrate(cfg, folder)


def _demonstrate(cfg: Config, workdir: AnyPath) -> None:
    began, compilation = time.perf_counter(), _count_compilation()
    print("1/5 drawing the demonstration pictures", flush=True)
    write_demo_data(workdir / "data", seed=0)
    model = open_model(cfg)
    print("2/5 the base on the test split (it can see and answer, but learned its verdicts from coin flips)", flush=True)
    _test_once(DEMO_BASE, "base_test", model, cfg, workdir)
    print(f"3/5 training: {cfg.steps} steps of multi-task GRPO", flush=True)
    fit(cfg, str(workdir), model=model)
    print("4/5 the trained judge on the test split", flush=True)
    _test_once(workdir / "best", "trained_test", model, cfg, workdir)
    print("5/5 the report", flush=True)
    if not (workdir / "eval" / _REFERENCE.name).exists():
        copy_file(_REFERENCE, workdir / "eval" / _REFERENCE.name)
    path = write_report(workdir)
    minutes = (time.perf_counter() - began) / 60
    print(f"done: this start took {minutes:.1f} minutes, {sum(compilation):.0f} s of it for compilation")
    print(f"report: {address(path)}\nmodel:  {workdir / 'best'}")
    model = shlex.quote(f"--model={workdir / 'best'}")
    print(f"try it: mtjudge judge {model} --task=technical --image=PICTURE")
