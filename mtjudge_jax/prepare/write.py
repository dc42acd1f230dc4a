"""Writes checked records as ArrayRecord through tensorflow-datasets. Importing this takes a second, so `prepare` does it late.

Every example of the data set `judge_examples` has the features example_id, task, label and `record`, the whole record as
`records.pack` writes it. `tfds.builder_from_directory(folder / "judge_examples" / "1.0.0")` opens it.
"""

import contextlib
import hashlib
import io
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from mtjudge_jax.data.tf_example import FEATURE, tf_example

Features = Mapping[str, str]  # the small features of one example


class _RecordWriter(tfds.core.writer.ExampleWriter):
    """Builds the examples while the files are written; from tensorflow-datasets it takes only their order.

    The shuffler of tensorflow-datasets keeps the images in memory, needs TensorFlow above 1 GB, and its bytes differ from run
    to run.
    """

    def __init__(self, jobs: Mapping[str, Sequence[Features]], records: Mapping[str, Callable[[int], bytes]]):
        super().__init__(tfds.core.file_adapters.FileFormat.ARRAY_RECORD)
        self.jobs, self.records = jobs, records

    def write(self, path: Any, examples: Iterable[tuple[int, bytes]]) -> None:
        split = Path(path).name.split("-")[1].removesuffix(".array_record")
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")  # images are compressed already
        for index, _ in examples:
            texts = {name: text.encode() for name, text in self.jobs[split][index].items()}
            writer.write(tf_example({**texts, FEATURE: self.records[split](index)}))
        writer.close()


class JudgeExamples(tfds.core.GeneratorBasedBuilder):
    """Judging questions about images. One split for each (split, task), e.g. `train_seetrue`."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # no checksums of downloads: looking for them needs a package that may be missing

    def __init__(
        self,
        *,
        data_dir: Path,
        jobs: Mapping[str, Sequence[Features]],
        records: Mapping[str, Callable[[int], bytes]],
        about: str,
        license: str,
    ):
        self.jobs, self.records, self.about, self.license = jobs, records, about, license
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text() for name in ("example_id", "task", "label", FEATURE)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.about,
            license=self.license,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # the mixture shuffles; files in the source's order are comparable
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {name: self._generate_examples(jobs) for name, jobs in self.jobs.items()}

    def _generate_examples(self, jobs: Sequence[Features]) -> Iterator[tuple[int, dict]]:
        for index, job in enumerate(jobs):
            yield index, {**job, FEATURE: b""}

    def _example_writer(self) -> _RecordWriter:
        return _RecordWriter(self.jobs, self.records)


def write_splits(
    folder: Path,
    jobs: Mapping[str, Sequence[Features]],
    records: Mapping[str, Callable[[int], bytes]],
    *,
    about: str,
    license: str,
) -> dict[str, dict[str, Any]]:
    """Writes one ArrayRecord file for each split; `records[split](i)` returns the packed record of its example i.

    Returns the manifest's entries: path in the folder, count, sha256.
    """
    tfds.disable_progress_bar()
    logging.getLogger("absl").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints about downloads, but nothing is downloaded
        builder = JudgeExamples(data_dir=folder, jobs=jobs, records=records, about=about, license=license)
        one_file = tfds.download.DownloadConfig(num_shards=1)
        builder.download_and_prepare(file_format="array_record", download_config=one_file)
    shutil.rmtree(Path(folder) / "downloads", ignore_errors=True)  # tensorflow-datasets makes it, and it stays empty
    entries = {}
    for name, split in builder.info.splits.items():
        (path,) = (Path(p) for p in split.filepaths)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        entries[name] = {"path": path.relative_to(folder).as_posix(), "count": len(jobs[name]), "sha256": digest}
    return entries
