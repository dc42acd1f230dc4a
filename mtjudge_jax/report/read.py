"""Reads what a run wrote. `RunFolder.problems` names what is missing or damaged; that never stops the report."""

import json
import os
import shlex
from typing import NamedTuple

from mtjudge_jax.paths import AnyPath, absolute, as_path, in_bucket

BASE_TEST, TRAINED_TEST, REFERENCE_TEST = "base_test", "trained_test", "reference_sft_test"
_NO_RESULTS = ("config.json", "comparison.json", "manifest.json")
_MAX_RESULT = 20 << 20  # bytes; a larger JSON file beside the run is no result
_MAX_TEXT = 2000  # characters of a completion that the page keeps: a hostile one may be a megabyte long


class Evaluation(NamedTuple):
    """One evaluation: `tasks` name -> score, `mean` over the trained tasks, `predictions` one dict each, `place` its file."""

    name: str
    tasks: dict
    mean: dict
    predictions: list[dict]
    place: AnyPath


class RunFolder(NamedTuple):
    """What a run has written so far. `train` and `validation` are lines of metrics.jsonl in step order, one per step."""

    workdir: AnyPath
    config: dict
    train: list[dict]
    validation: list[dict]
    evaluations: dict[str, Evaluation]
    data: AnyPath | None
    manifest: dict
    problems: list[str]  # a command that mends one is on a line of its own
    updated: float  # seconds since 1970 when the newest of the files was written, 0 if there is none


def read_run(workdir: str | os.PathLike) -> RunFolder:
    """Raises FileNotFoundError if there is no such folder, or nothing of a run in it. Parts of a run may be missing."""
    workdir = as_path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"workdir={workdir} is not a folder; give the --workdir of a run")
    if not any((workdir / name).exists() for name in ("config.json", "metrics.jsonl", "eval")):
        raise FileNotFoundError(
            f"workdir={workdir} is no run: it has neither config.json nor metrics.jsonl nor eval/; give the --workdir of a run"
        )
    problems: list[str] = []
    config = read_json(workdir / "config.json", problems)
    lines = read_lines(workdir / "metrics.jsonl", problems)
    train = latest_by_step([line for line in lines if line.get("kind") == "train"])
    validation = latest_by_step([line for line in lines if line.get("kind") == "eval" and line.get("split") == "val"])
    data = data_of(workdir, config)
    places = {name: workdir / "eval" / f"{name}.json" for name in _evaluation_names(workdir / "eval", validation)}
    for name, meaning in ((BASE_TEST, "base"), (TRAINED_TEST, "trained")):
        if name not in places and (found := find_evaluation(workdir, config, data, name)):
            places[name] = found
            lacks = (text := _lacks(found, config)) and f" It is {text}; a whole one takes its place."
            shown = f"{found}, where the {meaning} model judged the test split, is shown."
            problems.append(f"eval/{name}.json is missing; {shown}{lacks}")
        elif name not in places:
            problems.append(
                f"eval/{name}.json is missing: the {meaning} model has not been evaluated on the test split. To evaluate it "
                f"(CONFIG.py is the run's config file):\n{eval_command(workdir, config, data, name)}"
            )
    evaluations = {name: _read_evaluation(place, name, problems) for name, place in places.items()}
    updated = max(map(_changed_at, [workdir / "metrics.jsonl", *places.values()]))
    if data is None:
        problems.append("The data folder (config.json, data.path) was not found: the examples are shown without pictures.")
    manifest = read_json(data / "manifest.json", problems) if data is not None else {}
    return RunFolder(workdir, config, train, validation, evaluations, data, manifest, problems, updated)


def _changed_at(path: AnyPath) -> float:
    if not path.exists():
        return 0.0
    return path.stat().mtime if in_bucket(path) else path.stat().st_mtime


def find_evaluation(workdir: AnyPath, config: dict, data: AnyPath | None, name: str) -> AnyPath | None:
    """A result of `mtjudge eval` on the test split with the run's base or best model, in the run's eval/ or in a folder beside
    the run; None if there is none. Of several the fullest: in the wordings of training, then of most trained tasks, then of
    all examples, then the newest. Of the best model, only one of the step that is in best/ now.
    """
    if in_bucket(workdir):  # every look into a folder is a request
        return None
    place = (config.get("model") or {}).get("path") if name == BASE_TEST else os.fspath(workdir / "best")
    if not place:
        return None
    model = place if place == "demo" else os.fspath(absolute(as_path(place)))
    step = read_json(workdir / "best" / "judge.json", []).get("step") if name == TRAINED_TEST else None
    found = {}
    for path in [*workdir.glob("eval/*.json"), *workdir.absolute().parent.glob("*/*.json")]:
        if path.name in _NO_RESULTS or path.name.startswith("val_") or path.stat().st_size > _MAX_RESULT:
            continue
        result = read_json(path, [])
        judged = result.get("judged")
        if not isinstance(judged, dict) or result.get("split") != "test" or judged.get("model") != model:
            continue
        if (data is not None and judged.get("data") != os.fspath(absolute(data))) or judged.get("step") not in (None, step):
            continue
        found[path] = (*_fullness(result, config), _changed_at(path))
    return max(found, key=found.get, default=None)


def whole_evaluation(workdir: AnyPath, name: str) -> AnyPath | None:
    """The result named so in the run's eval/, else one that `find_evaluation` finds, unless it judged only a part."""
    own = workdir / "eval" / f"{name}.json"
    if own.is_file():
        return own
    config = read_json(workdir / "config.json", [])
    found = find_evaluation(workdir, config, data_of(workdir, config), name)
    return None if found is None or _lacks(found, config) else found


def _fullness(result: dict, config: dict) -> tuple[bool, int, bool]:
    """Whether the wordings are those of training, how many trained tasks were judged, and whether wholly."""
    settings, trained = result.get("settings") or {}, (config.get("data") or {}).get("tasks") or ()
    judged = len({*trained} & {*result.get("tasks", ())})
    return settings.get("wordings", "train") != "held_out", judged, not settings.get("limit")


def _lacks(path: AnyPath, config: dict) -> str:
    """What an evaluation lacks of a whole one, or ""."""
    trained = len((config.get("data") or {}).get("tasks") or ())
    plain, judged, whole = _fullness(read_json(path, []), config)
    lacks = ["in held-out wordings"] * (not plain) + [f"of {judged} of the {trained} trained tasks"] * (judged < trained)
    return ", ".join(lacks + ["of a part of the examples"] * (not whole))


def eval_command(workdir: AnyPath, config: dict, data: AnyPath | None, name: str) -> str:
    """The command that writes a missing evaluation. --config gives both models the same questions, and the run's own tasks."""
    model = workdir if name == TRAINED_TEST else (config.get("model") or {}).get("path") or "BASE_MODEL"
    flags = {"config": "CONFIG.py", "model": model, "data": data or _data_path(config) or workdir / "data"}
    flags |= {"out": workdir / "eval", "name": name}
    return " ".join(["mtjudge eval", *(shlex.quote(f"--{flag}={value}") for flag, value in flags.items())])


def best_validation(lines: list[dict]) -> tuple[int, float] | None:
    """(step, mean macro-F1) of the best of these validations, the first if several are equal."""
    return next(iter(best_validations(lines)), None)


def best_validations(lines: list[dict]) -> list[tuple[int, float]]:
    """(step, mean macro-F1) of these validations, the best first, and of equal ones the earlier."""
    means = [(line["step"], (line.get("mean") or {}).get("macro_f1")) for line in lines]
    return sorted(((step, mean) for step, mean in means if mean is not None), key=lambda item: (-item[1], item[0]))


def _evaluation_names(folder: AnyPath, validation: list[dict]) -> list[str]:
    """The evaluations to read: the fixed names that exist, and of the validations the first and the best, whose model is kept
    (predictions can be large). Without their lines the last stands for the best.
    """
    fixed = [name for name in (BASE_TEST, TRAINED_TEST, REFERENCE_TEST) if (folder / f"{name}.json").exists()]
    validations = sorted(path.stem for path in folder.glob("val_*.json"))
    found = best_validation(validation)
    best = [f"val_{found[0]:06d}"] if found and f"val_{found[0]:06d}" in validations else validations[-1:]
    return fixed + list(dict.fromkeys(validations[:1] + best))


def _read_evaluation(place: AnyPath, name: str, problems: list[str]) -> Evaluation:
    scores = read_json(place, problems)
    path = place.with_name(f"{place.stem}.predictions.jsonl")
    # The reference may be scores only, with the interval of their mean.
    given = path.exists() or name != REFERENCE_TEST
    predictions = [shortened(line) for line in read_lines(path, problems)] if given else []
    return Evaluation(name, scores.get("tasks") or {}, scores.get("mean") or {}, predictions, place)


def shortened(prediction: dict) -> dict:
    """The prediction with `text`, `reasoning` and `error` cut to _MAX_TEXT characters and the cut marked."""
    cut = {}
    for field in ("text", "reasoning", "error"):
        value = prediction.get(field) or ""
        cut[field] = value if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]} … ({len(value):,} characters in total)"
    return prediction | cut


def read_json(path: AnyPath, problems: list[str]) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError, RecursionError) as e:  # RecursionError: thousands of open brackets
        problems.append(f"{path.name} could not be read ({type(e).__name__}: {e}).")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds a {type(value).__name__}, not an object, and was skipped.")
        return {}
    return value


def read_lines(path: AnyPath, problems: list[str]) -> list[dict]:
    """JSON objects, one per line. A running or killed run may leave a torn line, which is counted and skipped."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError:
        problems.append(f"{path.name} is missing.")
        return []
    rows, torn = [], 0
    for line in filter(str.strip, text.split("\n")):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            torn += 1
    if torn:
        problems.append(f"{path.name}: {torn} of {len(rows) + torn} lines could not be read and were skipped.")
    return rows


def latest_by_step(lines: list[dict]) -> list[dict]:
    """A step repeated after a stop is in the file twice; the later line counts. [step 1, 2, 3, 2'] -> [1, 2', 3]."""
    by_step = {line["step"]: line for line in lines if isinstance(line.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]


def data_of(workdir: AnyPath, config: dict) -> AnyPath | None:
    """The run's prepared data: data.path of the config if it exists, else the workdir's data/ (for an empty path, or after a
    move); None if neither does.
    """
    folders = ([as_path(path)] if (path := _data_path(config)) else []) + [workdir / "data"]
    return next((folder for folder in folders if folder.is_dir()), None)


def _data_path(config: dict) -> str:
    return (config.get("data") or {}).get("path") or ""
