"""SeeTRUE: does a text describe an image. Published as a test set only, so its records are `eval_only`."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import files, image_files, tables
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("seetrue",)
LICENSE = "cc-by-4.0"
TERMS = "eval_only"
OPTIONS = {"csv": "name of the CSV in the folder (default: SeeTRUE.csv)", **files.REVISION}
HOW = (
    "Accept the terms of yonatanbitton/SeeTRUE on Hugging Face (research, a test set only), get SeeTRUE.csv and images.zip, "
    "and give the folder with both."
)
WANTED = files.fields(
    image="image", text="text", label="label", original="original_dataset_id?", dataset_source="dataset_source?"
)  # fmt: skip


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """One record a row of the CSV. A text is a group: one text has several images."""
    taken = files.take_options(options, OPTIONS)
    table = source if source.is_file() else source / (taken["csv"] or "SeeTRUE.csv")
    if not table.is_file():
        raise UserError(f"{table}: no such file. {HOW}")
    with image_files.image_reader(source) as images:
        rows = tables.csv_rows(table, WANTED)
        yield from files.records(rows, lambda row: [_example(row, images, taken["revision"])], tables.check_waiting)


def _example(row: files.Row, images: image_files.ReadImage, revision: str) -> JudgeExample:
    native = row.fields
    name, text = files.text_of(native["image"], "image"), files.text_of(native["text"], "text")
    return JudgeExample(
        example_id=f"seetrue/{name}/{files.digest_of(text)[:8]}",  # it has no ids of its own
        dataset="seetrue",
        split="",
        source_split="test",
        group_id=f"seetrue/{files.digest_of(text)}",
        task="seetrue",
        criterion="match",
        kind="pointwise_binary",
        instruction=text,
        images=(images(name),),
        label=Label(binary=int(files.number_of(native["label"], "label", (0, 1)))),
        label_rule="label",
        license=LICENSE,
        terms=TERMS,
        revision=revision,
        raw=files.raw_json(dataset_source=native["dataset_source"], original_dataset_id=native["original"]),
    )
