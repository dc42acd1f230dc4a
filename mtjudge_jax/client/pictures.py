"""A picture in any form, to the bytes of a file. Pillow and numpy are needed only for pictures that are no file."""

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtjudge_jax.errors import UserError

_FORMS = "give a path, the bytes of an image file, a PIL image, or a uint8 array or CPU tensor [h, w, 3] or [3, h, w]"


def image_bytes(picture: Any) -> bytes:
    """A file and bytes as they are; a PIL image or array as PNG, which loses nothing. Raises UserError for anything else."""
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return bytes(picture)
    if isinstance(picture, (str, os.PathLike)):
        try:
            return Path(picture).read_bytes()
        except OSError as error:
            raise UserError(f"{os.fspath(picture)!r}: {error.strerror}; {_FORMS}") from error
    if _is_pil(picture):
        return _png(picture)
    if hasattr(picture, "__array__"):
        import numpy as np
        from PIL import Image

        array = np.asarray(picture)
        if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            hint = "; of values from 0 to 1 that is (x * 255).round().clip(0, 255).astype('uint8')"
            raise UserError(f"an array of {array.dtype} {list(array.shape)} is no picture: {_FORMS}{hint}")
        return _png(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))
    raise UserError(f"{picture!r:.60} is no picture: {_FORMS}")


def encoded(picture: Any) -> str:
    """In base64, as JSON carries it."""
    return base64.b64encode(image_bytes(picture)).decode()


def data_url(picture: Any) -> str:
    """A data: URL, as OpenAI's API takes it."""
    raw = image_bytes(picture)
    kind = next((kind for start, kind in _STARTS if raw.startswith(start)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


_STARTS = ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"RIFF", "webp"), (b"BM", "bmp"))


def _is_pil(picture: Any) -> bool:
    """A tensor of torch has a method `mode`, a PIL image a text."""
    return isinstance(getattr(picture, "mode", None), str) and hasattr(picture, "save")


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def pictures_of(images: Any) -> Sequence[Any]:
    """A lone picture as a list; an array or tensor [n, h, w, 3] as n pictures."""
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview)) or _is_pil(images):
        return [images]
    if hasattr(images, "__array__"):
        return list(images) if len(images.shape) == 4 else [images]
    return list(images)
