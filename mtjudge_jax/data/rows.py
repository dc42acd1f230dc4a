"""One judging question to one row of a batch: tokens, M-RoPE positions and image patches in fixed shapes.

Axes: P prompt tokens (padded on the left), M patches (padded on the right), C completion tokens (padded on the right).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtjudge_jax.data.image_config import ImageConfig, limits_of
from mtjudge_jax.data.images import (
    TOO_LARGE,
    Budget,
    Patches,
    Room,
    check_room,
    decode_image,
    patch_coordinates,
    patchify,
    row_limits,
    tokens_of,
    unpatchify,
)
from mtjudge_jax.data.tokenizer import Tokenizer
from mtjudge_jax.records import BadRecord, JudgeExample, holds_in_one_order, swapped
from mtjudge_jax.tasks.answer import truth_of, write_truth
from mtjudge_jax.tasks.base import Task

Row = dict[str, np.ndarray]  # DEVICE_KEYS and HOST_KEYS; with RowFormat.target also `target` and `target_mask`
_MAX_ERROR = 500  # characters of an error kept in a row
# Flips the uid of a pair in its other order: with equal random numbers its answers would be drawn alike.
OTHER_ORDER_BIT = np.uint32(1 << 31)


class Draw(NamedTuple):
    """One draw from a mixture. other_order: show the two candidates of this pair in the other order."""

    task: str
    record: JudgeExample | BadRecord
    other_order: bool = False


DEVICE_KEYS = (
    "tokens",  # int32 [P], padded on the left
    "valid",  # bool [P]
    "positions",  # int32 [P, 3]: t, h, w; 0 on padding
    "next_position",  # int32 []: position of the first completion token on all three axes
    "image_index",  # int32 [P]: number of the image token among the row's, -1 on text and padding
    "patches",  # uint8 [M, 3 * patch * patch]; 0 on padding
    "patch_hw",  # int32 [M, 2]: row and column in the image's patch grid
    "patch_grid",  # int32 [M, 2]: that grid; (1, 1) on padding
    "patch_segment",  # int32 [M]: 1, 2, .. the image's number in the row; 0 on padding
    "uid",  # uint32 []: hash of the example id
)
HOST_KEYS = (
    "example_id",  # str
    "task",  # str
    "label",  # int32 []: index into the task's labels
    "truth",  # str: the right answer in the words of the question, see tasks/answer.py; empty in a row without a question
    "weight",  # float32 []: 1, or 0 if the record cannot be used
    "error",  # str: why the weight is 0, as "reason: detail"; empty in a good row and in a filler row
)


class RowFormat(NamedTuple):
    """What turns a record into a row of fixed shapes.

    With `target`, a row also has `target` int32 [G, C] and `target_mask` bool [G, C]: the tokens of the G = `targets` completions
    that `target(example)` returns, one for SFT, a better and a worse one for DPO. Several threads call it. With `display`, the
    candidates of a pair or a list are shown in an order drawn by hash: the stored order may give away which one is better.
    `taught` are the fields of a record whose texts the targets hold; where such a text holds in the stored order only, the record
    is shown in that order.

    `budget` is the room that training had for the pictures of a row, which limits them (see images.py). With `exact`, no picture
    is made smaller than that limit says, as no other program does, and a row that does not hold them is refused.
    """

    tasks: Mapping[str, Task]
    tokenizer: Tokenizer
    image_cfg: ImageConfig
    prompt_tokens: int
    patch_count: int
    completion_tokens: int = 0
    target: Callable[[JudgeExample], tuple[str, ...]] | None = None
    targets: int = 1
    display: bool = False
    taught: tuple[str, ...] = ()
    budget: Budget | None = None
    exact: bool = False

    @property
    def room(self) -> Room:
        return Room(self.prompt_tokens, self.patch_count)


def to_row(record: JudgeExample | BadRecord, task: str, fmt: RowFormat, *, other_order: bool = False) -> Row:
    """The row of a record, or a row of weight 0 whose `error` says why there is none. Never raises BadRecord.

    other_order: shows the two candidates of a pair in the other order.
    """
    shape = (fmt.targets, fmt.completion_tokens)
    target = np.full(shape, fmt.tokenizer.pad, np.int32), np.zeros(shape, bool)
    try:
        if isinstance(record, BadRecord):
            raise record
        example = _as_shown(record, fmt, other_order)
        row, learned = _both(lambda: make_row(example, fmt), lambda: _targets_of(example, fmt))
        target = learned or target
        if other_order:
            row["uid"] ^= OTHER_ORDER_BIT
    except BadRecord as e:
        row = bad_row(fmt, example_id=record.example_id, task=task, error=str(e)[:_MAX_ERROR])
    if fmt.target is None:
        return row
    return {**row, "target": target[0], "target_mask": target[1]}


def _targets_of(example: JudgeExample, fmt: RowFormat) -> tuple[np.ndarray, np.ndarray] | None:
    if fmt.target is None:
        return None
    made = [make_target(text, fmt.tokenizer, fmt.completion_tokens) for text in fmt.target(example)]
    return np.stack([ids for ids, _ in made]), np.stack([mask for _, mask in made])


def _both(first: Callable, second: Callable) -> tuple:
    """What the two return. Where both are too large for the config, the error says both: who helps one would meet the other."""
    try:
        made = first()
    except BadRecord as e:
        if e.reason in TOO_LARGE:
            try:
                second()
            except BadRecord as other:
                raise BadRecord(e.reason, f"{str(e).removeprefix(e.reason + ': ')}; and {other}", e.example_id) from e
        raise
    return made, second()


def _as_shown(example: JudgeExample, fmt: RowFormat, other_order: bool) -> JudgeExample:
    """The example with its candidates in the order shown. In another order than the stored one, it has no rationale that might
    contradict its label. Raises BadRecord `wrong_fields` if the candidates cannot be ordered so.
    """
    shown = example
    try:
        if fmt.display and example.task in fmt.tasks and not holds_in_one_order(example, fmt.taught):
            shown = fmt.tasks[example.task].displayed(shown)
        shown = swapped(shown) if other_order else shown
    except ValueError as e:
        raise BadRecord("wrong_fields", str(e), example.example_id) from e
    return dataclasses.replace(shown, rationale="") if holds_in_one_order(example) and shown != example else shown


def stack_rows(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows of equal keys and shapes to one batch."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def row_pictures(rows: Mapping[str, np.ndarray], number: int, *, fmt: RowFormat) -> list[np.ndarray]:
    """The pictures of a row of a batch as the model sees them, uint8 [h, w, 3]: resized, in the order shown."""
    segment, grid, patches = (rows[key][number] for key in ("patch_segment", "patch_grid", "patches"))
    places = [segment == image for image in range(1, int(segment.max(initial=0)) + 1)]
    return [unpatchify(patches[at], tuple(grid[at][0].tolist()), fmt.image_cfg) for at in places]


def rope_positions(
    tokens: Sequence[int], *, image_id: int, grids: Sequence[tuple[int, int]], merge: int
) -> tuple[np.ndarray, int]:
    """Interleaved M-RoPE positions of an unpadded prompt: int32 [n, 3], and the position that follows.

    A text token takes the next position on all axes. An image of grid (h, w) patches takes t = the next position, and
    h, w = that + its row, column among its h/merge x w/merge tokens; the text after it goes on max(h, w)/merge further.
    Two text tokens, an image of 2 x 3 tokens, one text token: (0,0,0) (1,1,1) | (2,2,2) (2,2,3) (2,2,4) (2,3,2) (2,3,3)
    (2,3,4) | (5,5,5). Source: transformers, Qwen3VLModel.get_rope_index.
    """
    parts, current, at, images = [], 0, 0, iter(grids)
    while at < len(tokens):
        if tokens[at] == image_id:
            rows, columns = (side // merge for side in next(images))
            hw = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2)
            parts.append(current + np.concatenate([np.zeros((len(hw), 1), int), hw], axis=1))
            at, current = at + len(hw), current + max(rows, columns)
        else:
            parts.append(np.full((1, 3), current))
            at, current = at + 1, current + 1
    return np.concatenate(parts).astype(np.int32), current


_kept_positions = functools.lru_cache(256)(rope_positions)  # many questions differ in their pixels alone


def expand_images(tokens: Sequence[int], *, image_id: int, counts: Sequence[int]) -> list[int]:
    """Repeats the k-th image_pad `counts[k]` times. Raises BadRecord `image_count` on another number."""
    found = sum(token == image_id for token in tokens)
    if found != len(counts):
        raise BadRecord("image_count", f"the rendered prompt has {found} image places for {len(counts)} images")
    repeats, expanded = iter(counts), []
    for token in tokens:
        expanded.extend([token] * (next(repeats) if token == image_id else 1))
    return expanded


def make_row(example: JudgeExample, fmt: RowFormat) -> Row:
    """The prompt row of an example. Nothing is ever cut.

    Raises BadRecord: `unknown_task`, `wrong_fields`, the reasons of `images.decode_image` and `images.smart_resize`,
    `image_count`, and `too_many_patches`, `prompt_too_long` as `images.check_room`.
    """
    if example.task not in fmt.tasks:
        raise BadRecord("unknown_task", f"{example.example_id} has task {example.task}; known are {', '.join(fmt.tasks)}")
    task = fmt.tasks[example.task]
    try:
        truth, parts = truth_of(task, example), task.ask(example.question, example.example_id).parts
    except ValueError as e:
        raise BadRecord("wrong_fields", f"{example.example_id}: {e}") from e
    prompt = prompt_row(parts, [decode_image(data) for data in example.images], fmt, name=example.example_id, task=task)
    host = _host_fields(example.example_id, example.task, label=truth.label, truth=write_truth(truth), weight=1.0, error="")
    return {**prompt, "uid": np.uint32(example.uid), **host}


def prompt_row(
    question: str | Sequence[str | None], pictures: Sequence[np.ndarray], fmt: RowFormat, *, name: str, task: Task | None = None
) -> Row:
    """The device part of a row, all but `uid`, of a question about pictures uint8 [h, w, 3].

    question: a text, which follows the pictures, or texts with a None in the place of each picture. Errors call the prompt
    `name`. task: whose own limits of a picture count. Raises BadRecord as `make_row` does.
    """
    tokenizer, cfg = fmt.tokenizer, fmt.image_cfg if task is None else limits_of(fmt.image_cfg, task)
    parts = [*[None] * len(pictures), question] if isinstance(question, str) else question
    short = tokenizer.prompt_ids(parts)  # one token for each picture
    text, sizes = sum(token != tokenizer.image for token in short), [picture.shape[:2] for picture in pictures]
    limits = row_limits(sizes, text, cfg, room=fmt.room, budget=fmt.budget, name=name, exact=fmt.exact)
    counts = [tokens_of(size, limit) for size, limit in zip(sizes, limits, strict=True)]
    check_room(text, sum(counts), len(counts), cfg, room=fmt.room, name=name)  # before a huge picture takes memory
    tokens = expand_images(short, image_id=tokenizer.image, counts=counts)
    images = [patchify(picture, limit) for picture, limit in zip(pictures, limits, strict=True)]
    grids = [image.grid for image in images]
    positions, following = _kept_positions(tuple(tokens), image_id=tokenizer.image, grids=tuple(grids), merge=cfg.merge)
    return {**_pad_prompt(tokens, positions, fmt), "next_position": np.int32(following), **_pack_patches(images, fmt)}


def bad_row(fmt: RowFormat, *, example_id: str, task: str, error: str) -> Row:
    """A row of the same shapes for a record that cannot be used: weight 0, one text token, no image.

    With an empty `error` it is a filler row, which only completes a batch.
    """
    return {
        **_pad_prompt([fmt.tokenizer.eos], np.zeros((1, 3), np.int32), fmt),
        "next_position": np.int32(1),
        **_pack_patches([], fmt),
        "uid": np.uint32(0),
        **_host_fields(example_id, task, label=0, truth="", weight=0.0, error=error),
    }


def _host_fields(example_id: str, task: str, *, label: int, truth: str, weight: float, error: str) -> Row:
    return {
        "example_id": np.str_(example_id),
        "task": np.str_(task),
        "label": np.int32(label),
        "truth": np.str_(truth),
        "weight": np.float32(weight),
        "error": np.str_(error),
    }


def _pad_prompt(tokens: Sequence[int], positions: np.ndarray, fmt: RowFormat) -> Row:
    start = fmt.prompt_tokens - len(tokens)
    padded = np.full(fmt.prompt_tokens, fmt.tokenizer.pad, np.int32)
    padded[start:] = tokens
    padded_positions = np.zeros((fmt.prompt_tokens, 3), np.int32)
    padded_positions[start:] = positions
    is_image = padded == fmt.tokenizer.image
    return {
        "tokens": padded,
        "valid": np.arange(fmt.prompt_tokens) >= start,
        "positions": padded_positions,
        "image_index": np.where(is_image, np.cumsum(is_image) - 1, -1).astype(np.int32),
    }


def _pack_patches(images: Sequence[Patches], fmt: RowFormat) -> Row:
    limit = fmt.patch_count
    patches = np.zeros((limit, fmt.image_cfg.patch_dim), np.uint8)
    hw, grid = np.zeros((limit, 2), np.int32), np.ones((limit, 2), np.int32)
    segment = np.zeros(limit, np.int32)
    start = 0
    for number, image in enumerate(images, start=1):
        end = start + len(image.patches)
        patches[start:end] = image.patches
        hw[start:end] = patch_coordinates(image.grid, fmt.image_cfg.merge)
        grid[start:end] = image.grid
        segment[start:end] = number
        start = end
    return {"patches": patches, "patch_hw": hw, "patch_grid": grid, "patch_segment": segment}


def completion_text(reasoning: str, answer: str) -> str:
    return f"<think>{reasoning}</think>{answer_alone(answer)}"


def answer_alone(answer: str) -> str:
    return f"<answer>{answer}</answer>"


def make_target(text: str, tokenizer: Tokenizer, completion_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """A completion to learn: ids int32 [C] that end in `tokenizer.eos`, padded, and bool [C], True up to and including that.

    `text` is a whole answer; what the chat template already writes is left out (see Tokenizer.encode_answer).
    Raises BadRecord `target_too_long` instead of cutting, and what `encode_answer` raises.
    """
    tokens = [*tokenizer.encode_answer(text), tokenizer.eos]
    if len(tokens) > completion_tokens:
        raise BadRecord(
            "target_too_long",
            f"{len(tokens)} tokens with the eos, the limit is {completion_tokens}: raise rollout.completion_tokens in the config "
            f"for {text[:80]!r}",
        )
    ids = np.full(completion_tokens, tokenizer.pad, np.int32)
    ids[: len(tokens)] = tokens
    return ids, np.arange(completion_tokens) < len(tokens)
