"""Reuse finished work: a result is stored under a key of everything that it was computed from.

The key covers the contents of the inputs (not their paths or times), the settings and the code.
An interrupted run's output is reused only if it is complete and its key matches.
"""

import hashlib
import json
import shutil
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
STAMP = "finished"  # file with the key of a finished folder; it is written last


def fingerprint(path: Path, pattern: str = "*") -> str:
    """Hash a file, or the names and contents of the files in a folder that match `pattern`.

    A path that does not exist (such as a hub id) is returned as text.
    """
    if not path.exists():
        return str(path)
    if path.is_file():
        files = [path]
    else:
        files = sorted(file for file in path.rglob(pattern) if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content_hash = hashlib.file_digest(stream, "sha256").hexdigest()
        line = f"{file.relative_to(path)} {content_hash}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def check_published(file: Path, sha256: str, fix: str) -> None:
    """Raise RuntimeError, which suggests the `fix`, unless a file has the hash of the published."""
    digest = "missing"
    if file.is_file():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != sha256:
        raise RuntimeError(
            f"{file} is not the published file (sha256 {digest}, expected {sha256}): {fix}"
        )


@cache
def code_fingerprint() -> str:
    """Fingerprint all code, tables and prompts that can change a result (`study` displays them)."""
    hashes = []
    for package in sorted(PACKAGE.iterdir()):
        if not package.is_dir() or package.name == "study":
            continue
        hashes += [fingerprint(package, pattern) for pattern in ("*.py", "*.yaml", "*.j2", "*.txt")]
    return " ".join(hashes)


def cache_key(**inputs: object) -> str:
    """Return 12 hexadecimal digits that identify a result by its `inputs` and the code.

    A `Path` counts by the contents of its file or folder.
    """
    values: dict[str, object] = {}
    for name, value in inputs.items():
        if isinstance(value, Path):
            value = fingerprint(value)
        values[name] = value
    values["code"] = code_fingerprint()
    text = json.dumps(values, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    return digest.hexdigest()[:12]


def delete(path: Path, root: Path) -> None:
    """Delete a file or folder inside of `root`, if it exists; a link goes without its target.

    Raises ValueError, and deletes nothing, if `path` is `root` itself or lies outside of it, after
    symbolic links are followed.
    """
    target = path.resolve()
    allowed = root.resolve()
    if target == allowed or allowed not in target.parents:
        raise ValueError(f"{path} is not deleted: it does not lie inside of {root}")
    if path.is_dir() and not path.is_symlink():
        # Processes of one training delete the same checkpoints at the same time
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def reuse_or_clear(folder: Path, key: str, root: Path) -> bool:
    """Return True if `folder` holds finished work of `key`; otherwise delete the folder.

    Work that is incomplete or was made from other inputs is removed, and False is returned.
    Raises ValueError if something has to be deleted that does not lie inside of `root`.
    """
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == key:
        return True
    delete(folder, root)
    return False


def mark_finished(folder: Path, key: str) -> None:
    """Write the stamp that marks the work in `folder` as complete."""
    stamp = folder / STAMP
    stamp.write_text(key, encoding="utf-8")
