"""What `mtjudge prepare` has done, for people: report.json, report.md and contact_sheet.png."""

import collections
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from mtjudge_jax.data.images import decode_image
from mtjudge_jax.prepare.checking import Checked
from mtjudge_jax.prepare.splits import Decision, Drop, Row, final_answer
from mtjudge_jax.records import JudgeExample

SHOWN = 5  # ids a reason
LOW, HIGH = 0.3, 0.7  # share of positive labels outside which it is said
ENOUGH = 20  # labels to say it of
PICTURES, COLUMNS, CELL, CAPTION = 24, 6, 180, 40
GAP = 16  # pixels between the records of the contact sheet; less than that is between the two pictures of a pair


def write_report(
    folder: Path,
    checked: Checked,
    decision: Decision,
    arguments: dict,
    *,
    license: str,
    terms: str,
    example: Callable[[Row, str], JudgeExample],
) -> dict:
    """Writes the three files; returns what report.json holds."""
    kept = [(row, split) for row, split in zip(checked.rows, decision.split, strict=True) if split]
    facts = facts_of(checked, decision, kept, arguments, license=license, terms=terms)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(facts), encoding="utf-8", errors="replace")
    contact_sheet(kept, decision, example, words_of(arguments["options"])).save(folder / "contact_sheet.png")
    return facts


def facts_of(
    checked: Checked,
    decision: Decision,
    kept: Sequence[tuple[Row, str]],
    arguments: dict,
    *,
    license: str,
    terms: str,
) -> dict:
    balance: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    groups: dict[str, set[str]] = collections.defaultdict(set)
    for row, split in kept:
        balance[f"{split}/{row.task}"][final_answer(row, decision)] += 1
        groups[f"{split}/{row.task}"].add(row.group)
    sizes = collections.Counter(f"{width}x{height}" for row, _ in kept for width, height in row.sizes)
    pixels = sorted(width * height for row, _ in kept for width, height in row.sizes)
    partly = [f"Only the first {arguments['limit']} records were read (--limit)."] if arguments["limit"] else []
    return {
        "arguments": arguments,
        "records_read": checked.read,
        "records_written": len(kept),
        "license": license,
        "terms": terms,
        "terms_of_records": dict(collections.Counter(row.terms for row, _ in kept)),
        "licenses_of_records": dict(collections.Counter(row.license or "none" for row, _ in kept)),
        "unusable": reasons_of(checked.bad),
        "left_out": reasons_of(decision.drops),
        "labels": {name: dict(sorted(balance[name].items())) for name in sorted(balance)},
        "groups": {name: len(groups[name]) for name in sorted(groups)},
        "medians": {task: {"value": value, "train_records": count} for task, (value, count) in decision.medians.items()},
        "images": {
            "different": len({name for row, _ in kept for name in row.files}),
            "smallest_pixels": pixels[0] if pixels else 0,
            "median_pixels": pixels[len(pixels) // 2] if pixels else 0,
            "largest_pixels": pixels[-1] if pixels else 0,
            "commonest_sizes": dict(sizes.most_common(5)),
        },
        "notes": [*partly, *decision.notes, *imbalances(balance)],
    }


def reasons_of(drops: Sequence[Drop]) -> dict[str, dict]:
    """reason -> how many, and of the first what was said."""
    found: dict[str, list[str]] = {}
    for drop in drops:
        text = drop.detail if not drop.example_id or drop.example_id in drop.detail else f"{drop.example_id}: {drop.detail}"
        found.setdefault(drop.reason, []).append(text)
    return {reason: {"count": len(texts), "first": texts[:SHOWN]} for reason, texts in sorted(found.items())}


def imbalances(balance: dict[str, collections.Counter]) -> list[str]:
    """A line for each binary task and split with enough labels whose positive share is outside 30 to 70 %."""
    notes = []
    for name, counts in sorted(balance.items()):
        if not counts.keys() <= {"0", "1"} or counts.total() < ENOUGH:
            continue
        share = counts["1"] / counts.total()
        if not LOW <= share <= HIGH:
            notes.append(
                f"{name}: {share:.0%} of the labels are positive, outside {LOW:.0%} to {HIGH:.0%}: accuracy says little here, "
                "macro-F1 more; another threshold, if the reader has one, may fit better."
            )
    return notes


def markdown(facts: dict) -> str:
    arguments = facts["arguments"]
    licenses, terms = ("; ".join(list(facts[f"{name}_of_records"])[:SHOWN]) for name in ("licenses", "terms"))
    lines = [
        f"# {arguments['dataset']}: {facts['records_written']} of {facts['records_read']} records",
        "",
        f"Licence: {licenses}. Terms: {terms}. Split: {arguments['split']}, seed {arguments['seed']}. "
        f"From {arguments['source']}.",
        "",
        "| split/task | records | groups | labels |",
        "|---|---|---|---|",
    ]
    for name, counts in facts["labels"].items():
        lines.append(f"| {name} | {sum(counts.values())} | {facts['groups'][name]} | {labels_text(counts)} |")
    for task, median in facts["medians"].items():
        lines += ["", f"{task}: label 1 is score > {median['value']:.6g}, the median of {median['train_records']} train records."]
    for title, name in (("Unusable", "unusable"), ("Left out", "left_out")):
        total = sum(entry["count"] for entry in facts[name].values())
        lines += ["", f"## {title}: {total}", ""] if total else []
        for reason, entry in facts[name].items():
            lines.append(f"- {reason}: {entry['count']}")
            lines += [f"  - {one_line(text)}" for text in entry["first"]]
            lines += ["  - .."] if entry["count"] > len(entry["first"]) else []
    images = facts["images"]
    sizes = ", ".join(f"{size} ({count})" for size, count in images["commonest_sizes"].items())
    lines += ["", "## Images", ""]
    lines.append(
        f"{images['different']} different; pixels from {images['smallest_pixels']:,} to {images['largest_pixels']:,}, median "
        f"{images['median_pixels']:,}; commonest sizes: {sizes or 'none'}. Some are in contact_sheet.png."
    )
    if facts["notes"]:
        lines += ["", "## To know", "", *(f"- {note}" for note in facts["notes"])]
    return "\n".join(lines) + "\n"


def labels_text(counts: dict[str, int]) -> str:
    if len(counts) <= 4:
        return ", ".join(f"{name}: {count}" for name, count in counts.items())
    return f"{len(counts)} different"


def one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def words_of(options: Mapping[str, str]) -> dict[str, str]:
    """The first words that the user's own data have for the labels 1 and 0. {"positive": "pass,ok"} -> {"1": "pass"}"""
    given = {label: options.get(name, "") for label, name in (("1", "positive"), ("0", "negative"))}
    return {label: words.split(",")[0].strip() for label, words in given.items() if words}


def contact_sheet(
    kept: Sequence[tuple[Row, str]],
    decision: Decision,
    example: Callable[[Row, str], JudgeExample],
    words: Mapping[str, str],
) -> Image.Image:
    """Some records with their images, task, split and label; each task and label has its turn, which ones is drawn by id."""
    pools: dict[tuple[str, str], list] = collections.defaultdict(list)
    for row, split in sorted(kept, key=lambda item: hashlib.sha256(item[0].example_id.encode()).digest()):
        if row.files:
            pools[row.task, final_answer(row, decision)].append((row, split))
    chosen = []
    while len(chosen) < PICTURES and any(pools.values()):
        for name in sorted(pools):
            if pools[name] and len(chosen) < PICTURES:
                chosen.append(pools[name].pop(0))
    rows = max(1, -(-len(chosen) // COLUMNS))
    wide, high = CELL + GAP, CELL + CAPTION
    sheet = Image.new("RGB", (COLUMNS * wide, rows * high), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, split) in enumerate(chosen):
        x, y = number % COLUMNS * wide, number // COLUMNS * high
        images = example(row, split).images[:3]
        for at, image in enumerate(images):
            small = Image.fromarray(decode_image(image))
            small.thumbnail((CELL // len(images) - 4, CELL - 4))
            sheet.paste(small, (x + at * (CELL // len(images)) + 2, y + 2))
        label = final_answer(row, decision)
        draw.text((x + 4, y + CELL), f"{split}/{row.task}"[:28], "black")
        draw.text((x + 4, y + CELL + 16), f"label {words.get(label, label)}"[:28], "black")
    return sheet
