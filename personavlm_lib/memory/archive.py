"""A memory as one portable file: a zip of JSON Lines, the images, and a manifest with checksums.

Vectors are not included: they are derived data, and another encoder would compute others.
"""

import hashlib
import json
import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

from personavlm_lib.memory.database import PendingUpdate
from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.images import image_paths
from personavlm_lib.memory.records import Record, from_json
from personavlm_lib.memory.schema import SCHEMA
from personavlm_lib.memory.store import KINDS, MemoryStore, StoreError

FORMAT = "personavlm memory"


class Content(NamedTuple):
    """The verified content of an archive.

    `records` are (kind, id, record), `updates` the rows of the journal, and `last_ids` the highest
    id so far of each table.
    """

    records: list[tuple[str, int, Record]]
    updates: list[list]
    images: dict[str, bytes]
    last_ids: dict[str, int]


def export_archive(store: MemoryStore, path: str | Path) -> Path:
    """Write the whole store, including pending updates and receipts, to `path`.

    Replaces an existing file. Lost images are named in a warning and in the manifest.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive, store.transaction():
            checksums = {}
            for name, content in _files(store).items():
                archive.writestr(name, content)
                checksums[name] = hashlib.sha256(content).hexdigest()
            lost = [path.name for path in _named_images(store) if not path.is_file()]
            if lost:
                warnings.warn(f"{store.folder} lacks images: {', '.join(lost)}", stacklevel=2)
            manifest = {
                "format": FORMAT,
                "lost_images": lost,
                "schema": SCHEMA,
                "last_ids": dict(store.sql("SELECT name, seq FROM sqlite_sequence")),
                "sha256": checksums,
            }
            archive.writestr("manifest.json", json.dumps(manifest, indent=2))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _files(store: MemoryStore) -> dict[str, bytes]:
    files = {}
    for kind in KINDS:
        files[f"{kind}.jsonl"] = _record_lines(store, kind)
    updates = [f"{json.dumps(update)}\n" for update in store.pending()]
    files["journal.jsonl"] = "".join(updates).encode()
    for image in _named_images(store):
        if image.is_file():
            files[f"images/{image.name}"] = image.read_bytes()
    return files


def _named_images(store: MemoryStore) -> list[Path]:
    """Paths of the images in the store's folder that its records name."""
    paths: set[Path] = set()
    for kind in ("turns", "semantic"):
        for _, record in store.rows(kind):
            paths.update(map(Path, image_paths(record)))
    return sorted(path for path in paths if path.parent == store.images)


def _record_lines(store: MemoryStore, kind: str) -> bytes:
    rows = store.sql(f"SELECT id, record FROM {kind} ORDER BY id")
    lines = [f'{{"id": {row}, "record": {record}}}\n' for row, record in rows]
    return "".join(lines).encode()


def import_archive(
    path: str | Path, folder: str | Path, encoder: Encoder | None = None
) -> MemoryStore:
    """Create the memory of an archive in `folder`, which must be new or empty, and open it.

    Raises StoreError, and writes nothing, if the archive is damaged, has a newer schema or belongs
    to another program.
    """
    folder = Path(folder)
    if folder.exists() and not _is_empty_folder(folder):
        raise StoreError(f"{folder} is not empty: import into a new folder")
    content = _read_verified(Path(path))
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with MemoryStore(partial, encoder) as store, store.transaction():
            _fill(store, content)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return MemoryStore(folder, encoder)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _fill(store: MemoryStore, content: Content) -> None:
    for name, pixels in content.images.items():
        (store.images / name).write_bytes(pixels)
    for kind, row, record in content.records:
        store.insert(kind, row, record)
    for update in content.updates:
        store.sql("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", *PendingUpdate(*update))
    store.sql("DELETE FROM sqlite_sequence")
    for table, last in content.last_ids.items():
        store.sql("INSERT INTO sqlite_sequence VALUES (?, ?)", table, last)


def _read_verified(path: Path) -> Content:
    """The content of an archive that passes every check. Raises StoreError for others."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        return _parse(files)
    except Exception as error:  # a damaged file may raise anything
        reason = f"missing {error}" if isinstance(error, KeyError) else str(error)
        raise StoreError(
            f"{path} cannot be read as an archive of a memory ({reason}): nothing was imported"
        ) from error


def _parse(files: dict[str, bytes]) -> Content:
    manifest = json.loads(files.pop("manifest.json"))
    _check_manifest(manifest, files)
    last_ids = manifest["last_ids"]
    if "refused.jsonl" in files:  # the name of the kind up to schema 2
        files["rejected.jsonl"] = files.pop("refused.jsonl")
        if "refused" in last_ids:
            last_ids["rejected"] = last_ids.pop("refused")
    records = []
    for kind, record_type in KINDS.items():
        for line in _json_lines(files[f"{kind}.jsonl"]):
            record = from_json(record_type, json.dumps(line["record"]))
            records.append((kind, line["id"], record))
    images = {}
    for name, content in files.items():
        if name.startswith("images/"):
            images[Path(name).name] = content
    return Content(records, _json_lines(files["journal.jsonl"]), images, last_ids)


def _check_manifest(manifest: dict, files: dict[str, bytes]) -> None:
    archive_format = manifest["format"]
    if archive_format != FORMAT:
        raise ValueError(f"its format is {archive_format!r}")
    schema = manifest["schema"]
    if schema > SCHEMA:
        raise ValueError(f"its schema is {schema}, this version reads up to {SCHEMA}")
    checksums = {}
    for name, content in files.items():
        checksums[name] = hashlib.sha256(content).hexdigest()
    differences = checksums.items() ^ manifest["sha256"].items()
    if differences:
        names = {name for name, _ in differences}
        listing = ", ".join(sorted(names))
        raise ValueError(f"{listing}: does not match the manifest")


def _json_lines(content: bytes) -> list:
    # not splitlines: it also splits at characters such as U+2028, which JSON leaves as they are
    return [json.loads(line) for line in content.split(b"\n")[:-1]]
