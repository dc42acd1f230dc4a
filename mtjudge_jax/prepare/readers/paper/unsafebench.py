"""UnsafeBench: whether an image is safe, by eleven kinds of unsafe content. Label 1 is Safe, the good class as in every task."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("unsafebench",)
LICENSE = "research only, see the terms of the data set"
TERMS = "gated"
OPTIONS = {"split": "all, train or test (default: all)", **fields.REVISION}
HOW = "Accept the terms of yiting/UnsafeBench on Hugging Face, get its folder data/ of parquet files, and give that folder."
_WANTED = files.columns(image="image", label="safety_label", category="category?", source="source?")
_SPLITS = ("train", "test")
_LABELS = {"Safe": 1, "Unsafe": 0}
# The share of train that prepare cuts off as val, by group: the set has no val (8,109 -> 7,298 and 811 in the paper).
VAL_FROM_TRAIN = 0.1


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """One record per image. The category is the search topic, for safe images too: it is in raw, never in the question."""
    taken = fields.take_options(options, OPTIONS, split=("all", "train", "test"))
    found = downloads.find_files(source, ".parquet", HOW)
    shards = {name: [path for path in found if downloads.split_of(path, _SPLITS) == name] for name in _SPLITS}
    splits = _SPLITS if taken["split"] == "all" else (taken["split"],)
    if source.is_file() and taken["split"] == "all":
        splits = tuple(name for name in _SPLITS if shards[name]) or _SPLITS
    for split in splits:
        if not shards[split]:
            remedy = "give --option=split=.. or get it"
            raise UserError(f"{source}: no parquet file of {split}, there is {downloads.first_names(found)}; {remedy}. {HOW}")
    with image_files.image_reader(source) as images:
        for split in splits:
            rows = files.parquet_rows(shards[split], _WANTED)
            yield from files.records(rows, lambda row, split=split: [_example(row, images, split, taken["revision"])])


def _example(row: files.NativeRow, images: image_files.ReadImage, split: str, revision: str) -> JudgeExample:
    native = row.fields
    image = image_files.image_of(native["image"], images, "image")
    name = fields.digest_of(image)
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
        label=Label(binary=fields.choice_of(native["label"], "safety_label", _LABELS)),
        label_rule="safety_label is Safe",
        license=LICENSE,
        terms=TERMS,
        revision=revision,
        raw=fields.raw_json(category=native["category"], source=native["source"]),
    )
