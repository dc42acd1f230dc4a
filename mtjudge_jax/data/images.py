"""Encoded image bytes to the uint8 patches that Qwen3-VL sees: decoding, the limit of a picture in its row, resizing, patches.

The result equals `transformers`' `Qwen2VLImageProcessorPil` on the upright image (`ImageOps.exif_transpose`) bit for bit
before normalisation. The device does the normalisation `(x / 255 - mean) / std` and the doubling along time, so a patch is
3 * 16 * 16 bytes.

Every picture of a row of n gets the same limit: the least of `max_pixels`, a whole number of tokens of an n-th of `data.patches`,
and an n-th of what the text leaves of `data.prompt_tokens`. So it depends on the row alone, and a picture is resized as Qwen's
processor does under that limit (`smart_resize`). It is never below `min_pixels`: where that is too much, the row is refused.
"""

import contextlib
import functools
import io
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mtjudge_jax.data.image_config import ImageConfig
from mtjudge_jax.records import BadRecord
from mtjudge_jax.tasks.pictures import sharers

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # of the 43 that Pillow opens; EPS, for example, would start Ghostscript
# Of the encoded image; checked from the header, before any pixel is decoded. A photograph of a 50-megapixel sensor has up to
# 8,192 x 6,144 pixels. Decoded it takes 150 MB, in each thread that decodes.
MAX_PIXELS = 51_000_000
MAX_ASPECT = 200  # Qwen's own limit
TOO_LARGE = ("prompt_too_long", "too_many_patches")  # reasons of `check_room`
_CLIPPING_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # Pillow turns every value above 255 in these into white
_PNG_START = b"\x89PNG\r\n\x1a\n"
_TEXT_LIMIT = "MAX_TEXT_"  # in Pillow's message about metadata over its limits
_MAY_ROTATE = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # keywords of a PNG's texts
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the EXIF tag Orientation
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


class Patches(NamedTuple):
    patches: np.ndarray  # uint8 [n, 3 * patch * patch], each (C, patch, patch); 4 consecutive patches = 1 image token
    grid: tuple[int, int]  # rows and columns of patches


def decode_image(data: bytes) -> np.ndarray:
    """Decodes PNG, JPEG, WebP, GIF (first frame) or BMP to uint8 [h, w, 3], read-only. Raises BadRecord as `image_pixels`, and
    `image_format`.
    """
    try:
        with _refusals(), _opened(data) as image:
            return image_pixels(image)
    except UnidentifiedImageError as e:
        raise BadRecord("image_format", f"{len(data)} bytes are none of {', '.join(_FORMATS)}") from e


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in pixels, from the header alone: of the image as it is stored, before its rotation. Raises BadRecord."""
    try:
        with _refusals(), _opened(data) as image:
            return image.size[::-1]
    except UnidentifiedImageError as e:
        raise BadRecord("image_format", f"{len(data)} bytes are none of {', '.join(_FORMATS)}") from e


def _opened(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except ValueError as e:
        if _TEXT_LIMIT not in str(e):
            raise
        return Image.open(io.BytesIO(_without_metadata(data)), formats=_FORMATS)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except ValueError as e:
        if _TEXT_LIMIT not in str(e):
            raise
        image.load()  # all pixels were read before the texts behind them


def _without_metadata(png: bytes) -> bytes:
    """A PNG without its texts and colour profile, which Pillow refuses above a limit. What may hold a rotation stays."""
    kept, at = [png[: len(_PNG_START)]], len(_PNG_START)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")  # length, name and checksum: 4 bytes each
        name, rotation = png[at + 4 : at + 8], png[at + 8 : end].startswith(_MAY_ROTATE)
        if rotation or name not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def image_pixels(image: Image.Image) -> np.ndarray:
    """uint8 [h, w, 3] of an opened image of any mode, loaded by this call if need be and otherwise unchanged.

    The rotation in EXIF is applied. Transparency is composited on white, as Qwen's processor does with an opened image
    (`transformers.image_utils.load_image`, given a path, drops it and shows the colours beneath). Pillow converts all other
    modes. An image of more than 8 bits per channel (I;16) is accepted if its values are 0 to 255, and refused otherwise,
    because Pillow, and with it the processor, would turn everything above 255 into white.

    Raises only BadRecord: `image_too_large`, `image_mode`, `truncated_image`, `broken_image`.
    """
    with _refusals():
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadRecord("image_too_large", f"{width}x{height} is over {MAX_PIXELS} pixels; scale it down first")
        if not width * height:
            raise BadRecord("broken_image", f"{width}x{height} has no pixel")
        _load(image)
        check_depth(image)
        turn = _turn_of(image)
        return _to_rgb(image if turn is None else image.transpose(turn))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What Pillow raises becomes BadRecord, but for UnidentifiedImageError."""
    try:
        yield
    except (BadRecord, UnidentifiedImageError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise BadRecord("image_too_large", f"{e}; the limit is {MAX_PIXELS} pixels; scale it down first") from e
    except (OSError, EOFError) as e:
        raise BadRecord("truncated_image", f"{type(e).__name__}: {e}") from e
    except Exception as e:  # damaged bytes raise SyntaxError, ValueError, struct.error, ... in Pillow's decoders
        raise BadRecord("broken_image", f"{type(e).__name__}: {e}") from e


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    """How to turn the image upright. Where its EXIF or the rotation in it cannot be read, the image is shown as it is stored.

    Not `ImageOps.exif_transpose`: that writes the other tags anew, which fails for a tag of an unusual type.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # struct.error, SyntaxError, TypeError ..: whatever the damage causes
        return None


def check_depth(image: Image.Image) -> None:
    """Raises BadRecord `image_mode` for a loaded image whose values Pillow would clip or darken when converting it to 8 bits per
    channel.
    """
    if image.mode not in _CLIPPING_MODES:
        return
    low, high = (image if image.mode in ("I", "I;16", "F") else image.convert("I")).getextrema()
    values = f"mode {image.mode} holds values from {low} to {high}, and everything"
    if not (low >= 0 and high <= 255):  # written so that NaN fails
        raise BadRecord("image_mode", f"{values} above 255 would be clipped to white; convert it to 8 bits per channel first")
    if image.mode == "F" and 0 < high <= 1:
        raise BadRecord("image_mode", f"{values} would be black, as white is 255; multiply it by 255 first")


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "La":  # Pillow converts it to nothing else
        image = image.convert("LA")
    palette = image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA"
    if palette or image.mode in ("LA", "PA", "RGBA", "RGBa") or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def smart_resize(height: int, width: int, cfg: ImageConfig) -> tuple[int, int]:
    """(height, width) after Qwen's aspect-preserving resize: multiples of `cfg.factor`, area within the two limits.

    A side is never below `cfg.factor`, so at an extreme aspect the area can exceed `max_pixels`, as in Qwen's own code.
    With Qwen3-VL's configuration (480, 640) stays, (1080, 1920) becomes (1088, 1920), (32, 32) becomes (256, 256).
    Raises BadRecord `image_aspect` above 200 to 1. Source: transformers, models/qwen2_vl.
    """
    long, short = max(height, width), min(height, width)
    if long > MAX_ASPECT * short:
        raise BadRecord("image_aspect", f"{width}x{height} is over {MAX_ASPECT} to 1; crop or pad it first")
    factor = cfg.factor
    sides = [round(side / factor) * factor for side in (height, width)]  # Python rounds halves to even, as Qwen does
    if sides[0] * sides[1] > cfg.max_pixels:
        shrink = math.sqrt(height * width / cfg.max_pixels)
        sides = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif sides[0] * sides[1] < cfg.min_pixels:
        grow = math.sqrt(cfg.min_pixels / (height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return sides[0], sides[1]


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


def patchify(image: np.ndarray, cfg: ImageConfig) -> Patches:
    """Resizes uint8 [h, w, 3] and cuts it into patches, in the order (block row, block column, row, column in the block).

    A 64x96 image of 16-pixel patches and 2x2 blocks has grid (4, 6); patches 0 to 3 are (0,0), (0,1), (1,0), (1,1).
    """
    height, width = smart_resize(image.shape[0], image.shape[1], cfg)
    if image.shape[:2] != (height, width):
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = height // cfg.patch, width // cfg.patch
    blocks = image.reshape(
        rows // cfg.merge, cfg.merge, cfg.patch, columns // cfg.merge, cfg.merge, cfg.patch, 3
    )  # (block row, row, y, block column, column, x, C)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, cfg.patch_dim)
    return Patches(patches, (rows, columns))


def unpatchify(patches: np.ndarray, grid: tuple[int, int], cfg: ImageConfig) -> np.ndarray:
    """The resized image uint8 [h, w, 3] that `patchify` cut."""
    rows, columns = grid
    shape = (rows // cfg.merge, columns // cfg.merge, cfg.merge, cfg.merge, 3, cfg.patch, cfg.patch)
    blocks = patches.reshape(shape).transpose(0, 2, 5, 1, 3, 6, 4)
    return np.ascontiguousarray(blocks.reshape(rows * cfg.patch, columns * cfg.patch, 3))


@functools.lru_cache(256)
def patch_coordinates(grid: tuple[int, int], merge: int) -> np.ndarray:
    """int32 [rows * columns, 2], read-only: (row, column) of every patch, in the order of `patchify`."""
    rows, columns = grid
    hw = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    blocks = hw.reshape(rows // merge, merge, columns // merge, merge, 2)
    coordinates = blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)
    coordinates.setflags(write=False)
    return coordinates
