"""Small copies of the published sets as `hf download` or `git clone` leaves them, with the names of each repository.

Sources: the file lists of the repositories on Hugging Face and GitHub, and the loaders in them.
"""

import json
import tarfile
from pathlib import Path

import native
import native_eval
from native import write_bytes, write_csv, write_parquet
from native_eval import write_image, write_jsonl

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:76f32e2e752ae1518e142cc3e9be3fe7\nsize 157623035\n"
_LARGE = (".parquet", ".zip", ".csv", ".jsonl", ".json", ".jpg", ".png", ".gz")


def agin(folder: Path) -> int:
    """Its images and scores come from a drive, not from the repository."""
    rows = [native.agin_row(i) for i in range(4)]
    write_csv(folder / "MOS.csv", rows)
    for i, row in enumerate(rows):
        write_image(folder / "images" / row["filename"], i)
    return 12


def seetrue(folder: Path) -> int:
    native.write_seetrue(folder, [native.seetrue_row(i) for i in range(4)])
    write_bytes(folder / "SeeTRUE.py", b"import datasets\n")
    return 4


def imagereward(folder: Path) -> int:
    rows = [native.imagereward_row(i) for i in range(4)]
    native.write_imagereward(folder, {"train_1": rows}, zips=6)
    for split in ("train", "validation", "test"):
        write_parquet(folder / f"metadata-{split}.parquet", rows)
    write_bytes(folder / "ImageRewardDB.py", b"import datasets\n")
    return 4


def unsafebench(folder: Path) -> int:
    for shard in range(2):
        rows = [native.unsafebench_row(10 * shard + i) for i in range(2)]
        write_parquet(folder / "data" / f"train-0000{shard}-of-00002.parquet", rows)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [native.unsafebench_row(30)])
    return 5


def mjbench(folder: Path) -> int:
    for part in ("alignment", "bias", "quality", "safety"):
        write_parquet(folder / "data" / f"{part}.parquet", [native.mjbench_row(i) for i in range(2)])
    return 8


def vl_rewardbench(folder: Path) -> int:
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [native_eval.vl_row(i) for i in range(3)])
    write_bytes(folder / "VL-RewardBench.tsv", b"index\timage\n")
    return 3


def multimodal_rewardbench(folder: Path) -> int:
    """A clone after its script: all_data_release.json has the rows without their texts."""
    rows = [native_eval.mmrb_row(i, Image=f"images/mathvista/{i}.jpg") for i in range(3)]
    for name, held in (("all_data_release", [row | {"Text": ""} for row in rows]), ("all_data", rows)):
        write_bytes(folder / "data" / f"{name}.json", json.dumps(held, indent=2).encode())
    write_bytes(folder / "data" / "original_data" / "mathvista.json", b"[null]")
    for i in range(3):
        write_image(folder / "data" / "images" / "mathvista" / f"{i}.jpg", i)
    return 3


def genai_bench(folder: Path) -> int:
    for part, first in (("test", 0), ("test_v1", 10)):
        rows = {
            "image_generation": [native_eval.genai_row(first + i) for i in range(2)],
            "image_edition": [native_eval.genai_edit_row(first + i) for i in range(2)],
            "video_generation": [{"prompt": "a dog", "left_video": "1.mp4", "right_video": "2.mp4", "vote_type": "leftvote"}],
        }
        for name, held in rows.items():
            write_parquet(folder / name / f"{part}-00000-of-00001.parquet", held)
    return 4


def mllm_judge(folder: Path) -> int:
    """As it is on Hugging Face; in the clone all of this is in Dataset/, with a Benchmark_Lite/ beside."""
    score = [native_eval.mllm_score_row(i) for i in range(4)]
    pair = [native_eval.mllm_pair_row(i) for i in range(4)]
    batch = [native_eval.mllm_batch_row(i) for i in range(2)]
    for part, rows in (("score", score), ("pair", pair), ("batch", batch)):
        write_jsonl(folder / "Benchmark" / f"{part}.jsonl", rows)
        for name in ("HQ", "Hard"):
            human = next(key for key in ("human", "human_answer") if key in rows[0])
            renamed = [{("Human_answer" if key == human else key): value for key, value in row.items()} for row in rows[:1]]
            write_jsonl(folder / "Hard & HQ" / name / f"{part.title()}.jsonl", renamed)
    write_jsonl(folder / "raw_data" / "step3" / "Score" / "CogVLM.jsonl", [{"id": 0}])
    write_jsonl(folder / "Benchmark" / "arxiv_data" / "pair" / "pair_arxiv_done.jsonl", [{"id": 0}])
    write_bytes(folder / "score_data.tsv", b"index\timage\n")
    for i in range(2):
        write_image(folder / "image" / f"{i}.jpg", i)
    return 10


def pickapic(folder: Path) -> int:
    for name, first in (("test_unique", 0), ("test", 10), ("validation_unique", 20), ("validation", 30), ("train", 40)):
        rows = [native_eval.pickapic_row(first + i, __index_level_0__=i) for i in range(2)]
        write_parquet(folder / "data" / f"{name}-00000-of-00001-c163d5839d8aed9f.parquet", rows)
    return 2


def hpdv2(folder: Path) -> int:
    """Without its train.tar.gz of 31 GB; unpacked beside test.tar.gz, as users do."""
    rows = [native_eval.hpdv2_row(i) for i in range(2)]
    folder.mkdir(exist_ok=True)
    native_eval.hpd(folder, rows)
    with tarfile.open(folder / "test.tar.gz", "w:gz") as archive:
        archive.add(folder / "test", "test")
    write_bytes(folder / "train.json", b"[]")
    write_bytes(folder / "benchmark" / "anime.json", b'["a dog"]')
    return 6


SETS = {
    maker.__name__: maker
    for maker in (
        agin, seetrue, imagereward, unsafebench, mjbench, vl_rewardbench, multimodal_rewardbench, genai_bench, mllm_judge,
        pickapic, hpdv2,
    )
}  # fmt: skip


def as_download(folder: Path) -> Path:
    """What `hf download --local-dir` and macOS leave beside the data."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in names:
        write_bytes(folder / ".cache" / "huggingface" / "download" / f"{name}.metadata", b"a9d489d\n")
        write_bytes(folder / ".cache" / "huggingface" / "download" / f"{name}.lock", b"")
        path = folder / name
        write_bytes(path.with_name(f"._{path.name}"), b"\0\5\26\7")
    write_bytes(folder / ".gitattributes", b"*.parquet filter=lfs diff=lfs merge=lfs -text\n")
    write_bytes(folder / "README.md", b"---\nlicense: mit\n---\n")
    return folder


def as_cache(folder: Path) -> Path:
    """The same files as huggingface_hub's cache holds them; returns the repository's folder in it."""
    repository = folder.with_name(f"datasets--org--{folder.name}")
    revision = repository / "snapshots" / "6cc46a6e5d9388f44fdf9096d5387cd3b7988676"
    write_bytes(repository / "refs" / "main", revision.name.encode())
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = revision / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = path.rename(repository / "blobs" / f"{number:040x}")
        link.symlink_to(Path(*[".."] * (len(link.relative_to(repository).parts) - 1)) / "blobs" / blob.name)
    return repository


def as_pointers(folder: Path, endings: tuple[str, ...] = _LARGE) -> Path:
    """As git clones it without git-lfs."""
    for path in folder.rglob("*"):
        if path.name.endswith(endings):
            path.write_bytes(POINTER)
    write_bytes(folder / ".git" / "config", b"[core]\n")
    return folder
