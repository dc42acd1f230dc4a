"""Reads the results that `mtjudge report A B C..` names: workdirs, folders of evaluations, or their files."""

import json
from collections.abc import Sequence

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.report.read import TRAINED_TEST, read_lines

Runs = dict[str, list[dict]]


def read_runs(names: Sequence[str]) -> Runs:
    """Arm -> results, one per seed. Each of `names` is PATH or ARM=PATH.

    An arm may be given several times: results with other tasks are joined (one model per task), results with the same tasks are
    seeds. Without ARM= the arm is named after its folder. Raises UserError that names the path.
    """
    runs: Runs = {}
    plain = [name for name in names if "=" not in name]
    for name in names:
        arm, given, path = name.rpartition("=")
        if given and (not arm or not path):
            raise UserError(f"{name!r}: give PATH or ARM=PATH")
        result = read_result(as_path(path))
        arm = arm or _arm_of(path, plain)
        if not given and arm in runs:
            raise UserError(f"two runs have the name {arm!r}: name them, e.g. {arm}_a={path}")
        _add_result(runs.setdefault(arm, []), result)
    return runs


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
    results.append(join_tasks({"tasks": {}, "predictions": []}, result))


def join_tasks(seed: dict, result: dict) -> dict:
    """Adds the tasks of a result to those of a seed, which is returned."""
    seed["tasks"] |= result["tasks"]
    seed["predictions"] += result["predictions"]
    return seed


def read_result(path: AnyPath) -> dict:
    """{"tasks": .., "predictions": ..} of a workdir (the trained model on the test split), an evaluation's folder or its file."""
    file = path
    if (path / "eval").is_dir():
        file = path / "eval" / f"{TRAINED_TEST}.json"
        if not file.is_file():
            raise UserError(f"{path} is a workdir without eval/{TRAINED_TEST}.json: evaluate it, or name a file in {path}/eval")
    elif path.is_dir():
        found = sorted(other for other in path.glob("*.json"))
        named = [other for other in found if other.name == "test.json"] or found
        if len(named) != 1:
            shown = ", ".join(other.name for other in found) or "none"
            raise UserError(f"{path} must have one result but has {shown}: name the file, a workdir, or an --out of mtjudge eval")
        file = named[0]
    elif not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): evaluate again") from error
    if not isinstance(result, dict) or not isinstance(result.get("tasks"), dict) or not result["tasks"]:
        raise UserError(f"{file} has no task scores: name a result of mtjudge eval, NAME.json")
    predictions = file.with_name(f"{file.stem}.predictions.jsonl")
    return {"tasks": result["tasks"], "predictions": read_lines(predictions, []) if predictions.is_file() else []}
