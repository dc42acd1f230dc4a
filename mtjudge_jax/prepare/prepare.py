"""Reads a data set in its native form and writes checked records, split by group.

First it reads and checks every record, with a journal beside --out so that a stopped check resumes. Then it splits and writes
the records. --out appears when it is complete; in a bucket its manifest.json is written last.
"""

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from mtjudge_jax.data.bad_rows import MIN_ROWS_TO_JUDGE, TooManyBadRecords
from mtjudge_jax.data.pipeline import MANIFEST_VERSION
from mtjudge_jax.errors import UserError, unknown
from mtjudge_jax.paths import AnyPath, as_path, in_bucket
from mtjudge_jax.prepare.checking import Checked, check_source, spooled
from mtjudge_jax.prepare.folder import is_done, publish, source_hash, start_or_resume_check, work_folder, work_path
from mtjudge_jax.prepare.readers import Reader
from mtjudge_jax.prepare.readers.downloads import snapshot_of
from mtjudge_jax.prepare.readers.fields import as_number
from mtjudge_jax.prepare.report import write_data_report
from mtjudge_jax.prepare.splits import MAX_BAD, MODES, NOT_FOR_TRAINING, CheckedRecord, Decision, decide, final_answer
from mtjudge_jax.records import SCHEMA_VERSION, BadRecord, JudgeExample, check_example, pack, unpack

_RECIPE = 2  # changes whenever the same arguments would give different data
_SHOWN_CHARACTERS = 250  # of the first record of each reason, in the error about too many


@dataclass(frozen=True)
class Arguments:
    """What determines the data that are written; the manifest keeps it."""

    dataset: str
    source: str
    options: dict[str, str]
    limit: int = 0
    split: str = "native"
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    allow_terms: tuple[str, ...] = ()

    def reading(self) -> dict:
        """The part that determines what is read: while it stays the same, records need no second check."""
        whole = {"recipe": _RECIPE, "schema": SCHEMA_VERSION, **asdict(self)}
        return {name: whole[name] for name in ("recipe", "schema", "dataset", "source", "options", "limit")}


def prepare(reader: Reader, arguments: Arguments, out: AnyPath, *, max_bad: float = MAX_BAD) -> bool:
    """Writes `out`, or returns False if it already holds these data. Raises UserError if it holds anything else."""
    _check_arguments(arguments)
    source = as_path(arguments.source)
    if not source.exists():
        raise UserError(f"--source={source}: no such folder or file. {reader.HOW}")
    source = snapshot_of(source)
    given = {**arguments.reading(), **asdict(arguments), "allow_terms": sorted(arguments.allow_terms)}
    given["files"] = source_hash(source)
    if is_done(out, given):
        shutil.rmtree(work_path(out), ignore_errors=True)  # left by a command that was stopped at its very end
        return False
    if not in_bucket(source) and not in_bucket(out) and out.absolute().is_relative_to(source.absolute()):
        raise UserError(f"--out={out} is inside --source={source}: choose a folder beside it")
    with work_folder(out) as work:
        if is_done(out, given):  # by another command, meanwhile
            return False
        start_or_resume_check(work, arguments.reading() | {"files": given["files"]})
        checked = check_source(reader.read(source, arguments.options), work, limit=arguments.limit)
        _check_bad(checked, max_bad)
        decision = decide(
            checked.rows,
            mode=arguments.split,
            val=arguments.val,
            test=arguments.test,
            seed=arguments.seed,
            allow_terms=arguments.allow_terms,
            margin=_margin_of(arguments.options),
        )
        publish(_write_files(work, checked, decision, given, reader), out)
    return True


def _check_arguments(arguments: Arguments) -> None:
    val, test = arguments.val, arguments.test
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(f"--val={val:g} and --test={test:g} must be at least 0, and together below 1")
    if arguments.split not in MODES:
        raise UserError(unknown("split", arguments.split, MODES))
    for terms in arguments.allow_terms:
        if terms not in NOT_FOR_TRAINING:
            raise UserError(unknown("--allow_terms", terms, NOT_FOR_TRAINING))
    _margin_of(arguments.options)


def _margin_of(options: Mapping[str, str]) -> float:
    """The distance from the train median within which train records are dropped; only readers with such labels have it."""
    text = options.get("margin", "0")
    margin = as_number(text)
    if margin >= 0:
        return margin
    raise UserError(f"--option=margin={text} must be a number, at least 0")


def _check_bad(checked: Checked, max_bad: float) -> None:
    """Raises TooManyBadRecords above the share of bad records, UserError if the source is empty."""
    bad, read = len(checked.bad), checked.read
    if checked.rows and (read < MIN_ROWS_TO_JUDGE or bad <= max_bad * read):
        return
    if not read:
        raise UserError("the source has no records: check --source")
    reasons: dict[str, list[str]] = {}
    for drop in checked.bad:
        reasons.setdefault(drop.reason, []).append(drop.detail)
    commonest = sorted(reasons.items(), key=lambda item: -len(item[1]))
    shown = "; ".join(f"{reason} {len(details)}, as {_shortened(details[0])}" for reason, details in commonest)
    if not checked.rows:
        said, remedy = f"none of {read} records can be used", "Fix the source"
    else:
        said = f"{bad} of {read} records cannot be used, the limit is {max_bad:.1%}"
        remedy = "Fix the source, or raise --max_bad: records that are checked are not checked again"
    raise TooManyBadRecords(f"{said}. Reasons: {shown}. {remedy}")


def _shortened(text: str, most: int = _SHOWN_CHARACTERS) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}.."


def _write_files(work: Path, checked: Checked, decision: Decision, given: dict, reader: Reader) -> Path:
    """Builds the complete `out` in the work folder, the manifest last."""
    from mtjudge_jax.prepare.write import write_splits  # takes a second to import

    folder = work / "files"
    kept: dict[str, list[tuple[CheckedRecord, str]]] = {}
    for row, split in zip(checked.rows, decision.split, strict=True):
        if split:
            kept.setdefault(f"{split}/{row.task}", []).append((row, split))
    if not kept:
        raise UserError(f"all {checked.read} records are dropped: {'; '.join(drop.detail for drop in decision.drops[:3])}")
    with (work / "spool.bin").open("rb") as spool:

        def example(row: CheckedRecord, split: str) -> JudgeExample:
            try:
                return _finished(unpack(spooled(spool, row)), split, decision)
            except BadRecord as e:
                raise UserError(f"{work} is damaged ({e}): remove it and start again") from e

        def record(members: Sequence[tuple[CheckedRecord, str]], index: int) -> bytes:
            bar.update()
            return pack(example(*members[index]))

        names = {name: name.replace("/", "_", 1) for name in sorted(kept)}
        jobs = {names[name]: [_label_of(row, decision) for row, _ in kept[name]] for name in names}
        records = {names[name]: functools.partial(record, kept[name]) for name in names}
        about = f"{given['dataset']}, prepared by mtjudge_jax"
        with tqdm(total=sum(map(len, kept.values())), desc="write", unit="record", disable=None) as bar:
            entries = write_splits(folder, jobs, records, about=about, license=reader.LICENSE)
        write_data_report(folder, checked, decision, given, license=reader.LICENSE, terms=reader.TERMS, example=example)
    files = {name: entries[names[name]] for name in names}
    manifest = {"version": MANIFEST_VERSION, "dataset": given["dataset"], "arguments": given, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return folder


def _finished(example: JudgeExample, split: str, decision: Decision) -> JudgeExample:
    """The record as written: with its split, and with its label if that waited for the median of train."""
    label, rule = example.label, example.label_rule
    if label.binary is None and example.task in decision.medians and example.kind == "pointwise_binary":
        median, count = decision.medians[example.task]
        label = label._replace(binary=int(label.score > median))
        rule = f"score > {median:.6g} (train_median of {count} records)"
    example = replace(example, split=split, label=label, label_rule=rule)
    check_example(example)
    return example


def _label_of(row: CheckedRecord, decision: Decision) -> dict[str, str]:
    """The readable features of an example."""
    return {"example_id": row.example_id, "task": row.task, "label": final_answer(row, decision)}
