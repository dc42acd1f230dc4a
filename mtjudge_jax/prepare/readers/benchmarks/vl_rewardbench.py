"""VL-RewardBench: which of two answers to a question about a picture is better; 1,250 pairs, evaluation-only."""

from collections.abc import Iterator, Mapping

from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.records import BadRecord, Candidate, JudgeExample, Label

TASKS = ("vl_rewardbench",)
LICENSE = "mit"
TERMS = "eval_only"
OPTIONS = dict(fields.REVISION)
HOW = "Get MMInstruction/VL-RewardBench from Hugging Face (MIT) and give its folder, or the test parquet file in it."

_FIELDS = files.columns(
    id="id", query="query", response="response", image="image", ranking="human_ranking",
    models="models?", source="query_source?", judge="judge?",
)  # fmt: skip
# By the start of an id, up to the first "_" or "-"; all others (VLFeedback) are general. Source: the benchmark's cal.py.
_GROUPS = {
    "RLAIF": "hallucination",
    "RLHF": "hallucination",
    "hallucination": "hallucination",
    "povid": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
}
_RANKINGS = {(0, 1): 0, (1, 0): 1}  # rank of each answer, 0 = best


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    taken = fields.take_options(options, OPTIONS)
    paths = downloads.find_files(source, ".parquet", HOW)
    with image_files.image_reader(source) as images:
        yield from files.records(files.parquet_rows(paths, _FIELDS), lambda row: [_example(row, images, taken["revision"])])


def group_of(native_id: str) -> str:
    """general, hallucination or reasoning. "RLAIF-V-12" -> hallucination, "mathverse_7" -> reasoning."""
    return _GROUPS.get(native_id.replace("-", "_").split("_")[0], "general")


def _example(row: files.NativeRow, images: image_files.ReadImage, revision: str) -> JudgeExample:
    native = row.fields
    name = fields.name_of(native["id"]) or str(row.index)
    example_id = f"vl_rewardbench/{name}"
    answers = [fields.text_of(text, "response", empty=True) for text in fields.list_of(native["response"], "response", 2)]
    ranking = fields.list_of(native["ranking"], "human_ranking", 2)
    ranks = tuple(fields.number_of(rank, "human_ranking", (0, 1)) for rank in ranking)
    if ranks not in _RANKINGS:
        raise BadRecord("label_outside", f"human_ranking is {native['ranking']}, must be [0, 1] or [1, 0]", example_id)
    image = image_files.image_of(native["image"], images, "image")
    models = native["models"] if isinstance(native["models"], list) and len(native["models"]) == 2 else ["", ""]
    return JudgeExample(
        example_id=example_id,
        dataset="vl_rewardbench",
        split="ood",
        source_split="test",
        group_id=f"vl_rewardbench/{fields.digest_of(image)}",
        task="vl_rewardbench",
        criterion="overall",
        kind="pairwise",
        instruction=fields.text_of(native["query"], "query"),
        images=(image,),
        context_images=1,
        candidates=tuple(Candidate(0, text, fields.name_of(model)) for text, model in zip(answers, models, strict=True)),
        label=Label(winner=_RANKINGS[ranks]),
        label_rule="human_ranking 0 = better",
        license=LICENSE,
        terms=TERMS,
        revision=revision,
        raw=fields.raw_json(id=name, group=group_of(name), query_source=native["source"], models=native["models"]),
    )
