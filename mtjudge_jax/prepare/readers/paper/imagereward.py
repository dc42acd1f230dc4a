"""ImageRewardDB: experts' ratings of images that were generated from a prompt."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.readers import files, image_files, tables
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("imagereward",)
LICENSE = "apache-2.0"
TERMS = "open"
OPTIONS = {
    "size": "1k, 2k, 4k or 8k: the first 4, 8, 16 or 32 zips of train (default: 1k, whose sizes are the paper's)",
    "split": "all, train, validation or test (default: all)",
    "field": "overall_rating, image_text_alignment_rating or fidelity_rating (default: overall_rating)",
    "min_good": "ratings from this on are label 1, or train_median: ratings above it (default: 5)",
    **tables.MARGIN,
    **files.REVISION,
}
HOW = "Get THUDM/ImageRewardDB from Hugging Face (Apache-2.0): its folder images/ with the zips of each split."
SIZES = {"1k": 4, "2k": 8, "4k": 16, "8k": 32}
SPLITS = {"train": "train", "validation": "val", "test": "test"}
EVALUATION_ZIPS = 2
CRITERIA = {"overall_rating": "overall", "image_text_alignment_rating": "alignment", "fidelity_rating": "fidelity"}
RATINGS = range(1, 8)


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """One record an image, zip by zip; ratings 1 to 7 in label.score, the rank (1 = best, ties) in raw."""
    taken = files.take_options(options, OPTIONS, size=tuple(SIZES), split=("all", *SPLITS), field=tuple(CRITERIA))
    taken["min_good"] = taken["min_good"] or "5"
    threshold = tables.Threshold(None)
    if taken["min_good"] != tables.MEDIAN:
        threshold = tables.Threshold(tables.number_option(taken, "min_good"), equal=True)
    folder = source / "images" if (source / "images").is_dir() else source
    splits = SPLITS if taken["split"] == "all" else (taken["split"],)
    paths = {split: zips(folder, split, taken["size"]) for split in splits}
    for path in [path for found in paths.values() for path in found]:
        if not path.is_file():
            raise UserError(f"{path}: no such file, {taken['size']} needs it. {HOW}")
    for split, found in paths.items():
        yield from files.records(
            _rows(found), lambda row, split=split: [_example(row, split, taken, threshold=threshold)], tables.check_waiting
        )


def zips(folder: AnyPath, split: str, size: str) -> list[AnyPath]:
    """The zips that a split is made of, by number."""
    count = SIZES[size] if split == "train" else EVALUATION_ZIPS
    return [folder / split / f"{split}_{number}.zip" for number in range(1, count + 1)]


def _rows(paths: list[AnyPath]) -> Iterator[files.Row | BadRecord]:
    """The rows of each zip's JSON, with the image's bytes or why there are none."""
    index = 0
    for path in paths:
        with image_files.opened_zip(path) as archive:
            members = {PurePosixPath(info.filename).name: info for info in archive.infolist() if not info.is_dir()}
            for number, native in enumerate(table_of(archive, path, members)):
                place = f"{path.name} row {number}"
                if not isinstance(native, dict):
                    yield BadRecord("bad_json", f"{place}: {files.shown(native)} is no object")
                else:
                    yield files.Row(place, index, native | {"_image": (archive, members)})
                index += 1


def table_of(archive: zipfile.ZipFile, path: AnyPath, members: Mapping[str, zipfile.ZipInfo]) -> list:
    """Raises ValueError where the zip holds no list of rows."""
    name = f"{path.stem}.json"
    if name not in members:
        raise UserError(f"{path}: holds no {name}, it has {', '.join(list(members)[:5]) or 'nothing'}. {HOW}")
    try:
        rows = json.loads(image_files.zip_member(archive, members[name]))
    except (BadRecord, ValueError, RecursionError) as e:
        raise UserError(f"{path}: {name} cannot be read ({e}); download it again") from e
    if not isinstance(rows, list):
        raise UserError(f"{path}: {name} is no list of rows; download it again")
    return rows


def _image(native: Mapping) -> bytes:
    archive, members = native["_image"]
    name = PurePosixPath(files.text_of(native.get("image_path"), "image_path")).name
    if name not in members:
        raise BadRecord("missing_image", f"{files.shown(name)} is not in the zip")
    return image_files.zip_member(archive, members[name])


def _example(row: files.Row, split: str, taken: Mapping[str, str], *, threshold: tables.Threshold) -> JudgeExample:
    native, field = row.fields, taken["field"]
    if field not in native:
        raise BadRecord("missing_field", f"no {field}, there is {', '.join(name for name in native if name != '_image')[:80]}")
    rating = files.number_of(native[field], field, RATINGS)
    prompt_id = files.text_of(native.get("prompt_id"), "prompt_id")
    prompt = files.text_of(native.get("prompt"), "prompt")
    image = _image(native)
    return JudgeExample(
        example_id=f"imagereward/{prompt_id}/{PurePosixPath(native['image_path']).stem}",
        dataset="imagereward",
        split=SPLITS[split],
        source_split=split,
        group_id=prompt_id,
        task="imagereward",
        criterion=CRITERIA[field],
        kind="pointwise_binary",
        instruction=prompt,
        images=(image,),
        label=Label(binary=tables.binary_of(rating, threshold), score=rating),
        score_min=1,
        score_max=7,
        label_rule=tables.rule_of(field, threshold),
        license=LICENSE,
        terms=TERMS,
        revision=taken["revision"],
        raw=files.raw_json(**{name: native.get(name) for name in ("prompt_id", "classification", "rank", *CRITERIA)}),
    )
