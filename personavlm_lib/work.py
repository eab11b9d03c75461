"""Long work: kept by what it was made from, told while it goes on, ended with whoever started it.

What a stopped run left may be used again only if it is whole and comes of the very same: contents of inputs (not their
paths or times), settings and code.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
PACKAGE = Path(__file__).parent
STAMP = "finished"  # the file that holds the key of a finished folder, written last
PARENT = "PERSONAVLM_PARENT"  # environment variable: the process that must outlive this one


def fingerprint(path: Path, pattern: str = "*") -> str:
    """A hash of a file, or of the names and contents of a folder's files; a name that is no path stands for itself."""
    if not path.exists():
        return str(path)
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(found for found in path.rglob(pattern) if found.is_file()):
        with file.open("rb") as content:
            digest.update(f"{file.relative_to(path)} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@cache
def code() -> str:
    """Fingerprint of all code and prompts that can change a result: `study` only shows results."""
    parts = [part for part in sorted(PACKAGE.iterdir()) if part.is_dir() and part.name != "study"]
    return " ".join(fingerprint(part, pattern) for part in parts for pattern in ("*.py", "*.j2"))


def key(**made_from: object) -> str:
    """12 digits that stand for all a result is made from, the code included. Of a `Path`, the contents count."""
    plain = {name: fingerprint(value) if isinstance(value, Path) else value for name, value in made_from.items()}
    text = json.dumps(plain | {"code": code()}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def finished(folder: Path, key: str) -> bool:
    """Whether `folder` holds the whole work of this key. What is half done, or made from something else, is removed."""
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == key:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    return False


def finish(folder: Path, key: str) -> None:
    """Says that the work in `folder` is whole."""
    (folder / STAMP).write_text(key)


def progress_line(name: str, unit: str, done: int, of: int, rate: float) -> str:
    """`02_sft  step 120/450  1.4 steps/s  4 min left`; `rate` in units a second, 0 where none is known yet."""
    pace = f"{rate:.1f} {unit}s/s" if rate >= 0.5 else f"{1 / rate:.1f} s/{unit}" if rate else "starting"
    left = (of - done) / rate if rate else 0
    told = "" if not rate or done >= of else f"  {left / 60:.0f} min left" if left >= 90 else f"  {left:.0f} s left"
    return f"{name}  {unit} {done}/{of}  {pace}{told}"


def progress(items: Sequence[T], name: str, unit: str, every: float = 10.0) -> Iterator[T]:
    """The items; prints a line every `every` seconds, and after the last, on how many are done. `name`: the stage's."""
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - shown >= every or done == len(items):
            shown = now
            print(progress_line(name, unit, done, len(items), done / max(now - start, 1e-6)), flush=True)


def follow() -> None:
    """Ends this process when the one that started it (by a `follow` of its own) is gone: killed, it can stop nobody."""
    parent = int(os.environ.get(PARENT, 0))
    os.environ[PARENT] = str(os.getpid())
    if parent in (0, os.getpid()):
        return

    def watch() -> None:
        try:
            process = psutil.Process(parent)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        except psutil.NoSuchProcess:
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
