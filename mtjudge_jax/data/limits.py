"""How large the pictures of a row may be: within the limits of the config, and so that the row holds them.

Every picture of a row of n gets the same limit: the least of `max_pixels`, a whole number of tokens of an n-th of `data.patches`,
and an n-th of what the text leaves of `data.prompt_tokens`. So it depends on the row alone, and a picture is resized as Qwen's
processor does under that limit (`smart_resize`). It is never below `min_pixels`: where that is too much, the row is refused.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mtjudge_jax.config import DataConfig
from mtjudge_jax.data.images import ImageConfig, smart_resize
from mtjudge_jax.errors import ConfigError
from mtjudge_jax.records import BadRecord
from mtjudge_jax.tasks.base import Task
from mtjudge_jax.tasks.pictures import sharers

TOO_LARGE = ("prompt_too_long", "too_many_patches")  # reasons of `check_room`
Size = tuple[int, int]  # height and width in pixels


class Budget(NamedTuple):
    """The room of a row in training. `images`: pictures of the largest trained question; 0: any number share the room."""

    tokens: int
    patches: int
    images: int = 0


class Room(NamedTuple):
    """The room of a row as it is made. That of an evaluation or a judge may be larger than that of training."""

    tokens: int
    patches: int


def configured(cfg: ImageConfig, data: DataConfig, tasks: Sequence[Task] = ()) -> ImageConfig:
    """The limits of the model folder with those of the config in their place. Raises ConfigError for limits that leave nothing,
    also in an entry of a task.
    """
    whole = _replaced(cfg, data.min_pixels, data.max_pixels, "data")
    for task in tasks:
        _replaced(whole, task.min_pixels, task.max_pixels, f"data.custom_tasks: {task.name!r}: ")
    return whole


def limits_of(cfg: ImageConfig, task: Task) -> ImageConfig:
    """`cfg` with the limits of the task's own entry in their place, where it has any."""
    return cfg if not (task.min_pixels or task.max_pixels) else _replaced(cfg, task.min_pixels, task.max_pixels, task.name)


def _replaced(cfg: ImageConfig, low: int, high: int, where: str) -> ImageConfig:
    name = f"{where}." if where == "data" else where
    most = high or max(cfg.max_pixels, low)
    if high and high < cfg.factor**2:
        raise ConfigError(
            f"{name}max_pixels = {high} is less than one image token, {cfg.factor} x {cfg.factor} pixels: give at least "
            f"{cfg.factor**2}"
        )
    if low > most:
        raise ConfigError(f"{name}min_pixels = {low} is above {name}max_pixels = {most}: take a smaller one, or raise the other")
    return cfg._replace(min_pixels=low or min(cfg.min_pixels, most), max_pixels=most)


def exported_limits(cfg: ImageConfig, patches: int) -> tuple[int, int]:
    """(min_pixels, max_pixels) of a judge's own image processor: those of a single picture in training, in its `patches`."""
    room = patches // cfg.merge**2 * cfg.factor**2
    return cfg.min_pixels, cfg.max_pixels if room < cfg.min_pixels else min(cfg.max_pixels, room)


def tokens_of(size: Size, cfg: ImageConfig) -> int:
    height, width = smart_resize(*size, cfg)
    return height * width // cfg.factor**2


def least_tokens(cfg: ImageConfig) -> int:
    """The fewest tokens that a limit leaves to a picture: `min_pixels`, and at least one."""
    return max(1, min(-(-cfg.min_pixels // cfg.factor**2), cfg.max_pixels // cfg.factor**2))


def row_limits(
    sizes: Sequence[Size], text: int, cfg: ImageConfig, *, room: Room, budget: Budget | None, name: str, exact: bool = False
) -> list[ImageConfig]:
    """The limits of each picture of a row: the same for all, but for a picture that rounding would make too large.

    text: tokens of the row without its pictures. budget: None for rows of an older judge, whose pictures are as large as `cfg`
    lets them be if the row holds them, and else share it. exact: every picture has its limit, whether or not the row
    then holds it. Raises BadRecord as `check_room`.
    """
    count, per = len(sizes), cfg.merge**2
    if budget is None:
        tokens = sum(tokens_of(size, cfg) for size in sizes)
        if exact or (text + tokens <= room.tokens and tokens * per <= room.patches):
            return [cfg] * count
        budget = Budget(*room)
    least = least_tokens(cfg)
    check_room(text, least * count, count, cfg, room=room, name=name)
    among = sharers(count, budget.images)

    def share(trained: int, here: int) -> int:
        """Of what training had. Where that is too little for a picture, of what there is here."""
        return trained // among if trained // among >= least else max(least, here // max(1, count))

    tokens = min(share(budget.patches // per, room.patches // per), share(budget.tokens - text, room.tokens - text))
    most = min(cfg.max_pixels, tokens * cfg.factor**2)
    held = cfg._replace(min_pixels=min(cfg.min_pixels, most), max_pixels=most)
    return [held if exact else fitted(size, tokens, held) for size in sizes]


def check_room(text: int, images: int, count: int, cfg: ImageConfig, *, room: Room, name: str) -> None:
    """Raises BadRecord `prompt_too_long` or `too_many_patches` if a row of so many tokens does not fit, with all limits that it
    breaks. images: image tokens of `count` pictures.
    """
    said, raised, patches = [], [], images * cfg.merge**2
    if text + images > room.tokens:
        including = f", including {images} image tokens" if count else ""
        said.append(f"{text + images} tokens{including}; the limit is {room.tokens}")
        raised.append("data.prompt_tokens")
    if patches > room.patches:
        said.append(f"{patches} patches in {count} images; the limit is {room.patches}")
        raised.append("data.patches")
    if said:
        lower = f", or lower data.min_pixels ({cfg.min_pixels} pixels a picture)" if count and text < room.tokens else ""
        raise BadRecord(
            "prompt_too_long" if text + images > room.tokens else "too_many_patches",
            f"{name} has {'; and '.join(said)}: raise {' and '.join(raised)} in the config{lower}",
        )


def fitted(size: Size, tokens: int, cfg: ImageConfig) -> ImageConfig:
    """`cfg`, or the largest lower limit under which a picture has at most `tokens` image tokens.

    Qwen's resize exceeds max_pixels in two cases. No side is below one token, so a very long picture stays too long: 20 x 3,000
    pixels under 9 tokens' area, 9,216, become 32 x 1,152 with 36 tokens. And a picture below min_pixels is rounded up: 50 x 40
    under 9,216 and 9,216 becomes 128 x 96 with 12 tokens.
    """
    if tokens_of(size, cfg) <= tokens:
        return cfg

    def lowered(pixels: int) -> ImageConfig:
        return cfg._replace(min_pixels=min(cfg.min_pixels, pixels), max_pixels=pixels)

    plain = math.prod(round(side / cfg.factor) * cfg.factor for side in size)
    # Of these limits the first fits, the last does not, and a lower one never gives more tokens. Below `plain` that is another
    # branch of smart_resize, which may give more.
    fits, too_much = plain if 0 < plain <= cfg.max_pixels else 1, cfg.max_pixels
    while too_much - fits > 1:
        middle = (fits + too_much) // 2
        fits, too_much = (middle, too_much) if tokens_of(size, lowered(middle)) <= tokens else (fits, middle)
    return lowered(fits)
