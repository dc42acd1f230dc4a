"""The demo data set: judging questions about drawn scenes, in the record format of every other data set.

An example is a pure function of (seed, split, task, index), so any part can be made alone, in any order.
"""

import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from mtjudge_jax.data.pipeline import MANIFEST_VERSION
from mtjudge_jax.data.record_file import write_records
from mtjudge_jax.demo.cases import DEMO_TASKS, LABELS, NEVER_TRAINED, TRAINED_TASKS, draw_case, form_of, label_of
from mtjudge_jax.demo.neutral import PAIRS, neutral_case
from mtjudge_jax.demo.scenes import SPLITS, Pool, load_pool
from mtjudge_jax.errors import UserError
from mtjudge_jax.locks import held
from mtjudge_jax.paths import AnyPath, as_path, copy_file, files_below, in_bucket
from mtjudge_jax.records import JudgeExample

_load_pool = lru_cache(maxsize=len(SPLITS))(load_pool)
# Changes whenever the same arguments would give other pictures, words or records, so that old data are not reused.
_RECIPE = 4
LICENSE = "derived from CC0, public-domain, CC BY and CC BY-SA pictures; see demo/assets/ATTRIBUTION.md"


def make_examples(*, split: str, task: str, count: int, seed: int) -> Iterator[JudgeExample]:
    """`count` examples of a task, from the photographs of `split` alone, with equal shares of the labels.

    Of a binary question or a pair each two neighbours have both labels; of a grade or a list each three have all (see draw_case).
    Raises ValueError for an odd or negative count, an unknown split or task.
    """
    if count < 0 or count % 2:
        raise ValueError(f"count {count} must be even and not negative, so that both labels have equal shares")
    if task not in (known := (*DEMO_TASKS, *PAIRS)):
        raise ValueError(f"task {task!r} is not a demo task: known are {', '.join(known)}")
    pool = _load_pool(split)
    return (_make_example(pool, split=split, task=task, index=index, seed=seed) for index in range(count))


def _make_example(pool: Pool, *, split: str, task: str, index: int, seed: int) -> JudgeExample:
    """Example number `index` of a task. `pool` must be the one of `split`."""
    stream = (seed, SPLITS.index(split), zlib.crc32(task.encode()))
    kind, criterion = form_of(task)
    labels = LABELS[kind]
    # A draw for each run of neighbours decides where it begins: balanced, but not alternating.
    block = index // len(labels)
    first = int(np.random.default_rng((*stream, 0, block)).integers(len(labels)))
    label = labels[(index + first) % len(labels)]
    rng = np.random.default_rng((*stream, 1, index))
    if task in PAIRS:
        case = neutral_case(rng, pool, kind, PAIRS[task][block % len(PAIRS[task])], winner=label)
    else:
        case = draw_case(rng, pool, task, label=label, variant=block)
    graded = {"score_min": 1.0, "score_max": 5.0} if kind == "pointwise_score" else {}
    return JudgeExample(
        example_id=f"demo/{task}/{split}/{index:06d}",
        dataset="demo",
        split=split,
        group_id=case.scenes[0].photo,
        task=task,
        criterion=criterion,
        kind=kind,
        instruction=case.instruction,
        images=tuple(encode(scene.image) for scene in case.scenes),
        label=label_of(kind, case.told),
        rationale=case.rationale,
        license=LICENSE,
        **graded,
    )


def encode(image: np.ndarray) -> bytes:
    """A picture, uint8 [h, w, 3], as lossless WebP: a third smaller than PNG at the same speed, without JPEG's artefacts."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", lossless=True, quality=0, method=0)
    return file.getvalue()


def write_demo_data(
    folder: str | Path, *, seed: int = 0, train: int = 1000, val: int = 100, test: int = 200, unseen: int = 200
) -> None:
    """Writes `<split>/<task>.array_record` and `manifest.json` under `folder`.

    `train`, `val` and `test` count examples per trained task, `unseen` counts test examples per evaluation-only task; all are
    even. The folder appears only when it is complete; in a bucket, where its files appear one by one, `manifest.json` is the
    last. Does nothing if the folder holds data of the same arguments; raises UserError if it holds anything else.
    """
    folder = as_path(folder)
    arguments = {"seed": seed, "train": train, "val": val, "test": test, "unseen": unseen, "recipe": _RECIPE}

    def is_there() -> bool:
        return folder.exists() and any(folder.iterdir()) and _check_same(folder, arguments)

    if is_there():
        return
    with held(folder, beside=True):
        if not is_there():  # by another command, meanwhile
            _draw(folder, arguments)


def _draw(folder: AnyPath, arguments: dict[str, int]) -> None:
    seed, train, val, test, unseen = (arguments[name] for name in ("seed", "train", "val", "test", "unseen"))
    jobs = [(split, task, count) for split, count in zip(SPLITS, (train, val, test), strict=True) for task in TRAINED_TASKS]
    jobs += [("test", task, unseen) for task in NEVER_TRAINED]
    if in_bucket(folder):
        partial = Path(tempfile.mkdtemp(prefix="mtjudge-data-"))
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        files = {}
        with tqdm(total=sum(count for *_, count in jobs), desc="demo data", unit="example", disable=None) as bar:
            for split, task, count in jobs:
                examples = make_examples(split=split, task=task, count=count, seed=seed)
                path = partial / split / f"{task}.array_record"
                files[f"{split}/{task}"] = write_records(path, examples, bar.update)
        manifest = {"version": MANIFEST_VERSION, "dataset": "demo", "arguments": arguments, "files": files}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        if in_bucket(folder):
            for name in (*(f"{name}.array_record" for name in files), "manifest.json"):
                copy_file(partial / name, folder / name)
        else:
            partial.chmod(0o755)  # mkdtemp creates a private folder
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_same(folder: AnyPath, arguments: dict[str, int]) -> bool:
    """Whether `folder` holds complete demo data made with these arguments. Raises UserError if it holds anything else."""
    remedy = "choose another folder or remove this one"
    path = folder / "manifest.json"
    if in_bucket(folder) and not path.exists() and all(name.endswith(".array_record") for name in files_below(folder)):
        return False  # stopped before it was complete: write the files again
    if not path.exists():
        raise UserError(f"{folder} is not empty and has no manifest.json: {remedy}")
    found = json.loads(path.read_text()).get("arguments")
    if found != arguments:
        raise UserError(f"{folder} holds data made with {found}, asked for {arguments}: {remedy}")
    return True
