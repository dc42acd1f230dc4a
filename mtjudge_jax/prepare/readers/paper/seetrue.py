"""SeeTRUE: whether a text describes an image. It was published as a test set only, so its records are `eval_only`."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import fields, files, image_files
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("seetrue",)
LICENSE = "cc-by-4.0"
TERMS = "eval_only"
OPTIONS = {"csv": "name of the CSV in the folder (default: SeeTRUE.csv)", **fields.REVISION}
HOW = (
    "Accept the terms of yonatanbitton/SeeTRUE on Hugging Face (research, a test set only), get SeeTRUE.csv and images.zip, "
    "and give the folder with both."
)
_WANTED = files.columns(
    image="image", text="text", label="label", original="original_dataset_id?", dataset_source="dataset_source?"
)  # fmt: skip


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """One record per row of the CSV. A text is a group, because one text has several images."""
    taken = fields.take_options(options, OPTIONS)
    table = source if source.is_file() else source / (taken["csv"] or "SeeTRUE.csv")
    if not table.is_file():
        raise UserError(f"{table}: no such file. {HOW}")
    with image_files.image_reader(source) as images:
        rows = files.csv_rows(table, _WANTED)
        yield from files.records(rows, lambda row: [_example(row, images, taken["revision"])])


def _example(row: files.NativeRow, images: image_files.ReadImage, revision: str) -> JudgeExample:
    native = row.fields
    name, text = fields.text_of(native["image"], "image"), fields.text_of(native["text"], "text")
    return JudgeExample(
        example_id=f"seetrue/{name}/{fields.digest_of(text)[:8]}",  # it has no ids of its own
        dataset="seetrue",
        split="",
        source_split="test",
        group_id=f"seetrue/{fields.digest_of(text)}",
        task="seetrue",
        criterion="match",
        kind="pointwise_binary",
        instruction=text,
        images=(images(name),),
        label=Label(binary=int(fields.number_of(native["label"], "label", (0, 1)))),
        label_rule="label",
        license=LICENSE,
        terms=TERMS,
        revision=revision,
        raw=fields.raw_json(dataset_source=native["dataset_source"], original_dataset_id=native["original"]),
    )
