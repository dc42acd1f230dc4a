"""`mtjudge export`: the best model of a run, or any of its checkpoints, as a Hugging Face folder with a model card.

Of a checkpoint only the parameters are read, onto the devices that are here: their number need not be that of training.
"""

import dataclasses
import json
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from mtjudge_jax import checkpoint
from mtjudge_jax.config import Config, MeshConfig, from_dict
from mtjudge_jax.config_check import check
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.export.model_card import model_card, origin_of
from mtjudge_jax.models.hf import lora
from mtjudge_jax.models.hf.folder import MODEL_CONFIG, check_target
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import load_config
from mtjudge_jax.paths import AnyPath, absolute, as_path, in_bucket
from mtjudge_jax.policy.judge_file import JUDGE_FILE, judge_file
from mtjudge_jax.policy.model import DEMO_BASE, Model, exportable, model_folder, open_model, read_weights
from mtjudge_jax.policy.trainable import join, without_adapters
from mtjudge_jax.sharding import make_mesh, param_sharding
from mtjudge_jax.train.workdir import weights_hash
from mtjudge_jax.types import Params

_CARD = "README.md"
BEST, LATEST = "best", "latest"


class Chosen(NamedTuple):
    """What is exported. `saved` is the checkpoint, None for the folder `best`."""

    workdir: AnyPath | None
    cfg: Config
    step: int
    saved: checkpoint.Saved | None
    judge: bytes  # what JUDGE_FILE will say


def choose_weights(workdir: str, step: str, path: str) -> Chosen:
    """What the flags mean: a run and a step, or the path of a checkpoint. Raises ConfigError or CheckpointError."""
    if bool(workdir) == bool(path):
        raise ConfigError("give one of the two: --workdir=runs/mine, or --checkpoint=runs/mine/checkpoints/8")
    if path:
        if step:
            raise ConfigError(f"--step={step} with --checkpoint={path}: the path names its step, leave --step out")
        given = absolute(as_path(path))
        folder, step = given.parent, given.name
        if not step.isdecimal():
            raise ConfigError(f"--checkpoint={path}: not the folder of a step; {_steps(given)}")
        run = folder.parent if (folder.parent / "config.json").is_file() else None
        return _of_checkpoint(run, folder, int(step))
    run = as_path(workdir)
    if not (run / "config.json").is_file():
        raise ConfigError(f"--workdir={workdir}: no config.json there, so it is not a run; give the --workdir of `mtjudge train`")
    step = step or BEST
    if step == BEST:
        return _of_best(run)
    if step == LATEST:
        steps = checkpoint.complete_steps(run / "checkpoints")
        if not steps:
            raise ConfigError(f"--step={LATEST}: {run / 'checkpoints'} has no complete step yet; try --step={BEST}, or train on")
        step = str(steps[-1])
    if not step.isdecimal():
        raise ConfigError(f"--step={step}: a number is needed, or {BEST} or {LATEST}; {_steps(run / 'checkpoints')}")
    return _of_checkpoint(run, run / "checkpoints", int(step))


def _steps(folder: AnyPath) -> str:
    steps = checkpoint.complete_steps(folder)
    return f"{folder} has the steps {', '.join(map(str, steps))}" if steps else f"{folder} has no complete step"


def _of_checkpoint(run: AnyPath | None, folder: AnyPath, step: int) -> Chosen:
    saved = checkpoint.read_saved(folder, step)
    cfg = from_dict(saved.meta["config"])
    worded = "wording of "
    wording = {name.removeprefix(worded): value for name, value in saved.meta["sources"].items() if name.startswith(worded)}
    return Chosen(run, cfg, step, saved, judge_file(cfg, step, wording))


def _of_best(run: AnyPath) -> Chosen:
    best = run / BEST
    if not (best / "config.json").is_file():
        raise ConfigError(f"--step={BEST}: {best} holds no model yet; {_steps(run / 'checkpoints')}, for --step=N")
    try:
        cfg = from_dict(json.loads((run / "config.json").read_text()))
        judge = (best / JUDGE_FILE).read_bytes()
        return Chosen(run, cfg, int(json.loads(judge)["step"]), None, judge)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{best / JUDGE_FILE} or the run's config.json is missing or damaged ({error!r})"
        raise ConfigError(f"{what}: take --step=N; {_steps(run / 'checkpoints')}") from error


def export(chosen: Chosen, out: AnyPath, *, dtype: str, form: str, base: str, overwrite: bool) -> None:
    """Writes `out`. Every process must call; process 0 writes, once.

    dtype: of the weights, "" for what the run computed in. form: merge (a whole model) or peft (adapters alone). base: where
    the starting model is now, "" for where it was. Raises ConfigError, ValueError or FileExistsError before anything is read
    where that is possible, CheckpointError for a damaged checkpoint.
    """
    cfg, peft = _here(chosen.cfg, base), form == "peft"
    dtype = dtype or cfg.model.dtype
    if peft and not cfg.lora.rank:
        raise ConfigError("--adapter=peft: this run trained whole weights, it has no adapters; leave --adapter out")
    if peft and chosen.saved is None:
        raise ConfigError(f"--adapter=peft: {BEST}/ holds weights with the adapters added; take --step=N or --step={LATEST}")
    start = DEMO_BASE if cfg.model.path == "demo" else as_path(cfg.model.path)
    source = chosen.workdir / BEST if chosen.saved is None else model_folder(cfg.model.path)
    if taken := [folder for folder in (start, source) if _same(folder, out)]:
        raise ConfigError(f"--out={out}: {taken[0]} is what is exported from; give another folder")
    check_target(out, marker=lora.ADAPTER_CONFIG if peft else MODEL_CONFIG, overwrite=overwrite)
    origin = origin_of(start, source)
    if cfg.model.path == "demo":
        origin = origin._replace(name="the demo base of mtjudge_jax")
    best = chosen.saved is None
    card = model_card(
        chosen.cfg, title=out.name, origin=origin, step=chosen.step, best=best, workdir=chosen.workdir, dtype=dtype, adapter=peft
    )
    files = {_CARD: card.encode()}
    if jax.process_index() == 0:
        print(f"reading step {chosen.step} from {chosen.saved.path if chosen.saved else source}", flush=True)
    if peft:
        model = open_model(cfg)
        base_model = origin.hub_name or str(absolute(source))
        settings = {"base_model": base_model, "dtype": jnp.dtype(dtype), "overwrite": overwrite, "files": files}
        lora.save_peft(_restore(chosen.saved, model), out, model.cfg, **settings)
        return
    params = _best_params(source, cfg, dtype) if chosen.saved is None else _whole_params(chosen.saved, cfg)
    files |= {JUDGE_FILE: chosen.judge}
    save_hf(params, out, source_folder=source, dtype=jnp.dtype(dtype), overwrite=overwrite, files=files)


def _same(one: AnyPath, other: AnyPath) -> bool:
    one, other = (path if in_bucket(path) else path.resolve() for path in (one, other))
    return str(one) == str(other)


def _here(cfg: Config, base: str) -> Config:
    """The run's config for the devices of this machine, which only hold the weights."""
    model = dataclasses.replace(cfg.model, path=base or cfg.model.path, attention="xla", experts="dense")
    lora_cfg = dataclasses.replace(cfg.lora, path="")  # the checkpoint holds the adapters
    cfg = dataclasses.replace(cfg, model=model, lora=lora_cfg, mesh=MeshConfig(data=1, fsdp=-1))
    check(cfg)
    return cfg


def _restore(saved: checkpoint.Saved, model: Model) -> Params:
    """The trained weights of a checkpoint."""
    return checkpoint.restore_part(saved, "params", partial(param_sharding, mesh=model.programs.mesh))


def _best_params(folder: AnyPath, cfg: Config, dtype: str) -> Params:
    mesh = make_mesh(cfg.mesh)
    return load_params(folder, load_config(folder), dtype=dtype, sharding_of=partial(param_sharding, mesh=mesh))


def _whole_params(saved: checkpoint.Saved, cfg: Config) -> Params:
    """An ordinary model: the checkpoint's weights, and where not all were trained the starting model's for the others.

    Raises ConfigError where the starting model is not the one that the run started from.
    """
    model = open_model(cfg)
    trained = _restore(saved, model)
    whole = vlm.abstract_params(dataclasses.replace(model.cfg, lora=None))
    if flatten_dict(trained).keys() == flatten_dict(whole).keys():
        return trained
    base = read_weights(model, cfg)
    if weights_hash(without_adapters(join(*base))) != saved.meta["sources"]["starting model"]:
        raise ConfigError(f"{model.folder} is not the model that the run started from: name the folder where it is by --base")
    return exportable(join(base.frozen, trained), model)


def run(workdir: str, step: str, path: str, out: str, *, dtype: str, form: str, base: str, overwrite: bool) -> None:
    """The command: chooses, exports, and says where the result is."""
    chosen, folder = choose_weights(workdir, step, path), as_path(out)
    export(chosen, folder, dtype=dtype, form=form, base=base, overwrite=overwrite)
    if jax.process_index() == 0:
        print(f"step {chosen.step} exported to {folder}; {folder / _CARD} says how it was trained and how to load it")
