"""The report of `mtjudge prepare`: report.json, report.md and contact_sheet.png."""

import collections
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mtjudge_jax.data.image_config import ImageConfig
from mtjudge_jax.data.images import decode_image, tokens_of
from mtjudge_jax.prepare.checking import Checked
from mtjudge_jax.prepare.readers.user_rows import label_words
from mtjudge_jax.prepare.splits import CheckedRecord, Decision, Drop, final_answer, label_text
from mtjudge_jax.records import JudgeExample

_SHOWN = 5  # ids per reason
_COUNTED = 12  # labels of a split and task; of more only the number is shown
_LOW, _HIGH = 0.3, 0.7  # shares of positive labels outside this range are noted
_ENOUGH = 20  # labels; fewer are not noted
_PICTURES, _COLUMNS, _CELL, _CAPTION = 24, 6, 180, 40
_QWEN = ImageConfig(16, 2, 65_536, 16_777_216, (0.5,) * 3, (0.5,) * 3)  # as Qwen3-VL was published
_TOKEN = _QWEN.factor**2  # pixels
_LIMITS = (262_144, 1_048_576, 4_194_304)  # of data.max_pixels; the second is a picture alone in the default data.patches
_GAP = 16  # pixels between the records of the contact sheet; the two pictures of a pair are closer


def write_data_report(
    folder: Path,
    checked: Checked,
    decision: Decision,
    arguments: dict,
    *,
    license: str,
    terms: str,
    example: Callable[[CheckedRecord, str], JudgeExample],
) -> dict:
    """Writes the three files; returns what report.json holds."""
    kept = [(row, split) for row, split in zip(checked.rows, decision.split, strict=True) if split]
    facts = _facts_of(checked, decision, kept, arguments, license=license, terms=terms)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(facts, indent=1) + "\n")
    words = label_words(arguments["dataset"], arguments["options"])
    (folder / "report.md").write_text(_markdown(facts, words), encoding="utf-8", errors="replace")
    _contact_sheet(kept, decision, example, words).save(folder / "contact_sheet.png")
    return facts


def _facts_of(
    checked: Checked, decision: Decision, kept: Sequence[tuple[CheckedRecord, str]], arguments: dict, *, license: str, terms: str
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
        "split": decision.how,
        "license": license,
        "terms": terms,
        "terms_of_records": dict(collections.Counter(row.terms for row, _ in kept)),
        "licenses_of_records": dict(collections.Counter(row.license or "none" for row, _ in kept)),
        "unusable": _reasons_of(checked.bad),
        "left_out": _reasons_of(decision.drops),
        "labels": {name: dict(sorted(balance[name].items())) for name in sorted(balance)},
        "groups": {name: len(groups[name]) for name in sorted(groups)},
        "medians": {task: {"value": value, "train_records": count} for task, (value, count) in decision.medians.items()},
        "images": _tokens_of_all(kept) | {
            "different": len({name for row, _ in kept for name in row.files}),
            "smallest_pixels": pixels[0] if pixels else 0,
            "median_pixels": pixels[len(pixels) // 2] if pixels else 0,
            "largest_pixels": pixels[-1] if pixels else 0,
            "commonest_sizes": dict(sizes.most_common(5)),
        },
        "notes": [*partly, *decision.notes, *_imbalances(balance)],
    }


def _tokens_of_all(kept: Sequence[tuple[CheckedRecord, str]]) -> dict[str, Any]:
    """Image tokens of the pictures at Qwen3-VL's own limits, and the share that a lower limit makes smaller."""
    counts = collections.Counter(size for row, _ in kept for size in row.sizes)
    tokens = collections.Counter()
    for (width, height), count in counts.items():
        tokens[tokens_of((height, width), _QWEN)] += count
    ordered, total = sorted(tokens.items()), tokens.total()

    def quantile(share: float) -> int:
        passed = 0
        for value, count in ordered:
            passed += count
            if passed >= share * total:
                return value
        return 0

    above = {limit: sum(count for value, count in ordered if value * _TOKEN > limit) / max(1, total) for limit in _LIMITS}
    return {
        "tokens": {"median": quantile(0.5), "nine_tenths": quantile(0.9), "largest": ordered[-1][0] if ordered else 0},
        "made_smaller_at": {str(limit): round(share, 4) for limit, share in above.items()},
    }


def _reasons_of(drops: Sequence[Drop]) -> dict[str, dict]:
    """For each reason the number of records, and the text of the first ones."""
    found: dict[str, list[str]] = {}
    for drop in drops:
        text = drop.detail if not drop.example_id or drop.example_id in drop.detail else f"{drop.example_id}: {drop.detail}"
        found.setdefault(drop.reason, []).append(text)
    return {reason: {"count": len(texts), "first": texts[:_SHOWN]} for reason, texts in sorted(found.items())}


def _imbalances(balance: dict[str, collections.Counter]) -> list[str]:
    """A line for each binary task and split with enough labels and a positive share outside 30 to 70 %."""
    notes = []
    for name, counts in sorted(balance.items()):
        if not counts.keys() <= {"0", "1"} or counts.total() < _ENOUGH:
            continue
        share = counts["1"] / counts.total()
        if not _LOW <= share <= _HIGH:
            notes.append(
                f"{name}: {share:.0%} of the labels are positive, outside {_LOW:.0%} to {_HIGH:.0%}: prefer macro-F1 to "
                "accuracy here, or choose another threshold if the reader has one."
            )
    return notes


def _markdown(facts: dict, words: Mapping[str, str]) -> str:
    arguments = facts["arguments"]
    licenses, terms = ("; ".join(list(facts[f"{name}_of_records"])[:_SHOWN]) for name in ("licenses", "terms"))
    lines = [
        f"# {arguments['dataset']}: {facts['records_written']} of {facts['records_read']} records",
        "",
        f"Licence: {licenses}. Terms: {terms}. Split: {facts['split']}; seed {arguments['seed']}. From {arguments['source']}.",
        "",
        "| split/task | records | groups | labels |",
        "|---|---|---|---|",
    ]
    for name, counts in facts["labels"].items():
        lines.append(f"| {name} | {sum(counts.values())} | {facts['groups'][name]} | {_labels_text(counts, words)} |")
    for task, median in facts["medians"].items():
        lines += ["", f"{task}: label 1 is score > {median['value']:.6g}, the median of {median['train_records']} train records."]
    for title, name in (("Unusable", "unusable"), ("Dropped", "left_out")):
        total = sum(entry["count"] for entry in facts[name].values())
        lines += ["", f"## {title}: {total}", ""] if total else []
        for reason, entry in facts[name].items():
            lines.append(f"- {reason}: {entry['count']}")
            lines += [f"  - {' '.join(text.split())[:300]}" for text in entry["first"]]
            lines += ["  - .."] if entry["count"] > len(entry["first"]) else []
    images = facts["images"]
    sizes = ", ".join(f"{size} ({count})" for size, count in images["commonest_sizes"].items())
    lines += ["", "## Images", ""]
    lines.append(
        f"{images['different']} different; pixels from {images['smallest_pixels']:,} to {images['largest_pixels']:,}, median "
        f"{images['median_pixels']:,}; most common sizes: {sizes or 'none'}. contact_sheet.png shows some of them."
    )
    tokens, smaller = images["tokens"], images["made_smaller_at"]
    if images["different"]:
        at = ", ".join(f"{share:.0%} at {int(limit):,} ({int(limit) // _TOKEN:,} tokens)" for limit, share in smaller.items())
        lines.append(
            f"Image tokens of a picture as published Qwen3-VL resizes it: median {tokens['median']:,}, nine of ten at most "
            f"{tokens['nine_tenths']:,}, largest {tokens['largest']:,}. Made smaller by data.max_pixels: {at}. "
            "Four patches of data.patches are a token."
        )
    if facts["notes"]:
        lines += ["", "## Notes", "", *(f"- {note}" for note in facts["notes"])]
    return "\n".join(lines) + "\n"


def _labels_text(counts: dict[str, int], words: Mapping[str, str]) -> str:
    """ "no: 40, yes: 41"; "1: 8, 2: 9, 3: 11" for grades; "98 different, 1.5 to 4.75" for many."""
    scores = {name: float(name.removeprefix("score ")) for name in counts if name.startswith("score ")}
    if len(counts) > _COUNTED:
        return f"{len(counts)} different" + (f", {min(scores.values()):g} to {max(scores.values()):g}" if scores else "")
    ordered = sorted(counts, key=lambda name: (scores.get(name, 0), label_text(name, words)))
    return ", ".join(f"{label_text(name, words)}: {counts[name]}" for name in ordered)


def _contact_sheet(
    kept: Sequence[tuple[CheckedRecord, str]],
    decision: Decision,
    example: Callable[[CheckedRecord, str], JudgeExample],
    words: Mapping[str, str],
) -> Image.Image:
    """Some records with their images, split, task and label: each task and label in turn, chosen by a hash of the id."""
    pools: dict[tuple[str, str], list] = collections.defaultdict(list)
    for row, split in sorted(kept, key=lambda item: hashlib.sha256(item[0].example_id.encode()).digest()):
        if row.files:
            pools[row.task, final_answer(row, decision)].append((row, split))
    chosen = []
    while len(chosen) < _PICTURES and any(pools.values()):
        for name in sorted(pools):
            if pools[name] and len(chosen) < _PICTURES:
                chosen.append(pools[name].pop(0))
    rows = max(1, -(-len(chosen) // _COLUMNS))
    wide, high = _CELL + _GAP, _CELL + _CAPTION
    sheet = Image.new("RGB", (_COLUMNS * wide, rows * high), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, split) in enumerate(chosen):
        x, y = number % _COLUMNS * wide, number // _COLUMNS * high
        images = example(row, split).images[:3]
        for at, image in enumerate(images):
            small = Image.fromarray(decode_image(image))
            small.thumbnail((_CELL // len(images) - 4, _CELL - 4))
            sheet.paste(small, (x + at * (_CELL // len(images)) + 2, y + 2))
        label = final_answer(row, decision)
        draw.text((x + 4, y + _CELL), f"{split}/{row.task}"[:28], "black")
        draw.text((x + 4, y + _CELL + 16), f"label {label_text(label, words)}"[:28], "black")
    return sheet
