"""Multimodal RewardBench: which of two answers to a question about a picture is better, in six areas; evaluation only.

Its pictures come by the benchmark's own script; those of Hateful Memes (category safety/toxicity) do not, so their rows are
reported as missing images unless they are put in place by hand.
"""

from collections.abc import Iterator, Mapping

from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import files, image_files
from mtjudge_jax.records import BadRecord, Candidate, JudgeExample, Label

TASKS = ("multimodal_rewardbench",)
LICENSE = "cc-by-nc-4.0"
TERMS = "research"
OPTIONS = dict(files.REVISION)
HOW = "Clone facebookresearch/multimodal_rewardbench (CC BY-NC), run its scripts/0_download_data.py and give the clone's folder."

FIELDS = files.fields(
    id="ID id?", text="Text text", image="Image image", output1="Output1 output1", output2="Output2 output2",
    better="Better better", category="Category category?",
)  # fmt: skip
FOLDERS = ("", "data", "images", "data/images")


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    taken = files.take_options(options, OPTIONS)
    path = files.find_files(source, "all_data.json", HOW)[0]
    with image_files.image_reader(source, folders=FOLDERS) as images:
        yield from files.records(files.json_rows(path, FIELDS), lambda row: [_example(row, images, taken["revision"])])


def _example(row: files.Row, images: image_files.ReadImage, revision: str) -> JudgeExample:
    native = row.fields
    name = files.name_of(native["id"]) or str(row.index)
    category = files.name_of(native["category"])
    image = image_files.image_of(native["image"], images, "Image")
    return JudgeExample(
        example_id=f"multimodal_rewardbench/{name}",
        dataset="multimodal_rewardbench",
        split="ood",
        source_split="test",
        group_id=f"multimodal_rewardbench/{files.digest_of(image)}",
        task="multimodal_rewardbench",
        criterion="overall",
        kind="pairwise",
        instruction=files.text_of(native["text"], "Text"),
        images=(image,),
        context_images=1,
        candidates=tuple(Candidate(0, files.text_of(native[key], key, empty=True)) for key in ("output1", "output2")),
        label=Label(winner=files.choice_of(native["better"], "Better", {"Output1": 0, "Output2": 1})),
        label_rule="Better",
        license=LICENSE,
        terms=TERMS,
        revision=revision,
        raw=files.raw_json(id=name, category=category),
    )
