"""HPD v2, its test split: about nine generated pictures per prompt, ranked by people; as pairs, or as one list per prompt."""

import itertools
from collections.abc import Iterator, Mapping

from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("hpdv2", "hpdv2_list")
LICENSE = "apache-2.0"
TERMS = "eval_only"
OPTIONS = {
    "form": "pairs (task hpdv2), list (task hpdv2_list) or both; nine pictures are 36 pairs (default: pairs)",
    **fields.REVISION,
}
HOW = "Get test.json and test.tar.gz of ymhao/HPDv2 from Hugging Face (Apache-2.0), unpack it there (tar -xzf), give the folder."

_FIELDS = files.columns(prompt="prompt", images="image_path", ranks="rank")
_FOLDERS = ("", "test", "image", "images")


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    taken = fields.take_options(options, OPTIONS, form=("pairs", "list", "both"))
    path = downloads.find_files(source, "test.json", HOW)[0]
    with image_files.image_reader(source, folders=_FOLDERS) as images:
        yield from files.records(files.json_rows(path, _FIELDS), lambda row: _examples(row, images, taken))


def _examples(row: files.NativeRow, images: image_files.ReadImage, taken: Mapping[str, str]) -> Iterator[JudgeExample]:
    """A pair is named by its pictures' places in the row: hpdv2/12/0-3. Two pictures of equal rank make no pair."""
    native = row.fields
    prompt = fields.text_of(native["prompt"], "prompt")
    names = [fields.text_of(name, "image_path") for name in fields.list_of(native["images"], "image_path")]
    ranks = _ranks(fields.list_of(native["ranks"], "rank", len(names)))
    shown = [images(name) for name in names]
    common = {
        "dataset": "hpdv2",
        "split": "ood",
        "source_split": "test",
        "group_id": f"hpdv2/{fields.digest_of(prompt)}",
        "criterion": "overall",
        "instruction": prompt,
        "license": LICENSE,
        "terms": TERMS,
        "revision": taken["revision"],
    }
    if taken["form"] in ("pairs", "both"):
        for a, b in itertools.combinations(range(len(names)), 2):
            if ranks[a] != ranks[b]:
                yield JudgeExample(
                    example_id=f"hpdv2/{row.index}/{a}-{b}",
                    task="hpdv2",
                    kind="pairwise",
                    images=(shown[a], shown[b]),
                    label=Label(winner=int(ranks[b] < ranks[a])),
                    label_rule="the lower rank wins, equal ranks are no pair",
                    raw=fields.raw_json(image_path=[names[a], names[b]]),
                    **common,
                )
    if taken["form"] in ("list", "both"):
        yield JudgeExample(
            example_id=f"hpdv2/{row.index}",
            task="hpdv2_list",
            kind="listwise",
            images=tuple(shown),
            label=Label(ranks=ranks),
            label_rule="rank, 1 = best",
            raw=fields.raw_json(image_path=names),
            **common,
        )


def _ranks(values: list) -> tuple[int, ...]:
    """Ranks from 1: the file's, or one more if it counts from 0."""
    ranks = [int(fields.number_of(value, "rank", range(len(values) + 1))) for value in values]
    if not ranks or min(ranks) > 1:
        raise BadRecord("label_outside", f"rank is {values}, must hold a first place")
    return tuple(rank + 1 - min(ranks) for rank in ranks)
