"""`mtjudge export`: writes the best model of a run, or one of its checkpoints, as a Hugging Face folder with a model card.

Only the parameters of a checkpoint are read. The number of devices need not be that of training.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from mtjudge_jax import checkpoint
from mtjudge_jax.config import Config, MeshConfig, from_dict
from mtjudge_jax.config_check import check
from mtjudge_jax.data.folder_files import dropped_settings, settled
from mtjudge_jax.data.image_config import configured, exported_limits, load_image_config
from mtjudge_jax.data.tokenizer import load_tokenizer
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.export.model_card import Asking, model_card, origin_of
from mtjudge_jax.locks import held
from mtjudge_jax.models.hf import lora
from mtjudge_jax.models.hf.folder import MODEL_CONFIG, check_target
from mtjudge_jax.models.hf.load import load_params
from mtjudge_jax.models.hf.save import save_hf
from mtjudge_jax.models.qwen3_vl import vlm
from mtjudge_jax.models.qwen3_vl.config import load_config
from mtjudge_jax.paths import AnyPath, absolute, as_path, in_bucket
from mtjudge_jax.policy.judge_file import JUDGE_FILE, judge_file, model_name, without_limits
from mtjudge_jax.policy.model import DEMO_BASE, Model, exportable, model_folder, open_model, read_weights
from mtjudge_jax.policy.trainable import join, without_adapters
from mtjudge_jax.sharding import make_mesh, param_sharding
from mtjudge_jax.train.workdir import weights_hash
from mtjudge_jax.types import Params

_CARD = "README.md"
BEST, LATEST = "best", "latest"


class Chosen(NamedTuple):
    """The weights to export. `saved` is the checkpoint, None for the folder `best`."""

    workdir: AnyPath | None
    cfg: Config
    step: int
    saved: checkpoint.Saved | None
    judge: Callable[[tuple[int, int] | None], bytes]  # the content of JUDGE_FILE, given the limits of a picture


def choose_weights(workdir: str, step: str, path: str) -> Chosen:
    """Finds the weights that the flags name, by run and step or by path. Raises ConfigError or CheckpointError."""
    if bool(workdir) == bool(path):
        raise ConfigError("give either --workdir=runs/mine or --checkpoint=runs/mine/checkpoints/8")
    if path:
        if step:
            raise ConfigError(f"--step={step} with --checkpoint={path}: the path names the step, remove --step")
        given = absolute(as_path(path))
        folder, step = given.parent, given.name
        if not step.isdecimal():
            raise ConfigError(f"--checkpoint={path} is not the folder of a step; {_steps(given)}")
        run = folder.parent if (folder.parent / "config.json").is_file() else None
        return _of_checkpoint(run, folder, int(step))
    run = as_path(workdir)
    if not (run / "config.json").is_file():
        raise ConfigError(f"--workdir={workdir} is not a run, it has no config.json: give the --workdir of `mtjudge train`")
    step = step or BEST
    if step == BEST:
        return _of_best(run)
    if step == LATEST:
        steps = checkpoint.complete_steps(run / "checkpoints")
        if not steps:
            where = run / "checkpoints"
            raise ConfigError(f"--step={LATEST}: {where} has no complete step yet: use --step={BEST}, or continue training")
        step = str(steps[-1])
    if not step.isdecimal():
        raise ConfigError(f"--step={step} must be a number, {BEST} or {LATEST}; {_steps(run / 'checkpoints')}")
    return _of_checkpoint(run, run / "checkpoints", int(step))


def _steps(folder: AnyPath) -> str:
    steps = checkpoint.complete_steps(folder)
    return f"{folder} has the steps {', '.join(map(str, steps))}" if steps else f"{folder} has no complete step"


def _of_checkpoint(run: AnyPath | None, folder: AnyPath, step: int) -> Chosen:
    saved = checkpoint.read_saved(folder, step)
    cfg = from_dict(saved.meta["config"])
    worded = "wording of "
    wording = {name.removeprefix(worded): value for name, value in saved.meta["sources"].items() if name.startswith(worded)}
    return Chosen(run, cfg, step, saved, partial(judge_file, cfg, step, wording))


def _of_best(run: AnyPath) -> Chosen:
    best = run / BEST
    if not (best / "config.json").is_file():
        raise ConfigError(f"--step={BEST}: {best} has no model yet: use --step=N; {_steps(run / 'checkpoints')}")
    try:
        cfg = from_dict(json.loads((run / "config.json").read_text()))
        judge = (best / JUDGE_FILE).read_bytes()
        return Chosen(run, cfg, int(json.loads(judge)["step"]), None, lambda pixels: judge)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{best / JUDGE_FILE} or the run's config.json is missing or damaged ({error!r})"
        raise ConfigError(f"{what}: use --step=N; {_steps(run / 'checkpoints')}") from error


def export(chosen: Chosen, out: AnyPath, *, dtype: str, form: str, base: str, overwrite: bool) -> None:
    """Writes the folder `out`. Every process must call this; process 0 writes.

    dtype: of the weights, "" for the dtype that the run computed in. form: merge (a whole model) or peft (adapters only). base:
    the folder of the starting model if it has moved, else "". Raises ConfigError or FileExistsError, before reading weights where
    possible, and CheckpointError for a damaged checkpoint.
    """
    cfg, peft = _here(chosen.cfg, base), form == "peft"
    dtype = dtype or cfg.model.dtype
    if peft and not cfg.lora.rank:
        raise ConfigError("--adapter=peft: this run trained whole weights and has no adapters: remove --adapter")
    if peft and chosen.saved is None:
        raise ConfigError(f"--adapter=peft: {BEST}/ has the adapters merged into its weights: use --step=N or --step={LATEST}")
    start = DEMO_BASE if cfg.model.path == "demo" else as_path(cfg.model.path)
    source = chosen.workdir / BEST if chosen.saved is None else model_folder(cfg.model.path)
    if taken := [folder for folder in (start, source) if _same(folder, out)]:
        raise ConfigError(f"--out={out}: the export reads from {taken[0]}: give another folder")
    check_target(out, marker=lora.ADAPTER_CONFIG if peft else MODEL_CONFIG, overwrite=overwrite)
    origin = origin_of(start, source)
    if cfg.model.path == "demo":
        origin = origin._replace(name=model_name("demo"))
    what = {"title": out.name, "origin": origin, "step": chosen.step, "best": chosen.saved is None, "workdir": chosen.workdir}
    tokenizer = load_tokenizer(source)
    pixels = _pixels(chosen, cfg, source)
    asking = Asking(tokenizer.escape, tokenizer.opening, tokenizer.ends)
    files = {_CARD: model_card(chosen.cfg, **what, dtype=dtype, adapter=peft, asking=asking, pixels=pixels).encode()}
    new = settled(source, tokenizer, None if peft else pixels)
    if jax.process_index() == 0:
        _report(chosen, source, new, adapter=peft)
    if peft:
        model = open_model(cfg)
        base_model = origin.hub_name or str(absolute(source))
        settings = {"base_model": base_model, "dtype": jnp.dtype(dtype), "overwrite": overwrite, "files": files}
        lora.save_peft(_restore(chosen.saved, model), out, model.cfg, **settings)
        return
    if chosen.saved is None:
        sharding_of = partial(param_sharding, mesh=make_mesh(cfg.mesh))
        params = load_params(source, load_config(source), dtype=dtype, sharding_of=sharding_of)
    else:
        params = _whole_params(chosen.saved, cfg)
    files |= new | {JUDGE_FILE: chosen.judge(pixels)}
    save_hf(params, out, source_folder=source, dtype=jnp.dtype(dtype), overwrite=overwrite, files=files)


def _pixels(chosen: Chosen, cfg: Config, source: AnyPath) -> tuple[int, int] | None:
    """The limits of a single picture in training; None, as `source` has it, for the best model of an older version's run."""
    if chosen.saved is None and without_limits(source):
        return None
    return exported_limits(configured(load_image_config(source), cfg.data), cfg.data.patches)


def _report(chosen: Chosen, source: AnyPath, new: dict[str, bytes], *, adapter: bool) -> None:
    """Prints what is read, and what of the source's files is written otherwise, as `new`. Of an adapter, which needs the source
    itself, what its files say otherwise.
    """
    print(f"reading step {chosen.step} from {chosen.saved.path if chosen.saved else source}", flush=True)
    if chosen.step == 0:
        best = f": no validation was better; --step={LATEST} exports the trained one" if chosen.saved is None else ""
        print(f"warning: step 0 is the model that training began with{best}", flush=True)
    old = {name: source / name for name in new}
    changed = [name for name, path in old.items() if path.is_file() and path.read_bytes() != new[name]]
    if adapter and changed:
        remedy = "--adapter=merge writes a folder whose files agree"
        print(f"warning: of {source}, which the adapter needs, {', '.join(changed)} say otherwise than training read: {remedy}")
        return
    if changed := [*changed, *(name for name, path in old.items() if not path.is_file() and not adapter)]:
        print(f"written anew, so that all files agree with what training read: {', '.join(changed)}", flush=True)
    if (dropped := dropped_settings(source)) and not adapter:
        print(f"left out of generation_config.json, as the judge was trained without: {', '.join(dropped)}", flush=True)


def _same(one: AnyPath, other: AnyPath) -> bool:
    one, other = (path if in_bucket(path) else path.resolve() for path in (one, other))
    return str(one) == str(other)


def _here(cfg: Config, base: str) -> Config:
    """The run's config for this machine, whose devices only hold the weights."""
    model = dataclasses.replace(cfg.model, path=base or cfg.model.path, attention="xla", experts="dense")
    lora_cfg = dataclasses.replace(cfg.lora, path="")  # the checkpoint holds the adapters
    cfg = dataclasses.replace(cfg, model=model, lora=lora_cfg, mesh=MeshConfig(data=1, fsdp=-1))
    check(cfg)
    return cfg


def _restore(saved: checkpoint.Saved, model: Model) -> Params:
    """The trained weights of a checkpoint."""
    return checkpoint.restore_part(saved, "params", partial(param_sharding, mesh=model.programs.mesh))


def _whole_params(saved: checkpoint.Saved, cfg: Config) -> Params:
    """A whole model: the checkpoint's weights, and the starting model's for those that were not trained.

    Raises ConfigError if the starting model has changed since the run started.
    """
    model = open_model(cfg)
    trained = _restore(saved, model)
    whole = vlm.abstract_params(dataclasses.replace(model.cfg, lora=None))
    if flatten_dict(trained).keys() == flatten_dict(whole).keys():
        return trained
    base = read_weights(model, cfg)
    if weights_hash(without_adapters(join(*base))) != saved.meta["sources"]["starting model"]:
        raise ConfigError(f"{model.folder} is not the model that the run started from: give that model's folder with --base")
    return exportable(join(base.frozen, trained), model)


def run(workdir: str, step: str, path: str, out: str, *, dtype: str, form: str, base: str, overwrite: bool) -> None:
    """The command: finds the weights, exports them, and prints where the result is."""
    chosen, folder = choose_weights(workdir, step, path), as_path(out)
    with held(folder, beside=True, holds=jax.process_index() == 0):
        export(chosen, folder, dtype=dtype, form=form, base=base, overwrite=overwrite)
    if jax.process_index() == 0:
        print(f"step {chosen.step} exported to {folder}; {folder / _CARD} says how it was trained and how to load it")
