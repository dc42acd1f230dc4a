"""Image decoding, its limits, and bit-equality of the patches with transformers' processor."""

import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from data_fixtures import CONFIG, encoded, noise
from PIL import Image

from mtjudge_jax.data.images import (
    MAX_PIXELS,
    ImageConfig,
    decode,
    load_image_config,
    patch_coordinates,
    patchify,
    smart_resize,
)
from mtjudge_jax.data.records import BadRecord

QWEN = ImageConfig(16, 2, 65536, 16777216, (0.5,) * 3, (0.5,) * 3)  # Qwen3-VL's published configuration
REASONS = {"image_format", "image_too_large", "image_mode", "truncated_image", "broken_image"}


def reference(cfg):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        size={"shortest_edge": cfg.min_pixels, "longest_edge": cfg.max_pixels},
        patch_size=cfg.patch,
        merge_size=cfg.merge,
        image_mean=list(cfg.mean),
        image_std=list(cfg.std),
    )


def assert_same_patches(ours, image, processor):
    """Our uint8 patches, put through the reference's own rescaling and normalisation, equal its output bit for bit."""
    theirs = processor(image, return_tensors="np")
    assert theirs["image_grid_thw"].tolist() == [[1, *ours.grid]]
    n = len(ours.patches)
    chw = ours.patches.reshape(n, 3, 256).transpose(1, 0, 2)
    normal = processor.normalize(processor.rescale(chw, 1 / 255), [0.5] * 3, [0.5] * 3).transpose(1, 0, 2)
    expected = theirs["pixel_values"].reshape(n, 3, 2, 256)
    assert expected.dtype == np.float32
    for frame in (0, 1):
        assert np.array_equal(normal.astype(np.float32), expected[:, :, frame])


def test_patches_equal_transformers_over_sizes():
    processor, rng = reference(CONFIG), np.random.default_rng(0)
    sizes = [(1, 1), (1, 200), (200, 1), (96, 96), (16, 48), (33, 47), *rng.integers(5, 400, (40, 2)).tolist()]
    for seed, (height, width) in enumerate(sizes):
        image = noise(seed, height, width)
        assert_same_patches(patchify(image, CONFIG), Image.fromarray(image), processor)
    assert_same_patches(patchify(noise(1, 97, 301), QWEN), Image.fromarray(noise(1, 97, 301)), reference(QWEN))


def in_mode(mode):
    image = Image.fromarray(noise(3, 50, 70))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode[:-1])
        image.putalpha(Image.fromarray(noise(4, 50, 70)[..., 0]))
        return image
    return image.convert(mode)


@pytest.mark.parametrize(
    "mode,kind",
    [(m, "PNG") for m in ("1", "L", "P", "RGB", "RGBA", "LA")]
    + [("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "WEBP"), ("RGBA", "WEBP"), ("P", "GIF"), ("P", "BMP"), ("RGB", "BMP")],
)
def test_patches_equal_transformers_over_modes(mode, kind):
    out = io.BytesIO()
    in_mode(mode).save(out, kind)
    with Image.open(io.BytesIO(out.getvalue())) as image:
        assert_same_patches(patchify(decode(out.getvalue()), CONFIG), image, reference(CONFIG))


def test_transparent_palette_is_white():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    out = io.BytesIO()
    image.save(out, "PNG", transparency=0)
    assert (decode(out.getvalue()) == 255).all()


def test_sixteen_bit_is_refused():
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(out, "PNG")
    with pytest.raises(BadRecord, match=r"image_mode: mode I;16 .* 8 bits"):
        decode(out.getvalue())


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
    assert np.array_equal(decode(out.getvalue()), turned)


def test_gif_is_its_first_frame():
    frames = [Image.fromarray(np.full((8, 8, 3), i * 5, np.uint8)) for i in range(50)]
    out = io.BytesIO()
    frames[3].save(out, "GIF", save_all=True, append_images=frames)
    assert decode(out.getvalue()).shape == (8, 8, 3)
    assert (decode(out.getvalue()) == 15).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_images_are_never_half_decoded(kind):
    data = encoded(noise(6, 64, 48), kind)
    whole, refused = decode(data), 0
    for cut in np.linspace(0, len(data) - 1, 100).astype(int):
        try:
            image = decode(data[:cut])
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
            assert decode(bytes(damaged)).shape[-1] == 3
        except BadRecord as e:
            assert e.reason in REASONS


def png_header(width, height):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


def gif_header(width, height):
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"\x2c\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0\x3b"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data", [png_header(8000, 8000), png_header(12000, 12000), png_header(2**31 - 1, 2**31 - 1), gif_header(65535, 65535)]
)
def test_bombs_are_refused_from_the_header(data):
    decode(encoded(noise(0, 4, 4)))  # loads the openers
    start = time.perf_counter()
    with pytest.raises(BadRecord, match="image_too_large"):
        decode(data)
    assert time.perf_counter() - start < 0.05
    assert len(data) < 20_000 and MAX_PIXELS < 8000 * 8000


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "PCX", "EPS", "PDF", "SGI"])
def test_other_formats_are_refused(kind):
    with pytest.raises(BadRecord, match="image_format"):
        decode(encoded(noise(8, 32, 32), kind))


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0"])
def test_no_image_is_refused(data):
    with pytest.raises(BadRecord, match="image_format"):
        decode(data)


def write_config(folder, **changes):
    config = {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config | changes))


def test_load_image_config(tmp_path):
    write_config(tmp_path)
    assert load_image_config(tmp_path) == QWEN
    write_config(tmp_path, image_mean=[0.1, 0.2, 0.3])
    assert load_image_config(tmp_path).mean == (0.1, 0.2, 0.3)
    assert QWEN.factor == 32 and QWEN.patch_dim == 768


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"resample": 2}, "resample is 2, only 3"),
        ({"do_resize": False}, "do_resize is False"),
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ({"size": {"height": 224, "width": 224}}, "shortest_edge <= longest_edge"),
        ({"size": {"shortest_edge": 200, "longest_edge": 100}}, "found 200 and 100"),
    ],
)
def test_load_image_config_refuses(tmp_path, changes, message):
    write_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_image_config(tmp_path)
