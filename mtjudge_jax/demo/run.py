"""The demo: draw the data, judge with the base, train, judge again, report."""

import time
from pathlib import Path

import jax

from mtjudge_jax import hosts
from mtjudge_jax.checkpoint import check_workdir
from mtjudge_jax.config import Config
from mtjudge_jax.data.sources import read_split
from mtjudge_jax.demo.arms import chosen, run_arms
from mtjudge_jax.demo.config import TASKS, UNSEEN, get_config
from mtjudge_jax.demo.dataset import write_demo_data
from mtjudge_jax.eval.console import progress_bar, table
from mtjudge_jax.eval.evaluate import evaluate, write_evaluation
from mtjudge_jax.models.hf.convert import load_params
from mtjudge_jax.paths import AnyPath, address, as_path, copy_file
from mtjudge_jax.policy.model import DEMO_BASE, Model, open_model
from mtjudge_jax.report.write import write_report
from mtjudge_jax.sharding import param_sharding
from mtjudge_jax.train.fit import fit
from mtjudge_jax.train.loop import judging

# SFT on the true verdicts, by configs/demo_sft.py on the same data: measured once and shipped, the demo does not run it.
REFERENCE = Path(__file__).parent / "reference_sft_test.json"


def test_once(folder: AnyPath, name: str, model: Model, cfg, workdir: AnyPath) -> None:
    """Judges the test split with the weights of a folder, unless an earlier start of this command did."""
    if (workdir / "eval" / f"{name}.json").exists():
        print("    done before", flush=True)
        return
    examples = {task: read_split(workdir / "data", "test", task) for task in (*TASKS, *UNSEEN)}
    params = load_params(
        folder, model.cfg, dtype=cfg.model.dtype, sharding_of=lambda path, shape: param_sharding(path, shape, model.stages.mesh)
    )
    began = time.perf_counter()
    with progress_bar(examples) as progress:
        predictions, result = evaluate(params, examples, judging(cfg, model), step=0, probabilities=True, progress=progress)
    result |= {"split": "test", "seconds": time.perf_counter() - began}
    write_evaluation(workdir / "eval", name, predictions, result)
    print(f"{name}: {len(predictions)} answers in {result['seconds']:.0f} s\n{table(result)}\n", flush=True)


def count_compilation() -> list[float]:
    """Seconds of each compilation from here on, appended as they happen."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def run(workdir: str, *, seed: int, arms: str, seeds: int) -> None:
    """The command. arms: names to train and compare instead of the one demo, [] for the demo."""
    cfg = get_config()
    cfg.seed = seed
    names = chosen(arms) if arms else []
    folder = as_path(workdir)
    with hosts.joined(cfg.hosts):
        check_workdir(folder)
        if names:
            run_arms(folder, names, seeds)
        else:
            demonstrate(cfg, folder)


def demonstrate(cfg: Config, workdir: AnyPath) -> None:
    began, compilation = time.perf_counter(), count_compilation()
    print("1/5 drawing the demonstration pictures", flush=True)
    write_demo_data(workdir / "data", seed=0)
    model = open_model(cfg)
    print("2/5 the base on the test split (it can see, but its verdicts were learned from coin flips)", flush=True)
    test_once(DEMO_BASE, "base_test", model, cfg, workdir)
    print(f"3/5 training: {cfg.steps} steps of multi-task GRPO", flush=True)
    fit(cfg, str(workdir), model=model)
    print("4/5 the trained judge on the test split", flush=True)
    test_once(workdir / "best", "trained_test", model, cfg, workdir)
    print("5/5 the report", flush=True)
    if not (workdir / "eval" / REFERENCE.name).exists():
        copy_file(REFERENCE, workdir / "eval" / REFERENCE.name)
    path = write_report(workdir)
    minutes = (time.perf_counter() - began) / 60
    print(f"done, this start took {minutes:.1f} minutes, {sum(compilation):.0f} s of them compilation")
    print(f"report: {address(path)}\nmodel:  {workdir / 'best'}")
    print(f"try it: mtjudge judge --model={workdir / 'best'} --task=technical --image=PICTURE")
