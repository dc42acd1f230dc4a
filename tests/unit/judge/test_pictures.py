"""A picture in every form a caller may hold it: the same pixels, or one line that says what may be one."""

import io
import os
import pathlib
import struct
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from data_fixtures import encoded, noise
from PIL import Image

from mtjudge_jax.errors import UserError
from mtjudge_jax.judge.pictures import as_array, pixels_of

PIXELS = noise(1, 16, 24)


def test_every_door_gives_the_same_pixels(tmp_path):
    data, path = encoded(PIXELS, "PNG"), tmp_path / "a.png"
    path.write_bytes(data)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xf0.png")  # a name that is no UTF-8
    pathlib.Path(odd).write_bytes(data)
    doors = [path, str(path), odd, data, bytearray(data), memoryview(data), Image.open(path), Image.fromarray(PIXELS)]
    doors += [PIXELS, PIXELS.transpose(2, 0, 1), jnp.asarray(PIXELS), np.asfortranarray(PIXELS)]
    for door in doors:
        assert np.array_equal(pixels_of(door), PIXELS), type(door)
    for view in (PIXELS[::-1, ::2], PIXELS[..., ::-1]):
        assert np.array_equal(pixels_of(view), view)


def test_a_torch_tensor_is_an_array():
    torch = pytest.importorskip("torch")
    assert np.array_equal(pixels_of(torch.from_numpy(PIXELS).permute(2, 0, 1)), PIXELS)
    with pytest.raises(UserError, match=r"array of float32 \[3, 16, 24\] is no picture.* \(x \* 255\).round\(\)"):
        pixels_of(torch.zeros(3, 16, 24))
    with pytest.raises(UserError, match=r"image_array: a torch.Tensor is no picture .*on the CPU"):
        as_array(torch.zeros(3, 16, 24, dtype=torch.bfloat16))


def test_grey_and_transparent_arrays():
    grey = PIXELS[..., 0]
    for array in (grey, grey[..., None], grey[None]):
        assert np.array_equal(pixels_of(array), grey[..., None].repeat(3, 2))
    clear = np.dstack([PIXELS, np.full((16, 24), 0, np.uint8)])
    assert (pixels_of(clear) == 255).all() and (pixels_of(clear.transpose(2, 0, 1)) == 255).all()


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 4, 3), (5, 7, 2), (2, 16, 24), (7,), (), (3, 0, 5)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(UserError, match=r"^image_array: an array of uint8 .* is no picture: give a path, encoded bytes, a PIL"):
        pixels_of(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("value", [None, 7, ["a.png"], {"a": 1}, 1.5, object()])
def test_what_is_no_picture_at_all(value):
    with pytest.raises(UserError, match=r"^image_type: .* is no picture: give a path, encoded bytes, a PIL image or a uint8 arr"):
        pixels_of(value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    cut, long = tmp_path / "cut.jpg", str(tmp_path / "a") * 300
    cut.write_bytes(encoded(PIXELS, "JPEG")[:-200])
    with pytest.raises(UserError, match=r"cut.jpg: truncated_image: OSError"):
        pixels_of(cut)
    for path in (tmp_path, tmp_path / "none.png", long, "a\0b.png", "", os.fsdecode(b"caf\xe9.png")):
        with pytest.raises(UserError, match=r"^image_path: no file"):
            pixels_of(path)
    (tmp_path / "cut.png").symlink_to("/proc/self/mem")  # is a file, and reading it fails
    with pytest.raises(UserError, match=r"cut.png: "):
        pixels_of(tmp_path / "cut.png")


def test_odd_exif_of_an_opened_image(tmp_path):
    """Each of these raised another error while a file was judged."""
    for tag, kind, value in ((274, 2, b"6\0\0\0"), (305, 11, struct.pack("<f", 1.5)), (296, 5, None), (256, 1, b"\7\0\0\0")):
        behind = struct.pack("<LL", 1, 2) if value is None else b""
        entry = struct.pack("<HHL", tag, kind, 1) + (struct.pack("<L", 26) if value is None else value)
        exif = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 1) + entry + bytes(4) + behind
        out = io.BytesIO()
        Image.fromarray(PIXELS).save(out, "JPEG", exif=exif)
        assert np.array_equal(pixels_of(Image.open(out)), pixels_of(out.getvalue())), tag


def test_one_opened_image_in_many_threads():
    for _ in range(10):
        image = Image.open(io.BytesIO(encoded(noise(2, 300, 400), "PNG")))
        with ThreadPoolExecutor(8) as pool:
            assert all(np.array_equal(pixels, noise(2, 300, 400)) for pixels in pool.map(pixels_of, [image] * 16))
