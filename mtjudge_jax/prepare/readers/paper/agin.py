"""AGIN: mean opinion scores of how natural generated images look, of their technical quality and of their rationality."""

from collections.abc import Iterator, Mapping, Sequence

from mtjudge_jax.errors import UserError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.prepare.checking import TRAIN_MEDIAN
from mtjudge_jax.prepare.readers import downloads, fields, files, image_files
from mtjudge_jax.records import BadRecord, JudgeExample, Label

TASKS = ("agin_nat", "agin_tech", "agin_rat")
LICENSE = "none stated: not to be passed on"
TERMS = "research"
OPTIONS = {
    "csv": "name of the CSV in the folder (default: the only one there)",
    "filename": "column of the image's name (default: filename)",
    "nat": "column of naturalness (default: MOS_nat)",
    "tech": "column of technical quality (default: MOS_tech)",
    "rat": "column of rationality (default: MOS_rat)",
    "images": "folder of the images in the source folder (default: itself, image, images or the only one)",
    "task": "all, agin_nat, agin_tech or agin_rat (default: all)",
    "threshold": "train_median, scale_midpoint or a number; above it is label 1 (default: train_median)",
    "scale": "lowest and highest score, as 1-5; scores outside are bad rows (default: none; scale_midpoint needs a scale)",
    **fields.MARGIN,
    **fields.REVISION,
}
HOW = "Get AGIN's images and scores through the links in its repository zijianchen98/AGIN, and give the folder with both."
_COLUMNS = {"filename": "filename", "nat": "MOS_nat", "tech": "MOS_tech", "rat": "MOS_rat"}
_CRITERIA = {"agin_nat": "naturalness", "agin_tech": "technical", "agin_rat": "rationality"}


def read(source: AnyPath, options: Mapping[str, str]) -> Iterator[JudgeExample | BadRecord]:
    """Three records per image, one per criterion. Labels are binary or wait for prepare; label.score and raw hold the score."""
    taken = fields.take_options(options, OPTIONS, task=("all", *TASKS))
    taken |= {name: taken[name] or column for name, column in _COLUMNS.items()}
    scale = fields.scale_of(taken["scale"])
    threshold = _threshold_of(taken, scale)
    tasks = TASKS if taken["task"] == "all" else (taken["task"],)
    wanted = {name: files.Column((taken[name],)) for name in ("filename", *(task.removeprefix("agin_") for task in tasks))}
    table = _table(source, taken["csv"])
    folder = source.parent if source.is_file() else source
    folders = (taken["images"],) if taken["images"] else (*image_files.IMAGE_FOLDERS, *_only_folder(folder))
    with image_files.image_reader(folder, folders=folders) as images:
        rows = _row_per_task(files.csv_rows(table, wanted), tasks)
        yield from files.records(rows, lambda row: [_example(row, images, taken, threshold=threshold, scale=scale)])


def _threshold_of(taken: Mapping[str, str], scale: tuple[float, float] | None) -> fields.Threshold:
    text = taken["threshold"] or TRAIN_MEDIAN
    if text == TRAIN_MEDIAN:
        return fields.Threshold(None)
    if text == "scale_midpoint":
        if scale is None:
            raise UserError("option threshold: scale_midpoint needs the scale: give it, as --option=scale=1-5")
        return fields.Threshold(sum(scale) / 2, how="scale_midpoint")
    return fields.Threshold(fields.number_option(taken, "threshold"))


def _table(source: AnyPath, name: str) -> AnyPath:
    if name:
        if source.is_file():
            raise UserError(f"option csv: {source} is a file itself; give the folder or leave the option out")
        if "/" in name or "\\" in name or name == ".." or not (source / name).is_file():
            raise UserError(f"option csv: {name!r} is not a file in {source}")
        return source / name
    found = downloads.find_files(source, ".csv", HOW)
    if len(found) > 1:
        raise UserError(f"{source}: several CSV files ({downloads.first_names(found)}); name one with --option=csv=NAME")
    return found[0]


def _only_folder(folder: AnyPath) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_dir() and not downloads.is_hidden(path.name)]
    return names if len(names) == 1 else []


def _row_per_task(rows: Iterator[files.NativeRow | BadRecord], tasks: Sequence[str]) -> Iterator[files.NativeRow | BadRecord]:
    """One row for each task, so that a bad score costs only that task's record."""
    for row in rows:
        if isinstance(row, BadRecord):
            yield row
        else:
            yield from (row._replace(place=f"{row.place} {task}", fields=row.fields | {"task": task}) for task in tasks)


def _example(
    row: files.NativeRow,
    images: image_files.ReadImage,
    taken: Mapping[str, str],
    *,
    threshold: fields.Threshold,
    scale: tuple | None,
) -> JudgeExample:
    native, task = row.fields, row.fields["task"]
    name, key = fields.text_of(native["filename"], "filename"), task.removeprefix("agin_")
    score = fields.finite_number(native[key], taken[key])
    if scale and not scale[0] <= score <= scale[1]:
        raise BadRecord("label_outside", f"{taken[key]} is {score:g}, outside the scale {scale[0]:g}-{scale[1]:g}")
    return JudgeExample(
        example_id=f"agin/{name}/{_CRITERIA[task]}",
        dataset="agin",
        split="",
        group_id=f"agin/{name}",
        task=task,
        criterion=_CRITERIA[task],
        kind="pointwise_binary",
        instruction="",
        images=(images(name),),
        label=Label(binary=fields.binary_of(score, threshold), score=score),
        score_min=scale[0] if scale else None,
        score_max=scale[1] if scale else None,
        label_rule=fields.label_rule(taken[key], threshold),
        license=LICENSE,
        terms=TERMS,
        revision=taken["revision"],
        raw=fields.raw_json(mos=score, model=name.rpartition("_")[0]),
    )
