"""Images of a memory: files beside the database, stored by relative path so the folder can move."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from io import BytesIO
from math import sqrt
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from personavlm_lib.memory.records import Record, SemanticMemory, Turn

STORED_PIXELS = 4_194_304  # of the largest image in a memory; larger ones are scaled down
MAX_PIXELS = 1_048_576  # of the largest image for a server, unless its settings say otherwise
MAX_BYTES = 5_000_000  # of an encoded image; a larger one becomes a JPEG
SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg"}  # of a stored image, by media type
TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
# What a PNG or JPEG may say besides its pixels; anything else could name a place or a person.
HARMLESS_METADATA = set(
    "jfif jfif_version jfif_unit jfif_density dpi gamma srgb icc_profile adobe adobe_transform "
    "progressive progression".split()
)


def read_image(path: str | Path, max_pixels: int = STORED_PIXELS) -> Image.Image:
    """The image at `path`, decoded by its content, in the normal form of this project.

    That is 8-bit RGB, upright, without metadata, of at most `max_pixels`. Transparent parts are
    white. Raises ValueError if the image is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return _normal_form(image, max_pixels)
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise _unreadable(path, error) from error


def encoded_image(path: str | Path, max_pixels: int = STORED_PIXELS) -> tuple[str, bytes]:
    """The media type and the bytes of the image as PNG or JPEG in normal form, as in `read_image`.

    A file that has this form already is not encoded again.
    """
    image = read_image(path, max_pixels)
    try:
        with Image.open(path) as original:
            is_photograph = original.format in ("JPEG", "MPO")
            if _has_normal_form(original, image):
                assert original.format is not None
                data = Path(path).read_bytes()
                if len(data) <= MAX_BYTES:
                    return f"image/{original.format.lower()}", data
        if not is_photograph:
            data = _saved(image, "PNG")
            if len(data) <= MAX_BYTES:
                return "image/png", data
        return "image/jpeg", _saved(image, "JPEG", quality=90)
    except Exception as error:
        raise _unreadable(path, error) from error


def _normal_form(image: Image.Image, max_pixels: int) -> Image.Image:
    scale = sqrt(max_pixels / (image.width * image.height))
    if scale < 1:  # a large JPEG is decoded at a fraction of its size
        image.draft("RGB", (int(image.width * scale), int(image.height * scale)))
    image.load()
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    if image.mode in TRANSPARENT_MODES or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    image = image.convert("RGB")
    scale = sqrt(max_pixels / (image.width * image.height))
    if scale < 1:
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    image.info = {}
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data say; unchanged if these are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the pixels are fine: the metadata may raise anything
        return image.copy()


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grayscale image of 16 or 32 bits, or of floats from 0 to 1, with 8 bits."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    largest = values.max()
    if image.mode == "F" and largest <= 1:
        values = values * 255
    elif image.mode.startswith("I;16") or largest > 255:
        values = values / 257
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _has_normal_form(original: Image.Image, normal: Image.Image) -> bool:
    is_plain = original.format in ("PNG", "JPEG") and original.mode in ("RGB", "L")
    return is_plain and original.size == normal.size and set(original.info) <= HARMLESS_METADATA


def _saved(image: Image.Image, file_format: str, **options: int) -> bytes:
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _unreadable(path: str | Path, error: Exception) -> ValueError:
    reason = _reason(error)
    return ValueError(
        f"image {path} cannot be read ({reason}): replace it with a complete image file"
    )


def _reason(error: Exception) -> str:
    if "truncated" in str(error):
        return "it is truncated"
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return "it is too large"
    return "it is not an image file"


def write_image(data: bytes, target: Path) -> None:
    """Write an encoded image and sync it to disk, so it is as durable as the row that names it."""
    with open(target, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def relocate(record: Record, move: Callable[[str], str | Path]) -> Record:
    """The record with `move` applied to the paths of its images."""
    if isinstance(record, Turn) and record.images:
        paths = [str(move(path)) for path in record.images]
        return replace(record, images=tuple(paths))
    if isinstance(record, SemanticMemory) and record.concept:
        crop = str(move(record.concept.crop))
        return replace(record, concept=replace(record.concept, crop=crop))
    return record


def image_paths(record: Record) -> tuple[str, ...]:
    """Paths of the images that a record names."""
    if isinstance(record, SemanticMemory) and record.concept:
        return (record.concept.crop,)
    if isinstance(record, Turn):
        return record.images
    return ()


def turn_images(turns: Iterable[Turn]) -> tuple[str, ...]:
    """Paths of the images of several turns, in order."""
    paths: list[str] = []
    for turn in turns:
        paths.extend(turn.images)
    return tuple(paths)
