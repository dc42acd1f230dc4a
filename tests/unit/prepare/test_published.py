"""Each published set as it is on disk after a download: in a folder, in Hugging Face's cache, and cloned without git-lfs."""

import json
import shutil

import native
import published
import pytest
from native_eval import mllm_batch_row, mllm_pair_row, mllm_score_row, read_all, write_image, write_jsonl

from mtjudge_jax.errors import UserError
from mtjudge_jax.prepare.prepare import Arguments, prepare
from mtjudge_jax.prepare.readers import READERS, downloads
from mtjudge_jax.prepare.readers.benchmarks import hpdv2, mllm_judge
from mtjudge_jax.prepare.readers.user_files import JSONL


@pytest.mark.parametrize("name", published.SETS)
def test_a_set_is_read_from_a_download_and_from_the_cache(tmp_path, name):
    count = published.SETS[name](tmp_path / "a")
    examples, bad = read_all(READERS[name], published.as_download(tmp_path / "a"))
    assert bad == [] and len(examples) == count
    published.SETS[name](tmp_path / "b")
    snapshot = downloads.snapshot_of(published.as_cache(tmp_path / "b"))
    assert snapshot.parent.name == "snapshots" and read_all(READERS[name], snapshot) == (examples, [])


@pytest.mark.parametrize("name", published.SETS)
def test_a_clone_without_git_lfs_says_so(tmp_path, name):
    published.SETS[name](tmp_path)
    with pytest.raises(UserError, match="a git-lfs pointer, not the file itself: run `git lfs pull` in the clone") as e:
        list(READERS[name].read(published.as_pointers(tmp_path), {}))
    assert "\n" not in str(e.value) and ".git/" not in str(e.value)


def test_pictures_that_are_pointers_say_so(tmp_path):
    published.mllm_judge(tmp_path / "data")
    published.as_pointers(tmp_path / "data", (".jpg",))
    given = Arguments(dataset="mllm_judge", source=str(tmp_path / "data"), options={})
    with pytest.raises(
        UserError, match=r"none of 10 records can be used. Reasons: lfs_pointer 10, as score.jsonl line 1: .*git lfs pull"
    ):
        prepare(mllm_judge, given, tmp_path / "out")
    published.seetrue(tmp_path / "zipped")
    published.as_pointers(tmp_path / "zipped", (".zip",))
    with pytest.raises(UserError, match=r"missing_image 4, as SeeTRUE.csv row 0: .*; images.zip there is a git-lfs pointer"):
        prepare(READERS["seetrue"], Arguments(dataset="seetrue", source=str(tmp_path / "zipped"), options={}), tmp_path / "out")
    published.vl_rewardbench(tmp_path / "vl")  # its pictures are in the parquet file: an archive beside it is not needed
    native.write_bytes(tmp_path / "vl" / "inference_results.zip", published.POINTER)
    assert len(read_all(READERS["vl_rewardbench"], tmp_path / "vl")[0]) == 3


def test_the_cache_is_read_by_its_repository_and_by_a_snapshot(tmp_path):
    published.mllm_judge(tmp_path / "data")
    repository = published.as_cache(tmp_path / "data")
    snapshot = next((repository / "snapshots").iterdir())
    for number, source in enumerate((repository, snapshot)):
        given = Arguments(dataset="mllm_judge", source=str(source), options={})
        assert prepare(mllm_judge, given, tmp_path / f"out{number}")
        assert json.loads((tmp_path / f"out{number}" / "report.json").read_text())["records_written"] == 10
    (repository / "snapshots" / "older").mkdir()
    assert downloads.snapshot_of(repository) == snapshot
    shutil.rmtree(repository / "refs")
    with pytest.raises(
        UserError, match=r"snapshots: holds 6cc46a6e5d9388f44fdf9096d5387cd3b7988676, older: give the folder of one"
    ):
        downloads.snapshot_of(repository)
    (snapshot / "image" / "0.jpg").unlink()
    (snapshot / "image" / "0.jpg").symlink_to(write_image(tmp_path / "secret.jpg", 9))
    assert {reason for reason, _ in read_all(mllm_judge, snapshot, part="batch")[1]} == {"image_path"}


def test_own_rows_are_read_from_the_cache(tmp_path):
    native.write_own(tmp_path / "mine", [native.own_row(0), native.own_row(1)], images=2)
    examples, bad = read_all(JSONL, downloads.snapshot_of(published.as_cache(tmp_path / "mine")))
    assert bad == [] and [e.images for e in examples] == [(native.picture(0),), (native.picture(1),)]


def clone(folder):
    """Dongping-Chen/MLLM-Judge."""
    published.mllm_judge(folder / "Dataset")
    write_jsonl(folder / "Dataset" / "Benchmark_Lite" / "score_lite.jsonl", [mllm_score_row(1)])
    return folder


@pytest.mark.parametrize(
    ("source", "options", "count"),
    [("", {}, 10), ("Dataset", {}, 10), ("Dataset/Benchmark", {}, 10), ("Dataset/Benchmark", {"part": "pair"}, 4),
     ("", {"part": "pair"}, 4), ("Dataset/Benchmark/batch.jsonl", {"part": "batch"}, 2), ("", {"edition": "lite"}, 1),
     ("Dataset/Benchmark_Lite", {"edition": "lite"}, 1), ("Dataset/Hard & HQ/HQ", {}, 3),
     ("Dataset/Hard & HQ/Hard", {"part": "score"}, 1)],
)  # fmt: skip
def test_mllm_judge_in_a_clone(tmp_path, source, options, count):
    examples, bad = read_all(mllm_judge, clone(tmp_path) / source, **options)
    assert bad == [] and len(examples) == count


def test_mllm_judge_with_a_link_to_its_pictures(tmp_path):
    clone(tmp_path)
    (tmp_path / "Dataset" / "Benchmark" / "image").symlink_to("../image")
    examples, bad = read_all(mllm_judge, tmp_path / "Dataset" / "Benchmark")
    assert bad == [] and len(examples) == 10


def test_mllm_judge_looks_for_the_part_that_is_asked_only(tmp_path):
    for folder in ("one", "two"):
        write_jsonl(tmp_path / folder / "score.jsonl", [mllm_score_row(0)])
    write_jsonl(tmp_path / "one" / "pair.jsonl", [mllm_pair_row(0)])
    write_jsonl(tmp_path / "Hard & HQ" / "HQ" / "Batch.jsonl", [mllm_batch_row(1)])
    write_image(tmp_path / "image" / "0.jpg", 0)
    assert len(read_all(mllm_judge, tmp_path, part="pair")[0]) == 1
    with pytest.raises(
        UserError, match=r"score.jsonl exists more than once \(.*one/score.jsonl, .*two/score.jsonl\): give the folder"
    ):
        read_all(mllm_judge, tmp_path)


def test_an_archive_that_nobody_unpacked_is_named(tmp_path):
    published.hpdv2(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UserError, match=r"missing_image 2, as test.json row 0: .* is not in .*; unpack test.tar.gz there first"):
        prepare(hpdv2, Arguments(dataset="hpdv2", source=str(tmp_path), options={}), tmp_path.with_name("out"))
    (tmp_path / "test.json").unlink()
    with pytest.raises(
        UserError, match=r"no file that ends in test.json, there is .*; unpack test.tar.gz there first. Get test.json"
    ):
        list(hpdv2.read(tmp_path, {}))


def test_files_that_the_downloader_adds_do_not_change_the_source(tmp_path):
    published.unsafebench(tmp_path / "data")
    given = Arguments(dataset="unsafebench", source=str(tmp_path / "data"), options={}, val=0)
    assert prepare(READERS["unsafebench"], given, tmp_path / "out")
    native.write_bytes(tmp_path / "data" / ".cache" / "huggingface" / "download" / "a.lock", b"")
    assert prepare(READERS["unsafebench"], given, tmp_path / "out") is False


def test_a_folder_that_is_a_link_to_another_disk_is_read(tmp_path):
    """Not so a link to the folder above or to a folder beside, whose files would be read twice."""
    published.unsafebench(tmp_path / "disk")
    source = tmp_path / "UnsafeBench"
    source.mkdir()
    (source / "data").symlink_to(tmp_path / "disk" / "data")
    (source / "up").symlink_to(tmp_path)
    (source / "same").symlink_to("data")
    examples, bad = read_all(READERS["unsafebench"], source)
    assert bad == [] and len({e.example_id for e in examples}) == 5 and not any("#" in e.example_id for e in examples)


def test_agin_finds_its_pictures_in_the_only_folder_there(tmp_path):
    published.agin(tmp_path)
    (tmp_path / "images").rename(tmp_path / "AGIN_dataset")
    assert len(read_all(READERS["agin"], tmp_path)[0]) == 12
    (tmp_path / "AGIN_partitioned").mkdir()  # the same names, but patches exchanged
    assert {reason for reason, _ in read_all(READERS["agin"], tmp_path)[1]} == {"missing_image"}
    assert len(read_all(READERS["agin"], tmp_path, images="AGIN_dataset")[0]) == 12


def test_a_file_belongs_to_the_split_in_its_name_even_in_a_folder_named_as_another(tmp_path):
    for name in ("train", "test"):
        native.write_parquet(tmp_path / "test" / f"{name}-00000-of-00001.parquet", [native.unsafebench_row(len(name))])
    examples, _ = read_all(READERS["unsafebench"], tmp_path / "test")
    assert [e.split for e in examples] == ["train", "test"]
