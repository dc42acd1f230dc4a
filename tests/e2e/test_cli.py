"""The command line: help, and bad input refused in one line with status 2, before anything is compiled."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from commands import Ended, commands
from PIL import Image
from places import CONFIGS as FILES
from safetensors import safe_open
from safetensors.numpy import save_file

from mtjudge_jax.cli import COMMANDS, resume_text
from mtjudge_jax.policy.model import DEMO_BASE


@cache
def place() -> Path:
    """Files and folders to give as arguments."""
    folder = commands().folder / "bad"
    folder.mkdir()
    (folder / "a_file").write_text("text")
    configs = {
        "raises": "def get_config():\n    return 1 / 0\n",
        "value_error": "def get_config():\n    raise ValueError('lr is missing')\n",
        "syntax": "def get_config(:\n",
        "imports": "import no_such_module\n",
        "no_get": "x = 1\n",
        "a_dict": "def get_config():\n    return {'steps': 3}\n",
        "beside": "from values_beside import VALUES\ndef get_config():\n    return VALUES\n",
        "values_beside": "VALUES = {'steps': 3}\n",
        "nothing": "def get_config():\n    pass\n",
        "misspelt": commands().config.read_text().replace("cfg.optim.lr", "cfg.optim.learning_rat"),
        "top": commands().config.read_text().replace("    return cfg", "    cfg.stepz = 3\n    return cfg"),
    }
    for name, text in configs.items():
        (folder / f"{name}.py").write_text(text)
    for name in ("missing_tensor", "cut_weights", "cut_tokenizer", "no_preprocessor", "cut_config", "cut_judge"):
        shutil.copytree(DEMO_BASE, folder / name)
    weights = folder / "missing_tensor" / "model.safetensors"
    with safe_open(weights, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del tensors["model.language_model.norm.weight"]
    save_file(tensors, weights)
    for name, file in (("cut_weights", "model.safetensors"), ("cut_tokenizer", "tokenizer.json"), ("cut_config", "config.json")):
        whole = (DEMO_BASE / file).read_bytes()
        (folder / name / file).write_bytes(whole[: len(whole) // 2])
    (folder / "no_preprocessor" / "preprocessor_config.json").unlink()
    (folder / "cut_judge" / "judge.json").write_text('{"prompt_tokens": 48}')
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "black.png")
    (folder / "cut.png").write_bytes((folder / "black.png").read_bytes()[:60])
    (folder / "other" / "checkpoints" / "1").mkdir(parents=True)
    changed = json.loads(commands().run("train", f"--config={commands().config}", "--print_config").out)
    changed["optim"]["lr"], changed["loss"]["clip_low"] = 5.0, 0.1
    (folder / "other" / "config.json").write_text(json.dumps(changed))
    return folder


def refused(*argv: object) -> str:
    """What a command that must be refused says, without `error: `."""
    names, compiled = set(place().rglob("*")), commands().folder / "compiled_before_a_refusal"
    ended = commands().run(*[str(a).replace("@", f"{place()}/") for a in argv], compiled=compiled)
    assert ended.status == 2, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 700, ended.err
    assert ended.out == ""
    assert not compiled.exists() or not list(compiled.iterdir()), "something was compiled before the refusal"
    left = set(place().rglob("*")) - names
    assert all(path.name in ("workdir", "checkpoints", "out") for path in left), left
    return lines[0].removeprefix("error: ")


def test_what_is_compiled_can_be_seen():
    """Guards `refused`, which looks for compiled programs and finds none."""
    compiled = commands().folder / "compiled_by_judge"
    picture = f"--image={place() / 'black.png'}"
    ended = commands().run("judge", f"--model={DEMO_BASE}", "--task=technical", picture, compiled=compiled)
    assert ended.status == 0 and list(compiled.iterdir()), ended.err


CONFIGS = [
    ("@none.py", "no such file"),
    ("@raises.py", ": line 2, in get_config, raised ZeroDivisionError: division by zero"),
    ("@value_error.py", "ValueError: lr is missing"),
    ("@syntax.py", "SyntaxError: invalid syntax (syntax.py, line 1)"),
    ("@imports.py", "No module named 'no_such_module'"),
    ("@no_get.py", "has no attribute 'get_config'"),
    ("@a_dict.py", "returned a dict, not a mtjudge_jax.config.Config"),
    ("@beside.py", "returned a dict"),  # which the module beside it holds
    ("@misspelt.py", "unknown field 'optim.learning_rat'"),
    ("@top.py", "unknown field 'stepz', did you mean 'steps'?"),
]


@pytest.mark.parametrize(("config", "said"), CONFIGS)
def test_unusable_config_files(config, said):
    assert said in refused("train", f"--config={config}", "--workdir=@workdir")


def test_a_config_file_without_a_return():
    """ml_collections warns of it first."""
    ended = commands().run("train", f"--config={place() / 'nothing.py'}", "--workdir=x")
    assert ended.status == 2 and ended.err.splitlines()[-1].startswith(
        "error: get_config() of the --config file returned a NoneType"
    )


FLAGS = [
    ("--config.rollout.promts=12", "unknown field 'rollout.promts', did you mean 'rollout.prompts'?"),
    ("--config.steps=many", "--config.steps=many"),
    ("--config.steps=0", "steps = 0 must be at least 1"),
    ("--config.rollout.group_size=1", "rollout.group_size = 1 must be at least 2: a single answer has no group"),
    ("--config.data.tasks=('technical','saftey')", "unknown task 'saftey', did you mean 'safety'?"),
    ("--config.mesh.data=5", "here are 1"),
    ("--config.update.micro_prompts=5", "update.prompts = 6 is not divisible by update.micro_prompts = 5"),
    (
        "--config.data.path=@nowhere",
        "manifest.json missing; prepare the data first: mtjudge prepare --dataset=NAME",
    ),
    (
        "--learning_rate=1e-4",
        "flag 'learning_rate'; a field of the config is written --config.optim.lr=VALUE",
    ),
    ("--optim.lr=1e-4", "a field of the config is written --config.optim.lr=VALUE"),
    (
        "--config.model.path=Qwen/Qwen3-VL-2B-Instruct",
        "hf download Qwen/Qwen3-VL-2B-Instruct --local-dir",
    ),
    ("--config.eval.tasks=pairwise_safety", "has no records of val/pairwise_safety"),
    ("--config.model.path=@nowhere", "has no config.json: give a Hugging Face folder"),
    ("--config.model.path=@missing_tensor", "missing: model.language_model.norm.weight"),
    ("--config.model.path=@cut_weights", "34 problems); cut short: model.visual"),
    ("--config.model.path=@cut_tokenizer", "damaged"),
    ("--config.model.path=@cut_config", "not valid JSON"),
    ("--config.model.path=@no_preprocessor", "preprocessor_config.json"),
    ("--config.model.path=@a_file", "has no config.json"),
    ("--workdir=@a_file", "a part of this path is a file"),
    ("--workdir=@a_file/run", "a part of this path is a file"),
    ("--workdir=/proc/nowhere", "cannot be written to"),
    ("--workdir=s3://bucket/run", "neither a folder on this machine nor gs://bucket/folder"),
    ("--workdir=", "no --workdir"),
    ("--wrkdir=x", "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    ("runs/mine", "unexpected argument 'runs/mine': flags are written --name=value"),
]


@pytest.mark.parametrize(("flag", "said"), FLAGS)
def test_invalid_training_flags(flag, said):
    data = [] if "data.path" in flag else [f"--config.data.path={commands().folder / 'data'}"]
    workdir = [] if "--workdir" in flag else ["--workdir=@workdir"]
    assert said in refused("train", f"--config={commands().config}", *data, *workdir, flag)


def test_a_workdir_of_another_config_names_the_changes():
    data = f"--config.data.path={commands().folder / 'data'}"
    said = refused("train", f"--config={commands().config}", data, "--workdir=@other")
    assert "holds a run of another config" in said
    assert "optim.lr: 5.0 -> 0.001" in said and "loss.clip_low: 0.1 -> 0.2" in said


@cache
def own_data() -> Path:
    """The manifest of data with a task of the user's own."""
    folder = commands().folder / "own_data"
    folder.mkdir()
    files = {"test/my_own": {"count": 1, "sha256": ""}}
    (folder / "manifest.json").write_text(json.dumps({"version": 2, "dataset": "jsonl", "files": files}))
    return folder


MODEL = f"--model={DEMO_BASE}"
OTHERS = [
    (("eval", MODEL, "--out=@out", "--data=@nowhere"), "manifest.json missing"),
    (("eval", MODEL, "--out=@out", "--data=DATA", "--split=tset"), "unknown split 'tset', did you mean 'test'?"),
    (("eval", MODEL, "--out=@out", "--data=DATA", "--tasks=tecnical"), "did you mean 'technical'?"),
    (("eval", MODEL, "--out=@out", "--data=DATA", "--tasks=pairwise_safety", "--split=val"), "no records of val/pairwise_safety"),
    (("eval", MODEL, "--out=@a_file", "--data=DATA"), "a part of this path is a file"),
    (("eval", "--model=@nowhere", "--out=@out", "--data=DATA"), "has no config.json"),
    (("eval", "--model=@cut_judge", "--out=@out", "--data=DATA"), "judge.json is damaged"),
    (("eval", MODEL, "--out=@out", "--data=DATA", "--samples=0"), "--samples=0"),
    (("judge", MODEL, "--image=@black.png", "--task=tehnical"), "did you mean 'technical'?"),
    (("judge", MODEL, "--image=@none.png", "--task=technical"), "no file"),
    (("judge", MODEL, "--image=https://a.b/c.png", "--task=technical"), "looks like a URL"),
    (("judge", MODEL, "--image=@cut.png", "--task=technical"), "cut.png: truncated_image"),
    (("judge", MODEL, "--image=@a_file", "--task=technical"), "a_file: image_format"),
    (("judge", MODEL, "--image=@black.png", "--image=@black.png", "--task=technical"), "exactly 1 image(s), the question has 2"),
    (("judge", MODEL, "--image=@black.png", "--task=pairwise_technical"), "exactly 2 image(s), the question has 1"),
    (("judge", MODEL, "--image=@black.png", "--task=alignment"), "needs an instruction"),
    (("judge", MODEL, "--image=@black.png", "--task=alignment", "--instruction=caf\udce9"), r"no Unicode text: '\udce9' at char"),
    (("judge", MODEL, "--image=@none\udce9.png", "--task=technical"), r"no file '"),
    (("judge", MODEL, "--image=@black.png", "--task=tech\udce9"), r"unknown task 'tech\udce9'"),
    (("judge", "--model=@nowhere\udce9", "--image=@black.png", "--task=technical"), "has no config.json"),
    (("judge", MODEL, "--image=@black.png", "--task=technical", "--mesh=fdsp=2"), "--mesh=fdsp=2: give AXIS=DEVICES"),
    (
        ("judge", MODEL, "--task=technical"),
        "--image is missing: name an image file, e.g. --image=a.jpg",
    ),
    (("judge", MODEL, "--image=@black.png"), "--task is missing: name a task, e.g. --task=technical"),
    (("judge",), "--model is missing: give a model folder or the workdir of a run, e.g. --model=runs/demo; --image is missing: "),
    (("judge", "--model=@nowhere", "--image=@black.png", "--task=my_own"), "nowhere' has no config.json"),
    (("eval", "--model=@nowhere", "--out=@out", "--data=OWN"), "nowhere' has no config.json"),
    (("eval", MODEL, "--out=@out", "--data=OWN"), "unknown task 'my_own', but "),
    (("eval", MODEL, "--out=@out"), "--data is missing: give a folder of mtjudge prepare, e.g. --data=runs/demo/data"),
    (("eval", MODEL, "--data=DATA"), "--out is missing: name a folder for the scores, e.g. --out=runs/demo/eval"),
    (
        ("eval", "--out=@out", "--data=DATA"),
        "--model is missing: give a model folder or the workdir of a run, e.g. --model=runs/demo",
    ),
    (("eval", "--config=CONFIG", "--out=@out"), "--data is missing"),
    (("eval", "--config=CONFIG", "--config.model.path=@nowhere", "--out=@out", "--data=DATA"), "nowhere' has no config.json"),
    (("eval", "--config=CONFIG", "--out=@out", "--data=DATA", "--split=tset"), "unknown split 'tset'"),
    (("export",), "--out is missing: name the folder to write"),
    (("demo",), "--workdir is missing: name the folder of the run"),
    (("judge", "--model=@nowhere", "--image=@black.png", "--task=technical"), "has no config.json"),
    (("prepare", "--dataset=dmeo", "--out=@out"), "unknown data set 'dmeo', did you mean 'demo'?"),
    (("prepare", "--out=@other"), "is not empty and has no manifest.json"),
    (("prepare", "--out=@a_file"), "a_file"),
    (("jugde",), "unknown command 'jugde', did you mean 'judge'?"),
]


@pytest.mark.parametrize(("argv", "said"), OTHERS)
def test_other_commands_refuse_invalid_input(argv, said):
    given = {"DATA": commands().folder / "data", "OWN": own_data(), "CONFIG": commands().config}
    for name, path in given.items():
        argv = [a.replace(name, str(path)) for a in argv]
    assert said in refused(*argv)


def raised(kind: str) -> Ended:
    began = time.monotonic()
    ended: Ended = commands().wait(commands().start_call("command_drills.failing", kind=kind))
    assert time.monotonic() - began < 20, "a busy thread must not delay the end"
    return ended


@pytest.mark.parametrize("kind", ["KeyError", "ValueError", "RuntimeError", "AssertionError"])
def test_a_bug_shows_its_traceback_and_ends_with_status_1(kind):
    ended = raised(kind)
    assert ended.status == 1 and "Traceback" in ended.err and f"{kind}: " in ended.err


def test_a_reader_that_leaves_is_no_error():
    """`mtjudge report .. | head`."""
    ended = raised("BrokenPipeError")
    assert (ended.status, ended.out, ended.err) == (141, "", "")


@pytest.mark.parametrize("kind", ["UserError", "ConfigError", "OSError", "FileNotFoundError"])
def test_an_error_of_the_user_is_one_line_and_status_2(kind):
    ended = raised(kind)
    assert (ended.status, ended.out, ended.err) == (2, "", "error: first line; second line\n")


def test_a_stop_names_the_step_that_is_saved(tmp_path):
    anew = "the same command continues from what was saved, or starts from the beginning"
    assert resume_text(None) == resume_text(str(tmp_path)) == resume_text("gs://bucket/run") == anew
    for name in ("2.unfinished", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert resume_text(str(tmp_path)) == anew
    for step in (2, 10):
        (tmp_path / "checkpoints" / str(step)).mkdir()
    assert resume_text(str(tmp_path)) == "the same command continues after step 10"


def test_ctrl_c_before_the_first_save_promises_none():
    workdir = commands().folder / "stopped_early"
    run = commands().train(workdir)
    assert commands().until(workdir.is_dir, run)
    os.kill(run.pid, signal.SIGINT)
    ended = commands().wait(run)
    assert not any(path.name.isdecimal() for path in workdir.glob("checkpoints/*"))
    assert (ended.status, ended.err) == (130, f"stopped; {resume_text(str(workdir))}\n")


def test_print_config_needs_no_workdir():
    ended = commands().run("train", f"--config={commands().config}", "--print_config", "--config.optim.lr=0.5")
    assert ended.status == 0 and json.loads(ended.out)["optim"]["lr"] == 0.5


def test_names_are_separated_by_commas():
    """Also where the config's own tuple holds one name or none."""
    flags = ["--config.data.tasks=technical,safety", "--config.model.freeze=vision, mergers"]
    flags += ["--config.reward.weights=accuracy=0.9,format=0.1", "--config.reward.batch=math:sqrt"]
    shown = json.loads(commands().run("train", f"--config={commands().config}", "--print_config", *flags).out)
    assert shown["data"]["tasks"] == ["technical", "safety"] and shown["model"]["freeze"] == ["vision", "mergers"]
    assert shown["reward"]["weights"] == ["accuracy=0.9", "format=0.1"] and shown["reward"]["batch"] == ["math:sqrt"]
    for flags, freeze in (((), ["vision", "mergers"]), (("--config.model.freeze=",), [])):  # a value that is empty is no name
        shown = json.loads(commands().run("train", f"--config={FILES / 'demo.py'}", "--print_config", *flags).out)
        assert shown["model"]["freeze"] == freeze


def test_a_list_that_is_given_twice_is_both():
    """absl's own would keep the last: terms that were allowed would be left out in silence."""
    from absl import flags

    from mtjudge_jax.flags import define_list

    name = "twice_given"
    given = define_list(name, ["all"], "")
    values = flags.FLAGS
    if not values.is_parsed():
        values.mark_as_parsed()
    assert given.value == ["all"]
    for text, want in (("a,b", ["a", "b"]), ("c", ["a", "b", "c"])):
        values[name].parse(text)
        values[name].present += 1
        assert given.value == want
    delattr(values, name)


def test_a_command_is_also_a_module():
    call = [sys.executable, "-m", "mtjudge_jax.report"]
    ended = subprocess.run([*call, "--help"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "--workdir" in ended.stdout, ended.stderr
    ended = subprocess.run([*call, "--wrkdir=x"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: Unknown command line flag 'wrkdir'. Did you mean: workdir")
    assert len(ended.stderr.splitlines()) == 1


def test_usage_lists_the_commands():
    for argv, status in ((["--help"], 0), (["help"], 0), ([], 2)):
        ended = commands().run(*argv)
        assert ended.status == status and all(f"  {name} " in ended.out for name in COMMANDS)


HELP = {"": "usage", "train": "--config", "eval": "--samples", "judge": "--instruction", "prepare": "--out"}


@pytest.mark.parametrize("command", HELP)
def test_help_answers_at_once(command):
    """In a fresh interpreter, as a user would; measured in its own processor time, other processes may be busy."""
    code = "import sys, resource; from mtjudge_jax.cli import main\ntry:\n main()\nfinally:\n"
    code += " used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime, 'jax' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 if command != "prepare" else ended.returncode in (0, 1), ended.stderr
    assert HELP[command] in ended.stdout
    seconds, jax = ended.stdout.splitlines()[-1].split()
    assert float(seconds) < 1 and jax == "False"
