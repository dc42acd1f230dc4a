"""The files of configs/: the paper's values, and the fields in which the arms differ."""

import runpy

import pytest
from places import CONFIGS

from mtjudge_jax.config import Config, flatten
from mtjudge_jax.demo import config as packaged
from mtjudge_jax.plan.layouts import LAYOUTS
from mtjudge_jax.tasks.paper import TRAINED

QUESTIONS = dict(zip(TRAINED, (4_839, 4_839, 4_839, 5_544, 6_194, 7_298), strict=True))  # of the training splits
SINGLE = ("rl_single", "sft_single")
ARMS = ("mt_rl_judge", "mt_grpo", "off_the_shelf", "rl_single", "sft_unified", "sft_single")
LENGTH = {"steps", "eval.every_steps"}


def config_of(name: str, argument: str = "30b-a3b,v5p:4x4x4", task: str = "unsafebench") -> Config:
    get_config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]
    if name.startswith("demo"):
        return get_config()
    return get_config(f"{argument},{task}" if name in SINGLE else argument)


def differing(one: Config, other: Config) -> set[str]:
    a, b = flatten(one), flatten(other)
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize("pair", LAYOUTS, ids=",".join)
def test_the_fields_in_which_the_arms_differ(pair):
    cfg = {name: config_of(name, ",".join(pair)) for name in ARMS}
    length = set() if pair == ("rehearsal", "laptop") else LENGTH  # a rehearsal of any arm has four steps
    rate = set() if pair == ("8b", "v5e:4x4") else {"optim.lr"}  # adapters have one learning rate in every arm
    assert differing(cfg["mt_rl_judge"], cfg["off_the_shelf"]) == set()
    assert differing(cfg["mt_rl_judge"], cfg["mt_grpo"]) == {"data.mixture"}
    assert differing(cfg["mt_rl_judge"], cfg["rl_single"]) == {"data.tasks"} | length
    assert differing(cfg["sft_unified"], cfg["sft_single"]) == {"data.tasks"} | length
    assert differing(cfg["mt_rl_judge"], cfg["sft_unified"]) == {"stage", "sft.target"} | rate | length
    assert differing(cfg["rl_single"], cfg["sft_single"]) == {"stage", "sft.target"} | rate | length


def test_the_papers_values():
    cfg = config_of("mt_rl_judge")
    assert (cfg.stage, cfg.optim.name, cfg.optim.lr, cfg.optim.schedule) == ("grpo", "adamw", 1e-6, "constant")
    assert (cfg.rollout.group_size, cfg.rollout.prompts, cfg.update.prompts) == (20, 512, 256)
    assert (cfg.loss.kl_coef, cfg.optim.weight_decay, cfg.reward.alpha) == (0.01, 0.01, 0.1)
    assert (cfg.data.tasks, cfg.data.mixture) == (TRAINED, "proportional")
    cfg = config_of("sft_unified")
    assert (cfg.stage, cfg.sft.target, cfg.optim.lr, cfg.update.prompts) == ("sft", "answer", 1e-5, 256)


@pytest.mark.parametrize("name", ["mt_rl_judge", "sft_unified", *SINGLE])
def test_steps_are_three_passes_through_the_data_rounded_up_to_tens(name):
    for task in TRAINED:
        cfg = config_of(name, task=task)
        questions, batch = sum(QUESTIONS[t] for t in cfg.data.tasks), 256 if cfg.stage == "sft" else 512
        assert cfg.steps - 10 < 3 * questions / batch <= cfg.steps and cfg.steps % 10 == 0
        assert cfg.eval.every_steps == max(1, cfg.steps // 20)


def test_only_the_adapters_of_a_small_slice_have_another_learning_rate():
    rates = {pair: config_of("mt_rl_judge", ",".join(pair)).optim.lr for pair in LAYOUTS}
    assert {pair: rate for pair, rate in rates.items() if rate != 1e-6} == {("8b", "v5e:4x4"): 1e-5}
    adapters = {pair for pair in LAYOUTS if config_of("mt_rl_judge", ",".join(pair)).lora.rank}
    assert adapters == {("8b", "v5e:4x4")}


def test_the_demo_of_the_package_is_that_of_the_config_file():
    assert config_of("demo") == packaged.get_config()


def test_the_demos_reference_differs_in_what_it_teaches():
    sizes = {"rollout.prompts", "update.prompts", "update.micro_prompts"} | LENGTH | {"optim.warmup_steps"}
    demo, sft = config_of("demo"), config_of("demo_sft")
    assert differing(demo, sft) == {"stage", "optim.lr"} | sizes
    assert demo.steps * demo.update.prompts == sft.steps * sft.update.prompts == 4608
    assert (config_of("demo_sft").stage, config_of("demo_sft").optim.lr) == ("sft", 2e-3)
