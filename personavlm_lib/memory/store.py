"""The memory of one user: one SQLite file and one folder of images, and what was known in it at any moment.

Turns, semantic memories and episodes are only ever appended; core and procedural memory and the personality are dated
versions, of which the newest counts (Appendix A.3). So `as_of` is exact and needs no replay.
"""

import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from personavlm_lib.memory.records import (
    CoreMemory,
    Episode,
    PersonalityState,
    ProceduralMemory,
    Record,
    SemanticMemory,
    Turn,
    from_json,
    to_json,
)
from personavlm_lib.memory.search import Encoder, text_encoder
from personavlm_lib.memory.timeline import Timeline, search_text

SCHEMA = 1
KINDS = {
    "turns": Turn,
    "semantic": SemanticMemory,
    "episodic": Episode,
    "core": CoreMemory,
    "procedural": ProceduralMemory,
    "personality": PersonalityState,
}
TIMELINES = ("turns", "semantic", "episodic")  # these are searched by likeness; the others are dated versions


class StoreError(RuntimeError):
    """A memory database that cannot be used; the message names the file."""


@dataclass(frozen=True)
class Table:
    """All records of one type in order of time, and what searches them, shared with the tables that grow from it."""

    records: tuple
    timeline: Timeline | None = None


@dataclass(frozen=True)
class MemoryView:
    """What was known at `time`: read-only, and unmoved by what the store learns later. Lists are oldest first."""

    time: datetime
    tables: dict[str, Table]
    encoder: Encoder

    def table(self, kind: str) -> Table:
        """All rows of "turns", "semantic" or "episodic"; who searches must leave out those not known at `time`."""
        return self.tables[kind]

    def turn(self, index: int) -> Turn:
        """The turn with that index. Turns are never reordered: it is the row's number."""
        return self.tables["turns"].records[index]

    def without(self, *kinds: str) -> "MemoryView":
        """The view of an ablation. ValueError for anything but core, semantic, episodic, procedural, personality."""
        if unknown := set(kinds) - (set(KINDS) - {"turns"}):
            raise ValueError(f"no memory type {', '.join(sorted(unknown))}; choose from {', '.join(KINDS)} (not turns)")
        return replace(self, tables=self.tables | dict.fromkeys(kinds, Table(())))

    def _known(self, kind: str) -> list:
        return [record for record in self.tables[kind].records if record.known_from <= self.time]

    @cached_property
    def turns(self) -> list[Turn]:
        return self._known("turns")

    @cached_property
    def semantic(self) -> list[SemanticMemory]:
        return self._known("semantic")

    def of_kind(self, kind: str) -> list[SemanticMemory]:
        """The semantic memories of one of `SEMANTIC_KINDS`."""
        return [memory for memory in self.semantic if memory.kind == kind]

    @cached_property
    def episodes(self) -> list[Episode]:
        return self._known("episodic")

    @cached_property
    def personality_history(self) -> list[PersonalityState]:
        return self._known("personality")

    @property
    def core(self) -> CoreMemory | None:
        return next(reversed(self._known("core")), None)

    @property
    def procedural(self) -> ProceduralMemory | None:
        return next(reversed(self._known("procedural")), None)

    @property
    def personality(self) -> PersonalityState | None:
        return next(reversed(self.personality_history), None)

    @cached_property
    def procedural_since(self) -> dict[str, datetime]:
        """Key of each habit or goal -> since when it has been known in its present words."""
        since: dict[str, datetime] = {}
        before: dict[str, str] = {}  # the entries of the version before
        for version in self._known("procedural"):
            entries = version.entries.items()
            since = {k: since[k] if before.get(k) == text else version.known_from for k, text in entries}
            before = version.entries
        return since


class MemoryStore:
    """One user's memory in `folder`: `memory.db`, and copies of the images in `images/`.

    Each write is one transaction; `with store.transaction():` makes one of several. Vectors of the text `encoder` (by
    default all-MiniLM-L6-v2) are made in batches when something is first searched, and kept with their rows. Use as a
    context manager, or `close` it. StoreError for a database that is damaged, foreign or of a newer schema.
    """

    def __init__(self, folder: str | Path, encoder: Encoder | None = None) -> None:
        self.folder = Path(folder)
        self.images = self.folder / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self._open(str(self.folder / "memory.db"), encoder)

    @classmethod
    def in_memory(cls, encoder: Encoder | None = None, images: str | Path | None = None) -> "MemoryStore":
        """A store that leaves no database and copies no images.

        `images`: the folder for what others draw for it (crops); by default one that goes when the store does.
        """
        store = cls.__new__(cls)
        store.folder = None
        store._temporary = None if images else tempfile.TemporaryDirectory(prefix="memory-")
        store.images = Path(images or store._temporary.name)
        store._open(":memory:", encoder)
        return store

    def _open(self, path: str, encoder: Encoder | None) -> None:
        self.path, self.encoder = path, encoder or text_encoder()
        self._tables: dict[str, Table] = {}
        self._lock, self._depth, self._version = threading.RLock(), 0, -1
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            with self.transaction():
                self._create()
                self._create_text()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
        except (sqlite3.DatabaseError, StoreError) as error:
            self._db.close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path} cannot be read as a memory database: {error}") from error

    def _create(self) -> None:
        schema = self._db.execute("PRAGMA user_version").fetchone()[0]
        if schema > SCHEMA:
            raise StoreError(f"{self.path} has schema {schema}, this version reads up to {SCHEMA}: update the package")
        if schema == SCHEMA:
            return
        if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StoreError(f"{self.path} is another program's SQLite file, not a memory database")
        columns = "id INTEGER PRIMARY KEY, known_from TEXT NOT NULL, record TEXT NOT NULL, vector BLOB"
        for kind in KINDS:
            self._db.execute(f"CREATE TABLE {kind} ({columns})")
        self._db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def _create_text(self) -> None:
        """The lexical indices, one beside each timeline with the same row numbers; made here for older databases."""
        for kind in TIMELINES:
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (f"{kind}_text",)).fetchone():
                self._db.execute(f"CREATE VIRTUAL TABLE {kind}_text USING fts5(text, tokenize = 'porter unicode61')")
                for row, record in self._db.execute(f"SELECT id, record FROM {kind}").fetchall():
                    self._index_text(kind, row, from_json(KINDS[kind], record))

    def _index_text(self, kind: str, row: int, record: Record) -> None:
        self._db.execute(f"INSERT INTO {kind}_text (rowid, text) VALUES (?, ?)", (row, search_text(record)))

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "MemoryStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside happen together or, after an exception, not at all. May be nested."""
        with self._lock:
            if self._depth == 0:
                self._db.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0:
                    self._db.execute("ROLLBACK")
                    self._tables.clear()
                raise
            self._depth -= 1
            if self._depth == 0:
                self._db.execute("COMMIT")

    # Writing

    def add_turn(self, turn: Turn) -> Turn:
        """Appends an exchange and gives it its index. ValueError if it comes before the last one in time."""
        with self.transaction():
            before = self._table("turns").records
            if before and turn.time < before[-1].time:
                raise ValueError(f"turns come in order of time: one of {turn.time} after one of {before[-1].time}")
            turn = replace(turn, index=len(before))
            images = (self._keep(path, f"turn{turn.index:05d}_{n}") for n, path in enumerate(turn.images))
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
            count = len(self._table("turns").records)
            if strange := [index for index in episode.turns if not 0 <= index < count]:
                raise ValueError(f"episode {episode.summary!r} names turns {strange}; the store holds 0 to {count - 1}")
            episode = replace(episode, id=self._next_id("episodic"))
            return self._add("episodic", episode.id, episode)

    def set_core(self, core: CoreMemory) -> CoreMemory:
        """A new version of the core memory; the older ones stay readable by `as_of`."""
        return self._add_version("core", core)

    def set_procedural(self, procedural: ProceduralMemory) -> ProceduralMemory:
        """A new version of the procedural memory; the older ones stay readable by `as_of`."""
        return self._add_version("procedural", procedural)

    def add_personality(self, state: PersonalityState) -> PersonalityState:
        """The personality after one more turn."""
        return self._add_version("personality", state)

    def _add_version(self, kind: str, record: Record) -> Record:
        with self.transaction():
            return self._add(kind, self._next_id(kind), record)

    def _next_id(self, kind: str) -> int:
        return self._db.execute(f"SELECT coalesce(max(id), -1) + 1 FROM {kind}").fetchone()[0]

    def _add(self, kind: str, row: int, record: Record) -> Record:
        table = self._table(kind)
        text = to_json(self._relocate(record, self._relative))
        self._db.execute(
            f"INSERT INTO {kind} (id, known_from, record) VALUES (?, ?, ?)", (row, record.known_from.isoformat(), text)
        )
        if kind in TIMELINES:
            self._index_text(kind, row, record)
        records = (*table.records, record)
        ordered = not table.records or _when(table.records[-1]) <= _when(record)
        self._tables[kind] = replace(table, records=records) if ordered else self._as_table(kind, records)
        return record

    # Images: kept beside the database, and named in it relative to the folder, so that the folder can be moved

    def _keep(self, path: str, name: str) -> str:
        source = Path(path)
        if self.folder is None or source.resolve().parent == self.images.resolve():
            return str(path)
        if not source.is_file():
            raise FileNotFoundError(f"image {path} of {name} is not there")
        return str(shutil.copyfile(source, self.images / f"{name}{source.suffix.lower()}"))

    def _relative(self, path: str) -> str:
        inside = self.folder is not None and Path(path).is_relative_to(self.folder)
        return Path(path).relative_to(self.folder).as_posix() if inside else path

    @staticmethod
    def _relocate(record: Record, move: Callable[[str], str | Path]) -> Record:
        if isinstance(record, Turn) and record.images:
            return replace(record, images=tuple(str(move(path)) for path in record.images))
        if isinstance(record, SemanticMemory) and record.concept:
            return replace(record, concept=replace(record.concept, crop=str(move(record.concept.crop))))
        return record

    # Reading

    def as_of(self, time: datetime | None = None) -> MemoryView:
        """What was known at `time` (None: all there is). Cheap: views share the loaded rows and their index."""
        with self._lock:
            return MemoryView(time or datetime.max, {kind: self._table(kind) for kind in KINDS}, self.encoder)

    def _table(self, kind: str) -> Table:
        """The loaded rows of one type; read anew when another process has written."""
        version = self._db.execute("PRAGMA data_version").fetchone()[0]
        if version != self._version:
            self._tables.clear()
            self._version = version
        if kind not in self._tables:
            self._tables[kind] = self._load(kind)
        return self._tables[kind]

    def _load(self, kind: str) -> Table:
        home = Path(self.folder or "").joinpath
        try:
            rows = self._db.execute(f"SELECT record FROM {kind} ORDER BY id")
            records = [self._relocate(from_json(KINDS[kind], text), home) for (text,) in rows]
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path}: a row of {kind} cannot be read: {error}") from error
        return self._as_table(kind, records)

    def _as_table(self, kind: str, records: Iterable[Record]) -> Table:
        # the sort is stable: of the same moment, what was written first stays first
        encode, matches = partial(self._encode, kind), partial(self._matches, kind)
        return Table(tuple(sorted(records, key=_when)), Timeline(encode, matches, self._lock, near=kind == "turns"))

    def _matches(self, kind: str, word: str, after: int) -> np.ndarray:
        """Ids, in order, of the rows above `after` that hold the word, whatever its ending."""
        with self._lock:  # one long text is read several times faster than its rows
            sql = f"SELECT group_concat(rowid) FROM {kind}_text WHERE {kind}_text MATCH ? AND rowid > ?"
            found = self._db.execute(sql, (f'"{word}"', after)).fetchone()[0]
        return np.fromstring(found, np.int64, sep=",") if found else np.empty(0, np.int64)

    def _encode(self, kind: str, records: tuple) -> np.ndarray:
        """(records, width): the kept vectors, and in one batch those still missing."""
        with self._lock:
            self._claim_vectors()
            missing, vectors = {record.id: place for place, record in enumerate(records)}, None
            sql = f"SELECT id, vector FROM {kind} WHERE id BETWEEN ? AND ? AND vector IS NOT NULL"
            for row, blob in self._db.execute(sql, (min(missing), max(missing))):
                if row in missing:
                    vector = np.frombuffer(blob, np.float32)
                    vectors = np.empty((len(records), len(vector)), np.float32) if vectors is None else vectors
                    vectors[missing.pop(row)] = vector
            if missing:
                new = self.encoder.encode([search_text(records[place]) for place in missing.values()])
                with self.transaction():
                    rows = [(vector.tobytes(), row) for vector, row in zip(new, missing, strict=True)]
                    self._db.executemany(f"UPDATE {kind} SET vector = ? WHERE id = ?", rows)
                vectors = np.empty((len(records), new.shape[1]), np.float32) if vectors is None else vectors
                vectors[list(missing.values())] = new
            return vectors

    def _claim_vectors(self) -> None:
        """Vectors of two encoders cannot be compared: those of another than ours are thrown away, and made anew."""
        owner = self._db.execute("SELECT value FROM meta WHERE key = 'encoder'").fetchone()
        if owner == (self.encoder.name,):
            return
        with self.transaction():
            for kind in TIMELINES:
                self._db.execute(f"UPDATE {kind} SET vector = NULL")
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('encoder', ?)", (self.encoder.name,))


def _when(record: Record) -> datetime:
    """The place on the timeline; versions, which do not happen, stand where they became known."""
    return getattr(record, "happened_from", record.known_from)
