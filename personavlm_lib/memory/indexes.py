"""What makes the rows of a database findable: their words in FTS5 and their vectors, both beside the rows."""

import numpy as np

from personavlm_lib.memory.database import Database
from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import Record
from personavlm_lib.memory.timeline import search_text
from personavlm_lib.memory.view import TIMELINES


class Indexed(Database):
    """Words are written in the transaction of their row; vectors when first asked for, in batches, and then kept."""

    encoder: Encoder

    def _index_text(self, kind: str, row: int, record: Record) -> None:
        self.sql(f"INSERT INTO {kind}_text (rowid, text) VALUES (?, ?)", row, search_text(record))

    def _matches(self, kind: str, word: str, after: int) -> np.ndarray:
        """Ids, in order, of the rows above `after` that hold the word, whatever its ending."""
        # one long text is read several times faster than its rows
        statement = (
            f"SELECT group_concat(rowid) FROM {kind}_text WHERE {kind}_text MATCH ? AND rowid > ?"
        )
        [(found,)] = self.sql(statement, f'"{word}"', after)
        return np.fromstring(found, np.int64, sep=",") if found else np.empty(0, np.int64)

    def _encode(self, kind: str, records: tuple) -> np.ndarray:
        """(records, width): the kept vectors, and in one batch those still missing."""
        with self._lock:
            self._claim_vectors()
            missing, vectors = {record.id: place for place, record in enumerate(records)}, None
            statement = (
                f"SELECT id, vector FROM {kind} WHERE id BETWEEN ? AND ? AND vector IS NOT NULL"
            )
            for row, blob in self.sql(statement, min(missing), max(missing)):
                if row in missing:
                    vector = np.frombuffer(blob, np.float32)
                    vectors = (
                        np.empty((len(records), len(vector)), np.float32)
                        if vectors is None
                        else vectors
                    )
                    vectors[missing.pop(row)] = vector
            if missing:
                new = self.encoder.encode(
                    [search_text(records[place]) for place in missing.values()]
                )
                with self.transaction():
                    rows = [
                        (vector.tobytes(), row) for vector, row in zip(new, missing, strict=True)
                    ]
                    self._db.executemany(f"UPDATE {kind} SET vector = ? WHERE id = ?", rows)
                vectors = (
                    np.empty((len(records), new.shape[1]), np.float32)
                    if vectors is None
                    else vectors
                )
                vectors[list(missing.values())] = new
            return vectors

    def _claim_vectors(self) -> None:
        """Vectors of two encoders cannot be compared: those of another than ours are thrown away, and made anew."""
        if self.meta("encoder") == self.encoder.name:
            return
        with self.transaction():
            for kind in TIMELINES:
                self.sql(f"UPDATE {kind} SET vector = NULL")
            self.set_meta("encoder", self.encoder.name)
