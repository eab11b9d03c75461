"""One normal form for pictures: what is kept of them, and what becomes of damaged ones."""

import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from personavlm_lib.memory.images import MAX_BYTES, encoded_image, read_image

ORIENTATION, GPS = 0x0112, 0x8825
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def two_colors(size=(40, 20)):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image


def is_color(pixel, color):
    return max(abs(a - b) for a, b in zip(pixel, color, strict=True)) < 12


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_every_format_becomes_png_or_jpeg_by_its_content(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    two_colors().save(path)
    disguised = path.rename(tmp_path / "a.dat")
    media_type, data = encoded_image(disguised)
    assert media_type == ("image/jpeg" if suffix == "jpg" else "image/png")
    with Image.open(io.BytesIO(data)) as image:
        assert f"image/{image.format.lower()}" == media_type
        assert is_color(image.convert("RGB").getpixel((3, 3)), RED)
        assert is_color(image.convert("RGB").getpixel((36, 3)), BLUE)


def test_plain_files_keep_their_bytes(tmp_path):
    for name in ("a.png", "a.jpg"):
        two_colors().save(tmp_path / name)
        _, data = encoded_image(tmp_path / name)
        assert data == (tmp_path / name).read_bytes()


def test_rotation_is_applied_and_the_place_is_removed(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turned by 90 degrees to the right when shown
    exif.get_ifd(GPS)[1] = "N"
    path = tmp_path / "turned.jpg"
    two_colors().save(path, exif=exif, comment=b"at home", quality=95)
    image = read_image(path)
    assert image.size == (20, 40)
    assert is_color(image.getpixel((10, 3)), RED)
    assert is_color(image.getpixel((10, 36)), BLUE)
    _, data = encoded_image(path)
    with Image.open(io.BytesIO(data)) as sent:
        assert sent.size == (20, 40)
        assert not sent.getexif()
    assert b"at home" not in data


def test_sixteen_bits_are_scaled(tmp_path):
    for value, name in ((65535, "white"), (32896, "gray"), (0, "black")):
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / f"{name}.png")
    shades = [
        read_image(tmp_path / f"{n}.png").getpixel((1, 1)) for n in ("white", "gray", "black")
    ]
    assert shades == [(255,) * 3, (128,) * 3, (0,) * 3]
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tiff")
    assert read_image(tmp_path / "float.tiff").getpixel((1, 1)) == (127,) * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 0, 8, 8))
    image.convert(mode).save(tmp_path / "a.png")
    flat = read_image(tmp_path / "a.png")
    assert (flat.getpixel((1, 1)), flat.getpixel((6, 1))) == (WHITE, (0, 0, 0))


def test_size_is_bounded_in_pixels_and_bytes(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (1500, 1500, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.png")
    media_type, data = encoded_image(tmp_path / "noise.png")
    assert media_type == "image/jpeg" and len(data) <= MAX_BYTES
    noise.resize((3000, 300)).save(tmp_path / "wide.jpg")
    image = read_image(tmp_path / "wide.jpg", max_pixels=10_000)
    assert 9_000 < image.width * image.height <= 10_000
    assert image.width / image.height == pytest.approx(10, rel=0.05)


def damaged(rng, data):
    """The file with random bytes changed, removed or inserted, or its end cut off."""
    data = bytearray(data)
    if rng.random() < 0.3:
        return bytes(data[: rng.randrange(len(data))])
    for _ in range(rng.randrange(1, 8)):
        start = rng.randrange(len(data))
        length = rng.choice([1, 1, 2, 4, 16])
        data[start : start + rng.choice([0, length])] = rng.randbytes(length)
    return bytes(data)


def test_damaged_pictures_raise_one_clear_error(tmp_path):
    count = 6000
    rng = random.Random(0)
    originals = []
    for name in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ico", "ppm", "tga", "pcx"):
        file = io.BytesIO()
        two_colors((64, 64)).save(file, name)
        originals.append(file.getvalue())
    path = tmp_path / "damaged.png"
    outcomes = {"read": 0, "refused": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(count):
            path.write_bytes(damaged(rng, originals[n % len(originals)]))
            try:
                media_type, _ = encoded_image(path)
            except ValueError as error:
                outcomes["refused"] += 1
                assert str(error).startswith(f"image {path} cannot be read (")
            else:
                outcomes["read"] += 1
                assert media_type in ("image/png", "image/jpeg")
    assert min(outcomes.values()) > count / 20
