"""Pick-a-Pic v1: which of two generated pictures a user picked, or a tie; its evaluation splits only."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.records import TIE, BadRecord, Candidate, JudgeExample, Label

TASKS = ("pickapic",)
LICENSE = "see the data set's card"
TERMS = "research"
OPTIONS = {
    "part": "test_unique (500 pairs, one per prompt), test, validation_unique or validation (default: test_unique)",
    **fields.REVISION,
}
HOW = "Get the parquet files of yuvalkirstain/pickapic_v1 from Hugging Face and give their folder; prompts are not filtered."

_FIELDS = files.columns(
    caption="caption", jpg_0="jpg_0", jpg_1="jpg_1", label_0="label_0", label_1="label_1", ranking_id="ranking_id?",
    user_id="user_id?", model_0="model_0?", model_1="model_1?", has_label="has_label?",
)  # fmt: skip
_PARTS = ("test_unique", "test", "validation_unique", "validation")
_LABELS = {(1.0, 0.0): 0, (0.0, 1.0): 1, (0.5, 0.5): TIE}


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    taken = fields.take_options(options, OPTIONS, part=_PARTS)
    found = downloads.find_files(source, ".parquet", HOW)
    paths = found if source.is_file() else [path for path in found if downloads.split_of(path, _PARTS) == taken["part"]]
    if not paths:
        raise UserError(f"{source}: no parquet file of the part {taken['part']}; there is {downloads.first_names(found)}. {HOW}")
    with image_files.image_reader(source) as images:
        yield from files.records(files.parquet_rows(paths, _FIELDS), lambda row: [_example(row, images, taken)])


def _example(row: files.NativeRow, images: image_files.ReadImage, taken: Mapping[str, str]) -> JudgeExample:
    native = row.fields
    name = fields.name_of(native["ranking_id"]) or str(row.index)
    if native["has_label"] is False:
        raise BadRecord("no_label", "has_label is false")
    labels = tuple(fields.number_of(native[key], key, (0, 0.5, 1)) for key in ("label_0", "label_1"))
    if labels not in _LABELS:
        raise BadRecord("label_outside", f"label_0 and label_1 are {labels}, must be 1 and 0, 0 and 1, or 0.5 twice")
    caption = fields.text_of(native["caption"], "caption")
    return JudgeExample(
        example_id=f"pickapic/{taken['part']}/{name}",
        dataset="pickapic",
        split="ood",
        source_split=taken["part"],
        group_id=f"pickapic/{fields.digest_of(caption)}",
        task="pickapic",
        criterion="overall",
        kind="pairwise",
        instruction=caption,
        images=tuple(image_files.image_of(native[key], images, key) for key in ("jpg_0", "jpg_1")),
        candidates=tuple(Candidate(1, "", fields.name_of(native[key])) for key in ("model_0", "model_1")),
        label=Label(winner=_LABELS[labels]),
        allow_tie=True,
        label_rule="label_0, label_1",
        license=LICENSE,
        terms=TERMS,
        revision=taken["revision"],
        raw=fields.raw_json(ranking_id=name, user_id=native["user_id"]),
    )
