"""MJ-Bench: which of two images is better by alignment, safety, quality or bias, in both published schemas.

Labels follow the native order, which is skewed (nearly always the first is better): prompts must show pairs in another order.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.prepare.readers.paper import imagereward
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("mj_alignment", "mj_safety", "mj_quality", "mj_bias")
LICENSE = "mit"
TERMS = "gated"
OPTIONS = {
    "task": "all, mj_alignment, mj_safety, mj_quality or mj_bias (default: all)",
    "composition": "task of the newer schema's part composition, e.g. mj_alignment (default: none, its rows are bad)",
    "visualization": "task of the newer schema's part visualization (default: none, its rows are bad)",
    "imagereward": "folder of ImageRewardDB, to find its test images also by uuid and bytes (default: by names only)",
    **fields.REVISION,
}
HOW = (
    "Accept the terms of MJ-Bench/MJ-Bench on Hugging Face, get the parquet files of a revision that you note with "
    "--option=revision=.., and give the folder."
)
_PARTS = ("alignment", "safety", "quality", "bias")
_NEWER_PARTS = ("composition", "visualization")  # not documented which of the older parts they continue
_WANTED = files.columns(
    caption="caption", image0="image0", image1="image1", label="label", info="info?", category="category?",
    subcategory="subcategory?", model="model?",
)  # fmt: skip
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class KnownImages(NamedTuple):
    """What identifies the images of ImageRewardDB's test split."""

    uuids: frozenset[str]
    digests: frozenset[str]


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """One record per pair. `raw` has the native info or category, and `imagereward_test` if an image is also in ImageRewardDB's
    test split: such pairs are less out of distribution than the others, so report results without them too.
    """
    taken = fields.take_options(options, OPTIONS, task=("all", *TASKS))
    tasks = {part: f"mj_{part}" for part in _PARTS}
    for part in _NEWER_PARTS:
        if taken[part]:
            if taken[part] not in TASKS:
                raise UserError(f"option {part}: {taken[part]!r} must be one of {', '.join(TASKS)}")
            tasks[part] = taken[part]
    known = _overlap_images(as_path(taken["imagereward"])) if taken["imagereward"] else KnownImages(frozenset(), frozenset())
    shards: dict[str, list[AnyPath]] = {}
    for path in downloads.find_files(source, ".parquet", HOW):
        shards.setdefault(downloads.split_of(path, (*_PARTS, *_NEWER_PARTS)), []).append(path)
    with image_files.image_reader(source) as images:
        for part, paths in shards.items():
            if part in _PARTS and taken["task"] not in ("all", tasks[part]):
                continue
            rows = _of_task(files.parquet_rows(paths, _WANTED), part, tasks, taken["task"])
            yield from files.records(rows, lambda row: [_example(row, images, known, taken["revision"])])


def _overlap_images(folder: AnyPath) -> KnownImages:
    """Reads the test zips of ImageRewardDB, image by image. Raises UserError if they are missing or damaged."""
    folder = downloads.snapshot_of(folder)
    folder = folder / "images" if (folder / "images").is_dir() else folder
    uuids, digests = set(), set()
    for path in imagereward.zips(folder, "test", "1k"):
        if not path.is_file():
            raise UserError(f"option imagereward: {path}: no such file. {imagereward.HOW}")
        with image_files.opened_zip(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith((".json", "/")):
                    uuids.add(PurePosixPath(info.filename).stem)
                    digests.add(fields.digest_of(image_files.zip_member(archive, info)))
    return KnownImages(frozenset(uuids), frozenset(digests))


def _of_task(rows: Iterator, part: str, tasks: Mapping[str, str], task: str) -> Iterator[files.NativeRow | BadRecord]:
    """Rows with their part and task. If no file name gives the part, the row's category does."""
    for row in rows:
        if isinstance(row, BadRecord):
            yield row
            continue
        mine = part or fields.name_of(row.fields["category"]).strip().lower()
        if mine not in tasks:
            remedy = f"give --option={mine}=TASK" if mine in _NEWER_PARTS else f"parts are {', '.join((*_PARTS, *_NEWER_PARTS))}"
            yield BadRecord("unknown_part", f"{row.place}: part {mine!r} belongs to no task; {remedy}")
        elif task in ("all", tasks[mine]):
            yield row._replace(fields=row.fields | {"part": mine, "task": tasks[mine]})


def _from_imagereward(native: Mapping, images: tuple[bytes, ...], known: KnownImages) -> bool:
    places = [image.get("path") or "" for image in (native["image0"], native["image1"]) if isinstance(image, dict)]
    words = " ".join(str(text).lower() for text in (*places, native["info"], native["subcategory"]) if text)
    found = set(_UUID.findall(words)) & known.uuids
    return "imagereward" in words or bool(found) or any(fields.digest_of(image) in known.digests for image in images)


def _example(row: files.NativeRow, images: image_files.ReadImage, known: KnownImages, revision: str) -> JudgeExample:
    native = row.fields
    part, task = native["part"], native["task"]
    caption = fields.text_of(native["caption"], "caption", empty=task != "mj_alignment")
    pair = tuple(image_files.image_of(native[name], images, name) for name in ("image0", "image1"))
    overlap = True if task == "mj_alignment" and _from_imagereward(native, pair, known) else None
    return JudgeExample(
        example_id=f"mjbench/{part}/{row.index}",  # it has no ids of its own
        dataset="mjbench",
        split="ood",
        source_split=part,
        group_id=f"mjbench/{fields.digest_of(caption or pair[0])}",
        task=task,
        criterion=task.removeprefix("mj_"),
        kind="pairwise",
        instruction=caption,
        images=pair,
        label=Label(winner=int(fields.number_of(native["label"], "label", (0, 1)))),
        label_rule="label: index of the better image",
        license=LICENSE,
        terms=TERMS,
        revision=revision,
        raw=fields.raw_json(
            imagereward_test=overlap, **{name: native[name] for name in ("info", "category", "subcategory", "model")}
        ),
    )
