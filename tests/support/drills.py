"""What the tests of a run do in a process of their own (see commands.py). Each returns facts as JSON, the tests judge them."""

import dataclasses
import json
import shutil
from pathlib import Path
from unittest import mock

import commands
import numpy as np

from mtjudge_jax.checkpoint.record import read_record
from mtjudge_jax.config import Config
from mtjudge_jax.data.bad_rows import BadRowCounter


def config(**changes) -> Config:
    """The config of commands.py with fields changed, `update__prompts=12` for `update.prompts`."""
    scope = {}
    exec(commands.CONFIG, scope)
    cfg = scope["get_config"]()
    for name, value in changes.items():
        *sections, field = name.split("__")
        owner = cfg
        for section in sections:
            owner = getattr(owner, section)
        setattr(owner, field, value)
    return cfg


def ending(workdir: str | Path) -> dict:
    """What a run ended with: the record of its last checkpoint with a digest a leaf, and its metrics without times."""
    folder = Path(workdir) / "checkpoints"
    step = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    record = read_record(folder / str(step), step)
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for timing in ("seconds", "tokens_per_s", "hosts"):
            line.pop(timing, None)
    return {"step": step, "leaves": record["leaves"], "data": record["data_state"], "meta": record["meta"], "metrics": lines}


def message(function, *arguments) -> str:
    """The error that a call ends with."""
    try:
        function(*arguments)
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def said_lines(lines: list[str]):
    """Collects what a run prints instead of printing it."""
    return mock.patch("mtjudge_jax.train.monitor.messages.tqdm.write", lambda text, file: lines.append(text))


def one_update(module):
    """Runs of one config in a process share their jitted update: tracing it takes longer than a step."""
    make, made = module.make_update, []

    def make_update(*arguments):
        if not made:
            made.append(make(*arguments))
        return made[0]

    return mock.patch.object(module, "make_update", make_update)


class Spy:
    """Watches the updates of a run: the jitted functions, and which rows of their batches have a mask."""

    def __init__(self, module):
        self.jitted, self.learned, self.weights = [], [], []
        make, add = module.make_update, BadRowCounter.add

        def make_update(*arguments):
            update = make(*arguments)
            self.jitted.append(update)

            def watched(state, frozen, batch):
                self.learned += np.asarray(batch.mask).any(axis=(1, 2)).tolist()
                return update(state, frozen, batch)

            return watched

        def counted(counter, rows):
            self.weights += rows["weight"].tolist()
            add(counter, rows)

        self.patches = mock.patch.object(module, "make_update", make_update), mock.patch.object(BadRowCounter, "add", counted)

    def __enter__(self):
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_):
        for patch in self.patches:
            patch.stop()


def grpo(*, folder: str) -> dict:
    """Two updates a rollout batch: whole; stopped by a full disk and gone on; with other sources; with bad records."""
    from mtjudge_jax.policy.model import DEMO_BASE, open_model
    from mtjudge_jax.train import grpo

    folder = Path(folder)
    shutil.copytree(DEMO_BASE, folder / "model")
    paths = {"data__path": str(folder / "data"), "model__path": str(folder / "model")}
    half = {"rollout__prompts": 12, "update__prompts": 6, "data__tasks": ("technical", "alignment", "safety")}
    cfg = config(steps=3, eval__every_steps=3, eval__tasks=(), **half, **paths)
    commands.write_data(folder=cfg.data.path)
    with one_update(grpo):
        return grpo_runs(folder, cfg, open_model(cfg), half)


def grpo_runs(folder: Path, cfg: Config, model, half: dict) -> dict:
    from mtjudge_jax.train import grpo
    from mtjudge_jax.train.fit import fit

    facts = {}
    with Spy(grpo) as spy:
        fit(cfg, folder / "whole", model)
    facts["whole"] = ending(folder / "whole")
    facts["traces"] = dict(model.programs.traces)
    facts["update"] = [update.whole._cache_size() for update in spy.jitted]

    one_failure = dataclasses.replace(cfg.checkpoint, max_failed_saves=1)
    free = iter([10**12, 10**12, 1000, 1000])  # as best/ is written, then at each checkpoint
    with mock.patch.object(shutil, "disk_usage", lambda path: mock.Mock(free=next(free))):
        facts["full disk"] = message(fit, dataclasses.replace(cfg, checkpoint=one_failure), folder / "again", model)
    facts["kept"] = ending(folder / "again")
    fit(cfg, folder / "again", model)
    facts["again"] = ending(folder / "again")

    manifest = folder / "data" / "manifest.json"
    right = manifest.read_text()
    changed = json.loads(right)
    for split in ("train", "val"):
        changed["files"][f"{split}/safety"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    facts["other data"] = message(fit, cfg, folder / "again", model)
    manifest.write_text(right)
    weights = folder / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    facts["other model"] = message(fit, cfg, folder / "again", model)

    facts |= bad_records(folder, model, half)
    return facts


def bad_records(folder: Path, model, half: dict) -> dict:
    """Two of the 12 records of a task damaged: three steps with them, then the same with a lower limit.

    In the first run the disk is full as the first best model is written.
    """
    from mtjudge_jax.models.hf.save import save_hf
    from mtjudge_jax.train import grpo
    from mtjudge_jax.train.fit import fit

    data = folder / "damaged"
    commands.write_data(folder=str(data), val=32)
    damage(data, "train", "technical")
    changes = half | {"data__path": str(data), "model__path": str(folder / "model")}
    changes |= {"eval__every_steps": 9, "eval__tasks": (), "checkpoint__every_steps": 9}
    lines = []
    first = iter([OSError(28, "No space left on device")])

    def write_best(*arguments, **more):
        for error in first:
            raise error
        save_hf(*arguments, **more)

    with Spy(grpo) as spy, said_lines(lines), mock.patch("mtjudge_jax.train.best_model.save_hf", write_best):
        run, _ = fit(config(steps=3, data__max_bad_share=0.05, **changes), folder / "bad", model)
    facts = {"bad": dict(run.bad_rows.reasons), "ids": run.bad_rows.ids, "last line": lines[-1]}
    facts |= {"weights": spy.weights, "learned": spy.learned, "best": (folder / "bad" / "best" / "config.json").is_file()}
    facts["warnings"] = [line for line in lines if line.startswith("warning")]
    metrics = (folder / "bad" / "metrics.jsonl").read_text().splitlines()
    facts["logged"] = [line for line in map(json.loads, metrics) if line["kind"] == "warning"]
    facts["too many"] = message(fit, config(steps=3, **changes), folder / "too_many", model)
    return facts


def damage(data: Path, split: str, task: str) -> None:
    """Cuts the image of the first record, and makes nonsense of the second."""
    import hashlib
    from dataclasses import replace

    from array_record.python.array_record_module import ArrayRecordWriter

    from mtjudge_jax.data.pipeline import open_split
    from mtjudge_jax.records import pack

    source = open_split(data, split, task)
    examples = [source[index] for index in range(len(source))]  # reading past the end gives bad records, not an error
    path = data / split / f"{task}.array_record"
    path.unlink()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    writer.write(pack(replace(examples[0], images=(examples[0].images[0][:-200],))))
    writer.write(b"nonsense")
    for example in examples[2:]:
        writer.write(pack(example))
    writer.close()
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["files"][f"{split}/{task}"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (data / "manifest.json").write_text(json.dumps(manifest))


def non_finite(*, folder: str, data: str) -> dict:
    """A reward that is NaN in step 2, a gradient that is NaN (of a finite loss) in step 4; then only rewards that are NaN."""
    import jax
    import jax.numpy as jnp

    from mtjudge_jax.checkpoint.digest import digests
    from mtjudge_jax.policy.model import open_model
    from mtjudge_jax.train import grpo
    from mtjudge_jax.train.fit import fit

    folder, lines, facts = Path(folder), [], {}
    cfg = config(steps=5, data__path=data, eval__every_steps=5, checkpoint__every_steps=5, optim__schedule="constant")
    model = open_model(cfg)
    make, give, calls, made = grpo.make_update, grpo.score, iter(range(100)), []

    def poisoned(loss):
        def of(params, *rest):
            value, metrics = loss(params, *rest)
            zero = sum(jnp.sum(leaf * 0.0) for leaf in jax.tree.leaves(params))
            return value + 0.0 * jnp.sqrt(zero), metrics  # 0, and its derivative 0 * infinity

        return of

    def make_update(state, loss, *rest):
        good, bad, seen = make(state, loss, *rest), make(state, poisoned(loss), *rest), []
        facts["digests"] = seen
        made.append(good)

        def update(state, *batch):
            before = digests(state)
            state, metrics = (bad if len(seen) == 3 else good)(state, *batch)
            seen.append(digests(state) == before)
            return state, metrics

        return update

    def nan_at(steps):
        def score(*arguments, **named):
            out = give(*arguments, **named)
            if next(calls) in steps:
                out.total[3, 1] = np.nan
            return out

        return score

    said = said_lines(lines)
    with said, mock.patch.object(grpo, "make_update", make_update), mock.patch.object(grpo, "score", nan_at({1})):
        fit(cfg, folder / "two", model)
    facts["end"], facts["said"] = ending(folder / "two"), [line for line in lines if "not finite" in line]
    facts["files"] = {path.name: path.read_text() for path in (folder / "two" / "skipped").iterdir()}

    cfg.update.max_skipped = 2
    again = mock.patch.object(grpo, "make_update", lambda *_: made[0])
    with said, again, mock.patch.object(grpo, "score", nan_at(range(100))):
        facts["stopped"] = message(fit, cfg, folder / "all", model)
    facts["all"] = ending(folder / "all")
    return facts


def allowed(*, folder: str, data: str) -> dict:
    """A run that goes on with another learning rate, and another of float32 weights that goes on in bfloat16."""
    import jax

    from mtjudge_jax.policy.model import open_model
    from mtjudge_jax.train.fit import fit

    folder, facts = Path(folder), {}
    changes = {"data__path": data, "eval__every_steps": 9, "model__dtype": "bfloat16", "optim__schedule": "constant"}
    few = {"rollout__prompts": 4, "update__prompts": 4, "update__micro_prompts": 4, "data__tasks": ("technical", "safety")}
    changes |= few | {"eval__tasks": ("technical",)}
    model = open_model(config(steps=1, **changes))
    fit(config(steps=1, **changes), folder / "run", model)
    more = config(steps=2, optim__lr=2e-3, **changes)
    facts["refused"] = message(fit, more, folder / "run", model)
    facts["one name"] = message(fit, more, folder / "run", model, ("steps",))
    facts["unknown"] = message(fit, more, folder / "run", model, ("optim.lrr",))
    fit(more, folder / "run", model, allowed=("steps", "optim.lr"))
    facts["on"] = ending(folder / "run")
    half = config(steps=3, optim__lr=2e-3, **(changes | {"model__param_dtype": "bfloat16"}))
    _, progress = fit(half, folder / "run", allowed=("steps", "model.param_dtype"))
    facts["dtypes"] = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(progress.state.params)})
    facts["half"] = ending(folder / "run")
    return facts


def asked_in_validation(*, folder: str, data: str) -> dict:
    """A SIGTERM while the last step is judged, twice; then the run goes on, and the finished command is given again."""
    from mtjudge_jax import hosts
    from mtjudge_jax.policy.model import open_model
    from mtjudge_jax.train import grpo
    from mtjudge_jax.train.fit import fit

    folder = Path(folder)
    cfg = config(steps=2, data__path=data, eval__every_steps=2, checkpoint__every_steps=1)
    model = open_model(cfg)

    def stop_in(points: int):
        left = iter(range(points))

        def asked():
            if next(left, None) is None:
                raise hosts.Preempted("asked to stop")

        return mock.patch.object(hosts, "stop_if_asked", asked)

    facts, workdir = {}, folder / "again"
    with one_update(grpo):
        fit(cfg, folder / "whole", model)
        # A validation asks after each of its 2 tasks, and before a better model is written; a step asks twice.
        with stop_in(3 + 4 + 1):
            facts["first"] = message(fit, cfg, workdir, model)
        facts["judged"] = [ending(workdir)["step"], ending(workdir)["meta"]["judged"]]
        with stop_in(1):
            facts["second"] = message(fit, cfg, workdir, model)
        fit(cfg, workdir, model)
    facts["on"] = ending(workdir) == ending(folder / "whole")
    before = (workdir / "metrics.jsonl").read_bytes()
    fit(cfg, workdir, model)
    facts["same"] = (workdir / "metrics.jsonl").read_bytes() == before
    return facts | {"finished": ending(workdir) == ending(folder / "whole")}
