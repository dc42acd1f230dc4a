"""The model card of an export: what was trained from what, how, how well it judges, and how it is loaded.

A card is Markdown with a head in YAML. Every value that comes from a run, a name or a path, is text and stays text: the
template escapes it unless it says `verbatim`.
"""

import importlib.metadata
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from mtjudge_jax.config import Config, get_tasks
from mtjudge_jax.paths import AnyPath, absolute
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.base import IMAGES_OF_KIND, INSTRUCTION_SLOT

_FOLDER = Path(__file__).parent
_PACKAGES = ("mtjudge_jax", "jax", "flax", "optax", "transformers")
_HUB_CACHE = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # how a hub's cache names the folder of a model
_PUBLISHED = re.compile(r"Qwen3-VL-(2B|4B|8B|32B|30B-A3B|235B-A22B)-(Instruct|Thinking)")  # and how people name it
_IMAGES = IMAGES_OF_KIND | {"pointwise_score": 1, "listwise": "2 or more"}
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM serves
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


class _Verbatim(str):
    """Text that is not escaped."""


class _Row(NamedTuple):
    """One line of the table of scores, all but `unseen` ready to print."""

    task: str
    unseen: bool
    count: str
    constant: str
    before: str
    after: str
    invalid_before: str
    invalid_after: str


class _Scores(NamedTuple):
    title: str
    chosen_on_it: bool
    rows: list[_Row]
    mean_before: str
    mean_after: str


class Origin(NamedTuple):
    """What is known of the model that was trained from."""

    name: str
    hub_name: str | None  # "Qwen/Qwen3-VL-2B-Instruct", where the folder tells
    license: str | None


def model_card(
    cfg: Config, *, title: str, origin: Origin, step: int, best: bool, workdir: AnyPath | None, dtype: str, adapter: bool
) -> str:
    """The text of README.md.

    step: the training step exported; best: whether as the best by validation; workdir: where its evaluations are, None where
    that is not known; dtype: of the weights; adapter: whether only adapters are exported.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), finalize=escape, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=False, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"quoted": _quoted, "python": _quoted, "verbatim": _Verbatim}
    tags = ["mtjudge_jax", "judge", "image-quality-assessment", cfg.stage]
    tags += ["lora"] * bool(cfg.lora.rank) + ["reinforcement-learning"] * (cfg.stage == "grpo")
    known = get_tasks(cfg)
    tasks = [known[name] for name in cfg.data.tasks]
    files = ["picture.jpg"] if _IMAGES[tasks[0].kind] == 1 else ["first.jpg", "second.jpg"]
    return environment.get_template("model_card.md.jinja").render(
        cfg=cfg, title=title, base=origin.name, hub_base=origin.hub_name, license=origin.license, tags=tags, dtype=dtype,
        tasks=tasks, images_of=_IMAGES, slot=INSTRUCTION_SLOT, asks=any(INSTRUCTION_SLOT in t.sample for t in tasks),
        scores=None if workdir is None else _read_scores(workdir / "eval", step=step, best=best), adapter=adapter,
        content=", ".join(f'{{"type": "image", "image": "{file}"}}' for file in files), recipe=_recipe(cfg, step=step, best=best),
        pictures=json.dumps(files if files[1:] else files[0]), length=cfg.data.prompt_tokens + cfg.rollout.completion_tokens,
        serving_rank=next((rank for rank in _RANKS if rank >= cfg.lora.rank), cfg.lora.rank),
    )  # fmt: skip


def escape(value: object) -> str:
    """Any value as one line of Markdown that shows it and does nothing else."""
    if isinstance(value, _Verbatim):
        return value
    return _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def _quoted(text: str) -> _Verbatim:
    """A string in quotes, for YAML and for Python."""
    return _Verbatim(json.dumps(text, ensure_ascii=False))


def _recipe(cfg: Config, *, step: int, best: bool) -> list[tuple[str, str]]:
    """How it was trained, in the order of reading."""
    optim, loss, lora, mesh = cfg.optim, cfg.loss, cfg.lora, cfg.mesh
    rows = [
        ("stage", cfg.stage),
        ("tasks", f"{', '.join(cfg.data.tasks)} ({cfg.data.mixture})"),
        ("steps", f"{step} of {cfg.steps}{', the best by mean validation macro-F1' if best else ''}"),
    ]
    if cfg.stage == "grpo":
        rows += [
            ("prompts a step", f"{cfg.rollout.prompts}, {cfg.update.prompts} an update"),
            ("answers a prompt (G)", f"{cfg.rollout.group_size} at temperature {cfg.rollout.temperature:g}"),
            ("advantages", f"divided by the group's standard deviation: {loss.advantage_std}; mean: {loss.aggregation}"),
            ("clip", f"{loss.clip_low:g} below, {loss.clip_high:g} above, dual {loss.dual_clip:g}"),
            ("KL", f"{loss.kl_coef:g}, {loss.kl_estimator}"),
            ("reward", f"{1 - cfg.reward.alpha:g} accuracy + {cfg.reward.alpha:g} format"),
        ]
    else:
        rows.append(("prompts a step", str(cfg.update.prompts)))
    weights = f"all but {', '.join(cfg.model.freeze)}" if cfg.model.freeze else "all"
    if lora.rank:
        weights = f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"
    axes = ", ".join(f"{axis} {'all that are left' if size == -1 else size}" for axis, size in vars(mesh).items())
    return [
        *rows,
        ("optimizer", f"{optim.name}, weight decay {optim.weight_decay:g}, gradients clipped at {optim.max_grad_norm:g}"),
        ("learning rate", f"{optim.lr:g}, {optim.schedule}, {optim.warmup_steps} steps of warm-up"),
        ("trained weights", weights),
        ("precision", f"{cfg.model.dtype}, trained weights kept in {cfg.model.param_dtype}"),
        ("longest prompt", f"{cfg.data.prompt_tokens} tokens, {cfg.data.patches} patches"),
        ("longest answer", f"{cfg.rollout.completion_tokens} tokens"),
        ("devices a mesh axis", axes),
        ("seed", str(cfg.seed)),
        ("exported with", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


def _read_scores(folder: AnyPath, *, step: int, best: bool) -> _Scores | None:
    """The run's own evaluation of this step beside that of its start: on the test split if the best was judged there, else on
    validation questions. None where there is neither.
    """
    pairs = [("val_000000", f"val_{step:06d}", "Questions: the validation split", best)]
    if best:
        pairs.insert(0, ("base_test", "trained_test", "Questions: the test split, which chose nothing", False))
    for before, after, title, chosen in pairs:
        if result := _read_result(folder / f"{after}.json"):
            return _score_table(_read_result(folder / f"{before}.json"), result, title=title, chosen=chosen)
    return None


def _read_result(path: AnyPath) -> dict[str, Any]:
    """{} for a file that is not there, is torn or is something else: a card is written without it."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    tasks = result.get("tasks") if isinstance(result, dict) else None
    return result if isinstance(tasks, dict) and tasks and all(isinstance(score, dict) for score in tasks.values()) else {}


def _score_table(before: dict, after: dict, *, title: str, chosen: bool) -> _Scores:
    rows = []
    for name, new in after["tasks"].items():
        old = before.get("tasks", {}).get(name, {})
        rows.append(
            _Row(
                name,
                name in TASKS and TASKS[name].ood,
                str(new.get("count", "–")),
                _number(new.get("constant_macro_f1")),
                _f1(old),
                _f1(new),
                _number(old.get("invalid_rate")),
                _number(new.get("invalid_rate")),
            )
        )
    means = [_number((result.get("mean") or {}).get("macro_f1")) for result in (before, after)]
    return _Scores(title, chosen, rows, *means)


def _f1(score: dict) -> str:
    low, high = score.get("macro_f1_ci") or (None, None)
    value = _number(score.get("macro_f1"))
    return value if low is None else f"{value} ({_number(low)} to {_number(high)})"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) and math.isfinite(value) else "–"


def origin_of(folder: AnyPath, *companions: AnyPath) -> Origin:
    """What the folder of the starting model tells of itself; `companions` may hold a LICENSE where it does not."""
    cached = [found for part in absolute(folder).parts if (found := _HUB_CACHE.fullmatch(part))]
    hub_name = f"{cached[-1][1]}/{cached[-1][2]}" if cached else None
    if _PUBLISHED.fullmatch(absolute(folder).name):
        hub_name = f"Qwen/{absolute(folder).name}"
    return Origin(hub_name or absolute(folder).name, hub_name, license_of(folder, *companions))


def license_of(*folders: AnyPath) -> str | None:
    """The hub's name of a license, from the head of a README or the beginning of a LICENSE file."""
    for folder in folders:
        readme = folder / "README.md"
        head = _text(readme).split("---")[1:2] if readme.is_file() else []
        found = re.search(r"^license:\s*[\"']?([\w.-]+)", head[0], re.MULTILINE) if head else None
        if found:
            return found[1]
        text = _text(folder / "LICENSE")[:2000] if (folder / "LICENSE").is_file() else ""
        if text:
            apache = "Apache License" in text and "Version 2.0" in text
            return "apache-2.0" if apache else "mit" if "Permission is hereby granted, free of charge" in text else "other"
    return None


def _text(path: AnyPath) -> str:
    return path.read_bytes().decode(errors="replace")
