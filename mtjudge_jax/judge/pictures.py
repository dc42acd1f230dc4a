"""A picture of the caller's, in any form, to pixels."""

import os
import threading
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from mtjudge_jax.data.images import MAX_PIXELS, decode_image, image_pixels
from mtjudge_jax.errors import UserError
from mtjudge_jax.records import BadRecord


@runtime_checkable
class ArrayLike(Protocol):
    """What numpy reads as an array: its own, jax's, a torch tensor on a CPU."""

    def __array__(self) -> np.ndarray: ...


Picture = str | os.PathLike | bytes | Image.Image | ArrayLike
_PICTURE = "a path, encoded bytes, a PIL image or a uint8 array [h, w, 3] or [3, h, w]"
# Pillow loads an opened image on first use, and one image may be in several questions, which threads read.
_LOADING = tuple(threading.Lock() for _ in range(64))


def pixels_of(picture: Picture) -> np.ndarray:
    """uint8 [h, w, 3]: upright, on white. An array is taken as it is.

    Raises UserError for what is no picture, is not there or cannot be read; the text begins with the path, if it was one.
    """
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return decode_image(bytes(picture))
    if isinstance(picture, Image.Image):
        with _LOADING[id(picture) // 16 % len(_LOADING)]:
            return image_pixels(picture)
    if isinstance(picture, (str, os.PathLike)):
        return _of_file(picture)
    if isinstance(picture, ArrayLike):
        return _of_array(as_array(picture))
    raise BadRecord("image_type", f"{picture!r:.60} is no picture: give {_PICTURE}")


def as_array(value: ArrayLike) -> np.ndarray:
    """Raises BadRecord for a tensor that numpy cannot read, as one on a GPU."""
    try:
        return np.asarray(value)
    except Exception as error:  # torch raises TypeError and RuntimeError
        kind = type(value)
        raise BadRecord(
            "image_array", f"a {kind.__module__}.{kind.__name__} is no picture ({error}): give {_PICTURE}, on the CPU"
        ) from error


def printable(text: Any) -> str:
    """A path as a text that can be printed, also where its bytes are no Unicode."""
    return os.fsdecode(text).encode(errors="backslashreplace").decode()


def _of_file(path: str | os.PathLike) -> np.ndarray:
    name = printable(path)
    if "://" in name:
        raise BadRecord("image_path", f"{name!r} looks like a URL: download it and give the file")
    if not os.path.isfile(path):
        raise BadRecord("image_path", f"no file {name!r}")
    try:
        return decode_image(Path(os.fsdecode(path)).read_bytes())
    except (BadRecord, OSError) as error:
        raise UserError(f"{name}: {error}") from error


def _of_array(array: np.ndarray) -> np.ndarray:
    """[h, w] is grey; of one, three or four channels, the last axis holds them, else the first."""
    shape, channels = list(array.shape), (1, 3, 4)
    named = f"an array of {array.dtype} {shape} is no picture: give {_PICTURE}"
    if array.dtype != np.uint8:
        whole = np.issubdtype(array.dtype, np.floating)
        hint = "; of values from 0 to 1 that is (x * 255).round().clip(0, 255).astype('uint8')" if whole else ""
        raise BadRecord("image_array", named + hint)
    if array.ndim == 3 and shape[2] not in channels and shape[0] in channels:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in channels):
        raise BadRecord("image_array", named)
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise BadRecord("image_too_large", f"an array {shape} is over {MAX_PIXELS} pixels; scale it down first")
    if array.ndim == 3 and array.shape[2] == 3:
        return array
    return image_pixels(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))
