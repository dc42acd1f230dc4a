"""The settings of a model folder's image processor, read once at the start, and the limits of the config in their place."""

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

from mtjudge_jax.config import DataConfig
from mtjudge_jax.data.folder_files import image_processor, pixel_limits
from mtjudge_jax.errors import ConfigError, UserError
from mtjudge_jax.paths import AnyPath, as_path
from mtjudge_jax.tasks.base import Task


class ImageConfig(NamedTuple):
    """The settings of an image processor. `min_pixels` and `max_pixels` are areas after resizing, in pixels.

    A lower `max_pixels` bounds the image tokens of a picture: it is scaled down, never cut (see images.py).
    """

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def factor(self) -> int:
        """Side in pixels of the square behind one image token; resized sides are multiples of it."""
        return self.patch * self.merge

    @property
    def patch_dim(self) -> int:
        return 3 * self.patch * self.patch


def load_image_config(folder: str | os.PathLike) -> ImageConfig:
    """Reads the settings of a model folder's image processor, from the file that transformers takes (`image_processor`). Raises
    UserError on unimplemented settings.
    """
    path, config = image_processor(as_path(folder))
    low, high = pixel_limits(config)
    if not (_number(low) and _number(high) and 0 < low <= high):
        raise UserError(
            f"{path}: size must hold shortest_edge <= longest_edge (areas in pixels), not {low} and {high}; "
            "Qwen3-VL has 65536 and 16777216"
        )
    made_for = config.get("image_processor_type") or "Qwen"
    if not str(made_for).startswith("Qwen"):
        raise UserError(f"{path}: image_processor_type is {made_for}, only Qwen2VLImageProcessor is implemented")
    fixed = {"resample": 3, "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    fixed["temporal_patch_size"] = 2
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise UserError(f"{path}: {name} is {config[name]}, only {value} is implemented")
    factor = config.get("rescale_factor", 1 / 255)
    if not (_number(factor) and math.isclose(factor, 1 / 255)):
        raise UserError(f"{path}: rescale_factor is {factor}, only 1/255 is implemented")
    missing = [name for name in ("patch_size", "merge_size", "image_mean", "image_std") if config.get(name) is None]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing; copy the file from the model's Hugging Face folder")
    mean, std = (_per_channel(path, name, config[name]) for name in ("image_mean", "image_std"))
    if not min(std) > 0:
        raise UserError(f"{path}: image_std is {config['image_std']}, it must be above 0; Qwen3-VL has 0.5")
    return ImageConfig(config["patch_size"], config["merge_size"], low, high, mean, std)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _per_channel(path: AnyPath, name: str, value: object) -> tuple[float, ...]:
    """A number for each colour; transformers takes one for all three too."""
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(map(_number, values)):
        raise UserError(f"{path}: {name} is {value!r}, it must be three numbers")
    return tuple(values)


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
