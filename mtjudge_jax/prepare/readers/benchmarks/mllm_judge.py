"""MLLM-as-a-Judge: answers to questions about pictures, graded 1 to 5, compared in pairs (C = tie), and ranked in fours."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.records import TIE, BadRecord, Candidate, JudgeExample, Label

TASKS = ("mllm_score", "mllm_pair", "mllm_batch")
LICENSE = "mit"
TERMS = "eval_only"
OPTIONS = {
    "part": "all, score, pair or batch (default: all that exist)",
    "edition": "full (score.jsonl) or lite (score_lite.jsonl) (default: full)",
    **fields.REVISION,
}
HOW = (
    "Get ONE-Lab/MLLM-as-a-Judge from Hugging Face or clone Dongping-Chen/MLLM-Judge (MIT), and give its folder: score.jsonl, "
    "pair.jsonl and batch.jsonl are read from Benchmark/ in any folder below it, and the pictures from image/ or a zip"
)

_COMMON = {"instruction": "instruction", "image": "image_path", "source": "original_dataset?", "id": "id?"}
_HUMAN = "human human_answer Human_answer"
_FIELDS = {
    "score": files.columns(**_COMMON, answer="answer", human=_HUMAN, name="name?", own_id="score_id?"),
    "pair": files.columns(**_COMMON, answer1="answer1", answer2="answer2", human=_HUMAN, own_id="pair_id?"),
    "batch": files.columns(**_COMMON, answers="answers", human=_HUMAN, own_id="batch_id?"),
}
_WINNERS = {"A": 0, "B": 1, "C": TIE}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ABOVE = {"Benchmark": 1, "Benchmark_Lite": 1, "HQ": 2, "Hard": 2}  # folders from a table's up to the one that has image/


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    parts = ("score", "pair", "batch")
    taken = fields.take_options(options, OPTIONS, part=("all", *parts), edition=("full", "lite"))
    found = downloads.find_files(source, ".jsonl", HOW)
    ending = ".jsonl" if taken["edition"] == "full" else "_lite.jsonl"
    asked = [part for part in parts if taken["part"] in ("all", part)]
    paths = {part: path for part in asked if (path := _table(source, found, f"{part}{ending}"))}
    if not paths:
        what = f"no file of part {taken['part']}, edition {taken['edition']}"
        raise UserError(f"{source}: {what}; there is {downloads.first_names(found)}. {HOW}")
    made: dict[str, Callable[[dict], dict]] = {"score": _score, "pair": _pair, "batch": _batch}
    for part, path in paths.items():
        with image_files.image_reader(_image_root(source, path), folders=("", "image", "images", "Dataset/image")) as images:
            rows = files.json_rows(path, _FIELDS[part])
            common = {"task": f"mllm_{part}", "revision": taken["revision"]}
            make = functools.partial(_example, images=images, judged=made[part], common=common)
            yield from files.records(rows, lambda row, make=make: [make(row)])


def _table(source: AnyPath, found: Sequence[AnyPath], name: str) -> AnyPath | None:
    """The table with this name: from Benchmark/, where that exists; Hard/ and HQ/ have a Score.jsonl, Pair.jsonl, .. too.

    Raises UserError if there are several.
    """
    tables = [path for path in found if path.parent.name in ("Benchmark", "Benchmark_Lite")]
    named = [path for path in tables if path.name == name] or [path for path in found if path.name == name]
    if not (named or tables):
        named = [path for path in found if path.name.lower() == name]
    if len(named) > 1:
        raise UserError(f"{source}: {name} exists more than once ({', '.join(map(str, named))}): give the folder of one")
    return named[0] if named else None


def _image_root(source: AnyPath, table: AnyPath) -> AnyPath:
    """The folder that has the pictures in image/, also above the source, if that is Benchmark/ itself."""
    root = table.parent
    for _ in range(_ABOVE.get(root.name, 0)):
        root = root.parent
    return root if (root / "image").is_dir() else source


def _example(
    row: files.NativeRow, *, images: image_files.ReadImage, judged: Callable[[dict], dict], common: dict[str, str]
) -> JudgeExample:
    native = row.fields
    # `id` names a picture; use it only for rows without an id of their own (batch), where each picture occurs once.
    name = fields.name_of(native["own_id"]) or fields.name_of(native["id"]) or str(row.index)
    path = fields.text_of(native["image"], "image_path")
    return JudgeExample(
        example_id=f"{common['task']}/{name}",
        dataset="mllm_judge",
        split="ood",
        source_split="test",
        group_id=f"mllm_judge/{path.replace(chr(92), '/').split('/')[-1]}",
        criterion="overall",
        instruction=fields.text_of(native["instruction"], "instruction"),
        images=(images(path),),
        context_images=1,
        license=LICENSE,
        terms=TERMS,
        raw=fields.raw_json(id=name, original_dataset=native["source"]),
        **common,
        **judged(native),
    )


def _score(native: dict) -> dict:
    answer = Candidate(0, fields.text_of(native["answer"], "answer", empty=True), fields.name_of(native["name"]))
    grade = fields.number_of(native["human"], "human", (1, 2, 3, 4, 5))
    of_kind = {"kind": "pointwise_score", "candidates": (answer,), "label": Label(score=grade)}
    return of_kind | {"score_min": 1.0, "score_max": 5.0, "label_rule": "human"}


def _pair(native: dict) -> dict:
    answers = tuple(_answer(native[key], key) for key in ("answer1", "answer2"))
    winner = fields.choice_of(native["human"], "human_answer", _WINNERS)
    return {"kind": "pairwise", "candidates": answers, "label": Label(winner=winner), "allow_tie": True, "label_rule": "human"}


def _batch(native: dict) -> dict:
    answers = tuple(_answer(value, "answers") for value in fields.list_of(native["answers"], "answers"))
    letters, order = _LETTERS[: len(answers)], str(native["human"]).strip().upper()
    if not isinstance(native["human"], str) or "".join(sorted(order)) != letters:
        raise BadRecord("label_outside", f"human_answer is {native['human']!r}, must be the letters {letters}, best first")
    ranks = tuple(order.index(letter) + 1 for letter in letters)
    return {"kind": "listwise", "candidates": answers, "label": Label(ranks=ranks), "label_rule": "human_answer, best first"}


def _answer(value: object, name: str) -> Candidate:
    """{"name": "gpt4", "answer": "Three dogs."}"""
    if not isinstance(value, dict):
        raise BadRecord("wrong_field", f"{name} is not an object with name and answer")
    return Candidate(0, fields.text_of(value.get("answer"), f"{name}.answer", empty=True), fields.name_of(value.get("name")))
