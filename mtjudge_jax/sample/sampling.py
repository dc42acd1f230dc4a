"""`mtjudge sample`: a model's answers to the training split, and a data folder of those that are right.

Each batch is kept when it is done, so the same command continues after a kill and writes the same bytes. Which prompts are kept,
and how they are balanced, is decided at the end: another --keep after a kill samples nothing again.
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mtjudge_jax import hosts
from mtjudge_jax.config import Config, HostsConfig, get_tasks
from mtjudge_jax.data.bad_rows import BadRowCounter
from mtjudge_jax.data.pipeline import read_manifest
from mtjudge_jax.errors import UserError
from mtjudge_jax.eval.batches import Judging, judge
from mtjudge_jax.eval.evaluate import in_order
from mtjudge_jax.eval.resume import Kept, open_kept
from mtjudge_jax.eval.split import Request, config_of, examples_asked, settings_of
from mtjudge_jax.hosts.exchange import gather, together
from mtjudge_jax.locks import held
from mtjudge_jax.paths import as_path, in_bucket, remove_tree
from mtjudge_jax.policy.model import eval_format, judging_format, open_model, read_params
from mtjudge_jax.prepare.folder import is_done, publish, work_path
from mtjudge_jax.records import JudgeExample
from mtjudge_jax.rl.logp import Filter
from mtjudge_jax.sample.choosing import balanced, drawn_line, wanted
from mtjudge_jax.sample.writing import write_sampled
from mtjudge_jax.tasks import Task
from mtjudge_jax.types import Params


class Choice(NamedTuple):
    """What is kept of the answers."""

    keep: str
    choose: str
    balance: str
    temperature: float


def run(ask: Request, choice: Choice) -> None:
    """Samples on all processes, in one process group. Raises UserError if not one prompt is kept."""
    with hosts.joined(HostsConfig()):
        cfg = config_of(ask)
        unreadable = BadRowCounter()
        examples = examples_asked(ask, unreadable, get_tasks(cfg, ask.templates))
        with contextlib.ExitStack() as stack:
            with together():
                stack.enter_context(held(as_path(ask.out), beside=True, holds=jax.process_index() == 0))
            _sample_into_folder(ask, choice, cfg, examples)
        if unreadable.bad and jax.process_index() == 0:
            print(f"{unreadable.bad} records could not be read and were left out")


def _sample_into_folder(ask: Request, choice: Choice, cfg: Config, examples: dict[str, list[JudgeExample]]) -> None:
    """Samples what no earlier command has sampled, writes the folder and prints what it holds."""
    cfg.eval.temperature = choice.temperature
    model = open_model(cfg)
    fmt = (judging_format if ask.config is None else eval_format)(model, cfg)
    line = partial(drawn_line, choose=choice.choose, most_tokens=cfg.rollout.completion_tokens)
    temperature, only = np.full(ask.samples, choice.temperature, np.float32), Filter(cfg.eval.top_k, cfg.eval.top_p)
    sizes = {"batch": cfg.rollout.prompts, "alpha": cfg.reward.alpha, "seed": ask.seed, "temperature": temperature}
    how = Judging(model.programs, fmt, **sizes, only=only, line=line)
    params = read_params(model, cfg)
    settings = settings_of(ask, cfg, how, params, list(examples)) | {"choose": choice.choose, "temperature": choice.temperature}
    settings = json.loads(json.dumps(settings | {"splits": _other_splits(ask.data)}))
    given = settings | {"keep": choice.keep, "balance": choice.balance}
    out, work = as_path(ask.out), work_path(as_path(ask.out))
    with together():
        done = jax.process_index() == 0 and _is_there(ask.out, given)
    if gather(done)[0]:
        if jax.process_index() == 0:
            print(f"{out} already holds these data: nothing to do")
        return
    shown = {name: [in_order(example, fmt.tasks[name]) for example in group] for name, group in examples.items()}
    lines = _sample_all(params, shown, how, open_kept(work / "batches", settings))
    if jax.process_index() > 0:
        return
    known = fmt.tasks
    kept = {name: [one for one in found if wanted(one, choice.keep)] for name, found in lines.items()}
    ids = balanced(kept, known, choice.balance, ask.seed)
    for name in lines:
        print(_summary(name, lines[name], kept[name], ids[name], known[name]))
    if not any(ids.values()):
        raise UserError(_nothing(lines, choice.keep))
    remove_tree(work / "files")
    publish(write_sampled(work / "files", ask.data, shown, lines, ids, keep=choice.keep, given=given), out)
    remove_tree(work)
    print(f"{sum(map(len, ids.values()))} training records in {out}, with the other splits of {ask.data} unchanged")


def _other_splits(data: str) -> dict[str, str]:
    """The sha256 of every file that is carried over."""
    return {name: entry["sha256"] for name, entry in read_manifest(data)["files"].items() if not name.startswith("train/")}


def _is_there(out: str, given: dict) -> bool:
    folder = as_path(out)
    if in_bucket(folder) and not (folder / "manifest.json").exists():
        return False  # nothing, or a command was stopped while it copied
    return is_done(folder, given)


def _sample_all(params: Params, shown: Mapping[str, list[JudgeExample]], how: Judging, kept: Kept) -> dict[str, list[dict]]:
    """A line of `drawn_line` for each example, by task. Raises TooManyBadRecords as an evaluation does."""
    if len(kept) and jax.process_index() == 0:
        print(f"continuing after {len(kept)} batches that were sampled before", file=sys.stderr)
    lines, bad = {}, BadRowCounter(how.max_bad_share)
    total, hidden = sum(map(len, shown.values())), jax.process_index() > 0 or not sys.stderr.isatty()
    with tqdm(total=total, desc="sample", unit="prompt", disable=hidden) as bar:
        for name, group in shown.items():
            lines[name] = judge(params, group, how, step=0, probabilities=False, progress=bar.update, kept=kept)
            for line in lines[name]:
                bad.add_one(line["example_id"], line["error"] if line["unusable"] else "")
    bad.check()
    return lines


def _summary(name: str, lines: list[dict], kept: list[dict], ids: set[str], task: Task) -> str:
    """`technical: 40 prompts, pass rate 0.61, 3 without a right answer, 36 fit, kept 32 (no 16, yes 16)`, and what to mind."""
    read = [line for line in lines if not line["unusable"]]
    mean = sum(line["pass_rate"] for line in read) / max(1, len(read))
    without = sum(line["chosen"] is None for line in read)
    labels = [line["label"] for line in kept if line["example_id"] in ids]
    counts = {} if task.kind == "listwise" else {label: labels.count(label) for label in task.labels if label in labels}
    said = ", ".join(f"{label} {count}" for label, count in counts.items())
    text = f"{name}: {len(read)} prompts, pass rate {mean:.2f}, {without} without a right answer that can be kept"
    text += f", {len(kept)} fit, kept {len(ids)}" + (f" ({said})" if said else "")
    if len(lines) > len(read):
        text += f"; {len(lines) - len(read)} records could not be used"
    there = {line["label"] for line in read} & set(task.labels[:2])
    if task.kind in ("pointwise_binary", "pairwise") and labels and there - set(labels):
        missing = ", ".join(sorted(there - set(labels)))
        text += f"\nwarning: {name}: no record with label {missing} was kept: the data would teach one side"
    return text


def _nothing(lines: Mapping[str, list[dict]], keep: str) -> str:
    """Why no prompt was kept, and what to do."""
    read = [line for found in lines.values() for line in found if not line["unusable"]]
    form = sum(line["readable"] for line in read) / max(1, len(read))
    said = f"no prompt was kept of {len(read)} with --keep={keep}: {form:.0%} of the answers have the form "
    said += "<think>reasoning</think><answer>label</answer>"
    if not any(line["chosen"] for line in read):
        return said + ", and none of them is right: take an instruction-tuned model, or raise --samples"
    return said + ", and every prompt with a right answer has only right ones: raise --temperature, or take --keep=right"
