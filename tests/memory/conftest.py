"""An encoder that needs no model: likeness is shared words, so that it can be worked out by hand; and an old memory."""

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
    """Bags of hashed words: texts are alike in so far as they share words. Counts what it encodes."""

    name = "words"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, texts) -> np.ndarray:
        self.batches.append(len(texts))
        vectors = np.zeros((len(texts), 512), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().replace(",", " ").split():
                vectors[row, zlib.crc32(word.encode()) % 512] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()


def write_first_schema(folder: Path, turns: int = 6) -> None:
    """A database as version 1 wrote it, in plain SQL: ids from 0, no origins, no edits, no journal."""
    folder.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / "memory.db", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN")
    for kind in ("turns", "semantic", "episodic", "core", "procedural", "personality"):
        columns = (
            "id INTEGER PRIMARY KEY, known_from TEXT NOT NULL, record TEXT NOT NULL, vector BLOB"
        )
        db.execute(f"CREATE TABLE {kind} ({columns})")
    db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
    time = NOON.isoformat()

    def add(kind, row, record):
        db.execute(
            f"INSERT INTO {kind} (id, known_from, record) VALUES (?, ?, ?)", (row, time, record)
        )

    for n in range(turns):
        add(
            "turns", n, to_json(Turn(NOON, f"turn {n} in Rome" if n == 1 else f"turn {n}", index=n))
        )
        add(
            "semantic",
            n,
            to_json(SemanticMemory(f"fact {n}", "", NOON, NOON, NOON, sources=(n,), id=n)),
        )
        seen = f'"profile": {to_json(BigFive.neutral())}, "observed": null, "turn": {n}, "m": 1'
        add("personality", n, f'{{{seen}, "known_from": "{time}"}}')
    versions = ({"name": "Kai"}, {"name": "Kai", "city": "Rome"})
    for n, entries in enumerate(map(json.dumps, versions)):
        version = f'"known_from": "{time}", "sources": [{n}, {n + 1}], "written_by": "rl"}}'
        add("core", n, f'{{"human": {entries}, "persona": {{}}, {version}')
        add("procedural", n, f'{{"entries": {entries}, {version}')
    db.execute("PRAGMA user_version = 1")
    db.execute("COMMIT")
    db.close()


@pytest.fixture
def first_schema():
    return write_first_schema
