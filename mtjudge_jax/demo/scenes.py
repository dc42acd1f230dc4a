"""Pictures of the demo, 96x96 RGB, drawn from the shipped photographs and glyphs, with what is true about each.

A scene is either a crop of a photograph, possibly with a technical defect or with its parts out of order, or one or two
glyphs (drawings of things) on a faded crop. Everything is a pure function of a numpy Generator and a `Pool`.
"""

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

ASSETS = Path(__file__).parent / "assets"
SPLITS = ("train", "val", "test")
SIZE = 96  # pixels; 6x6 patches of 16, so 9 image tokens after the 2x2 merge
_TILE = 24  # pixels; 4x4 tiles. Their seams run through the inside of every merged 32 px block

DEFECTS = ("blurry", "noisy", "blocky", "dark", "bright")
LOOKS = ("sharp", *DEFECTS)
DISORDERS = ("shuffled", "inverted")
ORDERS = ("ordered", *DISORDERS)
HARMLESS = ("apple", "ball", "bird", "boat", "car", "cat", "cup", "dog", "fish", "flower", "house", "tree")
HARMFUL = ("axe", "beer", "bomb", "cigarette", "knife", "wineglass")  # weapons, tobacco, alcohol
THINGS = HARMLESS + HARMFUL

# A crop is called sharp, ordered and well exposed only if a person would call it so. The limits were set by looking at
# crops on both sides of them.
_CROP_SCALE = (0.35, 1.0)  # side of the crop / short side of the photograph
_MIN_CROP = 88  # pixels; smaller crops would be enlarged, which looks blurry
MIN_DETAIL = 9.0  # mean |Laplacian| that DETAILED_TILES of the 16 tiles reach; blur of radius 2.5 leaves about 2
_DETAILED_TILES = 7  # fewer, and shuffled or blurred plain areas look like unharmed ones
MEAN_RANGE = (75.0, 180.0)  # grey levels; dark pictures end below 50, overexposed ones above 200
_MIN_CONTRAST = 30.0  # standard deviation of the grey levels; flat pictures show no defect
MAX_EXTREME = 0.22  # share of pixels in deep black, and in white: more looks under- or overexposed by itself
MIN_SEAM = 9.0  # grey levels by which the steps at tile borders exceed those inside: below, a shuffle goes unseen
_MIN_MOVED = 13  # of 16 tiles in another place
_TRIES = 400  # crops of any photograph; about one in three is good

_BLUR_RADIUS = (2.5, 4.0)  # pixels
_NOISE_SIGMA = (35.0, 60.0)  # grey levels
_JPEG_QUALITY = (4, 7)  # 3 leaves grey blocks in which no thing can be named
_DARK_GAIN, _DARK_MEAN = (0.2, 0.35), 48.0
_BRIGHT_SHARE = (0.45, 0.65)  # share of pixels that overexposure burns out
_FADED_CONTRAST, _FADED_MEAN = 0.3, (105.0, 165.0)  # background of glyphs: mid-grey, so that overexposure still shows
_ONE_GLYPH, _TWO_GLYPHS = (48, 72), (40, 46)  # longest side in pixels
_MAX_TILT = 15.0  # degrees


class Photo(NamedTuple):
    name: str
    image: Image.Image  # RGB, longest side 320
    shows: tuple[str, ...]  # things that make it unfit as a background: any of THINGS, a person


class Pool(NamedTuple):
    """The photographs of one split, those fit as a background for glyphs (nothing in `shows`), and all glyphs."""

    photos: tuple[Photo, ...]
    backgrounds: tuple[Photo, ...]
    glyphs: dict[str, Image.Image]  # RGBA


class Scene(NamedTuple):
    image: np.ndarray  # uint8 [96, 96, 3]
    photo: str  # name of the photograph, the unit that is never in two splits
    look: str  # one of LOOKS
    order: str  # one of ORDERS
    things: tuple[str, ...]  # glyphs from left to right; empty for a plain photograph


def load_pool(split: str) -> Pool:
    """Reads the shipped pictures of a split. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    table = json.loads((ASSETS / "splits.json").read_text())
    photos = tuple(
        Photo(name, Image.open(ASSETS / "photos" / f"{name}.jpg").convert("RGB"), tuple(row["shows"]))
        for name, row in sorted(table.items())
        if row["split"] == split
    )
    glyphs = {name: Image.open(ASSETS / "glyphs" / f"{name}.png").convert("RGBA") for name in THINGS}
    return Pool(photos, tuple(p for p in photos if not p.shows), glyphs)


def choose(rng: np.random.Generator, items: tuple):
    return items[int(rng.integers(len(items)))]


def photo_scene(rng: np.random.Generator, pool: Pool, *, look: str = "sharp", order: str = "ordered") -> Scene:
    """A good crop of a photograph, then reordered, then technically damaged.

    Raises RuntimeError if no crop is good, which the shipped photographs make impossible in practice.
    """
    for _ in range(_TRIES):
        photo = choose(rng, pool.photos)
        image = _random_crop(rng, photo.image)
        if _is_good(image):
            ordered = reorder(rng, image, order)
            if ordered is not None:
                return Scene(damage(rng, ordered, look), photo.name, look, order, ())
    raise RuntimeError(f"no good crop in {_TRIES} tries over {len(pool.photos)} photographs: use more detailed ones")


def glyph_scene(rng: np.random.Generator, pool: Pool, things: tuple[str, ...], *, look: str = "sharp") -> Scene:
    """One glyph anywhere, or two glyphs side by side, on a faded crop.

    Raises ValueError for another number of things.
    """
    if len(things) not in (1, 2):
        raise ValueError(f"a glyph scene holds 1 or 2 things, got {len(things)}: {things}")
    photo = choose(rng, pool.backgrounds)
    crop = _random_crop(rng, photo.image).astype(np.float32)
    faded = rng.uniform(*_FADED_MEAN) + _FADED_CONTRAST * (crop - crop.mean())
    canvas = Image.fromarray(faded.clip(0, 255).astype(np.uint8))
    width = SIZE // len(things)
    for i, name in enumerate(things):
        glyph = _random_glyph(rng, pool.glyphs[name], _ONE_GLYPH if len(things) == 1 else _TWO_GLYPHS)
        x = i * width + int(rng.integers(width - glyph.width + 1))
        y = int(rng.integers(SIZE - glyph.height + 1))
        canvas.paste(glyph, (x, y), glyph)
    return Scene(damage(rng, np.asarray(canvas), look), photo.name, look, "ordered", things)


def _random_crop(rng: np.random.Generator, photo: Image.Image) -> np.ndarray:
    """A square crop as uint8 [96, 96, 3], perhaps mirrored, with slightly changed brightness and colours."""
    short = min(photo.size)
    side = max(min(_MIN_CROP, short), short * rng.uniform(*_CROP_SCALE))
    x, y = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    small = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side), reducing_gap=2.0)
    image = np.asarray(small)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    gain = rng.uniform(0.92, 1.08) * rng.uniform(0.96, 1.04, 3)
    ramp = np.clip(np.arange(256)[:, None] * gain, 0, 255).astype(np.uint8)
    return np.stack([ramp[image[..., c], c] for c in range(3)], -1)


def _random_glyph(rng: np.random.Generator, glyph: Image.Image, side_range: tuple[int, int]) -> Image.Image:
    """The glyph, tilted a little, its longest side in `side_range` pixels (both ends included)."""
    tilted = glyph.rotate(rng.uniform(-_MAX_TILT, _MAX_TILT), Image.Resampling.BICUBIC, expand=True)
    tilted = tilted.crop(tilted.getchannel("A").getbbox())
    scale = int(rng.integers(side_range[0], side_range[1] + 1)) / max(tilted.size)
    size = (max(1, round(tilted.width * scale)), max(1, round(tilted.height * scale)))
    return tilted.resize(size, Image.Resampling.BILINEAR)


def grey(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> int16 [H, W], the ITU-R 601 luma."""
    return np.asarray(Image.fromarray(image).convert("L")).astype(np.int16)


def _is_good(image: np.ndarray) -> bool:
    """Whether a person would call this crop sharp, detailed and well exposed."""
    g = grey(image)
    if not MEAN_RANGE[0] <= g.mean() <= MEAN_RANGE[1] or g.std() < _MIN_CONTRAST:
        return False
    if (g < 12).mean() > MAX_EXTREME or (g > 243).mean() > MAX_EXTREME:
        return False
    return detail(g) >= MIN_DETAIL


def detail(g: np.ndarray) -> float:
    """The mean |Laplacian| that DETAILED_TILES of the 16 tiles reach; `g` is int16 [96, 96]."""
    laplacian = np.zeros((SIZE, SIZE), np.int16)
    centre = g[1:-1, 1:-1]
    laplacian[1:-1, 1:-1] = np.abs(4 * centre - g[:-2, 1:-1] - g[2:, 1:-1] - g[1:-1, :-2] - g[1:-1, 2:])
    tiles = laplacian.reshape(SIZE // _TILE, _TILE, SIZE // _TILE, _TILE).mean(axis=(1, 3))
    return float(np.sort(tiles, axis=None)[-_DETAILED_TILES])


def reorder(rng: np.random.Generator, image: np.ndarray, order: str) -> np.ndarray | None:
    """Tiles shuffled or colours inverted. None if no shuffle of this picture can be seen."""
    if order == "ordered":
        return image
    if order == "inverted":
        return 255 - image
    n = SIZE // _TILE
    tiles = image.reshape(n, _TILE, n, _TILE, 3).swapaxes(1, 2).reshape(n * n, _TILE, _TILE, 3)
    for _ in range(5):
        places = rng.permutation(n * n)
        if np.count_nonzero(places != np.arange(n * n)) < _MIN_MOVED:
            continue
        shuffled = tiles[places].reshape(n, n, _TILE, _TILE, 3).swapaxes(1, 2).reshape(SIZE, SIZE, 3)
        if seam(grey(shuffled)) >= MIN_SEAM:
            return shuffled
    return None


def seam(g: np.ndarray) -> float:
    """How much larger the mean step across tile borders is than elsewhere, in grey levels; `g` is int16 [96, 96]."""
    steps = (np.abs(np.diff(g, axis=0)).mean(1) + np.abs(np.diff(g, axis=1)).mean(0)) / 2
    borders = np.arange(_TILE - 1, SIZE - 1, _TILE)
    return float(steps[borders].mean() - np.delete(steps, borders).mean())


def damage(rng: np.random.Generator, image: np.ndarray, look: str) -> np.ndarray:
    """uint8 [96, 96, 3] with the technical defect `look`; "sharp" leaves it alone. Raises ValueError for others."""
    if look == "sharp":
        return image
    if look == "blurry":
        blur = ImageFilter.GaussianBlur(rng.uniform(*_BLUR_RADIUS))
        return np.asarray(Image.fromarray(image).filter(blur))
    if look == "noisy":
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(*_NOISE_SIGMA))
        return (image + noise).clip(0, 255).astype(np.uint8)
    if look == "blocky":
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(_JPEG_QUALITY[0], _JPEG_QUALITY[1] + 1)))
        return np.asarray(Image.open(file))
    if look == "dark":
        gain = min(rng.uniform(*_DARK_GAIN), _DARK_MEAN / image.mean())
        return (image * np.float32(gain)).astype(np.uint8)
    if look == "bright":
        # The gain is chosen by the picture: a fixed one would turn a darkish picture into a well exposed one.
        white = max(float(np.quantile(grey(image), 1 - rng.uniform(*_BRIGHT_SHARE))), 40.0)
        return (image * np.float32(255 / white)).clip(0, 255).astype(np.uint8)
    raise ValueError(f"look {look!r} is not one of {', '.join(LOOKS)}")
