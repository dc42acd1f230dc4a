"""What the demo reaches by objective, and from a base that seldom answers in the form: scores over seeds, by the commands.

    python benchmarks/recipes.py --out=runs/recipes --seeds=3          # hours; the same command continues

Recipes: the demo with each of `--config.recipe`, at the same number of steps, its loss otherwise at the defaults; "demo" is the
demo's own loss. Form: the demo's base is first taught by SFT to say the verdict alone, until few of its answers have the form.
From there RL alone, or `mtjudge sample`, SFT on what it keeps, and RL for the remaining steps. Judged: the best step by
validation, on the six tasks' test split. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
RECIPES = ("demo", "grpo_paper", "dapo", "dr_grpo", "gspo", "cispo")
TASKS = ("technical", "rationality", "naturalness", "alignment", "preference", "safety")
STEPS, FORGET, TAUGHT = 160, 32, 40  # of RL; of the SFT that makes the base forget the form; of the SFT on sampled answers
CONFIG = '''
from mtjudge_jax.config import LossConfig
from mtjudge_jax.demo.config import get_config as demo


def get_config(recipe="demo"):
    cfg = demo()
    if recipe != "demo":
        cfg.loss, cfg.recipe = LossConfig(), recipe
    return cfg
'''


def command(name: str, *flags: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"mtjudge_jax.{name}", *flags], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        raise SystemExit(f"mtjudge {name} {' '.join(flags)}: exit status {done.returncode}\n{said}")


class Study:
    """The runs below a folder. Every command of the package continues by itself, so a second start repeats nothing."""

    def __init__(self, out: Path):
        self.out, self.config, self.data = out, out / "recipe.py", out / "data"
        out.mkdir(parents=True, exist_ok=True)
        self.config.write_text(CONFIG)
        if not (self.data / "manifest.json").exists():
            command("prepare", "--dataset=demo", f"--out={self.data}")

    def train(self, name: str, seed: int, *flags: str, recipe: str = "demo", data: Path | None = None) -> Path:
        workdir = self.out / "runs" / f"{name}.seed{seed}"
        if not (workdir / "done").exists():
            command(
                "train", f"--config={self.config}:{recipe}", f"--workdir={workdir}", f"--config.seed={seed}",
                f"--config.data.path={data or self.data}", *flags,
            )  # fmt: skip
            (workdir / "done").touch()
        return workdir

    def judge(self, name: str, seed: int, model: Path) -> dict:
        """The test result of a model."""
        path = self.out / "eval" / f"{name}.seed{seed}.json"
        if not path.exists():
            command(
                "eval", f"--model={model}", f"--data={self.data}", "--split=test", f"--tasks={','.join(TASKS)}", "--samples=8",
                f"--out={path.parent}", f"--name={path.stem}",
            )  # fmt: skip
        return json.loads(path.read_text())["tasks"]

    def sample(self, seed: int, model: Path) -> Path:
        out = self.out / f"sampled.seed{seed}"
        if not (out / "manifest.json").exists():
            which = (f"--model={model}", f"--data={self.data}", f"--tasks={','.join(TASKS)}")
            command("sample", *which, f"--seed={seed}", f"--out={out}")
        return out


def numbers(result: dict) -> dict[str, float]:
    """Means over the tasks: macro-F1 of the greedy answer, accuracy of the sampled ones, share without a verdict."""
    keys = {"macro_f1": "macro_f1", "sampled": "sampled_accuracy", "invalid": "invalid_rate"}
    return {name: float(np.mean([result[task][key] for task in TASKS])) for name, key in keys.items()}


def recipes(study: Study, seed: int) -> dict[str, dict]:
    found = {}
    for name in RECIPES:
        run = study.train(name, seed, recipe=name)
        found[name] = numbers(study.judge(name, seed, run / "best"))
        print(f"seed {seed} {name}: {found[name]}", flush=True)
    return found


def form(study: Study, seed: int) -> dict[str, dict]:
    sft = ("--config.stage=sft", "--config.optim.lr=0.002")
    base = study.train("formless", seed, f"--config.steps={FORGET}", "--config.sft.target=answer", *sft)
    start = base / "exported"
    if not start.exists():
        command("export", f"--workdir={base}", f"--step={FORGET}", f"--out={start}")
    alone = study.train("form.rl", seed, f"--config.model.path={start}")
    sampled = study.sample(seed, start)
    taught = study.train("form.sft", seed, f"--config.steps={TAUGHT}", f"--config.model.path={start}", *sft, data=sampled)
    then = study.train("form.sft_rl", seed, f"--config.model.path={taught / 'best'}", f"--config.steps={STEPS - TAUGHT}")
    models = {"formless base": start, "RL alone": alone / "best"}
    models |= {"sample, SFT": taught / "best", "sample, SFT, RL": then / "best"}
    found = {}
    for name, model in models.items():
        found[name] = numbers(study.judge(name.replace(", ", "_").replace(" ", "_"), seed, model))
        print(f"seed {seed} {name}: {found[name]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=("all", "recipes", "form"), default="all")
    given = parser.parse_args()
    study, rows = Study(given.out.resolve()), {}
    for seed in range(given.seeds):
        for part in (recipes, form):
            if given.part in ("all", part.__name__):
                for name, found in part(study, seed).items():
                    rows.setdefault(name, []).append(found)
    print("| run | macro-F1, mean (lowest to highest seed) | sampled accuracy | invalid |\n|---|---|---|---|")
    for name, found in rows.items():
        cells = [[one[key] for one in found] for key in ("macro_f1", "sampled", "invalid")]
        print(f"| {name} | " + " | ".join(f"{np.mean(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in cells) + " |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
