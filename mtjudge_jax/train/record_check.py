"""A look at the training records before the first step: what cannot be used, what does not fit, what is not shown."""

from typing import NamedTuple

import numpy as np

from mtjudge_jax.config import Config
from mtjudge_jax.data.bad_rows import REASONS_OF_CONFIG
from mtjudge_jax.data.image_config import limits_of
from mtjudge_jax.data.images import image_size, tokens_of
from mtjudge_jax.data.pipeline import open_split
from mtjudge_jax.data.rows import Row, RowFormat, to_row
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.paths import AnyPath
from mtjudge_jax.records import LABEL_WORD, BadRecord, JudgeExample, holds_in_one_order
from mtjudge_jax.tasks import Task

LOOKED_AT = 24  # training records per task, spread evenly
_SAME_BY_CHANCE = 4  # records of a task that may have the same right answer without a warning
_NEVER_FIT = (*REASONS_OF_CONFIG, "no_pair")  # reasons of which a few records say that many follow
_SURELY = 3  # records that do not fit, and times the allowed share: with so many the run would stop, as far as one can tell


class _Looked(NamedTuple):
    """Some training records of a task, and their rows."""

    name: str
    count: int  # of the task
    records: list[JudgeExample | BadRecord]
    rows: list[Row]

    @property
    def errors(self) -> list[str]:
        return [str(row["error"]) for row in self.rows if row["error"]]

    @property
    def good(self) -> list[tuple[JudgeExample, Row]]:
        return [(record, row) for record, row in zip(self.records, self.rows, strict=True) if not row["error"]]


class RecordCheck(NamedTuple):
    """What a look at some records found."""

    notes: list[str]  # to print: the numbers of records, the longest row, what to mind
    sizes: list[tuple[int, int]]  # tokens and patches of their prompts


def check_records(cfg: Config, folder: AnyPath, fmt: RowFormat) -> RecordCheck:
    """Makes the rows of some training records per task.

    Raises ConfigError that names each task of which none, or surely too few, can be used: their records would be skipped, and the
    run would end late, or without having trained the task.
    """
    looked = [_look(folder, name, fmt) for name in cfg.data.tasks]
    _refuse_reversed(looked, fmt)
    said = _refuse(looked, folder, cfg.data.max_bad_share)
    rows = [row for one in looked for _, row in one.good]
    counts = ", ".join(f"{one.name} {one.count:,}" for one in looked)
    notes = [f"training records: {counts}", _longest(rows, fmt), *said, *_smaller(looked, fmt), *_warnings(looked, cfg, fmt)]
    return RecordCheck(notes, [(int(row["valid"].sum()), int((row["patch_segment"] > 0).sum())) for row in rows])


def _look(folder: AnyPath, name: str, fmt: RowFormat) -> _Looked:
    source = open_split(folder, "train", name)
    places = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT, dtype=int)).tolist()
    records = [source[place] for place in places]
    return _Looked(name, len(source), records, [to_row(record, name, fmt) for record in records])


def _refuse(looked: list[_Looked], folder: AnyPath, limit: float) -> list[str]:
    """Warnings of records that do not fit the config's sizes; raises ConfigError where the run would surely end of them."""
    none = [
        f"no training record of {one.name} can be used ({_of(one)} checked): {one.errors[0]}"
        for one in looked
        if len(one.errors) == len(one.rows)
    ]
    if none:
        raise ConfigError(f"{folder}: {'; '.join(none)}")
    large = {one.name: [e for e in one.errors if e.partition(":")[0] in _NEVER_FIT] for one in looked}
    some = [f"{len(large[one.name])} of {_of(one)} of {one.name} ({large[one.name][0]})" for one in looked if large[one.name]]
    bad, every = sum(map(len, large.values())), sum(len(one.rows) for one in looked)
    text = f"of the training records checked, {'; '.join(some)} cannot be used; above {limit:.1%} of all the run stops"
    if bad >= _SURELY and bad > _SURELY * limit * every:
        raise ConfigError(f"{folder}: {text}")
    return [f"warning: {text}"] if some else []


def _refuse_reversed(looked: list[_Looked], fmt: RowFormat) -> None:
    """Raises ConfigError for a task whose labels are the words of the rows the wrong way round: it would learn the opposite."""
    for one in looked:
        labels = [label.lower() for label in fmt.tasks[one.name].labels]
        for record in one.records:
            rule = "" if isinstance(record, BadRecord) else record.label_rule
            word = rule.removeprefix(LABEL_WORD) if rule.startswith(LABEL_WORD) else ""
            if len(labels) == 2 and word in labels and labels.index(word) != record.label.binary:
                given = fmt.tasks[one.name].labels
                raise ConfigError(
                    f"data.custom_tasks: {one.name!r}: labels = {given} are the wrong way round: {word!r} of the rows is class "
                    f"{record.label.binary} (--option=positive names class 1), and labels name class 0, then class 1. Write "
                    f'"labels": ("{given[1]}", "{given[0]}")'
                )


def _hides(task: Task) -> bool:
    """Whether it is a task of the user's own that shows no instruction; those of the package hide some on purpose."""
    return bool(task.entry) and not task.shows_instruction


def _of(one: _Looked) -> str:
    return f"{len(one.rows)} of {one.count}" if len(one.rows) < one.count else str(one.count)


def _smaller(looked: list[_Looked], fmt: RowFormat) -> list[str]:
    """A note of pictures that are smaller than the limits of the config alone would make them."""
    smaller = pictures = 0
    for record, row in (pair for one in looked for pair in one.good):
        cfg, segment = limits_of(fmt.image_cfg, fmt.tasks[record.task]), row["patch_segment"]
        whole = sorted(tokens_of(image_size(image), cfg) for image in record.images)
        shown = sorted(int((segment == number).sum()) // cfg.merge**2 for number in range(1, len(whole) + 1))
        smaller += sum(mine < wanted for mine, wanted in zip(shown, whole, strict=True))
        pictures += len(whole)
    if not smaller:
        return []
    return [
        f"{smaller} of {pictures} pictures checked were made smaller so that their prompts fit data.patches and "
        "data.prompt_tokens: larger values keep more of them, a lower data.max_pixels saves time"
    ]


def _warnings(looked: list[_Looked], cfg: Config, fmt: RowFormat) -> list[str]:
    readable = {one.name: [record for record in one.records if not isinstance(record, BadRecord)] for one in looked}
    said = []
    if hidden := [
        one.name
        for one in looked
        if _hides(fmt.tasks[one.name]) and any(record.instruction.strip() for record in readable[one.name])
    ]:
        said.append(
            f"warning: {', '.join(hidden)}: the records have an instruction, which the task does not show. To show it, name it "
            'in the entry of data.custom_tasks, e.g. "instruction": "Description"'
        )
    alone = [name for name, records in readable.items() if not any(record.rationale.strip() for record in records)]
    if cfg.stage == "sft" and cfg.sft.target == "rationale" and alone:
        said.append(
            f"warning: {', '.join(alone)}: no record checked has gold reasoning (rationale), so SFT teaches the verdict alone. "
            "GRPO from that model will earn no reward, because it pays only for reasoning before the verdict. `mtjudge sample` "
            "makes reasonings from labels and the answers of an instruction-tuned model"
        )
    one_sided = [
        one.name
        for one in looked
        if len(one.good) > _SAME_BY_CHANCE
        and len({record.label for record in readable[one.name] if holds_in_one_order(record, fmt.taught)}) == 1
    ]
    if one_sided:
        texts = "gold reasoning (rationale)" if fmt.taught == ("rationale",) else " or ".join(fmt.taught) + " answer"
        said.append(
            f"warning: {', '.join(one_sided)}: all records checked have the same right answer, and {cfg.stage.upper()} shows "
            f"them in the order stored, because their {texts} does not name the candidates by {{A}}, {{B}}: it teaches the "
            f"place. Write {{A}}, {{B}} in {' and '.join(fmt.taught)}, or swap the candidates of half of the records"
        )
    return said


def _longest(rows: list[Row], fmt: RowFormat) -> str:
    tokens = max(int(row["valid"].sum()) for row in rows)
    patches = max(int((row["patch_segment"] > 0).sum()) for row in rows)
    limits = f"the limits are {fmt.prompt_tokens:,} (data.prompt_tokens) and {fmt.patch_count:,} (data.patches)"
    text = f"longest of {len(rows)} prompts checked: {tokens:,} tokens and {patches:,} patches, {limits}"
    if fmt.target is not None:
        answer = max(int(row["target_mask"].sum(-1).max()) for row in rows)
        text += f"; longest answer: {answer:,} tokens, the limit is {fmt.completion_tokens:,} (rollout.completion_tokens)"
    return text
