"""Multimodal RewardBench: which of two answers to a question about a picture is better, in six areas; evaluation-only.

The benchmark's own script downloads its pictures, except those of Hateful Memes (category safety/toxicity): their rows are
reported as missing images unless you add them by hand.
"""

from collections.abc import Iterator, Mapping

from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.records import BadRecord, Candidate, JudgeExample, Label

TASKS = ("multimodal_rewardbench",)
LICENSE = "cc-by-nc-4.0"
TERMS = "research"
OPTIONS = dict(fields.REVISION)
HOW = "Clone facebookresearch/multimodal_rewardbench (CC BY-NC), run its scripts/0_download_data.py and give the clone's folder."

_FIELDS = files.columns(
    id="ID id?", text="Text text", image="Image image", output1="Output1 output1", output2="Output2 output2",
    better="Better better", category="Category category?",
)  # fmt: skip
_FOLDERS = ("", "data", "images", "data/images")


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    taken = fields.take_options(options, OPTIONS)
    path = downloads.find_files(source, "all_data.json", HOW)[0]
    with image_files.image_reader(source, folders=_FOLDERS) as images:
        yield from files.records(files.json_rows(path, _FIELDS), lambda row: [_example(row, images, taken["revision"])])


def _example(row: files.NativeRow, images: image_files.ReadImage, revision: str) -> JudgeExample:
    native = row.fields
    name = fields.name_of(native["id"]) or str(row.index)
    category = fields.name_of(native["category"])
    image = image_files.image_of(native["image"], images, "Image")
    return JudgeExample(
        example_id=f"multimodal_rewardbench/{name}",
        dataset="multimodal_rewardbench",
        split="ood",
        source_split="test",
        group_id=f"multimodal_rewardbench/{fields.digest_of(image)}",
        task="multimodal_rewardbench",
        criterion="overall",
        kind="pairwise",
        instruction=fields.text_of(native["text"], "Text"),
        images=(image,),
        context_images=1,
        candidates=tuple(Candidate(0, fields.text_of(native[key], key, empty=True)) for key in ("output1", "output2")),
        label=Label(winner=fields.choice_of(native["better"], "Better", {"Output1": 0, "Output2": 1})),
        label_rule="Better",
        license=LICENSE,
        terms=TERMS,
        revision=revision,
        raw=fields.raw_json(id=name, category=category),
    )
