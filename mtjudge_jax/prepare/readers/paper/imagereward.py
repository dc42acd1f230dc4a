"""ImageRewardDB: experts' ratings of images that were generated from a prompt."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.checking import TRAIN_MEDIAN
from mtjudge_jax.prepare.readers import fields, files, image_files
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("imagereward",)
LICENSE = "apache-2.0"
TERMS = "open"
OPTIONS = {
    "size": "1k, 2k, 4k or 8k: the first 4, 8, 16 or 32 zips of train (default: 1k, the sizes of the paper)",
    "split": "all, train, validation or test (default: all)",
    "field": "overall_rating, image_text_alignment_rating or fidelity_rating (default: overall_rating)",
    "min_good": "the lowest rating with label 1; train_median: ratings above it (default: 5)",
    **fields.MARGIN,
    **fields.REVISION,
}
HOW = "Get THUDM/ImageRewardDB from Hugging Face (Apache-2.0): its folder images/ with the zips of each split."
_SIZES = {"1k": 4, "2k": 8, "4k": 16, "8k": 32}
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_EVALUATION_ZIPS = 2
_CRITERIA = {"overall_rating": "overall", "image_text_alignment_rating": "alignment", "fidelity_rating": "fidelity"}
_RATINGS = range(1, 8)


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """One record per image, zip by zip; ratings 1 to 7 in label.score, the rank (1 = best, with ties) in raw."""
    taken = fields.take_options(options, OPTIONS, size=tuple(_SIZES), split=("all", *_SPLITS), field=tuple(_CRITERIA))
    taken["min_good"] = taken["min_good"] or "5"
    threshold = fields.Threshold(None)
    if taken["min_good"] != TRAIN_MEDIAN:
        threshold = fields.Threshold(fields.number_option(taken, "min_good"), equal=True)
    folder = source / "images" if (source / "images").is_dir() else source
    splits = _SPLITS if taken["split"] == "all" else (taken["split"],)
    paths = {split: zips(folder, split, taken["size"]) for split in splits}
    for path in [path for found in paths.values() for path in found]:
        if not path.is_file():
            raise UserError(f"{path}: no such file; {taken['size']} needs it. {HOW}")
    for split, found in paths.items():
        yield from files.records(_rows(found), lambda row, split=split: [_example(row, split, taken, threshold=threshold)])


def zips(folder: AnyPath, split: str, size: str) -> list[AnyPath]:
    """The zips of a split, by number."""
    count = _SIZES[size] if split == "train" else _EVALUATION_ZIPS
    return [folder / split / f"{split}_{number}.zip" for number in range(1, count + 1)]


def _rows(paths: list[AnyPath]) -> Iterator[files.NativeRow | BadRecord]:
    """The rows of each zip's JSON, with access to the zip's images."""
    index = 0
    for path in paths:
        with image_files.opened_zip(path) as archive:
            members = {PurePosixPath(info.filename).name: info for info in archive.infolist() if not info.is_dir()}
            for number, native in enumerate(_table_of(archive, path, members)):
                place = f"{path.name} row {number}"
                if not isinstance(native, dict):
                    yield BadRecord("bad_json", f"{place}: {fields.quoted(native)} is not an object")
                else:
                    yield files.NativeRow(place, index, native | {"_image": (archive, members)})
                index += 1


def _table_of(archive: zipfile.ZipFile, path: AnyPath, members: Mapping[str, zipfile.ZipInfo]) -> list:
    """Raises UserError if the zip holds no list of rows."""
    name = f"{path.stem}.json"
    if name not in members:
        raise UserError(f"{path}: has no {name}, it has {', '.join(list(members)[:5]) or 'nothing'}. {HOW}")
    try:
        rows = json.loads(image_files.zip_member(archive, members[name]))
    except (BadRecord, ValueError, RecursionError) as e:
        raise UserError(f"{path}: {name} cannot be read ({e}); download it again") from e
    if not isinstance(rows, list):
        raise UserError(f"{path}: {name} is not a list of rows; download it again")
    return rows


def _image(native: Mapping) -> bytes:
    archive, members = native["_image"]
    name = PurePosixPath(fields.text_of(native.get("image_path"), "image_path")).name
    if name not in members:
        raise BadRecord("missing_image", f"{fields.quoted(name)} is not in the zip")
    return image_files.zip_member(archive, members[name])


def _example(row: files.NativeRow, split: str, taken: Mapping[str, str], *, threshold: fields.Threshold) -> JudgeExample:
    native, field = row.fields, taken["field"]
    if field not in native:
        raise BadRecord("missing_field", f"no {field}, there is {', '.join(name for name in native if name != '_image')[:80]}")
    rating = fields.number_of(native[field], field, _RATINGS)
    prompt_id = fields.text_of(native.get("prompt_id"), "prompt_id")
    prompt = fields.text_of(native.get("prompt"), "prompt")
    image = _image(native)
    return JudgeExample(
        example_id=f"imagereward/{prompt_id}/{PurePosixPath(native['image_path']).stem}",
        dataset="imagereward",
        split=_SPLITS[split],
        source_split=split,
        group_id=prompt_id,
        task="imagereward",
        criterion=_CRITERIA[field],
        kind="pointwise_binary",
        instruction=prompt,
        images=(image,),
        label=Label(binary=fields.binary_of(rating, threshold), score=rating),
        score_min=1,
        score_max=7,
        label_rule=fields.label_rule(field, threshold),
        license=LICENSE,
        terms=TERMS,
        revision=taken["revision"],
        raw=fields.raw_json(**{name: native.get(name) for name in ("prompt_id", "classification", "rank", *_CRITERIA)}),
    )
