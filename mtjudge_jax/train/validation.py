"""Judges the validation split during training, and keeps the best model."""

import time

from mtjudge_jax import hosts
from mtjudge_jax.config import Config
from mtjudge_jax.eval.batches import Judging, how_sampled
from mtjudge_jax.eval.evaluate import evaluate, write_evaluation
from mtjudge_jax.eval.scores import in_short
from mtjudge_jax.policy.model import Model, eval_format
from mtjudge_jax.train.best_model import write_best
from mtjudge_jax.train.monitor.health import unreadable
from mtjudge_jax.train.monitor.messages import say
from mtjudge_jax.train.run import Progress, Run, log, warn


def judging(cfg: Config, model: Model) -> Judging:
    """How the validation split is judged: one greedy answer per prompt, and samples by the fields of cfg.eval."""
    fmt = eval_format(model, cfg)
    sizes = {"batch": cfg.rollout.prompts, "kept": cfg.rollout.micro_prompts, "max_bad_share": cfg.data.max_bad_share}
    sizes |= how_sampled(cfg, cfg.eval.samples)
    return Judging(model.programs, fmt, alpha=cfg.reward.alpha, seed=cfg.seed, **sizes)


def validate(run: Run, progress: Progress) -> Progress:
    """Judges the validation split, logs the scores, and writes the model as a Hugging Face folder if it is the best so far."""
    began = time.perf_counter()

    def judged(rows: int) -> None:
        run.watch.beat(f"step {progress.step} validation")

    how = judging(run.cfg, run.model)
    predictions, result = evaluate(progress.params, run.validation, how, step=progress.step, progress=judged)
    mean = result["mean"]["macro_f1"]
    log(run, {"kind": "eval", "split": "val", "seconds": time.perf_counter() - began, **result})
    try:
        write_evaluation(run.workdir / "eval", f"val_{progress.step:06d}", predictions, {"split": "val", **result})
    except OSError as error:
        warn(run, progress.step, f"could not write the validation after step {progress.step}: {error}")
    better = mean > progress.best
    sampled = result["mean"]["sampled_accuracy"]
    say(
        f"validation after step {progress.step}: mean macro-F1 {mean:.3f}{' (best)' if better else ''}"
        + (f", sampled accuracy {sampled:.3f}" if sampled is not None else "")
        + (f", skipped records {result['unusable']}" if result["unusable"] else "")
        + f" | {in_short(result['tasks'])}"
    )
    if progress.step or run.cfg.stage != "sft":  # SFT is what teaches the form
        for text in unreadable(predictions, run.cfg):
            warn(run, progress.step, text)
    progress = progress._replace(judged=progress.step)
    if not better:
        return progress._replace(since_best=progress.since_best + 1)
    hosts.stop_if_asked()  # the last moment before many bytes are written
    return write_best(run, progress, mean)
