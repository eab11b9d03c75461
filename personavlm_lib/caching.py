"""Long work: kept by what it was made from, told while it goes on, ended with whoever started it.

What a stopped run left may be used again only if it is whole and comes of the very same: contents of inputs (not their
paths or times), settings and code.
"""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
STAMP = "finished"  # the file that holds the key of a finished folder, written last


def fingerprint(path: Path, pattern: str = "*") -> str:
    """A hash of a file, or of the names and contents of a folder's files; a name that is no path stands for itself."""
    if not path.exists():
        return str(path)
    digest = hashlib.sha256()
    for file in (
        [path]
        if path.is_file()
        else sorted(found for found in path.rglob(pattern) if found.is_file())
    ):
        with file.open("rb") as content:
            digest.update(
                f"{file.relative_to(path)} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode()
            )
    return digest.hexdigest()


@cache
def code_fingerprint() -> str:
    """Fingerprint of all code and prompts that can change a result: `study` only shows results."""
    parts = [part for part in sorted(PACKAGE.iterdir()) if part.is_dir() and part.name != "study"]
    return " ".join(fingerprint(part, pattern) for part in parts for pattern in ("*.py", "*.j2"))


def cache_key(**made_from: object) -> str:
    """12 digits that stand for all a result is made from, the code included. Of a `Path`, the contents count."""
    plain = {
        name: fingerprint(value) if isinstance(value, Path) else value
        for name, value in made_from.items()
    }
    text = json.dumps(plain | {"code": code_fingerprint()}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def reuse_or_clear(folder: Path, key: str) -> bool:
    """Whether `folder` holds the whole work of this key. What is half done, or made from something else, is removed."""
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == key:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def mark_finished(folder: Path, key: str) -> None:
    """Says that the work in `folder` is whole."""
    (folder / STAMP).write_text(key)
