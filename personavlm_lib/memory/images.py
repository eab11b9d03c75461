"""Images of a memory: files beside the database, stored by relative path so the folder can move."""

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from personavlm_lib.memory.records import Record, SemanticMemory, Turn


def read_image(path: str | Path) -> Image.Image:
    """The image at `path` in RGB. Raises ValueError if it is missing, truncated or not an image."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:  # which of the two depends on the format
        reason = _reason(error)
        raise ValueError(
            f"image {path} cannot be read ({reason}): replace it with a complete image file"
        ) from error


def _reason(error: Exception) -> str:
    if "truncated" in str(error):
        return "it is truncated"
    if isinstance(error, FileNotFoundError):
        return "it is missing"
    return "it is not an image file"


def copy_image(source: Path, target: Path) -> None:
    """Copy an image and sync it to disk, so it is as durable as the row that names it."""
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
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
