"""The two indexes of a memory: the words of its records in FTS5, and their vectors."""

from collections.abc import Sequence

import numpy as np

from personavlm_lib.memory.database import Database
from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.timeline import Searchable, index_text, search_text
from personavlm_lib.memory.view import TIMELINES


class TextIndex:
    """One FTS5 table per searchable kind; its row numbers are the ids of the records.

    Words are written in the transaction that writes their record.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(self, kind: str) -> None:
        """Create the empty FTS5 table of a kind."""
        self.database.sql(
            f"CREATE VIRTUAL TABLE {kind}_text USING fts5(text, tokenize = 'porter unicode61')"
        )

    def add(self, kind: str, row: int, record: Searchable) -> None:
        statement = f"INSERT INTO {kind}_text (rowid, text) VALUES (?, ?)"
        self.database.sql(statement, row, index_text(search_text(record)))

    def delete(self, kind: str, row: int) -> None:
        self.database.sql(f"DELETE FROM {kind}_text WHERE rowid = ?", row)

    def rebuild(self) -> None:
        """Write the index again, which removes deleted words: FTS5 keeps them until then."""
        for kind in TIMELINES:
            self.database.sql(f"INSERT INTO {kind}_text ({kind}_text) VALUES ('rebuild')")

    def matches(self, kind: str, word: str, after: int) -> np.ndarray:
        """Ids, in order, of the rows above `after` that contain the word in any inflection."""
        # one long text is read several times faster than one row per id
        statement = (
            f"SELECT group_concat(rowid) FROM {kind}_text WHERE {kind}_text MATCH ? AND rowid > ?"
        )
        rows = self.database.sql(statement, f'"{word}"', after)
        ids = rows[0][0]
        if not ids:
            return np.empty(0, np.int64)
        return np.fromstring(ids, np.int64, sep=",")


class VectorIndex:
    """Vectors in the rows of their records, computed in batches when first needed and then kept."""

    def __init__(self, database: Database, encoder: Encoder) -> None:
        self.database = database
        self.encoder = encoder

    def vectors(self, kind: str, records: Sequence[Searchable]) -> np.ndarray:
        """(records, width) float32: stored vectors, and missing ones encoded in one batch."""
        vectors = None
        missing = {record.id: place for place, record in enumerate(records)}
        with self.database.lock:
            self._drop_vectors_of_other_encoder()
            for row, blob in self._stored(kind, min(missing), max(missing)):
                if row not in missing:
                    continue
                vector = np.frombuffer(blob, np.float32)
                if vectors is None:
                    vectors = np.empty((len(records), len(vector)), np.float32)
                vectors[missing.pop(row)] = vector
            if missing:
                places = list(missing.values())
                texts = [search_text(records[place]) for place in places]
                new = self.encoder.encode(texts)
                self._store(kind, list(missing), new)
                if vectors is None:
                    vectors = np.empty((len(records), new.shape[1]), np.float32)
                vectors[places] = new
        assert vectors is not None
        return vectors

    def _stored(self, kind: str, first: int, last: int) -> list[tuple]:
        statement = f"SELECT id, vector FROM {kind} WHERE id BETWEEN ? AND ? AND vector IS NOT NULL"
        return self.database.sql(statement, first, last)

    def _store(self, kind: str, rows: list[int], vectors: np.ndarray) -> None:
        with self.database.transaction():
            values = [(vector.tobytes(), row) for vector, row in zip(vectors, rows, strict=True)]
            self.database.sql_many(f"UPDATE {kind} SET vector = ? WHERE id = ?", values)

    def _drop_vectors_of_other_encoder(self) -> None:
        """Delete the stored vectors if another encoder made them: the two cannot be compared."""
        stored_name = self.database.meta("encoder")
        if stored_name == self.encoder.name:
            return
        with self.database.transaction():
            for kind in TIMELINES:
                self.database.sql(f"UPDATE {kind} SET vector = NULL")
            self.database.set_meta("encoder", self.encoder.name)
