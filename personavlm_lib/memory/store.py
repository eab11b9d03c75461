"""The memory of one user: one SQLite file and one folder of images, readable as of any moment.

Turns, semantic memories and episodes are only ever appended. Core memory, procedural memory and the
personality are dated versions, of which the newest is in force (Appendix A.3). So `as_of` is exact
and needs no replay. Only forgetting (`memory/forget.py`) deletes anything; ids are never reused.
"""

import os
import shutil
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

from personavlm_lib.memory.database import Database, PendingUpdate, StoreError
from personavlm_lib.memory.encoder import Encoder, text_encoder
from personavlm_lib.memory.folders import OWN_IMAGE, create_folder, delete_unused_images
from personavlm_lib.memory.images import SUFFIXES, encoded_image, image_paths, relocate, write_image
from personavlm_lib.memory.indexes import TextIndex, VectorIndex
from personavlm_lib.memory.records import (
    CoreMemory,
    Edit,
    Episode,
    PersonalityState,
    ProceduralMemory,
    Record,
    SemanticMemory,
    Turn,
    as_utc,
    clean_json,
    from_json,
    in_utc,
    to_json,
)
from personavlm_lib.memory.schema import SCHEMA, prepare_tables, read_rows, rewrite_row
from personavlm_lib.memory.timeline import Searchable, Timeline
from personavlm_lib.memory.versions import Version, apply_edits, link_origins, validate_version
from personavlm_lib.memory.view import KINDS, TIMELINES, MemoryView, Table

R = TypeVar("R", bound=Record)


class MemoryStore:
    """One user's memory in `folder`: `memory.db`, and copies of the images in `images/`.

    Each write is one transaction; `with store.transaction():` combines several. A write is on the
    disk when the call (or the outermost `with`) returns: SQLite's WAL is synced at every commit
    (`synchronous = FULL`, 2 ms here), because a memory should survive a power failure and not only
    a killed process. Batch many writes in one transaction. Several processes may use one folder:
    all of them read, and writers wait for each other up to `wait` seconds.

    The vectors of the text `encoder` are computed in batches when a search first needs them, and
    stored with their rows. Without `encoder`, the store uses the one that it was created with, and
    a new store uses all-MiniLM-L6-v2.

    Files in `images/` that it did not write are left alone. A memory that cannot be written, such
    as a backup, can be read.

    Use it as a context manager, or call `close`. Raises StoreError if the database is damaged,
    belongs to another program, has a newer schema or cannot be created, and, with `create=False`,
    if the user does not exist.
    """

    _temporary: tempfile.TemporaryDirectory | None = None  # deleted together with the store
    read_only = False

    def __init__(
        self,
        folder: str | Path,
        encoder: Encoder | None = None,
        create: bool = True,
        wait: float = 30.0,
    ) -> None:
        folder = Path(folder).absolute()  # the working directory may change
        database_file = folder / "memory.db"
        if not create and not database_file.is_file():
            raise StoreError(f"user {folder.name!r} does not exist: {folder} contains no memory.db")
        self.folder: Path | None = folder
        self.images = folder / "images"
        paths = (path for path in (folder, database_file) if path.exists())
        self.read_only = not all(os.access(path, os.W_OK) for path in paths)
        if self.read_only and database_file.is_file():
            # SQLite writes beside a file in WAL mode, and older schemas are migrated: use a copy
            self._temporary = tempfile.TemporaryDirectory(prefix="memory-")
            for file in folder.glob("memory.db*"):
                shutil.copyfile(file, Path(self._temporary.name, file.name))
            database_file = Path(self._temporary.name, database_file.name)
        else:
            create_folder(self.images)
        self._open(str(database_file), encoder, wait)

    @classmethod
    def in_memory(
        cls, encoder: Encoder | None = None, images: str | Path | None = None
    ) -> "MemoryStore":
        """A store without a database file, which copies no images.

        `images` is the folder for image crops that other modules create; by default a temporary
        folder that is deleted together with the store.
        """
        store = cls.__new__(cls)
        store.folder = None
        if images is None:
            store._temporary = tempfile.TemporaryDirectory(prefix="memory-")
            images = store._temporary.name
        store.images = Path(images)
        store._open(":memory:", encoder, wait=0)
        return store

    def _open(self, path: str, encoder: Encoder | None, wait: float) -> None:
        self._tables: dict[str, Table] = {}
        # records that were written after their table was loaded
        self._unloaded: dict[str, list[Record]] = defaultdict(list)
        self._data_version = -1
        new_file_encoder = encoder or text_encoder()
        self.database = Database(
            path,
            wait,
            SCHEMA,
            prepare=partial(prepare_tables, encoder_name=new_file_encoder.name),
            on_rollback=self._drop_loaded,
        )
        self.encoder = encoder or self._stored_encoder()
        self.text_index = TextIndex(self.database)
        self.vector_index = VectorIndex(self.database, self.encoder)
        if self.meta("scrub"):  # a process ended while it was forgetting
            try:
                self.scrub()
            except (StoreError, OSError) as error:  # the store is usable; every opening tries again
                warnings.warn(str(error), stacklevel=3)

    def _stored_encoder(self) -> Encoder:
        name = self.meta("encoder")
        if name is None:
            return text_encoder()
        return text_encoder(name)

    def _drop_loaded(self) -> None:
        self._tables.clear()
        self._unloaded.clear()

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> "MemoryStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Database operations that other modules use

    def sql(self, statement: str, *values: object) -> list[tuple]:
        """Run one statement and return its rows."""
        return self.database.sql(statement, *values)

    def meta(self, key: str) -> str | None:
        """The value that the database stores under `key`, or None."""
        return self.database.meta(key)

    def transaction(self) -> AbstractContextManager[None]:
        """Combine writes: all or none take effect; see `Database.transaction`."""
        if self.read_only:
            raise StoreError(f"{self.folder} is read-only; nothing was written")
        return self.database.transaction()

    def pending(self) -> list[PendingUpdate]:
        """The updates that the turns still wait for, oldest turn first."""
        return self.database.pending()

    def finish(self, updates: Iterable[PendingUpdate]) -> bool:
        """Delete pending updates; False if one no longer exists. See `Database.finish`."""
        return self.database.finish(updates)

    def erase(self) -> None:
        """Remove deleted content from free pages and from the WAL; see `Database.erase`."""
        self.database.erase()

    # Writing

    def add_turn(self, turn: Turn, pending: bool = False) -> Turn:
        """Append an exchange and return it with its index.

        With `pending`, also record that its memory updates are still to be made. A turn may be
        earlier than the last one: it is then known from the last turn's time on, unless its
        `received` says otherwise. Raises ValueError if one of its images cannot be read.
        """
        turn = in_utc(turn)
        with self.transaction():
            turn = self._with_known_time(turn)
            index = self.next_id("turns")
            if pending:
                self.database.add_pending(index)
            images = []
            for number, path in enumerate(turn.images):
                images.append(self._copy_image(path, f"turn{index:05d}_{number}"))
            turn = replace(turn, index=index, images=tuple(images))
            return self.insert("turns", index, turn)

    def _with_known_time(self, turn: Turn) -> Turn:
        """The turn, known no earlier than the turns before it.

        If those claim to be known later than now, a clock was wrong: they are known from now on.
        """
        rows = self.sql("SELECT known_from FROM turns ORDER BY id DESC LIMIT 1")
        if not rows:
            return turn
        last = datetime.fromisoformat(rows[0][0])
        if turn.known_from >= last:
            return turn
        now = datetime.now(UTC).replace(tzinfo=None)
        known_from = min(last, max(turn.known_from, now))
        if known_from < last:
            self._correct_known_times(known_from)
        return replace(turn, received=known_from)

    def _correct_known_times(self, latest: datetime) -> None:
        for kind in KINDS:
            field = "received" if kind == "turns" else "known_from"
            for row, record in self.rows(kind):
                if record.known_from > latest:
                    self.rewrite(kind, row, replace(record, **{field: latest}))
        self._drop_loaded()

    def add_semantic(self, memory: SemanticMemory) -> SemanticMemory:
        """Append a semantic memory and return it with its id."""
        with self.transaction():
            row = self.next_id("semantic")
            concept = memory.concept
            if concept:
                crop = self._copy_image(concept.crop, f"concept{row:05d}")
                concept = replace(concept, crop=crop)
            memory = replace(memory, id=row, concept=concept)
            return self.insert("semantic", row, memory)

    def add_episode(self, episode: Episode) -> Episode:
        """Append an episode and return it with its id. Raises ValueError if a turn is missing."""
        with self.transaction():
            unknown = []
            for turn in episode.turns:
                if not self.sql("SELECT 1 FROM turns WHERE id = ?", turn):
                    unknown.append(turn)
            if unknown:
                last = self.next_id("turns") - 1
                raise ValueError(
                    f"episode {episode.summary!r} names turns {unknown}, which do not exist "
                    f"(the last turn is {last})"
                )
            row = self.next_id("episodic")
            return self.insert("episodic", row, replace(episode, id=row))

    def set_core(self, core: CoreMemory) -> CoreMemory:
        """Store a new version of the core memory with its difference from the last; see `edit`."""
        return self._add_version("core", core)

    def set_procedural(self, procedural: ProceduralMemory) -> ProceduralMemory:
        """Store a new version of the procedural memory with its difference from the last."""
        return self._add_version("procedural", procedural)

    def edit(
        self, kind: str, edits: Iterable[Edit], known_from: datetime, **provenance
    ) -> CoreMemory | ProceduralMemory:
        """Edit "core" or "procedural" memory as known at `known_from`; return the new version.

        `provenance` sets its `sources` and `written_by`. Older versions remain readable with
        `as_of`. Raises ValueError, and leaves the memory unchanged, for an edit that does not fit
        and for a version that `versions.validate_version` rejects.
        """
        known_from = as_utc(known_from)
        with self.transaction():
            known = self._known_versions(kind, known_from)
            if known:
                before = known[-1]
            elif kind == "core":
                before = CoreMemory({}, {}, known_from)
            else:
                before = ProceduralMemory({}, known_from)
            fields = {"known_from": known_from, **provenance}
            edited = replace(apply_edits(before, edits), **fields)
            return self._add_version(kind, edited)

    def _known_versions(self, kind: str, time: datetime) -> list:
        return [version for version in self._table(kind).records if version.known_from <= time]

    def _add_version(self, kind: str, version: Version) -> Version:
        """Return the version in force from then on: the previous one if nothing was edited."""
        version = in_utc(version)
        with self.transaction():
            known = self._known_versions(kind, version.known_from)
            before = known[-1] if known else None
            validate_version(before, version)
            version = link_origins(before, version)
            if not version.edits:
                return before or version
            row = self.next_id(kind)
            return self.insert(kind, row, version)

    def add_personality(self, state: PersonalityState) -> PersonalityState:
        """Append the personality after one more turn."""
        return self.append("personality", state)

    def append(self, kind: str, record: R) -> R:
        """Append a record of kind "rejected", "receipts" or "personality"."""
        with self.transaction():
            row = self.next_id(kind)
            return self.insert(kind, row, record)

    def next_id(self, kind: str) -> int:
        """The id of the next record: one more than any id so far, including forgotten records'."""
        rows = self.sql("SELECT seq FROM sqlite_sequence WHERE name = ?", kind)
        return rows[0][0] + 1 if rows else 0

    def insert(self, kind: str, row: int, record: R) -> R:
        """Insert a record under a given id, inside a transaction."""
        record = in_utc(record)
        text = to_json(relocate(record, self._relative))
        cleaned = clean_json(text)
        if cleaned != text:
            text = cleaned
            home = self.folder or Path()
            record = cast(R, relocate(from_json(type(record), text), home.joinpath))
        known_from = record.known_from.isoformat()
        statement = f"INSERT INTO {kind} (id, known_from, record) VALUES (?, ?, ?)"
        self.sql(statement, row, known_from, text)
        if isinstance(record, Searchable):
            self.text_index.add(kind, row, record)
        self._unloaded[kind].append(record)
        return record

    def _copy_image(self, path: str, name: str) -> str:
        """Copy an image into `images/` unless it is there already, and return its path.

        The copy has the normal form of `read_image`, without the metadata of the original.
        """
        if self.folder is None:
            return str(path)
        media_type, data = encoded_image(path)
        source = Path(path)
        is_own = OWN_IMAGE.fullmatch(source.name)
        if is_own and source.resolve().parent == self.images.resolve():
            return str(self.images / source.name)
        target = self.images / f"{name}{SUFFIXES[media_type]}"
        self.database.delete_on_rollback(target)
        write_image(data, target)
        return str(target)

    def _relative(self, path: str) -> str:
        """The path relative to the folder, if it is inside, so that the folder can be moved."""
        if self.folder is not None and Path(path).is_relative_to(self.folder):
            return Path(path).relative_to(self.folder).as_posix()
        return path

    # Reading

    def as_of(self, time: datetime | None = None) -> MemoryView:
        """The memory as it was known at `time`; None for everything.

        This is cheap, because views share the loaded rows and their index. A view that was taken
        before something was forgotten still shows it: take a new one.
        """
        time = datetime.max if time is None else as_utc(time)
        with self.database.lock:
            tables = {kind: self._table(kind) for kind in KINDS}
            return MemoryView(time, tables, self.encoder)

    def _table(self, kind: str) -> Table:
        """The loaded rows of one kind; loaded again after another process has written."""
        version = self.sql("PRAGMA data_version")[0][0]
        if version != self._data_version:
            self._drop_loaded()
            self._data_version = version
        new = self._unloaded[kind]
        if kind not in self._tables:
            records = [record for _, record in self.rows(kind)]
            self._tables[kind] = self._new_table(kind, records)
        elif new:
            self._tables[kind] = self._extended_table(kind, new)
        new.clear()
        return self._tables[kind]

    def _new_table(self, kind: str, records: Iterable[Record]) -> Table:
        timeline = Timeline(
            encode=partial(self.vector_index.vectors, kind),
            matches=partial(self.text_index.matches, kind),
            lock=self.database.lock,
            use_neighbors=kind == "turns",
        )
        # the sort is stable: records of the same moment stay in the order of writing
        return Table(tuple(sorted(records, key=_place_in_time)), timeline)

    def _extended_table(self, kind: str, new: Sequence[Record]) -> Table:
        table = self._tables[kind]
        records = (*table.records, *new)
        last = table.records[-1:]
        times = [_place_in_time(record) for record in (*last, *new)]
        in_order = all(earlier <= later for earlier, later in pairwise(times))
        if in_order:
            return replace(table, records=records)
        return self._new_table(kind, records)

    def rows(self, kind: str) -> list[tuple[int, Any]]:
        """All (id, record) of a kind in the order of ids, with the images' present paths.

        Raises StoreError for an unreadable row.
        """
        return read_rows(self.database, kind, self.folder)

    # Deletion from the disk

    def rewrite(self, kind: str, row: int, record: Record) -> None:
        """Replace the record of a row. Only forgetting and wrong clocks may do that."""
        rewrite_row(self.database, kind, row, relocate(record, self._relative))

    def delete(self, kind: str, rows: Iterable[int]) -> None:
        """Delete rows. The caller runs `scrub` after the transaction.

        If the process dies before that, the next opening runs it.
        """
        with self.transaction():
            for row in rows:
                self.sql(f"DELETE FROM {kind} WHERE id = ?", row)
                if kind in TIMELINES:
                    self.text_index.delete(kind, row)
            self.database.set_meta("scrub", "due")

    def scrub(self) -> int:
        """Remove deleted content from the disk: unused images, indexed words, free pages, the WAL.

        Returns the number of deleted image files. Raises StoreError if another process has the
        database open; the next opening tries again.
        """
        with self.transaction():
            deleted = self._delete_unused_images()
            self.text_index.rebuild()
            self._drop_loaded()
        self.erase()
        with self.transaction():
            self.sql("DELETE FROM meta WHERE key = 'scrub'")
        return deleted

    def _delete_unused_images(self) -> int:
        used: set[str] = set()
        for kind in ("turns", "semantic"):
            for _, record in self.rows(kind):
                used.update(image_paths(record))
        if self.folder is None:
            return 0
        return delete_unused_images(self.images, used)


def _place_in_time(record: Record) -> datetime:
    """When a record happened; for versions, which do not happen, when they became known."""
    return getattr(record, "happened_from", record.known_from)
