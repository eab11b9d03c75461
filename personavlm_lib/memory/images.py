"""Images of a memory: kept beside the database, and named in it relative to the folder, so that it can be moved."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image

from personavlm_lib.memory.records import Record, SemanticMemory, Turn


def read_image(path: str | Path) -> Image.Image:
    """The image at `path` in RGB. ValueError for one that is missing, cut short or none at all."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:  # which one depends on the format
        reason = "it is not there" if isinstance(error, FileNotFoundError) else "it is none"
        reason = "it is cut short" if "truncated" in str(error) else reason
        raise ValueError(
            f"image {path} cannot be read ({reason}): put a whole one in its place"
        ) from error


def copy_image(source: Path, target: Path) -> None:
    """A copy that is on the disk when this returns, as the row that names it will be."""
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def relocate(record: Record, move: Callable[[str], str | Path]) -> Record:
    """The record with the paths of its images moved."""
    if isinstance(record, Turn) and record.images:
        return replace(record, images=tuple(str(move(path)) for path in record.images))
    if isinstance(record, SemanticMemory) and record.concept:
        return replace(record, concept=replace(record.concept, crop=str(move(record.concept.crop))))
    return record


def image_paths(record: Record) -> tuple[str, ...]:
    """The images that a record names."""
    if isinstance(record, SemanticMemory) and record.concept:
        return (record.concept.crop,)
    return record.images if isinstance(record, Turn) else ()
