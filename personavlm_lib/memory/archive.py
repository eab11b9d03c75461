"""A memory as one portable file: a zip of JSON Lines by kind, the images, and a manifest with checksums.

Vectors are left out: they are derived, and another encoder would make others.
"""

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from pathlib import Path

from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import Record, from_json
from personavlm_lib.memory.store import KINDS, SCHEMA, MemoryStore, StoreError

FORMAT = "personavlm memory"


def export_archive(store: MemoryStore, path: str | Path) -> Path:
    """Writes all that the store holds, pending work and receipts included, to `path`; an old file there is replaced."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    sums: dict[str, str] = {}
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive, store.transaction():
            files = {f"{kind}.jsonl": _lines(store, kind) for kind in KINDS}
            files["journal.jsonl"] = "".join(
                f"{json.dumps(job)}\n" for job in store.pending()
            ).encode()
            files |= {
                f"images/{image.name}": image.read_bytes()
                for image in sorted(store.images.iterdir())
            }
            for name, content in files.items():
                archive.writestr(name, content)
                sums[name] = hashlib.sha256(content).hexdigest()
            last_ids = dict(store.sql("SELECT name, seq FROM sqlite_sequence"))
            manifest = {"format": FORMAT, "schema": SCHEMA, "last_ids": last_ids, "sha256": sums}
            archive.writestr("manifest.json", json.dumps(manifest, indent=2))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _lines(store: MemoryStore, kind: str) -> bytes:
    rows = store.sql(f"SELECT id, record FROM {kind} ORDER BY id")
    return "".join(f'{{"id": {row}, "record": {record}}}\n' for row, record in rows).encode()


def import_archive(
    path: str | Path, folder: str | Path, encoder: Encoder | None = None
) -> MemoryStore:
    """Makes the memory of an archive in `folder`, which must be new or empty, and opens it.

    StoreError, and nothing written, for an archive that is damaged, of a newer schema, or none of ours.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is not empty: import into a new folder")
    records, jobs, images, last_ids = _verified(Path(path))
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with MemoryStore(partial, encoder) as store, store.transaction():
            for name, content in images.items():
                (store.images / name).write_bytes(content)
            for kind, row, record in records:
                store._add(kind, row, record)  # ids and all
            for job in jobs:
                store.sql("INSERT INTO journal VALUES (?, ?, ?)", *job)
            store.sql("DELETE FROM sqlite_sequence")
            for last in last_ids.items():
                store.sql("INSERT INTO sqlite_sequence VALUES (?, ?)", *last)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return MemoryStore(folder, encoder)


Content = tuple[list[tuple[str, int, Record]], list[list], dict[str, bytes], dict[str, int]]


def _verified(path: Path) -> Content:
    """Records, pending work, images and last ids of an archive that passed every check."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        manifest = json.loads(files.pop("manifest.json"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
        if manifest["schema"] > SCHEMA:
            raise ValueError(
                f"its schema is {manifest['schema']}, this version reads up to {SCHEMA}"
            )
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        if wrong := {name for name, _ in sums.items() ^ manifest["sha256"].items()}:
            raise ValueError(f"{', '.join(sorted(wrong))}: not as the manifest says")
        # JSON leaves characters such as U+2028 as they are, at which splitlines would split
        lines = {
            n: [json.loads(x) for x in c.split(b"\n")[:-1]]
            for n, c in files.items()
            if n.endswith(".jsonl")
        }
        records = [
            (kind, line["id"], from_json(KINDS[kind], json.dumps(line["record"])))
            for kind in KINDS
            for line in lines[f"{kind}.jsonl"]
        ]
        images = {
            Path(name).name: content
            for name, content in files.items()
            if name.startswith("images/")
        }
        return records, lines["journal.jsonl"], images, manifest["last_ids"]
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise StoreError(
            f"{path} cannot be read as an archive ({error}): nothing was imported"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else error
        raise StoreError(
            f"{path} is no archive of a memory, or is damaged ({what}): nothing was imported"
        ) from error
