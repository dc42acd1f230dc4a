"""Which record goes into which split, and which into none: groups, leaks, duplicates, terms, medians.

Pure functions of what is known about the records.
"""

import collections
import hashlib
import statistics
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mtjudge_jax.errors import UserError

MAX_BAD = 0.05  # share of unusable records
_MISSED = 5  # records that a split should have
MODES = ("native", "grouped", "paper_random")
_EVALUATION = ("test", "ood")
STRICTEST = ("test", "ood", "val", "train")  # a record in one of these is not in a later one
_FEW_UNITS = 20  # of one kind; fewer are dealt together with other kinds
NOT_FOR_TRAINING = ("eval_only", "gated")


class CheckedRecord(NamedTuple):
    """What is known about one checked record. Hashes are hex, cut to 128 bits."""

    place: int  # in the reader's order
    example_id: str
    task: str
    native: str  # the source's split, or ""
    group: str
    terms: str
    license: str
    answer: str  # the label as text: "1", "winner 0", "score 3.5", "ranks 1 2 2"
    score: float | None
    median: bool  # the binary label waits for the median of train
    question: str  # hash of all that is asked and shown, the same for every order of the candidates
    canonical_answer: str  # the label as text, for the candidates in the order that `question` uses
    files: tuple[str, ...]  # hash of each image's bytes
    pixels: tuple[str, ...]  # hash of each image's decoded pixels
    sizes: tuple[tuple[int, int], ...]  # width, height
    start: int  # bytes of the packed record in the spool
    stop: int


class Drop(NamedTuple):
    reason: str
    detail: str
    example_id: str


class Decision(NamedTuple):
    """split: of each record, "" if it is dropped; medians: (value, number of train records) by task; how: for the report."""

    split: list[str]
    drops: list[Drop]
    medians: dict[str, tuple[float, int]]
    notes: list[str]
    how: str


def final_answer(row: CheckedRecord, decision: Decision) -> str:
    """The label as text, including one that waited for the median."""
    return str(int(row.score > decision.medians[row.task][0])) if row.median else row.answer


def label_text(answer: str, words: Mapping[str, str]) -> str:
    """A label as a user writes it: "winner 0" -> "A", "winner -1" -> "tie", "score 3.5" -> "3.5", "ranks 2 1 2" -> "B > A = C".

    words: those of the binary labels "1" and "0", if they have any.
    """
    kind, _, value = answer.partition(" ")
    if kind == "winner":
        return {"0": "A", "1": "B"}.get(value, "tie")
    if kind == "score":
        return value
    if kind != "ranks":
        return words.get(answer, answer)
    letters: dict[int, list[str]] = {}
    for letter, rank in zip(string.ascii_uppercase, map(int, value.split()), strict=False):
        letters.setdefault(rank, []).append(letter)
    return " > ".join(" = ".join(letters[rank]) for rank in sorted(letters))


def decide(
    rows: Sequence[CheckedRecord],
    *,
    mode: str,
    val: float,
    test: float,
    seed: int,
    allow_terms: Sequence[str],
    margin: float = 0.0,
) -> Decision:
    """Splits, then drops what the terms forbid, duplicates, leaks, and train scores within `margin` of the median."""
    components = _join(rows)
    natives = [row.native if mode == "native" else "" for row in rows]
    closed = [row.terms in NOT_FOR_TRAINING and row.terms not in allow_terms for row in rows]
    split, notes = _assign(rows, natives, components, closed, mode=mode, val=val, test=test, seed=seed)
    drops: list[Drop] = []
    _keep_terms(rows, natives, closed, split, drops, notes)
    _drop_duplicates(rows, split, drops, notes)
    _drop_leaks(rows, split, drops, notes, count_only=mode == "paper_random")
    medians = _medians(rows, split, drops, margin)
    for terms in allow_terms:
        count = sum(row.terms == terms and name in ("train", "val") for row, name in zip(rows, split, strict=True))
        if count:
            notes.append(f"{count} records of terms {terms} are in train or val, as --allow_terms={terms} allows.")
    largest = max(collections.Counter(components).values(), default=0)
    if len(rows) >= 100 and largest > len(rows) / 10:
        notes.append(f"One group has {largest} of {len(rows)} records, joined by prompts or images: a split by group is coarse.")
    return Decision(split, drops, medians, notes, _how_split(natives, closed, mode=mode, val=val, test=test))


def _how_split(natives: Sequence[str], closed: Sequence[bool], *, mode: str, val: float, test: float) -> str:
    shares = ", ".join(f"{100 * share:.3g} % {name}" for name, share in (("train", 1 - val - test), ("val", val), ("test", test)))
    if mode == "paper_random":
        return f"at random, {shares}"
    dealt = sum(not native and not shut for native, shut in zip(natives, closed, strict=True))
    if dealt == len(natives):
        return f"by group, {shares}" if mode == "grouped" else f"by group, {shares}, as the source has no splits"
    of_source = "as in the source" if any(natives) else "test, as the terms allow no training"
    return f"{of_source}; the other {dealt} records by group, {shares}" if dealt else of_source


def _keys(row: CheckedRecord) -> list[str]:
    """What two splits must not share: the group, and each image by its bytes and by its pixels."""
    return [f"group {row.group}", *(f"file {name}" for name in row.files), *(f"pixels {name}" for name in row.pixels)]


def _join(rows: Sequence[CheckedRecord]) -> list[int]:
    """The component of each record, named by its first index. Records that share a key, directly or through others, share one."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        for key in _keys(row):
            a, b = root(i), root(first.setdefault(key, i))
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(rows))]


def _assign(
    rows: Sequence[CheckedRecord],
    natives: Sequence[str],
    components: Sequence[int],
    closed: Sequence[bool],
    *,
    mode: str,
    val: float,
    test: float,
    seed: int,
) -> tuple[list[str], list[str]]:
    """A split for each record, and notes for the report.

    native: the source's split. Records without one are dealt by group. If the source has train but no val (or no test), val
    (or test) is cut from train by group, but not from records whose terms forbid training. grouped: all by group.
    paper_random: each (prompt, images) by itself, as the paper's sizes suggest: 6049 -> 4839, 605, 605.
    """
    shares, tasks = {"test": test, "val": val}, [row.task for row in rows]
    if mode == "paper_random":
        units = [f"{row.group} {' '.join(row.pixels)}" for row in rows]
        note = "Split at random, as the paper's sizes suggest: a prompt or an image may be in two splits."
        return deal(units, tasks, shares, seed), [note]
    split, notes = list(natives), []
    free = [i for i, name in enumerate(split) if not name]
    if not free and "train" in split:
        shares = {name: share for name, share in shares.items() if share and name not in split}
        if "ood" in split:
            shares.pop("test", None)
        fixed = {components[i] for i, name in enumerate(split) if name != "train" or closed[i]}
        free = [i for i, component in enumerate(components) if component not in fixed] if shares else []
        if free:
            notes.append(f"The source has no {' and no '.join(shares)} split: cut from train by group.")
    dealt = deal([components[i] for i in free], [tasks[i] for i in free], shares, seed)
    for i, name in zip(free, dealt, strict=True):
        split[i] = name
    for task in dict.fromkeys(tasks[i] for i in free):
        own = [at for at, i in enumerate(free) if tasks[i] == task]
        _refuse_empty(task, [components[free[at]] for at in own], [dealt[at] for at in own], shares)
    return split, notes


def _refuse_empty(task: str, components: Sequence[int], dealt: Sequence[str], shares: dict[str, float]) -> None:
    """Raises UserError where a share of a task's records was asked for and groups are so large that none is in it."""
    empty = [name for name, share in shares.items() if round(share * len(dealt)) >= _MISSED and name not in dealt]
    if empty:
        sizes = collections.Counter(components)
        groups = f"{len(sizes)} group{'s' * (len(sizes) > 1)}"
        asked = ", ".join(f"--{name}={shares[name]:g}" for name in empty)
        raise UserError(
            f"no record of {task} is in {' or '.join(empty)} ({asked}): its {len(dealt)} records are {groups}, the "
            f"largest of {max(sizes.values())}, which stay together because they share a prompt (instruction) or a picture. "
            f"Give each row the field `group`, e.g. the name of its picture, or set "
            f"{' '.join(f'--{name}=0' for name in empty)}"
        )


def deal(units: Sequence[int | str], tasks: Sequence[str], shares: dict[str, float], seed: int) -> list[str]:
    """A split for each record. The records of a unit stay together, and each kind of unit (the set of its tasks) is dealt
    separately, so that every task gets its shares. Units in an order drawn by `seed` fill each share while they fit; the rest
    is train.
    """
    size, tasks_of = collections.Counter(units), collections.defaultdict(set)
    for unit, task in zip(units, tasks, strict=True):
        tasks_of[unit].add(task)
    kinds = {unit: " ".join(sorted(found)) for unit, found in tasks_of.items()}
    often = collections.Counter(kinds.values())
    kinds = {unit: kind if often[kind] >= _FEW_UNITS else "" for unit, kind in kinds.items()}
    total: collections.Counter[str] = collections.Counter()
    for unit, count in size.items():
        total[kinds[unit]] += count
    room = {(kind, name): round(count * share) for kind, count in total.items() for name, share in shares.items()}
    chosen = {}
    for unit in sorted(size, key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest()):
        kind = kinds[unit]
        chosen[unit] = next((name for name in shares if size[unit] <= room[kind, name]), "train")
        if chosen[unit] != "train":
            room[kind, chosen[unit]] -= size[unit]
    return [chosen[unit] for unit in units]


def _keep_terms(
    rows: Sequence[CheckedRecord],
    natives: Sequence[str],
    closed: Sequence[bool],
    split: list[str],
    drops: list[Drop],
    notes: list[str],
) -> None:
    """Evaluation-only records go to test if the source gives no split; otherwise they are dropped from train and val."""
    moved: collections.Counter[str] = collections.Counter()
    for i, row in enumerate(rows):
        if closed[i] and not natives[i]:
            split[i] = "test"
            moved[row.terms] += 1
        elif closed[i] and split[i] not in _EVALUATION:
            allow = f"--allow_terms={row.terms} keeps it"
            text = f"terms {row.terms} allow evaluation only, but the source has it in {natives[i]}; {allow}"
            drops.append(Drop("terms", text, row.example_id))
            split[i] = ""
    for terms, count in moved.items():
        notes.append(f"{count} records of terms {terms} are in test only; --allow_terms={terms} splits them.")


def _in_order(rows: Sequence[CheckedRecord], split: Sequence[str]) -> Iterable[int]:
    """Indices of the kept records, the strictest split first."""
    return sorted((i for i, name in enumerate(split) if name), key=lambda i: (STRICTEST.index(split[i]), rows[i].place))


def _drop_duplicates(rows: Sequence[CheckedRecord], split: list[str], drops: list[Drop], notes: list[str]) -> None:
    """Keeps one of equal questions about equal pixels, in any order of the candidates: in the strictest split, the first."""
    differing = 0
    first: dict[str, int] = {}
    for i in _in_order(rows, split):
        row = rows[i]
        kept = first.setdefault(row.question, i)
        if kept == i:
            continue
        order = " with its candidates in another order" if rows[kept].pixels != row.pixels else ""
        theirs, own = rows[kept].canonical_answer, row.canonical_answer
        differing += theirs != own
        other = "" if theirs == own else f", whose label is {label_text(theirs, {})}, not {label_text(own, {})}"
        if other and own.startswith(("winner", "ranks")):  # the letters of candidates in an order that nobody has seen
            other = ", whose label is another one"
        reason = "duplicate" if split[kept] == split[i] else "duplicate_across_splits"
        text = f"in {split[i]}, the same question as {rows[kept].example_id} in {split[kept]}{order}{other}"
        drops.append(Drop(reason, text, row.example_id))
        split[i] = ""
    if differing:
        notes.append(f"{differing} of the dropped duplicates have another label than the copy that is kept: the labels disagree.")


def _drop_leaks(
    rows: Sequence[CheckedRecord], split: list[str], drops: list[Drop], notes: list[str], *, count_only: bool
) -> None:
    """Drops from train, then from val, what shares a prompt or an image with a stricter split."""
    seen: dict[str, int] = {}
    leaks = 0
    for name in STRICTEST:
        members = [i for i, of_row in enumerate(split) if of_row == name]
        for i in members:
            shared = next((key for key in _keys(rows[i]) if key in seen), None)
            if shared is None:
                continue
            leaks += 1
            if not count_only:
                other, what = seen[shared], shared.partition(" ")[0]
                what = f"group {rows[i].group!r}" if what == "group" else "an image"
                text = f"in {name}, shares {what} with {rows[other].example_id} in {split[other]}"
                drops.append(Drop("leak", text, rows[i].example_id))
                split[i] = ""
        for i in members:
            if split[i]:
                for key in _keys(rows[i]):
                    seen.setdefault(key, i)
    if leaks and count_only:
        notes.append(f"{leaks} records share a prompt or an image with another split; --split=grouped separates them.")


def _medians(rows: Sequence[CheckedRecord], split: list[str], drops: list[Drop], margin: float) -> dict[str, tuple[float, int]]:
    """The median of the train scores, by task that needs one. Drops train records within `margin` of it."""
    medians = {}
    for task in sorted({row.task for row in rows if row.median}):
        members = [i for i, row in enumerate(rows) if row.task == task and row.median and split[i] == "train"]
        if not members:
            raise UserError(f"{task}: its labels need the median of train, but train has no record of it: give a fixed threshold")
        median = statistics.median(rows[i].score for i in members)
        medians[task] = (median, len(members))
        for i in members if margin > 0 else ():
            if abs(rows[i].score - median) <= margin:
                text = f"score {rows[i].score:g} is within {margin:g} of the median {median:g}"
                drops.append(Drop("margin", text, rows[i].example_id))
                split[i] = ""
    return medians
