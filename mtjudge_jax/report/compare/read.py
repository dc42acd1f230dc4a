"""Reads the results that `mtjudge report A B C..` names: workdirs, folders of evaluations, or their files."""

import json
from collections.abc import Sequence

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.report.read import (
    BASE_TEST,
    REFERENCE_TEST,
    TRAINED_TEST,
    best_validations,
    data_of,
    eval_command,
    find_evaluation,
    latest_by_step,
    read_json,
    read_lines,
    shortened,
)

Runs = dict[str, list[dict]]


def read_runs(names: Sequence[str]) -> Runs:
    """Arm -> results, one per seed. Each of `names` is PATH or ARM=PATH.

    An arm may be given several times: results with other tasks are joined (one model per task), results with the same tasks are
    seeds. Without ARM= the arm is named after its folder. Workdirs are compared by the trained model's evaluation on the test
    split, wherever `mtjudge eval` wrote it beside them; if one of them has none, all by their best validation, and each result
    says so in "note". Raises UserError that names the path.
    """
    places = [as_path(name.rpartition("=")[2]) for name in names if name.rpartition("=")[2]]
    by_validation = len(places) > 1 and all(map(_is_workdir, places)) and not all(map(_test_file, places))
    by_validation = by_validation and all(_best_validation(place) for place in places)
    runs: Runs = {}
    plain = [name for name in names if "=" not in name]
    for name in names:
        arm, given, path = name.rpartition("=")
        if given and (not arm or not path):
            raise UserError(f"{name!r}: give PATH or ARM=PATH")
        result = _validation_result(as_path(path)) if by_validation else read_result(as_path(path))
        arm = arm or _arm_of(path, plain)
        if not given and arm in runs:
            raise UserError(f"two runs have the name {arm!r}: name them, e.g. {arm}_a={path}")
        _add_result(runs.setdefault(arm, []), result)
    return runs


def unlike_samples(runs: Runs) -> str:
    """A note where the arms sampled different numbers of answers a question; else nothing."""
    asked = {arm: [(result.get("settings") or {}).get("samples") for result in results] for arm, results in runs.items()}
    counts = {arm: sorted(set(filter(None, found))) for arm, found in asked.items()}
    if len({tuple(found) for found in counts.values() if found}) < 2:
        return ""
    said = ", ".join(f"{arm} {' and '.join(map(str, found))}" for arm, found in counts.items() if found)
    return f"Answers sampled a question: {said}. Majority and self-agreement do not compare across these numbers."


def _arm_of(path: str, others: Sequence[str]) -> str:
    """The folder's name; for a file with the stem, if the folder's name alone is ambiguous."""
    place = as_path(path)
    if place.suffix != ".json":
        return place.name or str(place)
    folder = place.parent.parent if place.parent.name == "eval" else place.parent
    beside = [other for other in others if other != path and as_path(other).parent == place.parent]
    return f"{folder.name}/{place.stem}" if beside or place.parent.name == "eval" else folder.name


def _add_result(results: list[dict], result: dict) -> None:
    """Joins the result to the first seed that has none of its tasks, or appends a new seed."""
    for seed in results:
        if not seed["tasks"].keys() & result["tasks"].keys():
            join_tasks(seed, result)
            return
    results.append(join_tasks(result | {"tasks": {}, "predictions": []}, result))


def join_tasks(seed: dict, result: dict) -> dict:
    """Adds the tasks of a result to those of a seed, which is returned."""
    seed["tasks"] |= result["tasks"]
    seed["predictions"] += result["predictions"]
    return seed


def _is_workdir(path: AnyPath) -> bool:
    return (path / "eval").is_dir()


def _config_of(workdir: AnyPath) -> dict:
    return read_json(workdir / "config.json", [])


def _test_file(workdir: AnyPath) -> AnyPath | None:
    """The trained model's evaluation on the test split, None if there is none."""
    file = workdir / "eval" / f"{TRAINED_TEST}.json"
    config = _config_of(workdir)
    return file if file.is_file() else find_evaluation(workdir, config, data_of(workdir, config), TRAINED_TEST)


def _best_validation(workdir: AnyPath) -> AnyPath | None:
    """The validation of the model in best/, None without one."""
    lines = latest_by_step([line for line in read_lines(workdir / "metrics.jsonl", []) if line.get("kind") == "eval"])
    for step, _ in best_validations(lines):
        if (file := workdir / "eval" / f"val_{step:06d}.json").is_file():
            return file
    return None


def _validation_result(workdir: AnyPath) -> dict:
    file = _best_validation(workdir)
    said = f"{workdir}: its best validation, {file.name}, as the validations chose that step its scores are a little too high"
    if _test_file(workdir) is None:
        said += f". To judge the test split: {_command(workdir)}"
    return _read_file(file) | {"workdir": workdir, "note": said}


def _command(workdir: AnyPath) -> str:
    """The line that judges the test split with the trained model; its own judge.json tells the sizes and tasks."""
    config = _config_of(workdir)
    command = eval_command(workdir, config, data_of(workdir, config), TRAINED_TEST)
    return command.replace(" --config=CONFIG.py", "")


def read_result(path: AnyPath) -> dict:
    """{"tasks": .., "predictions": ..} of a workdir (the trained model on the test split), an evaluation's folder or its file;
    with "workdir" and "data" where they are known, "note" where another file than eval/trained_test.json was found.
    """
    if _is_workdir(path):
        file = _test_file(path)
        if file is None:
            raise UserError(
                f"{path} is a workdir without eval/{TRAINED_TEST}.json, and no folder beside it has an evaluation of its best "
                f"model: evaluate it by {_command(path)} or name a file in {path}/eval"
            )
        note = "" if file.parent == path / "eval" else f"{path}: evaluated in {file}"
        return _read_file(file) | {"workdir": path, "note": note}
    file = path
    if path.is_dir():
        found = sorted(other for other in path.glob("*.json") if other.name not in ("config.json", "comparison.json"))
        named = [other for other in found if other.name == "test.json"] or found
        if len(named) != 1:
            shown = ", ".join(other.name for other in found) or "none"
            raise UserError(f"{path} must have one result but has {shown}: name the file, a workdir, or an --out of mtjudge eval")
        file = named[0]
    elif not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    return _read_file(file)


def _read_file(file: AnyPath) -> dict:
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): evaluate again") from error
    if not isinstance(result, dict) or not isinstance(result.get("tasks"), dict) or not result["tasks"]:
        raise UserError(f"{file} has no task scores: name a result of mtjudge eval, NAME.json")
    predictions = file.with_name(f"{file.stem}.predictions.jsonl")
    rows = [shortened(p) for p in read_lines(predictions, [])] if predictions.is_file() else []
    judged = result.get("judged") if isinstance(result.get("judged"), dict) else {}
    workdir = file.parent.parent if file.parent.name == "eval" else _workdir_of(judged)
    data = [as_path(judged["data"])] if judged.get("data") else []
    if workdir is not None and (other := data_of(workdir, _config_of(workdir))):
        data.append(other)
    trained = workdir if file.stem not in (BASE_TEST, REFERENCE_TEST) else None
    place = next((folder for folder in data if folder.is_dir()), None)
    return {"tasks": result["tasks"], "predictions": rows, "data": place, "workdir": trained}


def _workdir_of(judged: dict) -> AnyPath | None:
    """Of a result of a run's best model."""
    model = judged.get("model") or ""
    if model == "demo" or not model:
        return None
    folder = as_path(model).parent
    return folder if (folder / "metrics.jsonl").is_file() else None
