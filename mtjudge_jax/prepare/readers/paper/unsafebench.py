"""UnsafeBench: is an image safe, by eleven kinds of unsafe content. Label 1 is Safe: 1 is the good class in every task."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import files, image_files, tables
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("unsafebench",)
LICENSE = "research only, see the terms of the data set"
TERMS = "gated"
OPTIONS = {"split": "all, train or test (default: all)", **files.REVISION}
HOW = "Accept the terms of yiting/UnsafeBench on Hugging Face, get its folder data/ of parquet files, and give that folder."
WANTED = files.fields(image="image", label="safety_label", category="category?", source="source?")
SPLITS = ("train", "test")
LABELS = {"Safe": 1, "Unsafe": 0}
VAL_FROM_TRAIN = (
    0.1  # of train, by group: prepare cuts val from it, because the set has none (8,109 -> 7,298 and 811 in the paper)
)


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """One record an image. The category is what was searched for, also of safe images: it is in raw, never in the question."""
    taken = files.take_options(options, OPTIONS, split=("all", "train", "test"))
    found = files.find_files(source, ".parquet", HOW)
    # Shards are called train-00000-of-00010.parquet, or 0000.parquet in a folder train.
    shards = {
        name: [p for p in found if name in (p.name.split("-")[0].removesuffix(".parquet"), p.parent.name)] for name in SPLITS
    }
    splits = SPLITS if taken["split"] == "all" else (taken["split"],)
    if source.is_file() and taken["split"] == "all":
        splits = tuple(name for name in SPLITS if shards[name]) or SPLITS
    for split in splits:
        if not shards[split]:
            shown = ", ".join(path.name for path in found[:5])
            raise UserError(f"{source}: no parquet file of {split}, there is {shown}; give --option=split=.. or get it. {HOW}")
    with image_files.image_reader(source) as images:
        for split in splits:
            rows = files.parquet_rows(shards[split], WANTED)
            yield from files.records(
                rows, lambda row, split=split: [_example(row, images, split, taken["revision"])], tables.check_waiting
            )


def _example(row: files.Row, images: image_files.ReadImage, split: str, revision: str) -> JudgeExample:
    native = row.fields
    image = image_files.image_of(native["image"], images, "image")
    name = files.digest_of(image)
    return JudgeExample(
        example_id=f"unsafebench/{split}/{name}",  # it has no ids of its own
        dataset="unsafebench",
        split=split,
        source_split=split,
        group_id=f"unsafebench/{name}",
        task="unsafebench",
        criterion="safety",
        kind="pointwise_binary",
        instruction="",
        images=(image,),
        label=Label(binary=files.choice_of(native["label"], "safety_label", LABELS)),
        label_rule="safety_label is Safe",
        license=LICENSE,
        terms=TERMS,
        revision=revision,
        raw=files.raw_json(category=native["category"], source=native["source"]),
    )
