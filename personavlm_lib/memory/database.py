"""The SQLite file of a memory: transactions, readable errors, pending updates and erasure."""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

REMEDIES = {
    "SQLITE_BUSY": (
        "another process held the write lock all this time; nothing was written: try again later"
    ),
    "SQLITE_FULL": "the disk is full; nothing was written: free some space and try again",
    "SQLITE_READONLY": (
        "the file is read-only; nothing was written: check the permissions of the file and its disk"
    ),
}


class StoreError(RuntimeError):
    """A memory database that cannot be used; the message names the file."""


class PendingUpdate(NamedTuple):
    """An update that a turn still waits for.

    `work` is "turn" (lines 17-19 of Algorithm 1) or "session" (lines 1-3). After `attempts` that
    failed, it is to be tried again at `retry_at` (Unix time), `delay` seconds after the last one.
    """

    id: int
    work: str
    turn: int
    attempts: int = 0
    delay: float = 0.0
    retry_at: float = 0.0


class Database:
    """One SQLite file and one connection, shared by all threads of a process.

    Other processes may open the same file. In WAL mode, readers and a writer do not wait for each
    other; with `synchronous = FULL`, the WAL is on the disk when a commit returns.

    `prepare(database)` runs in a transaction before the first use and creates or migrates the
    tables. `on_rollback()` runs after each failed transaction. Raises StoreError if the file cannot
    be opened or is not a memory database.
    """

    def __init__(
        self,
        path: str,
        wait: float,
        schema: int,
        prepare: Callable[["Database"], None],
        on_rollback: Callable[[], None],
    ) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._on_rollback = on_rollback
        self._depth = 0  # of nested transactions
        self._new_files: list[Path] = []  # deleted if the open transaction fails
        try:
            self._connection = sqlite3.connect(
                path, timeout=wait, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error
        try:
            self._configure(schema, prepare)
        except sqlite3.DatabaseError as error:
            self.close()
            raise StoreError(f"{path} cannot be read as a memory database: {error}") from error
        except StoreError:
            self.close()
            raise

    def _configure(self, schema: int, prepare: Callable[["Database"], None]) -> None:
        self.sql("PRAGMA secure_delete = ON")
        self.sql("PRAGMA synchronous = FULL")
        if self.schema != schema:
            with self.transaction():
                prepare(self)
        self.sql("PRAGMA journal_mode = WAL")

    @property
    def schema(self) -> int:
        """The schema number that is stored in the file; 0 for a new file."""
        return self.sql("PRAGMA user_version")[0][0]

    def close(self) -> None:
        self._connection.close()

    def sql(self, statement: str, *values: object) -> list[tuple]:
        """Run one statement and return its rows."""
        with self.lock:
            return self._connection.execute(statement, values).fetchall()

    def sql_many(self, statement: str, rows: Iterable[tuple]) -> None:
        """Run one statement once per row of values."""
        self._connection.executemany(statement, rows)

    def meta(self, key: str) -> str | None:
        """The value that is stored under `key`, or None."""
        rows = self.sql("SELECT value FROM meta WHERE key = ?", key)
        return rows[0][0] if rows else None

    def set_meta(self, key: str, value: str) -> None:
        self.sql("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Combine writes: all writes in the block take effect or, after an exception, none.

        Transactions can be nested. Raises StoreError if the database cannot be written, for example
        because another process keeps the write lock for too long or the disk is full.
        """
        with self.lock, self._readable_errors():
            outermost = self._depth == 0
            self._depth += 1
            try:
                if outermost:
                    self.sql("BEGIN IMMEDIATE")
                yield
                if outermost:
                    self.sql("COMMIT")
            except BaseException:
                if outermost:
                    self._roll_back()
                raise
            finally:
                self._depth -= 1
                if outermost:
                    self._new_files.clear()

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            # extended codes such as SQLITE_READONLY_DBMOVED start with the primary code
            parts = error.sqlite_errorname.split("_")
            code = "_".join(parts[:2])
            remedy = REMEDIES.get(code, "nothing was written")
            raise StoreError(f"{self.path}: {error}; {remedy}") from error

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite may have rolled back by itself
            self.sql("ROLLBACK")
        self._on_rollback()
        for path in self._new_files:
            path.unlink(missing_ok=True)

    def delete_on_rollback(self, path: Path) -> None:
        """Delete the file at `path` if the open transaction fails."""
        self._new_files.append(path)

    # Pending updates: written with the turn that needs them, deleted with the results of the update

    def add_pending(self, turn: int) -> None:
        """Note that the turn waits for both kinds of update."""
        for work in ("turn", "session"):
            self.sql("INSERT INTO journal (work, turn) VALUES (?, ?)", work, turn)

    def pending(self) -> list[PendingUpdate]:
        """The updates that the turns still wait for, oldest turn first."""
        rows = self.sql(f"SELECT {', '.join(PendingUpdate._fields)} FROM journal ORDER BY turn, id")
        return [PendingUpdate(*row) for row in rows]

    def finish(self, updates: Iterable[PendingUpdate]) -> bool:
        """Delete pending updates; call it in the transaction that writes their results.

        Returns False if one of them no longer exists, because another process finished it or its
        turn was forgotten; the caller must not write the results then.
        """
        complete = True
        with self.transaction():
            for update in updates:
                statement = "DELETE FROM journal WHERE id = ?"
                cursor = self._connection.execute(statement, (update.id,))
                if cursor.rowcount == 0:
                    complete = False
        return complete

    def postpone(self, updates: Iterable[PendingUpdate]) -> None:
        """Store the attempts and times of updates that failed."""
        statement = "UPDATE journal SET attempts = ?, delay = ?, retry_at = ? WHERE id = ?"
        with self.transaction():
            for update in updates:
                self.sql(statement, update.attempts, update.delay, update.retry_at, update.id)

    def drop_pending(self, turns: Iterable[int]) -> int:
        """Delete the updates of forgotten turns and return how many there were.

        The remaining updates get new ids, so that `finish` rejects a result that a model is writing
        right now, with the forgotten turns in its context.
        """
        forgotten = set(turns)
        with self.transaction():
            updates = self.pending()
            kept = [update[1:] for update in updates if update.turn not in forgotten]
            columns = ", ".join(PendingUpdate._fields[1:])
            self.sql("DELETE FROM journal")
            self.sql_many(f"INSERT INTO journal ({columns}) VALUES (?, ?, ?, ?, ?)", kept)
            return len(updates) - len(kept)

    def erase(self) -> None:
        """Remove deleted content from free pages and from the WAL.

        Raises StoreError if that must wait for another process.
        """
        try:
            self.sql("VACUUM")
            busy = self.sql("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]
        except sqlite3.OperationalError as error:
            raise self._not_erased(str(error)) from error
        if busy:
            raise self._not_erased("another process has the database open")

    def _not_erased(self, reason: str) -> StoreError:
        return StoreError(
            f"{self.path}: forgotten, but free pages and {self.path}-wal may hold some of the "
            f"content until the memory is opened again ({reason})"
        )
