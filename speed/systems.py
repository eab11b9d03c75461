"""The memory systems that `memory.py` measures: ours, the physical limit, and other systems.

Each is constructed from an empty or a filled folder and an encoder. It has `variants`, adds texts
and vectors from a given row on (`add`), completes pending work (`finish`), and returns a search
function for each variant (`searcher`).
"""

import os
import sqlite3
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 384
K = 10
START = datetime(2024, 1, 1)

# (text, vector, first row, row after the last) -> rows, best first
Search = Callable[[str, np.ndarray, int, int], list[int]]


def row_time(i: int) -> datetime:
    return START + timedelta(minutes=i)


class LookupEncoder:
    """An encoder that looks up precomputed vectors."""

    name = "given"

    def __init__(self, texts: list[str], vectors: np.ndarray) -> None:
        self.rows = {text: row for row, text in enumerate(texts)}
        self.vectors = vectors

    def encode(self, texts) -> np.ndarray:
        return self.vectors[[self.rows[text] for text in texts]]


class Ours:
    """A MemoryStore of raw turns, searched with each ranking.

    Vectors are written at the first search. `finish` makes one, so that their time is included.
    """

    variants: tuple[str, ...] = ("dense", "bm25", "hybrid")
    index = "exact"

    def __init__(self, folder: Path, encoder: LookupEncoder) -> None:
        from personavlm_lib.memory.store import MemoryStore

        self.store = MemoryStore(folder, encoder)
        self.store.sql("PRAGMA synchronous = FULL")
        self.count = len(self.store.as_of().turns)

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        from personavlm_lib.memory.records import Turn

        with self.store.transaction():
            for i, text in enumerate(texts, first):
                self.store.add_turn(Turn(row_time(i), text))

    def finish(self) -> None:
        search = self.searcher("dense")
        any_text = next(iter(self.store.encoder.rows))
        search(any_text, None, 0, 1)

    def searcher(self, variant: str) -> Search:
        from personavlm_lib.memory.records import Period
        from personavlm_lib.memory.search import Retriever

        retriever = Retriever(ranking=variant, index=self.index)
        view = self.store.as_of()

        def search(text: str, vector: np.ndarray, first: int, stop: int) -> list[int]:
            since = row_time(first)
            until = row_time(stop - 1)
            turns = retriever.rank_turns(view, text, K, Period(since, until), by_time=False)
            return [turn.index for turn in turns]

        return search


class Approximate(Ours):
    """Ours with an approximate index, in a store of its own: the index duplicates the vectors."""

    variants = ("dense",)
    index = "approximate"


class Limit:
    """FAISS's flat index over the vectors, and FTS5 over the texts."""

    variants = ("faiss", "fts5")

    def __init__(self, folder: Path, encoder: LookupEncoder) -> None:
        import faiss

        self.faiss = faiss
        self.index = faiss.IndexFlatIP(WIDTH)
        self.file = folder / "vectors.npy"
        folder.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(folder / "text.db")
        self.db.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS t USING fts5(text, tokenize = 'porter unicode61')"
        )
        if self.file.exists():
            self.index.add(np.load(self.file))

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        self.index.add(vectors)
        with self.db:
            rows = enumerate(texts, first)
            self.db.executemany("INSERT INTO t (rowid, text) VALUES (?, ?)", rows)

    def finish(self) -> None:
        vectors = self.index.reconstruct_n(0, self.index.ntotal)
        np.save(self.file, vectors)

    def searcher(self, variant: str) -> Search:
        return self.search_faiss if variant == "faiss" else self.search_fts5

    def search_faiss(self, text: str, vector: np.ndarray, first: int, stop: int) -> list[int]:
        parameters = None
        if first > 0 or stop < self.index.ntotal:
            selector = self.faiss.IDSelectorRange(first, stop)
            parameters = self.faiss.SearchParameters(sel=selector)
        _, rows = self.index.search(vector[None], K, params=parameters)
        return rows[0].tolist()

    def search_fts5(self, text: str, vector: np.ndarray, first: int, stop: int) -> list[int]:
        sql = "SELECT rowid FROM t WHERE t MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rank LIMIT ?"
        query = " OR ".join(text.split())
        return [row for (row,) in self.db.execute(sql, (query, first, stop - 1, K))]


class Chroma:
    variants = ("hnsw",)

    def __init__(self, folder: Path, encoder: LookupEncoder) -> None:
        import chromadb

        settings = chromadb.Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(str(folder), settings)
        self.rows = client.get_or_create_collection(
            "memory", metadata={"hnsw:space": "ip"}, embedding_function=None
        )

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        rows = range(first, first + len(texts))
        names = [str(row) for row in rows]
        times = [{"t": row} for row in rows]
        self.rows.add(ids=names, documents=texts, embeddings=vectors, metadatas=times)

    def finish(self) -> None:
        pass

    def searcher(self, variant: str) -> Search:
        n = self.rows.count()

        def search(text: str, vector: np.ndarray, first: int, stop: int) -> list[int]:
            window: dict[str, Any] = {}
            if stop - first < n:
                window["where"] = {"$and": [{"t": {"$gte": first}}, {"t": {"$lt": stop}}]}
            result = self.rows.query(query_embeddings=[vector], n_results=K, **window)
            names = result["ids"][0]
            return [int(name) for name in names]

        return search


class Qdrant:
    variants = ("local",)

    def __init__(self, folder: Path, encoder: LookupEncoder) -> None:
        from qdrant_client import QdrantClient, models

        self.models = models
        self.client = QdrantClient(path=str(folder))
        if not self.client.collection_exists("m"):
            parameters = models.VectorParams(size=WIDTH, distance=models.Distance.DOT)
            self.client.create_collection("m", parameters)

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        set_synchronous(self.client, len(texts) == 1)
        points = []
        rows = zip(texts, vectors.tolist(), strict=True)
        for i, (text, vector) in enumerate(rows, first):
            payload = {"t": i, "text": text}
            points.append(self.models.PointStruct(id=i, vector=vector, payload=payload))
        self.client.upsert("m", points)

    def finish(self) -> None:
        self.client.close()

    def searcher(self, variant: str) -> Search:
        n = self.client.count("m").count

        def search(text: str, vector: np.ndarray, first: int, stop: int) -> list[int]:
            models = self.models
            window = None
            if stop - first < n:
                times = models.Range(gte=first, lt=stop)
                condition = models.FieldCondition(key="t", range=times)
                window = models.Filter(must=[condition])
            result = self.client.query_points("m", vector.tolist(), query_filter=window, limit=K)
            return [point.id for point in result.points]

        return search


def set_synchronous(client, synchronous: bool) -> None:
    """Make Qdrant's writes wait for the disk, or not.

    Qdrant commits each point separately, so waiting makes batches of 100k entries take an hour:
    only single writes wait.
    """
    mode = "FULL" if synchronous else "OFF"
    for collection in client._client.collections.values():
        collection.storage.storage.execute(f"PRAGMA synchronous = {mode}")


class LanceDB:
    variants = ("flat",)

    def __init__(self, folder: Path, encoder: LookupEncoder) -> None:
        import lancedb
        import pyarrow as pa

        self.pa = pa
        self.db = lancedb.connect(str(folder))
        vector_type = pa.list_(pa.float32(), WIDTH)
        columns = [("t", pa.int64()), ("text", pa.string()), ("vector", vector_type)]
        self.schema = pa.schema(columns)
        self.table = self.db.create_table("m", schema=self.schema, exist_ok=True)

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        pa = self.pa
        times = pa.array(range(first, first + len(texts)))
        values = pa.array(vectors.ravel())
        vector_column = pa.FixedSizeListArray.from_arrays(values, WIDTH)
        columns = [times, pa.array(texts), vector_column]
        rows = pa.Table.from_arrays(columns, schema=self.schema)
        self.table.add(rows)

    def finish(self) -> None:
        self.table.create_scalar_index("t")
        self.table.optimize()

    def searcher(self, variant: str) -> Search:
        n = self.table.count_rows()

        def search(text: str, vector: np.ndarray, first: int, stop: int) -> list[int]:
            query = self.table.search(vector).distance_type("dot")
            query = query.limit(K).select(["t"])
            if stop - first < n:
                query = query.where(f"t >= {first} AND t < {stop}", prefilter=True)
            return query.to_arrow()["t"].to_pylist()

        return search


class Mem0:
    """mem0 over its default store, a local Qdrant.

    Batches go directly to that store, because mem0's own `add` takes one text at a time.
    """

    variants = ("qdrant",)

    def __init__(self, folder: Path, encoder: LookupEncoder) -> None:
        os.environ["MEM0_TELEMETRY"] = "False"
        os.environ["OPENAI_API_KEY"] = "none is used"
        os.environ["MEM0_DIR"] = str(folder)
        from mem0 import Memory

        store = {"path": str(folder / "qdrant"), "embedding_model_dims": WIDTH, "on_disk": True}
        config = {
            "vector_store": {"provider": "qdrant", "config": store},
            "history_db_path": str(folder / "history.db"),
        }
        self.memory = Memory.from_config(config)
        self.memory.embedding_model = self
        self.encoder = encoder

    def embed(self, text: str, *_: object) -> list[float]:
        return self.encoder.encode([text])[0].tolist()

    def embed_batch(self, texts: list[str], *_: object) -> list[list[float]]:
        return self.encoder.encode(texts).tolist()

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        store = self.memory.vector_store
        single = len(texts) == 1
        set_synchronous(store.client, single)
        if single:
            self.memory.add(texts[0], user_id="u", metadata={"t": first}, infer=False)
            return
        payloads = []
        names = []
        for i, text in enumerate(texts, first):
            payloads.append({"data": text, "user_id": "u", "t": i})
            names.append(str(uuid.UUID(int=i)))
        store.insert(vectors.tolist(), payloads, names)

    def finish(self) -> None:
        self.memory.vector_store.client.close()

    def searcher(self, variant: str) -> Search:
        def search(text: str, vector: np.ndarray, first: int, stop: int) -> list[int]:
            window = {"user_id": "u", "t": {"gte": first, "lte": stop - 1}}
            # This threshold drops results with a negative inner product.
            hits = self.memory.search(text, filters=window, top_k=K, threshold=0.0)
            return [hit["metadata"]["t"] for hit in hits["results"]]

        return search


SYSTEMS: dict[str, Any] = dict(
    limit=Limit,
    ours=Ours,
    approximate=Approximate,
    chroma=Chroma,
    qdrant=Qdrant,
    lancedb=LanceDB,
    mem0=Mem0,
)
