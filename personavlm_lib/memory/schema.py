"""The tables of a memory database: how they are created, migrated and read.

Each kind of record has one table with one JSON object per row. Schema 2 added the journal, the
text indexes, origins and ids that are never reused; schema 3 renamed table `refused` to `rejected`;
schema 4 counts the attempts of pending updates and indexes the words of all scripts.
"""

import sqlite3
from pathlib import Path
from typing import Any

from personavlm_lib.memory.database import Database, StoreError
from personavlm_lib.memory.images import relocate
from personavlm_lib.memory.indexes import TextIndex
from personavlm_lib.memory.records import Record, from_json, to_json
from personavlm_lib.memory.versions import link_origins
from personavlm_lib.memory.view import KINDS, TIMELINES

SCHEMA = 4
COLUMNS = (
    "id INTEGER PRIMARY KEY AUTOINCREMENT, known_from TEXT NOT NULL, record TEXT NOT NULL, "
    "vector BLOB"
)
ATTEMPT_COLUMNS = (
    "attempts INTEGER NOT NULL DEFAULT 0",
    "delay REAL NOT NULL DEFAULT 0",
    "retry_at REAL NOT NULL DEFAULT 0",
)
JOURNAL_COLUMNS = (
    "id INTEGER PRIMARY KEY AUTOINCREMENT, work TEXT NOT NULL, turn INTEGER NOT NULL, "
    + ", ".join(ATTEMPT_COLUMNS)
)


def prepare_tables(database: Database, encoder_name: str) -> None:
    """Create the tables of a new file or migrate those of an older schema.

    `encoder_name` is stored in a new file. Raises StoreError for a newer schema and for another
    program's file.
    """
    schema = database.schema
    if schema > SCHEMA:
        raise StoreError(
            f"{database.path} has schema {schema}, this version reads up to {SCHEMA}: "
            "update the package"
        )
    if schema == SCHEMA:  # another process has prepared the file in the meantime
        return
    if schema == 0:
        _create(database, encoder_name)
    elif schema == 1:
        _migrate_from_1(database)
    else:
        if schema == 2:
            database.sql("ALTER TABLE refused RENAME TO rejected")
        for column in ATTEMPT_COLUMNS:
            database.sql(f"ALTER TABLE journal ADD COLUMN {column}")
        for kind in TIMELINES:
            database.sql(f"DROP TABLE {kind}_text")
        _create_text_index(database)
    database.sql(f"PRAGMA user_version = {SCHEMA}")


def _create(database: Database, encoder_name: str) -> None:
    if database.sql("SELECT 1 FROM sqlite_master"):
        raise StoreError(f"{database.path} is another program's SQLite file, not a memory database")
    database.sql("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    database.set_meta("encoder", encoder_name)
    database.sql(f"CREATE TABLE journal ({JOURNAL_COLUMNS})")
    for kind in KINDS:
        database.sql(f"CREATE TABLE {kind} ({COLUMNS})")
    _create_text_index(database)


def _migrate_from_1(database: Database) -> None:
    database.sql(f"CREATE TABLE journal ({JOURNAL_COLUMNS})")
    for kind in KINDS:
        if kind in ("rejected", "receipts"):  # schema 1 had neither
            database.sql(f"CREATE TABLE {kind} ({COLUMNS})")
            continue
        database.sql(f"ALTER TABLE {kind} RENAME TO old_{kind}")
        database.sql(f"CREATE TABLE {kind} ({COLUMNS})")
        database.sql(f"INSERT INTO {kind} SELECT id, known_from, record, vector FROM old_{kind}")
        database.sql(f"DROP TABLE old_{kind}")
    for kind in ("core", "procedural"):  # schema 1 did not store which turns an entry came from
        before = None
        for row, version in read_rows(database, kind):
            before = link_origins(before, version)
            rewrite_row(database, kind, row, before)
    _create_text_index(database)


def _create_text_index(database: Database) -> None:
    index = TextIndex(database)
    for kind in TIMELINES:
        index.create(kind)
        for row, record in read_rows(database, kind):
            index.add(kind, row, record)


def read_rows(database: Database, kind: str, folder: Path | None = None) -> list[tuple[int, Any]]:
    """All (id, record) of a kind in the order of ids; image paths are joined to `folder`.

    Raises StoreError for an unreadable row.
    """
    record_type = KINDS[kind]
    home = folder or Path()
    records = []
    try:
        for row, text in database.sql(f"SELECT id, record FROM {kind} ORDER BY id"):
            record = from_json(record_type, text)
            records.append((row, relocate(record, home.joinpath)))
    except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{database.path}: a row of {kind} cannot be read: {error}") from error
    return records


def rewrite_row(database: Database, kind: str, row: int, record: Record) -> None:
    """Replace the record of a row. Only migration, forgetting and wrong clocks may do that."""
    statement = f"UPDATE {kind} SET record = ?, known_from = ? WHERE id = ?"
    database.sql(statement, to_json(record), record.known_from.isoformat(), row)
