"""The SQLite file under a memory: transactions, errors in words, the journal of pending work, and clean erasure."""

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TROUBLE = {
    "SQLITE_BUSY": "another process has been writing all the while; nothing was written here: try again later",
    "SQLITE_FULL": "the disk is full; nothing was written: make room, then try again",
    "SQLITE_READONLY": "it may not be written to; nothing was written: mind its permissions and its disk's",
}


class StoreError(RuntimeError):
    """A memory database that cannot be used; the message names the file."""


class PendingUpdate(NamedTuple):
    """Work that a turn still waits for: "turn" (lines 17-19 of Algorithm 1) or "session" (lines 1-3)."""

    id: int
    work: str
    turn: int


class Database:
    """One file, one connection, for all threads of a process; other processes may have theirs.

    WAL, so that readers and a writer do not wait for each other, and `synchronous = FULL`: the WAL is on the disk when
    a commit returns. A subclass says in `_create` what is in a file of its `schema`, and lets go of what it holds in
    memory in `_forget_loaded`.
    """

    schema: int

    def __init__(self, path: str, wait: float) -> None:
        self.path = path
        self._lock, self._depth = threading.RLock(), 0
        self._copied: list[Path] = []  # files that go if the open transaction fails
        try:
            self._db = sqlite3.connect(
                path, timeout=wait, isolation_level=None, check_same_thread=False
            )
        except sqlite3.OperationalError as error:
            raise StoreError(f"{path} cannot be opened: {error}") from error
        try:
            self.sql("PRAGMA secure_delete = ON")
            self.sql("PRAGMA synchronous = FULL")
            if self.sql("PRAGMA user_version")[0][0] != self.schema:
                with self.transaction():
                    self._create()
            self.sql("PRAGMA journal_mode = WAL")
        except (sqlite3.DatabaseError, StoreError) as error:
            self._db.close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path} cannot be read as a memory database: {error}") from error

    def _create(self) -> None:
        raise NotImplementedError

    def _forget_loaded(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._db.close()

    def sql(self, statement: str, *values: object) -> list[tuple]:
        """The rows of one statement."""
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    def meta(self, key: str) -> str | None:
        found = self.sql("SELECT value FROM meta WHERE key = ?", key)
        return found[0][0] if found else None

    def set_meta(self, key: str, value: str) -> None:
        self.sql("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside happen together or, after an exception, not at all. May be nested.

        StoreError where the database cannot be written: another process is at it for too long, or the disk is full.
        """
        with self._lock, self._explained():
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
                    self._undo()
                raise
            finally:
                self._depth -= 1
                if outermost:
                    self._copied.clear()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = "_".join(
                error.sqlite_errorname.split("_")[:2]
            )  # SQLITE_READONLY_DBMOVED and its like
            raise StoreError(
                f"{self.path}: {error}; {TROUBLE.get(code, 'nothing was written')}"
            ) from error

    def _undo(self) -> None:
        if self._db.in_transaction:  # SQLite may have rolled back by itself
            self.sql("ROLLBACK")
        self._forget_loaded()
        for path in self._copied:
            path.unlink(missing_ok=True)

    # Pending work: written with the turn that needs it, and taken off with what the work leaves

    def add_pending(self, turn: int) -> None:
        for work in ("turn", "session"):
            self.sql("INSERT INTO journal (work, turn) VALUES (?, ?)", work, turn)

    def pending(self) -> list[PendingUpdate]:
        """What the turns still wait for, oldest turn first."""
        return [
            PendingUpdate(*row)
            for row in self.sql("SELECT id, work, turn FROM journal ORDER BY turn, id")
        ]

    def finish(self, jobs: Iterable[PendingUpdate]) -> bool:
        """Takes jobs off, in the transaction that writes what they led to. False, and then write nothing: one is not
        there any more, because another process did it or something was forgotten meanwhile."""
        with self.transaction():
            return all(
                [
                    self._db.execute("DELETE FROM journal WHERE id = ?", (job.id,)).rowcount
                    for job in jobs
                ]
            )

    def drop_pending(self, turns: Iterable[int]) -> int:
        """Takes the work for forgotten turns off: how many jobs. What is left becomes new jobs, so that nothing which
        a model is just writing, with the forgotten before its eyes, is taken over."""
        with self.transaction():
            jobs, gone = self.pending(), set(turns)
            kept = [(job.work, job.turn) for job in jobs if job.turn not in gone]
            self.sql("DELETE FROM journal")
            self._db.executemany("INSERT INTO journal (work, turn) VALUES (?, ?)", kept)
            return len(jobs) - len(kept)

    def erase(self) -> None:
        """Takes what was deleted off free pages and out of the WAL. StoreError where that must wait."""
        try:
            self.sql("VACUUM")
            if self.sql("PRAGMA wal_checkpoint(TRUNCATE)")[0][0]:
                raise sqlite3.OperationalError("another process still reads")
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{self.path}: forgotten, but free pages and {self.path}-wal may hold some of it until the memory is "
                f"opened once more ({error})"
            ) from error
