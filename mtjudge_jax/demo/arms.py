"""`mtjudge demo --arms=all`: the paper's five arms and others on the demo's data, from one base, at equal numbers of prompts.

Every arm sees 576 questions per task: a single model in 48 steps of 12, a unified one in 288 steps of the same size, so that
they share their compiled programs. An arm with neutral pairs has 4 of them more in each step. The tables of
`mtjudge report A B ..` compare the models after their last step. Each run ends in a file below `eval`, and a second start of the
command does the missing runs.
"""

import json
import time
from functools import cache
from typing import NamedTuple

import jax
import numpy as np

from mtjudge_jax.config import Config, differences, to_dict, with_defaults
from mtjudge_jax.data.pipeline import read_split
from mtjudge_jax.demo.cases import DEMO_TASKS, NEVER_TRAINED, PAIRWISE, POINTWISE, form_of
from mtjudge_jax.demo.config import get_config
from mtjudge_jax.demo.dataset import write_demo_data
from mtjudge_jax.errors import ConfigError, unknown
from mtjudge_jax.eval.batches import Judging
from mtjudge_jax.eval.console import progress_bar
from mtjudge_jax.eval.evaluate import evaluate, write_evaluation
from mtjudge_jax.eval.scores import in_short
from mtjudge_jax.paths import AnyPath, address, as_path, remove_tree
from mtjudge_jax.policy.model import Model, eval_format, open_model, read_params, target_of
from mtjudge_jax.report.compare.compare import compare
from mtjudge_jax.report.compare.pages import write_comparison
from mtjudge_jax.report.compare.read import join_tasks, read_result
from mtjudge_jax.tasks.demo import NEUTRAL
from mtjudge_jax.train.fit import fit

_STEPS, _PROMPTS = 48, 12  # per task, of a step
_EVAL_BATCH = 40  # prompts; divides the 200 questions of a task


class Arm(NamedTuple):
    title: str
    stage: str = ""  # grpo | sft; "" trains nothing
    single: bool = False  # one model per task
    pairs: bool = False  # neutral pairs beside its tasks, as in the demo
    warm: bool = False  # a third of its prompts is SFT on gold reasoning, before RL
    target: str = "rationale"  # sft.target
    mixture: str = "uniform"


ARMS: dict[str, Arm] = {
    "off_the_shelf": Arm("off the shelf"),
    "sft_single": Arm("SFT-Single, verdict alone", "sft", single=True, target="answer"),
    "sft_unified": Arm("SFT-Unified, verdict alone", "sft", target="answer"),
    "sft_single_rationale": Arm("SFT-Single, reasoning and verdict", "sft", single=True),
    "sft_unified_rationale": Arm("SFT-Unified, reasoning and verdict", "sft"),
    "sft_unified_pairs": Arm("SFT-Unified, verdict alone, neutral pairs", "sft", pairs=True, target="answer"),
    "sft_unified_rationale_pairs": Arm("SFT-Unified, reasoning and verdict, neutral pairs", "sft", pairs=True),
    "rl_single": Arm("RL-Single", "grpo", single=True),
    "mt_rl_judge": Arm("MT-RL-Judge", "grpo"),
    "mt_rl_pairs": Arm("MT-RL, neutral pairs", "grpo", pairs=True),
    "mt_grpo": Arm("MT-GRPO", "grpo", mixture="mt_grpo"),
    "warm_mt_rl": Arm("SFT, reasoning and verdict, then MT-RL", "grpo", warm=True),
}


class Job(NamedTuple):
    """One model to train and judge."""

    arm: str
    seed: int
    task: str = ""  # if the arm is single

    @property
    def name(self) -> str:
        return f"{self.arm}{'.' if self.task else ''}{self.task}.seed{self.seed}"

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task,) if self.task else POINTWISE

    @property
    def judged(self) -> tuple[str, ...]:
        """Its own tasks, and those of the same criteria in the forms that are never trained."""
        return (*self.tasks, *(name for name in NEVER_TRAINED if form_of(name)[1] in self.tasks))


def chosen(names: list[str]) -> list[str]:
    """The arms that --arms names, in the order of ARMS. Raises ConfigError for an unknown one."""
    if names == ["all"]:
        return list(ARMS)
    for name in names:
        if name not in ARMS:
            raise ConfigError(f"--arms: {unknown('arm', name, ['all', *ARMS])}")
    return [name for name in ARMS if name in names]


def jobs_of(names: list[str], seeds: int) -> list[Job]:
    """The jobs seed by seed, so that one seed is complete before the next begins. An arm without training has one seed."""
    jobs = []
    for seed in range(seeds):
        for name in names:
            if ARMS[name].stage or seed == 0:
                jobs += [Job(name, seed, task) for task in (POINTWISE if ARMS[name].single else ("",))]
    return jobs


def _job_config(job: Job, workdir: AnyPath) -> Config:
    """The demo's config (for SFT that of configs/demo_sft.py) with the arm's number of prompts."""
    arm, cfg = ARMS[job.arm], get_config()
    cfg.seed, cfg.data.path, cfg.data.tasks = job.seed, str(workdir / "data"), job.tasks
    if arm.pairs:
        cfg.data.tasks += tuple(NEUTRAL)
    else:  # the room of a question about one picture
        cfg.data.prompt_tokens, cfg.data.patches, cfg.rollout.completion_tokens = 48, 36, 18
        cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = _PROMPTS
    cfg.steps = _STEPS * len(job.tasks)
    if arm.warm:
        cfg.steps -= cfg.steps // 3
        cfg.model.path = str(_warm_folder(job, workdir) / "best")
    cfg.optim.warmup_steps = max(2, cfg.steps // 4)  # as in the demo
    cfg.eval.every_steps, cfg.eval.limit, cfg.eval.samples = cfg.steps, 24, 1
    cfg.checkpoint.every_steps, cfg.checkpoint.keep = _STEPS, 1
    if arm.stage:
        cfg.stage, cfg.sft.target, cfg.data.mixture = arm.stage, arm.target, arm.mixture
    if arm.stage == "sft":
        cfg.optim.lr = 2e-3  # that of configs/demo_sft.py
    return cfg


def _warm_folder(job: Job, workdir: AnyPath) -> AnyPath:
    return workdir / "runs" / job.name / "warm"


def _warmed(job: Job, cfg: Config, model: Model, workdir: AnyPath) -> Model:
    """The model after the SFT that an arm begins with."""
    taught = job._replace(arm="sft_unified_rationale")
    first = _job_config(taught, workdir)
    first.steps -= cfg.steps
    first.eval.every_steps = first.steps
    teaching = model._replace(fmt=model.fmt._replace(target=target_of(first, model.fmt.tasks)))
    fit(first, str(_warm_folder(job, workdir)), model=teaching)
    return model._replace(folder=as_path(cfg.model.path))


def run_arms(workdir: AnyPath, arms: list[str], seeds: int) -> None:
    """Trains and judges the missing jobs, and rewrites the tables after each."""
    began = time.perf_counter()
    if not jax.config.jax_compilation_cache_dir:  # runs of the same sizes are the same programs
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    write_demo_data(workdir / "data", seed=0)
    examples = {task: read_split(workdir / "data", "test", task) for task in DEMO_TASKS}
    jobs = jobs_of(arms, seeds)
    models = cache(lambda pairs: open_model(_job_config(next(job for job in jobs if ARMS[job.arm].pairs == pairs), workdir)))
    for number, job in enumerate(jobs, 1):
        cfg = _job_config(job, workdir)
        print(f"{number}/{len(jobs)} {job.name}", flush=True)
        if _is_done(workdir / "eval" / f"{job.name}.json", cfg):
            print("    already done", flush=True)
            continue
        _run_job(job, cfg, models(ARMS[job.arm].pairs), {name: examples[name] for name in job.judged}, workdir)
        write_tables(workdir, jobs)
    path = write_tables(workdir, jobs)
    print(f"done: this start took {(time.perf_counter() - began) / 60:.1f} minutes\ntables: {address(path)}", flush=True)


def write_tables(workdir: AnyPath, jobs: list[Job]) -> AnyPath:
    """Writes the comparison of the finished jobs, at least one, to the workdir and returns the path of its page.

    Pairs are compared by macro-F1 too, which exposes constant answers.
    """
    done = [(job, path) for job in jobs if (path := workdir / "eval" / f"{job.name}.json").exists()]
    seeds: dict[str, dict[int, dict]] = {}
    for job, path in done:
        seed = seeds.setdefault(ARMS[job.arm].title, {}).setdefault(job.seed, {"tasks": {}, "predictions": []})
        join_tasks(seed, read_result(path))
    runs = {title: [by_seed[seed] for seed in sorted(by_seed)] for title, by_seed in seeds.items()}
    note = f"The demo's arms, {len(done)} of {len(jobs)} models judged. Macro-F1, test split, greedy answers; an invalid answer "
    note += "counts as wrong, and a constant answer has 33.3."
    write_comparison(compare(runs, tasks=(*POINTWISE, *PAIRWISE), metric="macro_f1"), workdir, note=note)
    return workdir / "comparison.html"


def _is_done(path: AnyPath, cfg: Config) -> bool:
    """Whether an earlier start judged this job. Raises ConfigError if it used another config."""
    if not path.exists():
        return False
    stored = json.loads(path.read_text())["config"]
    lines = differences(with_defaults(stored), to_dict(cfg))
    changed = [line for line in lines if not line.startswith("data.path:")]  # a folder may move
    if changed:
        raise ConfigError(f"{path} has another config: {'; '.join(changed)}. Use another --workdir, or remove the file")
    return True


def _run_job(job: Job, cfg: Config, model: Model, examples: dict, workdir: AnyPath) -> None:
    """Trains one model, judges it and writes the result."""
    began, cpu, folder = time.perf_counter(), time.process_time(), workdir / "runs" / job.name
    model = model._replace(fmt=model.fmt._replace(target=target_of(cfg, model.fmt.tasks)))
    if ARMS[job.arm].warm:
        model = _warmed(job, cfg, model, workdir)
    if ARMS[job.arm].stage:
        _, progress = fit(cfg, str(folder), model=model)
        params = progress.params
    else:
        params = read_params(model, cfg)
    trained = time.perf_counter()
    how = Judging(model.programs, eval_format(model, cfg), _EVAL_BATCH, np.zeros(1, np.float32), cfg.reward.alpha, cfg.seed)
    with progress_bar(examples) as progress:
        predictions, result = evaluate(params, examples, how, step=0, probabilities=True, progress=progress)
    now = time.perf_counter()
    seconds = {"train": trained - began, "judge": now - trained, "cpu": time.process_time() - cpu}
    result |= {"arm": job.arm, "seed": job.seed, "task": job.task, "split": "test", "seconds": seconds, "config": to_dict(cfg)}
    write_evaluation(workdir / "eval", job.name, predictions, result)
    for done in (folder, _warm_folder(job, workdir)):
        remove_tree(done / "checkpoints")  # the result is written, so they are no longer needed
    print(f"{job.name}: {seconds['train']:.0f} s + {seconds['judge']:.0f} s | {in_short(result['tasks'])}", flush=True)
