"""Image decoding, its limits, and bit-equality of the patches with transformers' processor."""

import functools
import io
import struct
import time
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from data_fixtures import CONFIG, encoded, noise
from PIL import Image, ImageOps

from mtjudge_jax.data.image_config import ImageConfig
from mtjudge_jax.data.images import MAX_PIXELS, decode_image, image_pixels, patch_coordinates, patchify, smart_resize, unpatchify
from mtjudge_jax.records import BadRecord

QWEN = ImageConfig(16, 2, 65536, 16777216, (0.5,) * 3, (0.5,) * 3)  # Qwen3-VL's published configuration
REASONS = {"image_format", "image_too_large", "image_mode", "truncated_image", "broken_image"}


@functools.cache
def reference(cfg):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": cfg.min_pixels, "longest_edge": cfg.max_pixels},
        patch_size=cfg.patch,
        merge_size=cfg.merge,
        image_mean=list(cfg.mean),
        image_std=list(cfg.std),
    )


def normal_values(cfg):
    """float32 [3, 256]: what the reference's own rescaling and normalisation make of each byte, by channel."""
    processor, every = reference(cfg), np.arange(256, dtype=np.uint8).reshape(1, 1, 256).repeat(3, 0)
    return processor.normalize(processor.rescale(every, 1 / 255), list(cfg.mean), list(cfg.std))[:, 0].astype(np.float32)


def assert_same_patches(ours, image, cfg):
    """Our uint8 patches, put through the reference's rescaling and normalisation, equal its output bit for bit."""
    theirs = reference(cfg)(image, return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [[1, *ours.grid]]
    area = cfg.patch**2
    assert ours.patches.shape == (ours.grid[0] * ours.grid[1], 3 * area) and ours.patches.dtype == np.uint8
    expected = theirs["pixel_values"].reshape(-1, 3, 2, area)
    assert expected.dtype == np.float32
    values = normal_values(cfg)
    for channel in range(3):
        normal = values[channel][ours.patches[:, channel * area : (channel + 1) * area]]
        for frame in (0, 1):
            assert np.array_equal(normal, expected[:, channel, frame])


def of_file(data):
    """What the reference is shown of a file: the upright image, in its own mode."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


SIZES = [(1, 1), (1, 200), (200, 1), (2, 399), (13, 2600), (2600, 13), (96, 96), (16, 48), (33, 47), (31, 33), (95, 97)]


def test_patches_equal_transformers_over_sizes():
    rng = np.random.default_rng(0)
    for seed, (height, width) in enumerate([*SIZES, *rng.integers(5, 400, (40, 2)).tolist()]):
        image = noise(seed, height, width)
        assert_same_patches(patchify(image, CONFIG), Image.fromarray(image), CONFIG)


@pytest.mark.parametrize("size", [(97, 301), (768, 1024), (10, 2000), (8, 8), (256, 256), (255, 257)])
def test_patches_equal_transformers_as_published(size):
    image = noise(1, *size)
    assert_same_patches(patchify(image, QWEN), Image.fromarray(image), QWEN)


@pytest.mark.parametrize("size", [(2500, 3500), (3001, 1999), (5000, 25), (25, 5000)])
def test_patches_equal_transformers_scaled_down(size):
    cfg = QWEN._replace(min_pixels=32 * 32, max_pixels=300 * 300)
    image = noise(2, *size)
    ours = patchify(image, cfg)
    assert max(ours.grid) * 16 < max(size)
    assert_same_patches(ours, Image.fromarray(image), cfg)


def test_patches_equal_transformers_of_other_geometry():
    for cfg in (
        ImageConfig(14, 2, 56 * 56, 200 * 200, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ImageConfig(8, 4, 32 * 32, 64 * 64, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25)),
        CONFIG._replace(min_pixels=64 * 64, max_pixels=64 * 64),
    ):
        for size in ((50, 70), (64, 64), (300, 20)):
            assert_same_patches(patchify(noise(3, *size), cfg), Image.fromarray(noise(3, *size)), cfg)


@hypothesis.settings(max_examples=1000, deadline=None)
@hypothesis.given(
    height=st.integers(1, 9000),
    width=st.integers(1, 9000),
    patch=st.sampled_from([8, 14, 16]),
    merge=st.sampled_from([1, 2, 4]),
    limits=st.tuples(st.integers(1, 2**25), st.integers(1, 2**25)),
)
def test_smart_resize_equals_transformers(height, width, patch, merge, limits):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    cfg = ImageConfig(patch, merge, *sorted(limits), (0.5,) * 3, (0.5,) * 3)
    try:
        expected = theirs(height, width, factor=cfg.factor, min_pixels=cfg.min_pixels, max_pixels=cfg.max_pixels)
    except ValueError as e:
        assert "aspect ratio" in str(e)
        with pytest.raises(BadRecord, match="image_aspect"):
            smart_resize(height, width, cfg)
    else:
        assert smart_resize(height, width, cfg) == expected


def in_mode(mode):
    image = Image.fromarray(noise(3, 50, 70))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode[:-1])
        image.putalpha(Image.fromarray(noise(4, 50, 70)[..., 0]))
        return image
    return image.convert(mode)


MODES = [(mode, "PNG") for mode in ("1", "L", "P", "RGB", "RGBA", "LA")] + [("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "MPO")]
MODES += [("RGB", "WEBP"), ("RGBA", "WEBP"), ("P", "GIF"), ("L", "GIF"), ("P", "BMP"), ("RGB", "BMP"), ("1", "BMP")]


@pytest.mark.parametrize("mode,kind", MODES)
def test_patches_equal_transformers_over_modes(mode, kind):
    for orientation in (1, 6, 7):
        exif, out = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        in_mode(mode).save(out, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
        data = out.getvalue()
        assert of_file(data).size == ((50, 70) if orientation > 4 and kind not in ("GIF", "BMP") else (70, 50))
        assert_same_patches(patchify(decode_image(data), CONFIG), of_file(data), CONFIG)


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_png(kind, *, depth, channels=1, transparent=None, below=65536):
    """A PNG 9 x 7 of random bits, of depths and transparencies that Pillow cannot write."""
    rng, rows = np.random.default_rng(6), []
    for _ in range(7):
        bits = rng.integers(0, below, 9 * channels).astype(">u2") if depth == 16 else rng.integers(0, 256, 9 * channels, np.uint8)
        rows.append(b"\0" + bits.tobytes()[: -(-9 * channels * depth // 8)])
    chunks = [png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 7, depth, kind, 0, 0, 0))]
    chunks += [png_chunk(b"PLTE", rng.integers(0, 256, 3 * 2**depth, np.uint8).tobytes())] if kind == 3 else []
    chunks += [png_chunk(b"tRNS", transparent)] if transparent else []
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, png_chunk(b"IDAT", zlib.compress(b"".join(rows))), png_chunk(b"IEND", b"")])


@pytest.mark.parametrize(
    "mode,png",
    [
        ("1", raw_png(0, depth=1, transparent=b"\0\1")),
        ("L", raw_png(0, depth=2)),
        ("L", raw_png(0, depth=4, transparent=b"\0\3")),
        ("L", raw_png(0, depth=8, transparent=b"\0\x11")),
        ("I;16", raw_png(0, depth=16, below=256)),
        ("I;16", raw_png(0, depth=16, below=256, transparent=b"\0\x11")),
        ("RGB", raw_png(2, depth=8, channels=3, transparent=bytes(6))),
        ("RGB", raw_png(2, depth=16, channels=3)),
        ("P", raw_png(3, depth=8, transparent=bytes(range(256)))),
        ("P", raw_png(3, depth=1, transparent=b"\0")),
        ("P", raw_png(3, depth=4)),
        ("RGBA", raw_png(4, depth=16, channels=2)),
        ("RGBA", raw_png(6, depth=16, channels=4)),
    ],
)
def test_patches_equal_transformers_over_depths(mode, png):
    assert of_file(png).mode == mode
    assert_same_patches(patchify(decode_image(png), CONFIG), of_file(png), CONFIG)


def test_transparent_palette_is_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    out = io.BytesIO()
    image.save(out, "PNG", transparency=0)
    assert (decode_image(out.getvalue()) == 255).all()


def test_sixteen_bits_are_taken_only_where_nothing_is_clipped():
    out = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)).save(out, "PNG")
    assert of_file(out.getvalue()).mode == "I;16"
    assert np.array_equal(decode_image(out.getvalue())[..., 1], np.arange(256).reshape(16, 16))
    deep = io.BytesIO()
    Image.fromarray(np.array([[7, 256], [9, 40000]], np.uint16)).save(deep, "PNG")
    assert (np.array(of_file(deep.getvalue()).convert("RGB"))[:, 1] == 255).all()  # what the reference would be shown
    with pytest.raises(BadRecord, match=r"image_mode: mode I;16 holds values from 7 to 40000, .* 8 bits"):
        decode_image(deep.getvalue())


@pytest.mark.parametrize("size,resized", [((480, 640), (480, 640)), ((1080, 1920), (1088, 1920)), ((32, 32), (256, 256))])
def test_smart_resize_as_published(size, resized):
    assert smart_resize(*size, QWEN) == resized


def test_aspect_limit():
    rows, columns = smart_resize(10, 2000, CONFIG)
    assert rows % 32 == columns % 32 == 0
    with pytest.raises(BadRecord, match="image_aspect: 2001x10 is over 200 to 1"):
        smart_resize(10, 2001, CONFIG)


def test_patch_order():
    cfg = CONFIG._replace(min_pixels=64 * 96, max_pixels=64 * 96)
    image = np.repeat(np.repeat(np.arange(24, dtype=np.uint8).reshape(4, 6, 1), 16, 0), 16, 1).repeat(3, 2)
    patches, grid = patchify(image, cfg)
    if image.shape[:2] == tuple(side * cfg.patch for side in grid):
        assert np.array_equal(unpatchify(patches, grid, cfg), image)
    assert grid == (4, 6)
    hw = patch_coordinates(grid, 2)
    assert hw[:6].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3]]
    assert (patches == (hw[:, 0] * 6 + hw[:, 1])[:, None]).all()
    assert patches.dtype == np.uint8 and hw.dtype == np.int32


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    image = noise(5, 16, 24)
    turned = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: np.rot90(image, 3),
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(image),
    }[orientation]
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(image).save(out, "PNG", exif=exif)
    assert np.array_equal(decode_image(out.getvalue()), turned)
    assert_same_patches(patchify(turned, CONFIG), of_file(out.getvalue()), CONFIG)


def test_gif_is_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8, 3), i * 5, np.uint8)) for i in range(50)]
    out = io.BytesIO()
    frames[3].save(out, "GIF", save_all=True, append_images=frames)
    assert decode_image(out.getvalue()).shape == (8, 8, 3)
    assert (decode_image(out.getvalue()) == 15).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_images_are_never_half_decoded(kind):
    data = encoded(noise(6, 64, 48), kind)
    whole, refused = decode_image(data), 0
    for cut in np.linspace(0, len(data) - 1, 100).astype(int):
        try:
            image = decode_image(data[:cut])
        except BadRecord as e:
            assert e.reason in REASONS
            refused += 1
        else:  # all pixels were there, only a trailer is missing
            assert np.array_equal(image, whole)
    assert refused >= 95


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_damaged_bytes_raise_nothing_else(kind):
    data, rng = bytearray(encoded(noise(7, 32, 32), kind)), np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            damaged[at] ^= 1 << rng.integers(8)
        try:
            assert decode_image(bytes(damaged)).shape[-1] == 3
        except BadRecord as e:
            assert e.reason in REASONS


def png_header(width, height):
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(10**6))) + png_chunk(b"IEND", b"")


def gif_header(width, height):
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"\x2c\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0\x3b"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data", [png_header(8000, 8000), png_header(12000, 12000), png_header(2**31 - 1, 2**31 - 1), gif_header(65535, 65535)]
)
def test_bombs_are_refused_from_the_header(data):
    decode_image(encoded(noise(0, 4, 4)))  # loads the openers
    start = time.perf_counter()
    with pytest.raises(BadRecord, match="image_too_large"):
        decode_image(data)
    assert time.perf_counter() - start < 0.05
    assert len(data) < 20_000 and MAX_PIXELS < 8000 * 8000


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "PCX", "EPS", "PDF", "SGI"])
def test_other_formats_are_refused(kind):
    with pytest.raises(BadRecord, match="image_format"):
        decode_image(encoded(noise(8, 32, 32), kind))


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0"])
def test_no_image_is_refused(data):
    with pytest.raises(BadRecord, match="image_format"):
        decode_image(data)


# EXIF tags that cameras and editors write, among them those whose usual type Pillow takes for granted when it writes EXIF anew.
TAGS = (256, 257, 258, 259, 262, 270, 271, 272, 273, 274, 277, 278, 279, 282, 283, 284, 296, 301, 305, 306, 315, 316, 318, 319)
TAGS += (513, 514, 529, 530, 531, 532, 700, 33432, 33434, 34665, 34853, 37510, 40091)
TYPES = {1: (1, "B"), 2: (1, "B"), 3: (2, "H"), 4: (4, "L"), 5: (8, "LL"), 7: (1, "B"), 9: (4, "l"), 10: (8, "ll"), 11: (4, "f")}
TYPES |= {12: (8, "d")}


def exif_of(*tags):
    """EXIF with tags (tag, type, numbers) of any type; a rational is two numbers."""
    body, behind = struct.pack("<H", len(tags)), b""
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, kind, numbers in sorted(tags):
        size, form = TYPES[kind]
        value = struct.pack(f"<{form * (len(numbers) // len(form))}", *numbers)
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<L", start + len(behind))
        behind += value if len(value) > 4 else b""
        body += struct.pack("<HHL", tag, kind, len(value) // size) + place
    return b"Exif\0\0II*\0" + struct.pack("<L", 8) + body + bytes(4) + behind


def test_any_exif_is_judged_the_same_by_file_and_as_an_opened_image():
    image = Image.fromarray(noise(9, 16, 24))
    plain, out = decode_image(encoded(noise(9, 16, 24), "JPEG")), io.BytesIO()
    for tag in TAGS:
        for kind in TYPES:
            numbers = (65, 66, 67, 0) if kind in (2, 7) else (2, 3)
            turned = [] if tag == 274 else [(274, 3, (6,))]
            out.seek(0)
            image.save(out, "JPEG", exif=exif_of((tag, kind, numbers), *turned), quality=75)
            data = out.getvalue()
            opened = Image.open(io.BytesIO(data))
            pixels = decode_image(data)
            assert np.array_equal(pixels, image_pixels(opened)), (tag, kind)
            assert not turned or np.array_equal(pixels, np.rot90(plain, 3)), (tag, kind)
            assert opened.getexif().get(274) == (6 if turned else opened.getexif().get(274))  # left as it was


def test_a_damaged_exif_leaves_the_picture_as_it_is_stored():
    for exif in (b"Exif\0\0nothing", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x07" * 40):
        out = io.BytesIO()
        Image.fromarray(noise(9, 16, 24)).save(out, "PNG", exif=exif)
        assert np.array_equal(decode_image(out.getvalue()), noise(9, 16, 24))
        assert np.array_equal(image_pixels(Image.open(out)), noise(9, 16, 24))


def shown(image):
    """What a viewer shows of an image on white."""
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image.convert("RGBA")).convert("RGB"))


def test_every_mode_of_an_opened_image():
    colours, alpha = Image.fromarray(noise(3, 50, 70)), Image.fromarray(noise(4, 50, 70)[..., 0])
    grey, clear = colours.convert("L"), colours.convert("RGBA")
    clear.putalpha(alpha)
    for mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        assert np.array_equal(image_pixels(colours.convert(mode)), np.asarray(colours.convert(mode).convert("RGB"))), mode
    lightness = Image.merge("LAB", (grey, Image.new("L", grey.size, 128), Image.new("L", grey.size, 128)))
    assert np.array_equal(image_pixels(lightness), np.asarray(lightness.convert("RGB")))  # its A is no transparency
    both = grey.copy()
    both.putalpha(alpha)
    palette = clear.quantize(64)
    assert palette.mode == "P" and palette.palette.mode == "RGBA" and "transparency" not in palette.info
    for image in (clear, both, both.convert("PA"), clear.convert("RGBa"), palette):
        assert np.array_equal(image_pixels(image), shown(image)), image.mode
    assert np.array_equal(image_pixels(both.convert("La")), shown(both.convert("La").convert("LA")))
    values = np.asarray(grey).astype(np.int32)
    for mode, data in (("I", values), ("F", values.astype(np.float32))):
        assert np.array_equal(image_pixels(Image.fromarray(data)), np.asarray(grey.convert("RGB"))), mode
    for mode, kind in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")):
        low = Image.frombytes(mode, grey.size, values.astype(kind).tobytes())
        assert np.array_equal(image_pixels(low), np.asarray(grey.convert("RGB"))), mode
        deep = Image.frombytes(mode, grey.size, (values * 200).astype(kind).tobytes())
        with pytest.raises(BadRecord, match=f"^image_mode: mode {mode} holds values from [0-9]+ to [0-9]+, "):
            image_pixels(deep)


@pytest.mark.parametrize(
    "image,said",
    [
        (Image.fromarray(np.full((8, 8), 0.7, np.float32)), "image_mode: mode F .* white is 255; multiply it by 255"),
        (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "image_mode: mode F holds values from nan"),
        (Image.new("RGB", (0, 0)), "broken_image: 0x0 has no pixel"),
        (Image.new("1", (10000, 6000)), "image_too_large: 10000x6000 is over"),
    ],
)
def test_opened_images_that_are_refused(image, said):
    with pytest.raises(BadRecord, match=f"^{said}"):
        image_pixels(image)


def test_an_opened_image_that_is_cut_or_closed_is_refused():
    data = encoded(noise(6, 64, 48), "JPEG")
    with pytest.raises(BadRecord, match=r"^truncated_image: OSError"):
        image_pixels(Image.open(io.BytesIO(data[:-300])))
    closed = Image.open(io.BytesIO(data))
    closed.close()
    with pytest.raises(BadRecord, match=r"^broken_image: "):
        image_pixels(closed)


def test_large_metadata_is_passed_over():
    large, pixels = bytes(3_000_000), noise(9, 16, 24)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = encoded(pixels, "PNG")
    chunks = {
        b"zTXt": b"workflow\0\0" + zlib.compress(large),
        b"iTXt": b"parameters\0\1\0\0\0" + zlib.compress(large),
        b"iCCP": b"display\0\0" + zlib.compress(large),
        b"tEXt": b"prompt\0" + b"a" * 70_000_000,
    }
    for name, body in chunks.items():
        for turned in (False, True):
            extra = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) if turned else b""
            for at in (33, len(plain) - 12):  # after the header, and before the end
                data = plain[:33] + extra + plain[33:at] + png_chunk(name, body) + plain[at:]
                assert np.array_equal(decode_image(data), np.rot90(pixels, 3) if turned else pixels), (name, at)
    jpeg, webp = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", icc_profile=bytes(5_000_000), comment=bytes(60_000))
    Image.fromarray(pixels).save(webp, "WEBP", lossless=True, icc_profile=large, exif=b"Exif\0\0" + large, xmp=large)
    assert decode_image(jpeg.getvalue()).shape == (16, 24, 3)
    assert np.array_equal(decode_image(webp.getvalue()), pixels)
