"""The memory of one user: one SQLite file and one folder of images, and what was known in it at any moment.

Turns, semantic memories and episodes are only ever appended; core and procedural memory and the personality are dated
versions, of which the newest counts (Appendix A.3). So `as_of` is exact and needs no replay. Only forgetting
(`memory/forget.py`) takes anything away, and no id is given twice.
"""

import sqlite3
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

from personavlm_lib.memory.database import StoreError
from personavlm_lib.memory.encoder import Encoder, text_encoder
from personavlm_lib.memory.images import copy_image, image_paths, read_image, relocate
from personavlm_lib.memory.indexes import Indexed
from personavlm_lib.memory.records import (
    CoreMemory,
    Edit,
    Episode,
    PersonalityState,
    ProceduralMemory,
    Record,
    SemanticMemory,
    Turn,
    check_times,
    from_json,
    to_json,
)
from personavlm_lib.memory.timeline import Timeline, search_text
from personavlm_lib.memory.versions import Version, apply_edits, link_origins, validate_version
from personavlm_lib.memory.view import KINDS, TIMELINES, MemoryView, Table

SCHEMA = 2
COLUMNS = "id INTEGER PRIMARY KEY AUTOINCREMENT, known_from TEXT NOT NULL, record TEXT NOT NULL, vector BLOB"
JOURNAL = "id INTEGER PRIMARY KEY AUTOINCREMENT, work TEXT NOT NULL, turn INTEGER NOT NULL"


class MemoryStore(Indexed):
    """One user's memory in `folder`: `memory.db`, and copies of the images in `images/`.

    Each write is one transaction; `with store.transaction():` makes one of several. What was written is on the disk
    when the call (the outermost `with`) returns: SQLite's WAL is synced with every commit (`synchronous = FULL`, 2 ms
    here), because a memory should outlive a loss of power and not only a killed process; who has many, writes them in
    one transaction. Several processes may use one folder: all read, writes wait for each other up to `wait` seconds.
    Vectors of the text `encoder` (by default the one it was made with, of a new store all-MiniLM-L6-v2) are made in
    batches when something is first searched, and kept with their rows. Use as a context manager, or `close` it.
    StoreError for a database that is damaged, foreign, of a newer schema, or cannot be written to, and without `create`
    for a user who is not there.
    """

    schema = SCHEMA

    def __init__(
        self,
        folder: str | Path,
        encoder: Encoder | None = None,
        create: bool = True,
        wait: float = 30.0,
    ) -> None:
        self.folder = Path(folder)
        self.images = self.folder / "images"
        if not create and not (self.folder / "memory.db").is_file():
            raise StoreError(f"no user {self.folder.name!r}: {self.folder} holds no memory.db")
        try:
            self.images.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.folder} cannot be the folder of a memory: {error.strerror}"
            ) from error
        self._open(str(self.folder / "memory.db"), encoder, wait)

    @classmethod
    def in_memory(
        cls, encoder: Encoder | None = None, images: str | Path | None = None
    ) -> "MemoryStore":
        """A store that leaves no database and copies no images.

        `images`: the folder for what others draw for it (crops); by default one that goes when the store does.
        """
        store = cls.__new__(cls)
        store.folder = None
        store._temporary = None if images else tempfile.TemporaryDirectory(prefix="memory-")
        store.images = Path(images or store._temporary.name)
        store._open(":memory:", encoder)
        return store

    def _open(self, path: str, encoder: Encoder | None, wait: float = 0) -> None:
        self.encoder = encoder
        self._tables: dict[str, Table] = {}
        self._fresh: dict[str, list[Record]] = defaultdict(
            list
        )  # written since the table was loaded
        self._version = -1
        super().__init__(path, wait)
        self.encoder = encoder or text_encoder(*filter(None, [self.meta("encoder")]))
        if self.meta("scrub"):  # a forgetting was cut short
            try:
                self.scrub()
            except StoreError as error:  # no reason not to open: it is tried at every opening
                warnings.warn(str(error), stacklevel=3)

    def _forget_loaded(self) -> None:
        self._tables.clear()
        self._fresh.clear()

    def _create(self) -> None:
        schema = self.sql("PRAGMA user_version")[0][0]
        if schema > SCHEMA:
            raise StoreError(
                f"{self.path} has schema {schema}, this version reads up to {SCHEMA}: update the package"
            )
        if schema == SCHEMA:
            return
        if schema == 0 and self.sql("SELECT 1 FROM sqlite_master"):
            raise StoreError(f"{self.path} is another program's SQLite file, not a memory database")
        if schema == 0:
            self.sql("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
            self.set_meta("encoder", (self.encoder or text_encoder()).name)
        self.sql(f"CREATE TABLE journal ({JOURNAL})")
        for kind in KINDS:
            known = schema == 1 and kind not in ("rejected", "receipts")
            if known:
                self.sql(f"ALTER TABLE {kind} RENAME TO old_{kind}")
            self.sql(f"CREATE TABLE {kind} ({COLUMNS})")
            if known:
                self.sql(
                    f"INSERT INTO {kind} SELECT id, known_from, record, vector FROM old_{kind}"
                )
                self.sql(f"DROP TABLE old_{kind}")
        for kind in ("core", "procedural"):  # schema 1 did not know which turns an entry came from
            before = None
            for row, version in self.rows(kind):
                before = link_origins(before, version, self._words)
                self.rewrite(kind, row, before)
        for kind in TIMELINES:  # the lexical indices, with the same row numbers
            self.sql(
                f"CREATE VIRTUAL TABLE {kind}_text USING fts5(text, tokenize = 'porter unicode61')"
            )
            for row, record in self.rows(kind):
                self._index_text(kind, row, record)
        self.sql(f"PRAGMA user_version = {SCHEMA}")

    def __enter__(self) -> "MemoryStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def add_turn(self, turn: Turn, pending: bool = False) -> Turn:
        """Appends an exchange and gives it its index; if `pending`, with the updates that it waits for.

        ValueError if it comes before the last one in time, or shows what is no image.
        """
        check_times(turn)
        with self.transaction():
            last = self.sql("SELECT known_from FROM turns ORDER BY id DESC LIMIT 1")
            if last and turn.time < (before := datetime.fromisoformat(last[0][0])):
                raise ValueError(
                    f"turns come in order of time: one of {turn.time} after one of {before}"
                )
            turn = replace(turn, index=self._next_id("turns"))
            images = (
                self._keep(path, f"turn{turn.index:05d}_{n}") for n, path in enumerate(turn.images)
            )
            if pending:
                self.add_pending(turn.index)
            return self._add("turns", turn.index, replace(turn, images=tuple(images)))

    def add_semantic(self, memory: SemanticMemory) -> SemanticMemory:
        """Appends a piece of knowledge and gives it its id."""
        with self.transaction():
            memory = replace(memory, id=self._next_id("semantic"))
            if memory.concept:
                crop = self._keep(memory.concept.crop, f"concept{memory.id:05d}")
                memory = replace(memory, concept=replace(memory.concept, crop=crop))
            return self._add("semantic", memory.id, memory)

    def add_episode(self, episode: Episode) -> Episode:
        """Appends an episode and gives it its id. ValueError if it names a turn that is not there."""
        with self.transaction():
            if strange := [
                i for i in episode.turns if not self.sql("SELECT 1 FROM turns WHERE id = ?", i)
            ]:
                count = self._next_id("turns")
                raise ValueError(
                    f"episode {episode.summary!r} names turns {strange}; of 0 to {count - 1} none is such"
                )
            episode = replace(episode, id=self._next_id("episodic"))
            return self._add("episodic", episode.id, episode)

    def set_core(self, core: CoreMemory) -> CoreMemory:
        """A new version of the core memory, kept with what it adds, changes and removes; see `edit`."""
        return self._add_version("core", core)

    def set_procedural(self, procedural: ProceduralMemory) -> ProceduralMemory:
        """A new version of the procedural memory, kept with what it adds, changes and removes; see `edit`."""
        return self._add_version("procedural", procedural)

    def edit(self, kind: str, edits: Iterable[Edit], known_from: datetime, **provenance) -> Version:
        """Applies edits to "core" or "procedural" memory as known at `known_from`: the new version, with `sources` and
        `written_by` as given. Older versions stay readable by `as_of`.

        ValueError, and the memory as it was, for an edit that does not fit and for what `versions.check` refuses.
        """
        with self.transaction():
            blank = (
                CoreMemory({}, {}, known_from)
                if kind == "core"
                else ProceduralMemory({}, known_from)
            )
            edited = apply_edits(self._current(kind, known_from) or blank, edits)
            return self._add_version(
                kind, replace(edited, **{"known_from": known_from, **provenance})
            )

    def _current(self, kind: str, time: datetime) -> Version | None:
        known = [version for version in self._table(kind).records if version.known_from <= time]
        return known[-1] if known else None

    def _add_version(self, kind: str, version: Version) -> Version:
        """The version that counts from then on: where nothing was edited, the one before."""
        check_times(version)
        with self.transaction():
            before = self._current(kind, version.known_from)
            validate_version(before, version)
            version = link_origins(before, version, self._words)
            return (
                self._add(kind, self._next_id(kind), version)
                if version.edits
                else before or version
            )

    def _words(self, turn: int) -> str:
        found = self.sql("SELECT record FROM turns WHERE id = ?", turn)
        return search_text(from_json(Turn, found[0][0])) if found else ""

    def add_personality(self, state: PersonalityState) -> PersonalityState:
        """The personality after one more turn."""
        return self.append("personality", state)

    def append(self, kind: str, record: Record) -> Record:
        """A refusal ("rejected"), a receipt ("receipts") or a personality."""
        with self.transaction():
            return self._add(kind, self._next_id(kind), record)

    def _next_id(self, kind: str) -> int:
        """One more than any id that was ever given, also to what is forgotten by now."""
        last = self.sql("SELECT seq FROM sqlite_sequence WHERE name = ?", kind)
        return last[0][0] + 1 if last else 0

    def _add(self, kind: str, row: int, record: Record) -> Record:
        check_times(record)
        text = to_json(relocate(record, self._relative))
        values = (row, record.known_from.isoformat(), text)
        self.sql(f"INSERT INTO {kind} (id, known_from, record) VALUES (?, ?, ?)", *values)
        if kind in TIMELINES:
            self._index_text(kind, row, record)
        self._fresh[kind].append(record)
        return record

    def _keep(self, path: str, name: str) -> str:
        if self.folder is None:
            return str(path)
        read_image(path)
        source = Path(path)
        if source.resolve().parent == self.images.resolve():
            return str(self.images / source.name)
        target = self.images / f"{name}{source.suffix.lower()}"
        self._copied.append(target)
        copy_image(source, target)
        return str(target)

    def _relative(self, path: str) -> str:
        inside = self.folder is not None and Path(path).is_relative_to(self.folder)
        return Path(path).relative_to(self.folder).as_posix() if inside else path

    # Reading

    def as_of(self, time: datetime | None = None) -> MemoryView:
        """What was known at `time` (None: all there is). Cheap: views share the loaded rows and their index.

        A view taken before something was forgotten still shows it: take a new one.
        """
        if time is not None and not isinstance(time, datetime):
            raise ValueError(f"as of {time!r}: give a datetime, or None for all there is")
        with self._lock:
            return MemoryView(
                time or datetime.max, {kind: self._table(kind) for kind in KINDS}, self.encoder
            )

    def _table(self, kind: str) -> Table:
        """The loaded rows of one type; read anew when another process has written."""
        version = self.sql("PRAGMA data_version")[0][0]
        if version != self._version:
            self._forget_loaded()
            self._version = version
        if kind not in self._tables:
            self._tables[kind] = self._load(kind)
        elif self._fresh[kind]:
            table, fresh = self._tables[kind], self._fresh[kind]
            records = (*table.records, *fresh)
            ordered = all(_when(a) <= _when(b) for a, b in pairwise((*table.records[-1:], *fresh)))
            self._tables[kind] = (
                replace(table, records=records) if ordered else self._as_table(kind, records)
            )
        self._fresh[kind].clear()
        return self._tables[kind]

    def rows(self, kind: str) -> list[tuple[int, Record]]:
        """All (id, record) of a kind by id, images as paths. StoreError for a row that cannot be read."""
        home = Path(self.folder or "").joinpath
        try:
            found = self.sql(f"SELECT id, record FROM {kind} ORDER BY id")
            return [(row, relocate(from_json(KINDS[kind], text), home)) for row, text in found]
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path}: a row of {kind} cannot be read: {error}") from error

    def rewrite(self, kind: str, row: int, record: Record) -> None:
        """Another record in place of that row's: for migration and for forgetting alone."""
        self.sql(f"UPDATE {kind} SET record = ? WHERE id = ?", to_json(record), row)

    def _load(self, kind: str) -> Table:
        return self._as_table(kind, (record for _, record in self.rows(kind)))

    def _as_table(self, kind: str, records: Iterable[Record]) -> Table:
        # the sort is stable: of the same moment, what was written first stays first
        encode, matches = partial(self._encode, kind), partial(self._matches, kind)
        return Table(
            tuple(sorted(records, key=_when)),
            Timeline(encode, matches, self._lock, near=kind == "turns"),
        )

    # Forgetting, the part that reaches the disk

    def delete(self, kind: str, rows: Iterable[int]) -> None:
        """Deletes rows, and has `scrub` run when the transaction is through or, after a crash, at the next opening."""
        with self.transaction():
            for row in rows:
                self.sql(f"DELETE FROM {kind} WHERE id = ?", row)
                if kind in TIMELINES:
                    self.sql(f"DELETE FROM {kind}_text WHERE rowid = ?", row)
            self.set_meta("scrub", "due")

    def scrub(self) -> int:
        """Takes what was deleted off the disk: unused images, words in the lexical index, free pages, the WAL.

        Returns how many image files went. StoreError if another process reads on; the next opening tries again.
        """
        with self.transaction():
            used = {
                path
                for kind in ("turns", "semantic")
                for _, r in self.rows(kind)
                for path in image_paths(r)
            }
            unused = (
                [path for path in self.images.iterdir() if str(path) not in used]
                if self.folder
                else []
            )
            for path in unused:
                path.unlink()
            for kind in TIMELINES:  # FTS5 keeps deleted words until it is rebuilt
                self.sql(f"INSERT INTO {kind}_text ({kind}_text) VALUES ('rebuild')")
            self._forget_loaded()
        self.erase()
        with self.transaction():
            self.sql("DELETE FROM meta WHERE key = 'scrub'")
        return len(unused)


def _when(record: Record) -> datetime:
    """The place on the timeline; versions, which do not happen, stand where they became known."""
    return getattr(record, "happened_from", record.known_from)
