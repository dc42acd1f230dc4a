"""GenAI-Bench: votes of an arena's visitors on two generated or two edited pictures, with two kinds of tie; evaluation-only."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.records import TIE, BadRecord, Candidate, JudgeExample, Label

TASKS = ("genai_image", "genai_edit")
LICENSE = "cc-by-4.0"
TERMS = "eval_only"
OPTIONS = {
    "part": "test_v1 (what published results use) or test (default: test_v1)",
    "task": "both, genai_image or genai_edit (default: both)",
    **fields.REVISION,
}
HOW = "Get TIGER-Lab/GenAI-Bench from Hugging Face (CC BY 4.0), image_generation and image_edition, and give its folder."

_PARTS = ("test_v1", "test")
_IMAGE = files.columns(
    instruction="prompt", left="left_image left_output_image", right="right_image right_output_image", vote="vote_type",
    left_model="left_model?", right_model="right_model?",
)  # fmt: skip
_EDIT = files.columns(
    instruction="instruct_prompt prompt", context="source_image", left="left_output_image left_image",
    right="right_output_image right_image", vote="vote_type", left_model="left_model?", right_model="right_model?",
)  # fmt: skip
_VOTES = {
    "leftvote": Label(winner=0),
    "rightvote": Label(winner=1),
    "tievote": Label(winner=TIE, tie="both_good"),
    "bothbad_vote": Label(winner=TIE, tie="both_bad"),
}


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    taken = fields.take_options(options, OPTIONS, part=_PARTS, task=("both", *TASKS))
    found = [path for path in downloads.find_files(source, ".parquet", HOW) if "video" not in str(path.relative_to(source))]
    paths = found if source.is_file() else [path for path in found if downloads.split_of(path, _PARTS) == taken["part"]]
    edits = ["source_image" in files.column_names(path) for path in paths]
    with image_files.image_reader(source) as images:
        for task, wanted, is_edit in (("genai_image", _IMAGE, False), ("genai_edit", _EDIT, True)):
            mine = [path for path, edit in zip(paths, edits, strict=True) if edit == is_edit]
            if taken["task"] not in ("both", task):
                continue
            if not mine and (taken["task"] == task or not paths):
                there = downloads.first_names(found) or "none"
                raise UserError(f"{source}: no parquet file of {task}, part {taken['part']}; there is {there}. {HOW}")
            rows = files.parquet_rows(mine, wanted)
            yield from files.records(rows, lambda row, task=task: [_example(row, images, task, taken)])


def _example(row: files.NativeRow, images: image_files.ReadImage, task: str, taken: Mapping[str, str]) -> JudgeExample:
    native = row.fields
    edit = task == "genai_edit"
    instruction = fields.text_of(native["instruction"], "prompt")
    context = (image_files.image_of(native["context"], images, "source_image"),) if edit else ()
    pair = tuple(image_files.image_of(native[side], images, f"{side}_image") for side in ("left", "right"))
    models = [fields.name_of(native[name]) for name in ("left_model", "right_model")]
    return JudgeExample(
        example_id=f"{task}/{taken['part']}/{row.index}",  # it has no ids of its own
        dataset="genai_bench",
        split="ood",
        source_split=taken["part"],
        group_id=f"{task}/{fields.digest_of(context[0] if edit else instruction)}",
        task=task,
        criterion="edit" if edit else "overall",
        kind="pairwise",
        instruction=instruction,
        images=context + pair,
        context_images=len(context),
        candidates=tuple(Candidate(1, "", model) for model in models),
        label=fields.choice_of(native["vote"], "vote_type", _VOTES),
        allow_tie=True,
        label_rule="vote_type",
        license=LICENSE,
        terms=TERMS,
        revision=taken["revision"],
        raw=fields.raw_json(vote_type=native["vote"], models=models),
    )
