"""Folders and files of memories on disk: which folder is a user's, and which files are the store's.

The store deletes no file that it did not write.
"""

import hashlib
import re
import unicodedata
from pathlib import Path

from personavlm_lib.memory.database import StoreError

# Names of the images that the store and the recognizer write
OWN_IMAGE = re.compile(r"(turn\d+_\d+|concept\d+|concept_[0-9a-f]{16})\.\w+")
PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


def user_folder(root: str | Path, name: str) -> Path:
    """The folder of the user `name` below `root`, whatever the name holds.

    Different names have different folders, also where upper and lower case are the same.
    """
    name = unicodedata.normalize("NFC", name)
    if PLAIN_NAME.fullmatch(name):
        return Path(root, name)
    readable = re.sub(r"[^\w-]+", "-", name)[:40]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(root, f"_{readable}-{digest[:16]}")


def create_folder(folder: Path) -> None:
    """Create a folder of a memory. Raises StoreError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create the memory folder {folder.parent}: {error.strerror}"
        ) from error


def delete_unused_images(folder: Path, used: set[str]) -> int:
    """Delete the store's images whose paths are not `used`; return how many there were."""
    count = 0
    for path in folder.iterdir():
        is_own = OWN_IMAGE.fullmatch(path.name) and path.is_file()
        if is_own and str(path) not in used:
            path.unlink()
            count += 1
    return count
