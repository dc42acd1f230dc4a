"""What the tests of the other regimes do in a process of their own: SFT, DPO, MT-GRPO's mixture, adapters (see commands.py)."""

import dataclasses
import json
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
from drills import Spy, config, ending, message, one_update

from mtjudge_jax.data.bad_rows import BadRowCounter


def interrupt_in_third_step():
    """Patches a run so that Ctrl-C comes after its third update, before the step counts."""
    steps, add = iter(range(1, 10)), BadRowCounter.add

    def counted(counter, rows):
        if next(steps) == 3:
            raise KeyboardInterrupt
        add(counter, rows)

    return mock.patch.object(BadRowCounter, "add", counted)


def sft(*, folder: str, data: str) -> dict:
    """SFT whole, and stopped by Ctrl-C in its third step and gone on."""
    from mtjudge_jax.policy.model import open_model
    from mtjudge_jax.train import sft
    from mtjudge_jax.train.fit import fit

    folder = Path(folder)
    cfg = config(stage="sft", steps=4, data__path=data, eval__every_steps=4)
    model = open_model(cfg)
    with one_update(sft):
        with Spy(sft) as spy:
            fit(cfg, folder / "whole", model)
        facts = {"whole": ending(folder / "whole"), "traces": dict(model.programs.traces)}
        with interrupt_in_third_step():
            facts["stopped"] = message(fit, cfg, folder / "again", model)
        fit(cfg, folder / "again", model)
    facts["update"] = [update.whole._cache_size() for update in spy.jitted]
    return facts | {"again": ending(folder / "again")}


def dpo(*, folder: str, data: str) -> dict:
    """DPO whole, and stopped by Ctrl-C in its third step and gone on; and two steps of adapters alone. `data` has pairs."""
    from mtjudge_jax.policy.model import open_model
    from mtjudge_jax.train import dpo
    from mtjudge_jax.train.fit import fit

    folder = Path(folder)
    few = {"data__path": data, "data__tasks": ("technical", "safety"), "rollout__completion_tokens": 24, "eval__every_steps": 4}
    cfg = config(stage="dpo", steps=4, dpo__beta=0.5, **few)
    model = open_model(cfg)
    with one_update(dpo):
        with Spy(dpo) as spy:
            fit(cfg, folder / "whole", model)
        facts = {"whole": ending(folder / "whole"), "traces": dict(model.programs.traces)}
        with interrupt_in_third_step():
            facts["stopped"] = message(fit, cfg, folder / "again", model)
        fit(cfg, folder / "again", model)
    facts |= {"again": ending(folder / "again"), "update": [update.whole._cache_size() for update in spy.jitted]}
    fast = {"optim__lr": 3e-2, "optim__schedule": "constant", "optim__warmup_steps": 0}  # adapters begin at 0
    cfg = config(stage="dpo", steps=2, lora__rank=2, **fast, **few)
    fit(cfg, folder / "adapters")
    return facts | {"adapters": ending(folder / "adapters")}


def adaptive(*, folder: str, data: str) -> dict:
    """MT-GRPO whole, by Ctrl-C stopped in its third step's update and gone on; and with the change of the mean reward, stopped
    by a SIGTERM between the rounds of its third step, and before its update. Its prompts have rooms of their own."""
    from mtjudge_jax.policy.model import open_model
    from mtjudge_jax.train import grpo
    from mtjudge_jax.train.fit import fit

    folder, facts = Path(folder), {}
    twelve = {"rollout__prompts": 12, "update__prompts": 12, "update__micro_prompts": 12}
    large = {"data__prompt_tokens": 160, "data__patches": 160}
    adaptive = {"data__mixture": "mt_grpo", "data__mt_grpo_beta": 20.0}
    cfg = config(steps=3, data__path=data, eval__every_steps=3, **adaptive, **twelve, **large)
    model = open_model(cfg)
    with one_update(grpo):
        with Spy(grpo) as spy:
            fit(cfg, folder / "whole", model)
        facts |= {"whole": ending(folder / "whole"), "traces": dict(model.programs.traces)}
        with interrupt_in_third_step():
            facts["stopped"] = message(fit, cfg, folder / "again", model)
        fit(cfg, folder / "again", model)
        facts["again"] = ending(folder / "again")
        cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, mt_grpo_improvement="reward"))
        facts |= asked_in_third_step(folder, cfg, model)
    return facts | {"update": [(update.whole._cache_size(), update.part._cache_size()) for update in spy.jitted]}


def asked_in_third_step(folder: Path, cfg, model) -> dict:
    """A run whole; stopped before the rounds of its third step are done, and from there once more before its update."""
    from mtjudge_jax import hosts
    from mtjudge_jax.train.fit import fit

    fit(cfg, folder / "reward", model)
    facts = {"reward": ending(folder / "reward")}
    rounds = [line["rounds"] for line in facts["reward"]["metrics"] if line["kind"] == "train"]
    points = 3 + sum(rounds[:2]) + 2 + 1  # of the first validation, of two whole steps, before the third
    for name, count in (("asked", points), ("asked_late", rounds[2])):
        left = iter(range(count))

        def asked(left=left):
            if next(left, None) is None:
                raise hosts.Preempted("asked to stop")

        with mock.patch.object(hosts, "stop_if_asked", asked):
            facts[name] = message(fit, cfg, folder / name, model)
        if name == "asked":
            shutil.copytree(folder / name, folder / "asked_late")
        fit(cfg, folder / name, model)
        facts[f"{name}_on"] = ending(folder / name)
    return facts | {"rounds": rounds}


def experts_folder(folder: Path) -> Path:
    """A random mixture of experts with the demo base's tokenizer."""
    from mtjudge_jax.models.hf.save import save_hf
    from mtjudge_jax.models.qwen3_vl import vlm
    from mtjudge_jax.models.qwen3_vl.config import load_config
    from mtjudge_jax.policy.model import DEMO_BASE

    source = folder / "source"
    shutil.copytree(DEMO_BASE, source)
    raw = json.loads((source / "config.json").read_text())
    raw["model_type"], raw["architectures"] = "qwen3_vl_moe", ["Qwen3VLMoeForConditionalGeneration"]
    raw["text_config"] |= {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "num_hidden_layers": 2}
    (source / "config.json").write_text(json.dumps(raw))
    save_hf(vlm.init_params(load_config(source), seed=0), folder / "experts", source_folder=source, dtype="float32")
    return folder / "experts"


def adapters(*, folder: str, data: str) -> dict:
    """Adapters on a mixture of experts, computed in bfloat16: whole, and stopped by Ctrl-C in its third step and gone on."""
    from flax.traverse_util import flatten_dict

    from mtjudge_jax.models.hf.load import load_params
    from mtjudge_jax.models.hf.save import save_hf
    from mtjudge_jax.models.qwen3_vl.config import load_config
    from mtjudge_jax.policy.model import open_model
    from mtjudge_jax.train import grpo
    from mtjudge_jax.train.fit import fit

    folder = Path(folder)
    base = experts_folder(folder)
    half = {"update__micro_prompts": 3, "data__tasks": ("technical", "alignment", "safety")}
    half |= {"rollout__prompts": 6, "update__prompts": 6}
    small = {"model__path": str(base), "model__dtype": "bfloat16", "lora__rank": 2, "data__path": data, "loss__kl_coef": 0.1}
    small |= {"reward__custom": ("own_rewards:varied",), "loss__replay_routing": True}  # of random experts no answer has the form
    cfg = config(steps=4, eval__every_steps=4, **half, **small)
    model = open_model(cfg)
    with one_update(grpo):
        run, progress = fit(cfg, folder / "whole", model)
        facts = {"whole": ending(folder / "whole"), "traces": dict(model.programs.traces)}
        facts["bytes"] = sum(x.nbytes for x in flatten_dict(progress.frozen, sep="/").values())
        with interrupt_in_third_step():
            facts["stopped"] = message(fit, cfg, folder / "again", model)
        fit(cfg, folder / "again", model)
    facts["again"] = ending(folder / "again")

    def weights(path: Path) -> dict:
        read = load_params(path, load_config(path), dtype="float32", sharding_of=lambda path, shape: None)
        return {name: np.asarray(leaf) for name, leaf in flatten_dict(read, sep="/").items()}

    save_hf(train_params(run, progress), folder / "last", source_folder=base, dtype="float32")
    before, after = weights(base), weights(folder / "last")
    facts["changed"] = sorted(name for name in before if not np.array_equal(before[name].astype("bfloat16"), after[name]))
    return facts


def train_params(run, progress):
    from mtjudge_jax.policy.model import exportable

    return exportable(progress.params, run.model)
