"""An invalid config is refused in one line, at once; every field has a reader."""

import ast
import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import PACKAGE

from mtjudge_jax import config as config_module
from mtjudge_jax.config import (
    RECIPES,
    Config,
    differences,
    field_meant,
    flatten,
    from_dict,
    to_dict,
    unknown_field,
    with_defaults,
)
from mtjudge_jax.config_check import check, mesh_shape
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.flags import apply_recipe, recipe_text

NAN = float("nan")


def valid() -> Config:
    cfg = Config()
    cfg.model.path, cfg.data.tasks = "demo", ("technical", "safety")
    return cfg


# field, value, what the line must name besides: the limit, or the nearest right name
BAD = [
    ("stage", "grop", "'grpo'"),
    ("stage", "", "grpo"),
    ("stage", 3, "str"),
    ("seed", -1, "at least 0"),
    ("seed", 0.5, "int"),
    ("steps", 0, "at least 1"),
    ("steps", 1e3, "int"),
    ("steps", True, "int"),
    ("model.path", "", "Hugging Face"),
    ("model.dtype", "bf16", "'bfloat16'"),
    ("model.dtype", "float16", "'float32'|'bfloat16'"),
    ("model.remat", "ful", "'full'"),
    ("model.head_chunk", 0, "at least 1"),
    ("model.param_dtype", "float16", "'float32'|'bfloat16'"),
    ("model.attention", "flash", "'splash'"),
    ("model.experts", "raged", "'ragged'"),
    ("model.freeze", ("visoin",), "'vision'"),
    ("model.freeze", ("vision", "vision"), "twice"),
    ("lora.rank", -1, "at least 0"),
    ("lora.alpha", 0.0, "above 0"),
    ("lora.targets", ("q_proj",), "known are q, k|did you mean"),
    ("lora.path", "adapter", "lora.rank = 0: set lora.rank, lora.alpha and lora.targets to the adapter's"),
    ("data.tasks", (), "technical"),
    ("data.tasks", ("tecnical",), "'technical'"),
    ("data.tasks", ("technical", "beauty"), "safety"),
    ("data.tasks", ("safety", "safety"), "twice"),
    ("data.tasks", "technical", "tuple"),
    ("data.tasks", ["technical"], "tuple"),
    ("data.mixture", "proportionate", "'proportional'"),
    ("data.balance_labels", 1, "bool"),
    ("data.prompt_tokens", 0, "at least 1"),
    ("data.patches", -4, "at least 0"),
    ("data.max_bad_share", 1.5, "between 0 and 1"),
    ("rollout.prompts", 0, "at least 1"),
    ("rollout.prompts", 300, "256"),
    ("rollout.group_size", 1, "at least 2"),
    ("rollout.group_size", 8.0, "int"),
    ("rollout.completion_tokens", 1, "at least 2"),
    ("rollout.temperature", 0.0, "above 0"),
    ("rollout.temperature", NAN, "finite"),
    ("rollout.temperature", None, "float"),
    ("sft.target", "answers", "'answer'"),
    ("stage", "dop", "'dpo'"),
    ("dpo.beta", 0.0, "above 0"),
    ("dpo.sft_coef", -1.0, "at least 0"),
    ("reward.alpha", -0.1, "between 0 and 1"),
    ("reward.alpha", 2, "between 0 and 1"),
    ("reward.alpha", "0.1", "float"),
    ("loss.advantage", "gdop", "'gdpo'"),
    ("loss.advantage_std", "unbiassed", "'unbiased'"),
    ("loss.policy", "gpso", "'gspo'"),
    ("loss.cispo_cap", 0.5, "at least 1"),
    ("loss.sapo_positive", 0.0, "above 0"),
    ("loss.sapo_negative", -1.0, "above 0"),
    ("loss.kl_in", "rewards", "'reward'"),
    ("loss.entropy_coef", -0.1, "at least 0"),
    ("loss.flat_groups", "keeps", "'keep'"),
    ("loss.truncated", "drop", "keep|out"),
    ("loss.sampler_weight", "tokens", "'token'"),
    ("loss.sampler_cap", 0.9, "at least 1"),
    ("rollout.rounds", 0, "at least 1"),
    ("recipe", "dappo", "'dapo'"),
    ("loss.advantage_eps", -1e-6, "at least 0"),
    ("loss.clip_low", -0.2, "at least 0"),
    ("loss.clip_high", NAN, "finite"),
    ("loss.dual_clip", 0.5, "at least 1"),
    ("loss.kl_estimator", "k4", "'k3'|'k2'|'k1'"),
    ("loss.kl_coef", -0.01, "at least 0"),
    ("loss.aggregation", "mean", "'token_mean'|'sequence_mean'"),
    ("optim.name", "adam", "'adamw'"),
    ("optim.lr", -1e-6, "at least 0"),
    ("optim.lr", "1e-6", "float"),
    ("optim.schedule", "linear", "constant|cosine"),
    ("optim.warmup_steps", -1, "at least 0"),
    ("optim.final_lr_ratio", 1.1, "between 0 and 1"),
    ("optim.b1", -0.9, "at least 0 and below 1"),
    ("optim.b2", 9.99, "at least 0 and below 1"),
    ("optim.eps", 0.0, "above 0"),
    ("optim.weight_decay", -0.01, "at least 0"),
    ("optim.max_grad_norm", 0, "above 0"),
    ("update.prompts", 100, "512"),
    ("update.prompts", 1024, "512"),
    ("update.micro_prompts", 0, "at least 1"),
    ("update.micro_prompts", 96, "256"),
    ("update.micro_prompts", 512, "256"),
    ("eval.every_steps", 0, "at least 1"),
    ("eval.samples", 0, "at least 1"),
    ("eval.tasks", ("pairwise_saftey",), "'pairwise_safety'"),
    ("eval.limit", -1, "at least 0"),
    ("eval.patience", -1, "at least 0"),
    ("eval.temperature", -0.1, "at least 0"),
    ("eval.top_k", -1, "at least 0"),
    ("eval.top_p", 0.0, "above 0"),
    ("eval.top_p", 1.1, "between 0 and 1"),
    ("checkpoint.every_steps", 0, "at least 1"),
    ("log.to", ("tensorbord",), "'tensorboard'"),
    ("log.to", ("wandb", "wandb"), "twice"),
    ("log.rollouts", -1, "at least 0"),
    ("log.rollouts_every", 0, "at least 1"),
    ("checkpoint.keep", 0, "at least 1"),
    ("mesh.data", 0, "at least 1"),
    ("mesh.data", 3, "8"),
    ("mesh.tensor", 16, "8"),
    ("mesh.fsdp", -1, "mesh.data"),
    ("mesh.expert", "2", "int"),
    ("optim.lr", float("inf"), "finite"),
    ("optim.b1", 1.0, "below 1"),
    ("optim.b2", 1.0, "below 1"),
    ("loss.clip_low", 2.0, "between 0 and 1"),
    ("loss.dual_clip", 1.1, "loss.clip_high"),
    ("data.tasks", (3,), "str"),
    ("data.mixture", "mt-grpo", "'mt_grpo'"),
    ("data.mixture", "weights", "one number above 0 for each of the 2 data.tasks"),
    ("data.mixture_weights", (1.0, 2.0), "must be empty"),
    ("data.mixture_temperature", 0.0, "above 0"),
    ("data.mt_grpo_lambda", 0.0, "above 0"),
    ("data.mt_grpo_beta", -1.0, "above 0"),
    ("data.mt_grpo_max_oversample", 0.5, "at least 1"),
    ("data.mt_grpo_rho_decay", 1.0, "below 1"),
    ("data.mt_grpo_improvement", "rewards", "'reward'"),
    ("data.tasks", ("pairwise_safety",), "evaluation-only task: move it from data.tasks to eval.tasks"),
]


def test_objectives_that_do_not_fit():
    both = {"loss.advantage": "gdpo", "loss.kl_in": "reward"}
    mixed = {"data.mixture": "mt_grpo", "rollout.rounds": 2}
    unmeasured = {"data.mixture": "mt_grpo", "loss.policy": "cispo"}
    which = {"name": "which", "kind": "pairwise", "question": "Which is sharper?", "criterion": "sharpness"}
    pairs = {"data.custom_tasks": (which,), "data.tasks": ("which",), "rollout.rounds": 2}
    pairs["reward.weights"] = ("accuracy=1", "consistency=0")
    for fields, says in (
        (both, "keeps its parts: set kl_in to loss"),
        (mixed, "rollout.rounds = 2, but data.mixture = 'mt_grpo' has data.mt_grpo_rounds"),
        (unmeasured, "loss.policy = 'cispo' has no objective to measure"),
        (pairs, "could part a pair's two orders"),
    ):
        cfg = valid()
        for name, value in fields.items():
            group, _, field = name.partition(".")
            setattr(getattr(cfg, group), field, value)
        with pytest.raises(ConfigError, match=re.escape(says)):
            check(cfg)


def test_a_recipe_sets_what_has_its_default_and_says_so():
    cfg = valid()
    cfg.recipe, cfg.loss.clip_high, cfg.rollout.completion_tokens = "dapo", 0.35, 50
    apply_recipe(cfg)
    check(cfg)
    assert (cfg.loss.kl_coef, cfg.rollout.rounds, cfg.reward.overlong_buffer, cfg.loss.clip_high) == (0.0, 3, 10, 0.35)
    assert cfg.reward.weights == ("accuracy=0.9", "format=0.1", "overlong=1")
    said = recipe_text(cfg)
    assert said.startswith("recipe dapo: loss.kl_coef=0.0, rollout.rounds=3")
    assert said.endswith("loss.clip_high=0.35 instead of 0.28")
    for name in RECIPES:
        one = valid()
        one.recipe = name
        apply_recipe(one)
        check(one)
        assert "instead of" not in recipe_text(one) and {**RECIPES[name]}.items() <= flatten(one).items()
    assert recipe_text(valid()) == ""


def test_mixtures_that_do_not_fit():
    cfg = valid()
    cfg.data.mixture, cfg.data.mixture_weights = "weights", (2.0, 1)
    check(cfg)
    for weights in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, NAN), (1.0, float("inf")), (1.0, "2"), (1.0, True)):
        cfg.data.mixture_weights = weights
        with pytest.raises(ConfigError, match="must hold one number above 0 for each of the 2 data"):
            check(cfg)
    cfg = valid()
    cfg.data.mixture, cfg.data.balance_labels = "mt_grpo", True
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 18  # not divisible by the four labels, and need not be
    check(cfg)
    cfg.stage = "sft"
    with pytest.raises(ConfigError, match="'mt_grpo' follows rewards, and stage = 'sft' has none"):
        check(cfg)
    cfg.data.mixture, cfg.log.rollouts = "uniform", 2
    with pytest.raises(ConfigError, match=r"log\.rollouts = 2, but stage = 'sft' has no rollouts: set it to 0"):
        check(cfg)


UNKNOWN = [
    ({"optim": {"learning_rate": 1e-6}}, "optim.learning_rate", ""),
    ({"optim": {"weigth_decay": 0.1}}, "optim.weigth_decay", "'optim.weight_decay'"),
    ({"rollout": {"groupsize": 8}}, "rollout.groupsize", "'rollout.group_size'"),
    ({"rolout": {}}, "rolout", "'rollout'"),
    ({"step": 10}, "step", "'steps'"),
    ({"mesh": {"model": 2}}, "mesh.model", "mesh."),
]


def test_defaults_with_a_model_and_tasks_are_valid():
    check(valid())
    check(valid(), 8)


@pytest.mark.parametrize(("name", "value", "says"), BAD, ids=[f"{name}={value!r}"[:60] for name, value, _ in BAD])
def test_a_bad_value_is_one_line(name, value, says):
    cfg = valid()
    section, _, field = name.rpartition(".")
    setattr(getattr(cfg, section) if section else cfg, field, value)
    began = time.process_time()  # of this process alone: the other core may be busy
    with pytest.raises(ConfigError) as error:
        check(cfg, 8)
    line = str(error.value)
    assert time.process_time() - began < 0.5
    assert "\n" not in line
    assert name in line or f"{field!r}: {value!r}" in line  # the axes of a mesh that does not fit are shown together
    shown = value[-1] if isinstance(value, tuple) and value else value
    assert str(shown) in line or shown in ("", ())
    assert any(part in line for part in says.split("|"))
    assert len(line) < 300


@pytest.mark.parametrize(("raw", "name", "near"), UNKNOWN)
def test_an_unknown_field_names_the_nearest(raw, name, near):
    with pytest.raises(ConfigError) as error:
        from_dict(raw)
    assert "\n" not in str(error.value)
    assert repr(name) in str(error.value)
    assert near in str(error.value)


def test_batches_that_the_mesh_does_not_divide():
    cfg = valid()
    cfg.rollout.prompts = cfg.update.prompts = cfg.update.micro_prompts = 12
    check(cfg, 4)
    with pytest.raises(ConfigError, match=r"^update\.micro_prompts = 12 is not divisible by mesh.* = 8: [^\n]*$"):
        check(cfg, 8)
    cfg.mesh.tensor = 2  # four shards of the batch
    check(cfg, 8)
    cfg.data.balance_labels = True  # four labels
    check(cfg, 8)
    cfg.data.tasks = ("technical", "safety", "alignment", "preference")
    with pytest.raises(ConfigError, match=r"^update\.prompts = 12 .*balance_labels = 8: [^\n]*$"):
        check(cfg, 8)


def test_mesh_shape_by_hand():
    cfg = valid().mesh
    assert mesh_shape(cfg, 8) == {"data": 8, "fsdp": 1, "expert": 1, "tensor": 1}
    cfg.data, cfg.fsdp, cfg.tensor = 2, -1, 2
    assert mesh_shape(cfg, 8) == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}


def test_round_trip_through_json():
    cfg = valid()
    cfg.optim.lr, cfg.eval.tasks, cfg.mesh.tensor = 3e-4, ("pairwise_safety",), 2
    again = from_dict(json.loads(json.dumps(to_dict(cfg))))
    assert again == cfg
    assert again.eval.tasks == ("pairwise_safety",)
    assert flatten(again)["optim.lr"] == 3e-4
    assert from_dict({}) == Config()
    check(again, 8)


def test_a_stored_config_without_a_later_field_has_its_default():
    cfg = valid()
    stored = json.loads(json.dumps(to_dict(cfg)))
    del stored["loss"]["policy"], stored["hosts"], stored["recipe"]
    stored["loss"]["gone"] = 1
    assert differences(with_defaults(stored), to_dict(cfg)) == ["loss.gone: 1 -> (absent)"]
    cfg.loss.policy = "gspo"
    assert "loss.policy: clip -> gspo" in differences(with_defaults(stored), to_dict(cfg))


def test_two_configs_share_nothing():
    a, b = Config(), Config()
    a.optim.lr = 1.0
    assert b.optim.lr == Config().optim.lr != 1.0


def test_checking_needs_no_jax():
    """So nothing can be compiled before a config is refused."""
    code = "import sys, mtjudge_jax.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, check=False, timeout=60).returncode == 0


SECTIONS = {f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}


def reads(tree: ast.AST) -> set[str]:
    """Fields that a module reads: `<any>.optim.lr`, `cfg.lr` where cfg is annotated OptimConfig, `cfg.steps` where Config, and
    `data.tasks` after `data = cfg.data` or `self.data = cfg.data`.

    A write (`cfg.optim.lr = 1`) is not a read. A field of the whole, `cfg.steps`, also counts on `run.cfg`.
    """
    found, attributes = set(), {k: v for k, v in sections_by_name(tree).items() if k.startswith(".")}
    for scope in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
        args = [*scope.args.args, *scope.args.kwonlyargs]
        kinds = {a.arg: a.annotation.id for a in args if isinstance(a.annotation, ast.Name)}
        renamed = sections_by_name(scope) | attributes
        for node in ast.walk(scope):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            owner = node.value
            if isinstance(owner, ast.Attribute) and owner.attr in SECTIONS:
                found.add(f"{owner.attr}.{node.attr}")
            if isinstance(owner, ast.Name):
                found |= {f"{s}.{node.attr}" for s, kind in SECTIONS.items() if kinds.get(owner.id) == kind.__name__}
            if name_of(owner) in renamed:
                found.add(f"{renamed[name_of(owner)]}.{node.attr}")
            last = name_of(owner).removeprefix(".")
            if last == "cfg" and kinds.get(last, "Config") == "Config":
                found.add(node.attr)
    return found


def name_of(node: ast.AST) -> str:
    """`x` of a name, `.x` of an attribute."""
    return node.id if isinstance(node, ast.Name) else f".{node.attr}" if isinstance(node, ast.Attribute) else ""


def sections_by_name(tree: ast.AST) -> dict[str, str]:
    """Names to which a section is assigned: {"data": "data", "._cfg": "data"} of `data = self._cfg = cfg.data`."""
    found = {}
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Assign)):
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            found |= {name_of(to): of.attr for to, of in pairs if isinstance(of, ast.Attribute) and of.attr in SECTIONS}
    return found


def test_every_field_is_read_outside_the_schema():
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py") if path != Path(config_module.__file__)}
    found = set().union(*(reads(ast.parse(text)) for text in sources.values()))
    # The mesh's axes are read as a whole, by name, where a mesh is made; the table and the batch name each of them.
    table = sources[PACKAGE / "sharding.py"]
    found |= {f"mesh.{axis}" for axis in ("data", "fsdp", "expert", "tensor") if f'"{axis}"' in table}
    assert sorted(flatten(Config()).keys() - found) == []


def test_the_search_for_readers_finds_what_it_should():
    code = """
def f(cfg: OptimConfig): return cfg.lr
def g(run): return run.cfg.steps + run.cfg.loss.kl_coef
def h(cfg: LossConfig): cfg.dual_clip = 1; cfg.clip_low += 0
def i(cfg: TextConfig): return cfg.seed
def j(cfg): data, seed = cfg.data, 0; return data.tasks
def k(data): return data.patches
class C:
    def __init__(self, cfg): self._cfg = cfg.eval
    def l(self): return self._cfg.limit
"""
    fields = {"optim.lr", "steps", "loss.kl_coef", "data.tasks", "eval.limit"}
    assert reads(ast.parse(code)) & flatten(Config()).keys() == fields


MEANT = {
    "optim.learning_rate": "optim.lr",
    "lr": "optim.lr",
    "rollout.temprature": "rollout.temperature",
    "train.group_size": "rollout.group_size",
    "beta": "loss.kl_coef",
    "checkpoint.steps": "steps",
    "rollout.promts": "rollout.prompts",
    "save_steps": "checkpoint.every_steps",
    "report_to": "log.to",
}


@pytest.mark.parametrize("name", MEANT)
def test_an_unknown_field_suggests_the_one_that_is_meant(name):
    assert unknown_field(name) == f"unknown field {name!r}, did you mean {MEANT[name]!r}?"


def test_every_name_of_other_trainers_leads_to_a_field():
    assert set(config_module._OTHER_NAMES.values()) <= set(flatten(Config())) and field_meant("nonsense") == ""
