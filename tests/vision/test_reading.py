"""Pictures of every kind become RGB, or an error that names them."""

import base64
import io
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ssmoe_embed.vision import ImageError, read_image
from ssmoe_embed.vision.inputs import MOST_PIXELS, is_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def pixels(given, **options):
    return np.asarray(read_image(given, **options))


def saved(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that says its size and holds nothing of it."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_every_way_to_hand_over_a_picture_gives_the_same_pixels(tmp_path):
    image = Image.fromarray(PIXELS)
    path = tmp_path / "one.png"
    image.save(path)
    address = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    for given in (
        image, path, str(path), path.read_bytes(), address, PIXELS, PIXELS.transpose(2, 0, 1), torch.from_numpy(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1), PIXELS / 255, PIXELS.astype(np.uint16) * 257,
    ):  # fmt: skip
        np.testing.assert_array_equal(pixels(given), PIXELS)
        assert is_image(given)


def test_a_string_is_a_picture_only_if_such_a_file_is_there(tmp_path):
    assert not is_image("cat.png")
    assert not is_image("a picture of a cat")
    (tmp_path / "cat.PNG").write_bytes(b"")
    assert is_image(str(tmp_path / "cat.PNG"))
    assert not is_image(str(tmp_path))


def test_a_photo_is_turned_as_its_camera_was_held():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    turned = saved(Image.fromarray(PIXELS), "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(turned), np.rot90(PIXELS, -1))
    np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(turned))), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    clear = Image.new("RGBA", (3, 2), (200, 0, 0, 0))
    clear.putpixel((0, 0), (10, 10, 10, 255))
    found = pixels(saved(clear.convert(mode) if mode != "P" else clear.quantize(4), "PNG"))
    assert (found[1] == 255).all()
    assert (found[0, 0] == 10).all()


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = np.array([[0, 257, 65535], [32896, 65278, 257 * 7]], dtype=np.uint16)
    expected = np.round(deep / 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(deep), "PNG")), expected)
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(deep.astype(np.int32)), "TIFF")), expected)


def test_cmyk_and_grey_become_rgb():
    flat = Image.new("CMYK", (4, 4), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert tuple(pixels(saved(flat, "TIFF"))[0, 0]) == (255, 0, 0)
    assert tuple(pixels(np.full((2, 2), 7, np.uint8))[0, 0]) == (7, 7, 7)


def test_of_an_animation_the_first_frame_is_read_which_is_said():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    film = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="wink has 2 frames; the first is read"):
        assert tuple(pixels(film, where="wink")[0, 0]) == (255, 0, 0)


def test_one_pixel_is_a_picture_and_a_long_one_is_cut_to_its_middle():
    assert pixels(np.array([[[1, 2, 3]]], np.uint8)).tolist() == [[[1, 2, 3]]]
    long = np.zeros((1, 2001, 3), np.uint8)
    long[0, 1000] = 255
    assert pixels(long).shape == (1, 8, 3)
    assert pixels(long).max() == 255


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"no picture", "The picture of 10 bytes is no picture that Pillow knows"),
        (saved(Image.fromarray(PIXELS), "PNG")[:60], "broken or cut short"),
        (b"", "no picture that Pillow knows"),
        ("https://example.org/a.png", "nothing is downloaded"),
        (np.zeros((0, 3, 3)), "no pixels"),
        (np.zeros((2, 3, 5, 3)), "shape"),
        (np.full((2, 2), np.nan), "NaN"),
        (np.full((2, 2), -4.0), "from -4 to -4"),
        (np.full((2, 2), "x"), "shape"),
        (7, "pass a PIL image"),
        (png_header(20_000, 20_000), "400,000,000|400000000"),
        (png_header(10_500, 10_500), f"at most {MOST_PIXELS:,}"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_why(given, message):
    with pytest.raises(ImageError, match=message):
        read_image(given)


def test_the_error_names_the_file(tmp_path):
    for path, content in ((tmp_path / "a.png", b"x"), (tmp_path / "b.jpg", None)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ImageError, match=re.escape(str(path))):
            read_image(path)
