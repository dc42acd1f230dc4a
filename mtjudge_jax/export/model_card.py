"""The model card of an export: what was trained from what, how, how well it judges, and how to load it.

A card is Markdown with a head in YAML. The template escapes every value, so that a name or a path of a run is shown as text and
does nothing else. Only what is marked `verbatim` is inserted as it is.
"""

import dataclasses
import importlib.metadata
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from huggingface_hub import ModelCardData

from mtjudge_jax.config import Config, get_tasks
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.policy.judge_file import hub_name, model_name, stages_of
from mtjudge_jax.report.read import BASE_TEST, TRAINED_TEST, whole_evaluation
from mtjudge_jax.tasks import TASKS
from mtjudge_jax.tasks.base import INSTRUCTION_SLOT
from mtjudge_jax.tasks.chat import Example, chat_content, example_of, openai_request
from mtjudge_jax.tasks.pictures import most_pictures, size_of_each
from mtjudge_jax.tasks.reward import weights_of

_FOLDER = Path(__file__).parent
_PACKAGES = ("mtjudge_jax", "jax", "flax", "optax", "transformers")
_HUB_NAME = re.compile(r"Qwen/Qwen3-VL-[\w-]+")
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM serves
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


class _Verbatim(str):
    """Text that is inserted as it is."""


class _Row(NamedTuple):
    """One line of the table of scores. All cells but `unseen` are ready to print."""

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
    judged_before: bool  # whether the model that training began with was evaluated


class Asking(NamedTuple):
    """What the examples of a card need from the judge's tokenizer."""

    escape: Callable[[str], str] = str  # keeps control tokens in a text from becoming special
    opening: str = ""  # the start of every answer, which the chat template writes
    ends: tuple[int, ...] = ()  # ids that end an answer


_PLAIN = Asking()


class Origin(NamedTuple):
    """What is known about the model that training started from."""

    name: str
    hub_name: str | None  # "Qwen/Qwen3-VL-2B-Instruct", None if the folder's name does not say it
    license: str | None
    stages: tuple[dict, ...] = ()  # earlier runs, see stages_of


def model_card(
    cfg: Config, *, title: str, origin: Origin, step: int, best: bool, workdir: AnyPath | None, dtype: str, adapter: bool,
    asking: Asking = _PLAIN, pixels: tuple[int, int] | None = None,
) -> str:  # fmt: skip
    """The text of README.md.

    step: the training step that is exported; best: whether it is the best by validation; workdir: the run with the evaluations,
    None if unknown; dtype: of the weights; adapter: whether only adapters are exported; pixels: smallest and largest area of a
    single picture in training, None if that is the image processor's. The examples ask every trained task as `Judge` does: in its
    first wording, with pictures of the size of training.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), finalize=escape, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=False, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"python": lambda text: _Verbatim(json.dumps(text, ensure_ascii=False)), "verbatim": _Verbatim}
    tags = ["mtjudge_jax", "judge", "image-quality-assessment", cfg.stage]
    tags += ["lora"] * bool(cfg.lora.rank) + ["reinforcement-learning"] * (cfg.stage == "grpo")
    first = origin.stages[0]["from"] if origin.stages and not adapter else ""
    base = origin.hub_name or (first if _HUB_NAME.fullmatch(first) else None)
    head = ModelCardData(
        base_model=base, base_model_relation=base and ("adapter" if adapter else "finetune"),
        library_name="peft" if adapter else "transformers", pipeline_tag="image-text-to-text", license=origin.license, tags=tags,
    )  # fmt: skip
    plain = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, polarity="plain", label_words="plain"))
    known = get_tasks(plain, "first")
    tasks = [known[name] for name in cfg.data.tasks]
    examples = [example_of(task) for task in tasks]
    tokens, model = cfg.rollout.completion_tokens, "judge" if adapter else "PATH"
    whole = None if pixels is None else {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    sizes = {} if whole is None else _sizes(examples, whole, cfg.data.patches)
    how = {"escape": asking.escape, "ends": asking.ends * adapter, "size": sizes.get(tasks[0].name, whole)}
    if how["size"] == whole:  # which the server has anyway
        how["size"] = None
    request = openai_request(examples[0], model=model, max_tokens=tokens, **how)
    return environment.get_template("model_card.md.jinja").render(
        head=head.to_yaml(), cfg=cfg, title=title, base=origin.name, hub_base=origin.hub_name, dtype=dtype,
        tasks=tasks, images_of=_images(examples), asks=any(INSTRUCTION_SLOT in t.sample for t in tasks),
        scores=None if workdir is None else _read_scores(workdir, step=step, best=best), adapter=adapter,
        recipe=_recipe(cfg, origin.stages, step=step, best=best), step=step, questions=_questions(examples, asking.escape),
        request=json.dumps(request, indent=1, ensure_ascii=False), call=_call(examples), asking=asking,
        length=cfg.data.prompt_tokens + tokens, size=whole, sizes=sizes,
        most_images=max(max(len(example.pictures), example.task.max_images) for example in examples),
        reworded=any(task.wordings and (len(task.wordings.forms) > 1 or len(task.wordings.words) > 1) for task in tasks),
        serving_rank=next((rank for rank in _RANKS if rank >= cfg.lora.rank), cfg.lora.rank),
    )  # fmt: skip


def escape(value: object) -> str:
    """A value as one line of Markdown that is shown as text: no markup in it has an effect."""
    if isinstance(value, _Verbatim):
        return value
    return _MARKDOWN.sub(r"\\\1", " ".join(str(value).split()))


def _images(examples: list[Example]) -> dict[str, int | str]:
    """{task: how many pictures its question has}."""
    counts = {example.task.name: len(example.pictures) for example in examples}
    return counts | {e.task.name: "2 or more" for e in examples if e.task.kind == "listwise" and not e.texts}


def _sizes(examples: list[Example], whole: dict[str, int], patches: int) -> dict[str, dict[str, int]]:
    """{task: the limits of each of its pictures}, {} if all are those of a single picture."""
    most = most_pictures([example.task for example in examples])
    found = {e.task.name: size_of_each(e.task, len(e.pictures), most, whole, patches=patches) for e in examples}
    return found if any(size != whole for size in found.values()) else {}


def _questions(examples: list[Example], escape_text: Callable[[str], str]) -> str:
    """The questions as the source of a Python dict: {task: the content of the message}."""
    lines = ["questions = {"]
    for example in examples:
        lines.append(f"    {_json(example.task.name)}: [")
        lines += [f"        {_json(part)}," for part in chat_content(example.parts, example.pictures, escape=escape_text)]
        lines.append("    ],")
    return "\n".join([*lines, "}"])


def _call(examples: list[Example]) -> str:
    """The arguments of `Judge.judge` that ask the first question which it can be asked; "" without one."""
    possible = [example for example in examples if example.texts or not example.in_context]
    if not possible:
        return ""
    example = possible[0]
    pictures, texts = example.pictures if example.pictures[1:] else example.pictures[0], example.texts
    given = {"images": pictures, "task": example.task.name, "instruction": example.instruction, "texts": texts}
    return ", ".join(f"{name}={_json(value)}" for name, value in given.items() if value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _recipe(cfg: Config, before: Sequence[dict], *, step: int, best: bool) -> list[tuple[str, str]]:
    """(what, value) of the training, in reading order."""
    optim, loss, lora, mesh = cfg.optim, cfg.loss, cfg.lora, cfg.mesh
    rows = [
        *((f"run {number}", f"{s['stage']} of {s['from']} on {', '.join(s['tasks'])}, step {s['step']}")
          for number, s in enumerate(before, 1)),
        ("stage" if not before else f"run {len(before) + 1}, this one", cfg.stage),
        ("tasks", f"{', '.join(cfg.data.tasks)} ({cfg.data.mixture}{', labels balanced' * cfg.data.balance_labels})"),
        ("steps", f"{step} of {cfg.steps}{_why(step, best)}"),
    ]
    if cfg.stage == "grpo":
        rows += [
            ("prompts per step", f"{cfg.rollout.prompts}, {cfg.update.prompts} per update"),
            ("answers per prompt (G)", f"{cfg.rollout.group_size} at temperature {cfg.rollout.temperature:g}"),
            ("advantages", loss.advantage + f", {loss.advantage_std} deviation" * (loss.advantage in ("grpo", "gdpo"))),
            ("policy loss", f"{loss.policy}, {loss.aggregation}"),
            ("clip", f"{loss.clip_low:g} below, {loss.clip_high:g} above, dual {loss.dual_clip:g}"),
            ("KL", f"{loss.kl_coef:g}, {loss.kl_estimator}"),
            ("reward", _reward(cfg)),
        ]
    else:
        rows.append(("prompts per step", str(cfg.update.prompts)))
        rows += [("beta", f"{cfg.dpo.beta:g}"), ("SFT coefficient", f"{cfg.dpo.sft_coef:g}")] if cfg.stage == "dpo" else []
    weights = f"all but {', '.join(cfg.model.freeze)}" if cfg.model.freeze else "all"
    if lora.rank:
        weights = f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"
    axes = ", ".join(f"{axis} {'all remaining' if size == -1 else size}" for axis, size in vars(mesh).items())
    return [
        *rows,
        ("optimizer", f"{optim.name}, weight decay {optim.weight_decay:g}, gradients clipped at {optim.max_grad_norm:g}"),
        ("learning rate", f"{optim.lr:g}, {optim.schedule}, {optim.warmup_steps} steps of warm-up"),
        ("trained weights", weights),
        ("precision", f"{cfg.model.dtype}, trained weights kept in {cfg.model.param_dtype}"),
        ("longest prompt", f"{cfg.data.prompt_tokens} tokens, {cfg.data.patches} patches"),
        ("longest answer", f"{cfg.rollout.completion_tokens} tokens"),
        ("devices per mesh axis", axes),
        ("seed", str(cfg.seed)),
        ("exported with", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
    ]


def _reward(cfg: Config) -> str:
    """`0.9 accuracy + 0.1 format`, or the parts and weights that the config names."""
    plain = {"accuracy": 1 - cfg.reward.alpha, "format": cfg.reward.alpha}
    weights = weights_of(cfg.reward.weights, (*cfg.reward.custom, *cfg.reward.batch), cfg.reward.alpha) or plain
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())


def _why(step: int, best: bool) -> str:
    if step == 0:
        return ": the weights that training began with" + (", no validation was better" if best else "")
    return ", the best by mean validation macro-F1" if best else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


def _read_scores(workdir: AnyPath, *, step: int, best: bool) -> _Scores | None:
    """The run's own evaluation of this step beside that of its start: on the test split if the best model was judged there,
    otherwise on the validation split. None if there is neither.
    """
    if best and (result := _read_result(whole_evaluation(workdir, TRAINED_TEST))):
        title = "The questions are the test split, which was not used to choose the step"
        return _score_table(_read_result(whole_evaluation(workdir, BASE_TEST)), result, title=title, chosen=False)
    if result := _read_result(workdir / "eval" / f"val_{step:06d}.json"):
        start = _read_result(workdir / "eval" / "val_000000.json")
        return _score_table(start, result, title="The questions are the validation split", chosen=best)
    return None


def _read_result(path: AnyPath | None) -> dict[str, Any]:
    """The scores of an evaluation, {} for a missing, damaged or foreign file: the card is then written without it."""
    try:
        result = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    tasks = result.get("tasks") if isinstance(result, dict) else None
    return result if isinstance(tasks, dict) and tasks and all(isinstance(score, dict) for score in tasks.values()) else {}


def _score_table(before: dict, after: dict, *, title: str, chosen: bool) -> _Scores:
    rows = []
    for name, new in after["tasks"].items():
        old = before.get("tasks", {}).get(name, {})
        measures = (new.get("constant_macro_f1"), old.get("invalid_rate"), new.get("invalid_rate"))
        constant, *invalid = map(_number, measures)
        unseen = name in TASKS and TASKS[name].ood
        rows.append(_Row(name, unseen, str(new.get("count", "–")), constant, _f1(old), _f1(new), *invalid))
    means = [_number((result.get("mean") or {}).get("macro_f1")) for result in (before, after)]
    return _Scores(title, chosen, rows, *means, bool(before.get("tasks")))


def _f1(score: dict) -> str:
    low, high = score.get("macro_f1_ci") or (None, None)
    value = _number(score.get("macro_f1"))
    return value if low is None else f"{value} ({_number(low)} to {_number(high)})"


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) and math.isfinite(value) else "–"


def origin_of(folder: AnyPath, *companions: AnyPath) -> Origin:
    """The starting model, from its folder; `companions` are further folders that may hold a LICENSE."""
    return Origin(model_name(str(folder)), hub_name(folder), license_of(folder, *companions), tuple(stages_of(str(folder))))


def license_of(*folders: AnyPath) -> str | None:
    """The hub's name of the license, from the head of a README or the beginning of a LICENSE file; None without either."""
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
