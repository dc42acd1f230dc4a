"""Which record goes into which split, and which into none: groups, leaks, doubles, terms, medians.

Pure functions of what is known of the records.
"""

import collections
import hashlib
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mtjudge_jax.errors import UserError

MODES = ("native", "grouped", "paper_random")
EVALUATION = ("test", "ood")
STRICTEST = ("test", "ood", "val", "train")  # what is in one of these is not in a later one
FEW_UNITS = 20  # of one kind; fewer are dealt with those of other kinds
NOT_FOR_TRAINING = ("eval_only", "gated")


class Row(NamedTuple):
    """What is known of one checked record. Hashes are hex, cut to 128 bits."""

    place: int  # in the reader's order
    example_id: str
    task: str
    native: str  # split given by the source, "" where none is
    group: str
    terms: str
    license: str
    answer: str  # the label as text: "1", "winner 0", "score 3.5", "ranks 1 2 2"
    score: float | None
    median: bool  # the binary label is still to be made, from the median of train
    asked: str  # hash of all that is asked and shown, the same for every order of the candidates
    told: str  # the label as text, in the order that `asked` is of
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
    """split: of each row, "" where it is left out; medians: (value, number of train records) a task."""

    split: list[str]
    drops: list[Drop]
    medians: dict[str, tuple[float, int]]
    notes: list[str]


def final_answer(row: Row, decision: Decision) -> str:
    """The label as text, also where it waited for the median."""
    return str(int(row.score > decision.medians[row.task][0])) if row.median else row.answer


def decide(
    rows: Sequence[Row], *, mode: str, val: float, test: float, seed: int, allow_terms: Sequence[str], margin: float = 0.0
) -> Decision:
    """Splits, then takes out what the terms forbid, doubles, leaks and what lies within `margin` of a train median."""
    components = join(rows)
    natives = [row.native if mode == "native" else "" for row in rows]
    closed = [row.terms in NOT_FOR_TRAINING and row.terms not in allow_terms for row in rows]
    split, notes = assign(rows, natives, components, closed, mode=mode, val=val, test=test, seed=seed)
    drops: list[Drop] = []
    _keep_terms(rows, natives, closed, split, drops, notes)
    _drop_doubles(rows, split, drops, notes)
    _part_leaks(rows, split, drops, notes, count_only=mode == "paper_random")
    medians = _medians(rows, split, drops, margin)
    for terms in allow_terms:
        count = sum(row.terms == terms and name in ("train", "val") for row, name in zip(rows, split, strict=True))
        if not count:
            continue
        notes.append(f"{count} records of terms {terms} are in train or val, because --allow_terms={terms} said so.")
    largest = max(collections.Counter(components).values(), default=0)
    if len(rows) >= 100 and largest > len(rows) / 10:
        notes.append(f"One group has {largest} of {len(rows)} records, joined by prompts or images: a split by group is coarse.")
    return Decision(split, drops, medians, notes)


def keys(row: Row) -> list[str]:
    """What two splits must not share: the group and each image, as a file and as pixels."""
    return [f"group {row.group}", *(f"file {name}" for name in row.files), *(f"pixels {name}" for name in row.pixels)]


def join(rows: Sequence[Row]) -> list[int]:
    """The component of each row: its first row's index. Rows that share a key, also by way of others, are in one."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        for key in keys(row):
            a, b = root(i), root(first.setdefault(key, i))
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(rows))]


def assign(
    rows: Sequence[Row],
    natives: Sequence[str],
    components: Sequence[int],
    closed: Sequence[bool],
    *,
    mode: str,
    val: float,
    test: float,
    seed: int,
) -> tuple[list[str], list[str]]:
    """A split for each row, and what is to be said about it.

    native: what the source says; rows without a split are dealt out by group, and of a source with train but no val (or no
    test) these are cut from train, by group, but not from rows whose terms are closed to training. grouped: all by group.
    paper_random: each (prompt, images) for itself, as the paper's sizes suggest: 6049 -> 4839, 605, 605.
    """
    shares, tasks = {"test": test, "val": val}, [row.task for row in rows]
    if mode == "paper_random":
        units = [f"{row.group} {' '.join(row.pixels)}" for row in rows]
        note = "Split at random, as the paper's sizes suggest: prompts and images may be in two splits."
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
            notes.append(f"The source has no {' and no '.join(shares)} split: cut from train, by group.")
    dealt = deal([components[i] for i in free], [tasks[i] for i in free], shares, seed)
    for i, name in zip(free, dealt, strict=True):
        split[i] = name
    return split, notes


def deal(units: Sequence[int | str], tasks: Sequence[str], shares: dict[str, float], seed: int) -> list[str]:
    """A split for each row: the rows of a unit go together, and each kind of unit (the tasks that it has) is dealt by itself.

    So every task gets its shares. Units in an order drawn by `seed` fill each share as long as they fit, the rest is train.
    """
    size, tasks_of = collections.Counter(units), collections.defaultdict(set)
    for unit, task in zip(units, tasks, strict=True):
        tasks_of[unit].add(task)
    kinds = {unit: " ".join(sorted(found)) for unit, found in tasks_of.items()}
    often = collections.Counter(kinds.values())
    kinds = {unit: kind if often[kind] >= FEW_UNITS else "" for unit, kind in kinds.items()}
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
    rows: Sequence[Row],
    natives: Sequence[str],
    closed: Sequence[bool],
    split: list[str],
    drops: list[Drop],
    notes: list[str],
) -> None:
    """What may only be evaluated on is put into test where the source gave no split, and is else left out of train and val."""
    moved: collections.Counter[str] = collections.Counter()
    for i, row in enumerate(rows):
        if closed[i] and not natives[i]:
            split[i] = "test"
            moved[row.terms] += 1
        elif closed[i] and split[i] not in EVALUATION:
            allow = f"--allow_terms={row.terms} keeps it"
            text = f"terms {row.terms} allow evaluation only, the source has it in {natives[i]}; {allow}"
            drops.append(Drop("terms", text, row.example_id))
            split[i] = ""
    for terms, count in moved.items():
        notes.append(f"{count} records of terms {terms} are in test only; --allow_terms={terms} would split them.")


def _in_order(rows: Sequence[Row], split: Sequence[str]) -> Iterable[int]:
    """Indices of the kept rows, the strictest split first."""
    return sorted((i for i, name in enumerate(split) if name), key=lambda i: (STRICTEST.index(split[i]), rows[i].place))


def _drop_doubles(rows: Sequence[Row], split: list[str], drops: list[Drop], notes: list[str]) -> None:
    """Of equal questions about equal pixels, in any order of the candidates, that in the strictest split stays, or the first."""
    differing = 0
    first: dict[str, int] = {}
    for i in _in_order(rows, split):
        row = rows[i]
        kept = first.setdefault(row.asked, i)
        if kept == i:
            continue
        differing += rows[kept].told != row.told
        turned = " with its candidates in another order" if rows[kept].pixels != row.pixels else ""
        other = "" if rows[kept].told == row.told else f", whose label is {rows[kept].told}, not {row.told}"
        reason = "duplicate" if split[kept] == split[i] else "duplicate_across_splits"
        text = f"in {split[i]}, the same question as {rows[kept].example_id} in {split[kept]}{turned}{other}"
        drops.append(Drop(reason, text, row.example_id))
        split[i] = ""
    if differing:
        notes.append(f"{differing} of the duplicates left out have another label than the one that stays: the labels disagree.")


def _part_leaks(rows: Sequence[Row], split: list[str], drops: list[Drop], notes: list[str], *, count_only: bool) -> None:
    """Takes out of train, then of val, what shares a prompt or an image with a stricter split."""
    seen: dict[str, int] = {}
    leaks = 0
    for name in STRICTEST:
        members = [i for i, of_row in enumerate(split) if of_row == name]
        for i in members:
            shared = next((key for key in keys(rows[i]) if key in seen), None)
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
                for key in keys(rows[i]):
                    seen.setdefault(key, i)
    if leaks and count_only:
        notes.append(f"{leaks} records share a prompt or an image with a record of another split; --split=grouped parts them.")


def _medians(rows: Sequence[Row], split: list[str], drops: list[Drop], margin: float) -> dict[str, tuple[float, int]]:
    """Of tasks whose labels need one: the median of the train scores. Train rows within `margin` of it are left out."""
    medians = {}
    for task in sorted({row.task for row in rows if row.median}):
        members = [i for i, row in enumerate(rows) if row.task == task and row.median and split[i] == "train"]
        if not members:
            raise UserError(f"{task}: its labels need the median of train, train has no record of it: give a fixed threshold")
        median = statistics.median(rows[i].score for i in members)
        medians[task] = (median, len(members))
        for i in members if margin > 0 else ():
            if abs(rows[i].score - median) <= margin:
                text = f"score {rows[i].score:g} is within {margin:g} of the median {median:g}"
                drops.append(Drop("margin", text, rows[i].example_id))
                split[i] = ""
    return medians
