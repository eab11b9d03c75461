"""Fixtures of the memory tests: an encoder without a model, and databases of older schemas."""

import json
import sqlite3
import zlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from personavlm_lib.memory.records import BigFive, SemanticMemory, Turn, to_json

NOON = datetime(2024, 5, 3, 12)


class WordEncoder:
    """Bags of hashed words: similarity is shared words, so that a test can compute it by hand.

    `batches` records how many texts each call encoded.
    """

    name = "words"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, texts) -> np.ndarray:
        self.batches.append(len(texts))
        vectors = np.zeros((len(texts), 512), np.float32)
        for row, text in enumerate(texts):
            words = text.lower().replace(",", " ").split()
            for word in words:
                column = zlib.crc32(word.encode()) % 512
                vectors[row, column] += 1
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        norms = np.maximum(norms, 1e-9)
        return vectors / norms


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


def write_first_schema(folder: Path, turns: int = 6) -> None:
    """Write a database of schema 1 in plain SQL: ids from 0, no origins, edits or journal."""
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / "memory.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN")
    columns = "id INTEGER PRIMARY KEY, known_from TEXT NOT NULL, record TEXT NOT NULL, vector BLOB"
    for kind in ("turns", "semantic", "episodic", "core", "procedural", "personality"):
        db.execute(f"CREATE TABLE {kind} ({columns})")
    db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    time = NOON.isoformat()

    def add(kind, row, record):
        statement = f"INSERT INTO {kind} (id, known_from, record) VALUES (?, ?, ?)"
        db.execute(statement, (row, time, record))

    neutral = to_json(BigFive.neutral())
    for n in range(turns):
        text = "turn 1 in Rome" if n == 1 else f"turn {n}"
        memory = SemanticMemory(f"fact {n}", "", NOON, NOON, NOON, sources=(n,), id=n)
        state = f'"profile": {neutral}, "observed": null, "turn": {n}, "m": 1'
        add("turns", n, to_json(Turn(NOON, text, index=n)))
        add("semantic", n, to_json(memory))
        add("personality", n, f'{{{state}, "known_from": "{time}"}}')
    versions = ({"name": "Kai"}, {"name": "Kai", "city": "Rome"})
    for n, entries in enumerate(versions):
        entries_json = json.dumps(entries)
        version = f'"known_from": "{time}", "sources": [{n}, {n + 1}], "written_by": "rl"}}'
        add("core", n, f'{{"human": {entries_json}, "persona": {{}}, {version}')
        add("procedural", n, f'{{"entries": {entries_json}, {version}')
    db.execute("PRAGMA user_version = 1")
    db.execute("COMMIT")
    db.close()


@pytest.fixture
def first_schema():
    return write_first_schema


def write_second_schema(folder: Path) -> None:
    """Write a database of schema 2 in plain SQL: one turn, and table `refused` with ids 0 and 2."""
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / "memory.db", isolation_level=None)
    key = "id INTEGER PRIMARY KEY AUTOINCREMENT"
    kinds = ("turns", "semantic", "episodic", "core", "procedural", "personality")
    for kind in (*kinds, "refused", "receipts"):
        columns = f"{key}, known_from TEXT NOT NULL, record TEXT NOT NULL, vector BLOB"
        db.execute(f"CREATE TABLE {kind} ({columns})")
    for kind in ("turns", "semantic", "episodic"):
        columns = "text, tokenize = 'porter unicode61'"
        db.execute(f"CREATE VIRTUAL TABLE {kind}_text USING fts5({columns})")
    db.execute(f"CREATE TABLE journal ({key}, work TEXT NOT NULL, turn INTEGER NOT NULL)")
    db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    db.execute("INSERT INTO meta VALUES ('encoder', 'words')")
    time = NOON.isoformat()
    turn = to_json(Turn(NOON, "turn 0 in Rome", index=0))
    db.execute("INSERT INTO turns (id, known_from, record) VALUES (0, ?, ?)", (time, turn))
    db.execute("INSERT INTO turns_text (rowid, text) VALUES (0, 'turn 0 in Rome')")
    db.execute("INSERT INTO journal (work, turn) VALUES ('session', 0)")
    for row in range(3):
        fields = {"purpose": "core", "raw": f"raw {row}", "reason": "bad", "known_from": time}
        record = json.dumps(fields | {"sources": [0], "written_by": "rl"})
        statement = "INSERT INTO refused (id, known_from, record) VALUES (?, ?, ?)"
        db.execute(statement, (row, time, record))
    db.execute("DELETE FROM refused WHERE id = 1")
    db.execute("PRAGMA user_version = 2")
    db.close()


@pytest.fixture
def second_schema():
    return write_second_schema
