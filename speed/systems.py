"""What `memory.py` measures: ours, the physical limit, and the memories that people would use instead.

Each is made from an empty or a filled folder and an encoder, has `variants`, `add`s texts and vectors from a row on,
`finish`es, and gives a `searcher` for each variant.
"""

import os
import sqlite3
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

WIDTH, K = 384, 10
START = datetime(2024, 1, 1)

Search = Callable[
    [str, np.ndarray, int, int], list[int]
]  # (text, vector, lo, hi) -> rows, best first


def moment(i: int) -> datetime:
    return START + timedelta(minutes=i)


class Given:
    """An encoder that looks the vectors of known texts up."""

    name = "given"

    def __init__(self, texts: list[str], vectors: np.ndarray) -> None:
        self.rows, self.vectors = {text: row for row, text in enumerate(texts)}, vectors

    def encode(self, texts) -> np.ndarray:
        return self.vectors[[self.rows[text] for text in texts]]


class Ours:
    """A MemoryStore of raw turns, searched by each ranking. Vectors are written when first searched: counted too."""

    variants, index = ("dense", "bm25", "hybrid"), "exact"

    def __init__(self, folder: Path, encoder: Given) -> None:
        from personavlm_lib.memory.store import MemoryStore

        self.store = MemoryStore(folder, encoder)
        self.store.sql("PRAGMA synchronous = FULL")
        self.count = len(self.store.as_of().turns)

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        from personavlm_lib.memory.records import Turn

        with self.store.transaction():
            for i, text in enumerate(texts, first):
                self.store.add_turn(Turn(moment(i), text))

    def finish(self) -> None:
        self.searcher("dense")(next(iter(self.store.encoder.rows)), None, 0, 1)

    def searcher(self, variant: str) -> Search:
        from personavlm_lib.memory.records import Period
        from personavlm_lib.memory.search import Retriever

        retriever, view = Retriever(ranking=variant, index=self.index), self.store.as_of()

        def search(text: str, vector: np.ndarray, lo: int, hi: int) -> list[int]:
            period = Period(moment(lo), moment(hi - 1))
            found = retriever.rank_turns(view, text, K, period, by_time=False)
            return [turn.index for turn in found]

        return search


class Approximate(Ours):
    """A store of its own, because the index holds the vectors a second time."""

    variants, index = ("dense",), "approximate"


class Limit:
    """FAISS's flat index over the vectors, and FTS5 over the texts."""

    variants = ("faiss", "fts5")

    def __init__(self, folder: Path, encoder: Given) -> None:
        import faiss

        self.faiss, self.index, self.file = faiss, faiss.IndexFlatIP(WIDTH), folder / "vectors.npy"
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
            self.db.executemany(
                "INSERT INTO t (rowid, text) VALUES (?, ?)", enumerate(texts, first)
            )

    def finish(self) -> None:
        np.save(self.file, self.index.reconstruct_n(0, self.index.ntotal))

    def searcher(self, variant: str) -> Search:
        def faiss(text: str, vector: np.ndarray, lo: int, hi: int) -> list[int]:
            whole = lo == 0 and hi == self.index.ntotal
            within = (
                None
                if whole
                else self.faiss.SearchParameters(sel=self.faiss.IDSelectorRange(lo, hi))
            )
            return self.index.search(vector[None], K, params=within)[1][0].tolist()

        def fts5(text: str, vector: np.ndarray, lo: int, hi: int) -> list[int]:
            sql = "SELECT rowid FROM t WHERE t MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rank LIMIT ?"
            return [
                row for (row,) in self.db.execute(sql, (" OR ".join(text.split()), lo, hi - 1, K))
            ]

        return {"faiss": faiss, "fts5": fts5}[variant]


class Chroma:
    variants = ("hnsw",)

    def __init__(self, folder: Path, encoder: Given) -> None:
        import chromadb

        client = chromadb.PersistentClient(
            str(folder), chromadb.Settings(anonymized_telemetry=False)
        )
        self.rows = client.get_or_create_collection(
            "memory", metadata={"hnsw:space": "ip"}, embedding_function=None
        )

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        names = [str(first + i) for i in range(len(texts))]
        times = [{"t": first + i} for i in range(len(texts))]
        self.rows.add(ids=names, documents=texts, embeddings=vectors, metadatas=times)

    def finish(self) -> None:
        pass

    def searcher(self, variant: str) -> Search:
        n = self.rows.count()

        def search(text: str, vector: np.ndarray, lo: int, hi: int) -> list[int]:
            window = (
                {"where": {"$and": [{"t": {"$gte": lo}}, {"t": {"$lt": hi}}]}}
                if hi - lo < n
                else {}
            )
            return [
                int(name)
                for name in self.rows.query(query_embeddings=[vector], n_results=K, **window)[
                    "ids"
                ][0]
            ]

        return search


class Qdrant:
    variants = ("local",)

    def __init__(self, folder: Path, encoder: Given) -> None:
        from qdrant_client import QdrantClient, models

        self.models, self.client = models, QdrantClient(path=str(folder))
        if not self.client.collection_exists("m"):
            self.client.create_collection(
                "m", models.VectorParams(size=WIDTH, distance=models.Distance.DOT)
            )

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        rows = enumerate(zip(texts, vectors.tolist(), strict=True), first)
        wait_for_disk(self.client, len(texts) == 1)
        points = [
            self.models.PointStruct(id=i, vector=v, payload={"t": i, "text": text})
            for i, (text, v) in rows
        ]
        self.client.upsert("m", points)

    def finish(self) -> None:
        self.client.close()

    def searcher(self, variant: str) -> Search:
        n, m = self.client.count("m").count, self.models

        def search(text: str, vector: np.ndarray, lo: int, hi: int) -> list[int]:
            window = (
                m.Filter(must=[m.FieldCondition(key="t", range=m.Range(gte=lo, lt=hi))])
                if hi - lo < n
                else None
            )
            return [
                p.id
                for p in self.client.query_points(
                    "m", vector.tolist(), query_filter=window, limit=K
                ).points
            ]

        return search


def wait_for_disk(client, wait: bool) -> None:
    """Qdrant commits each point by itself: batches wait for no disk, or 100k take an hour; single writes do."""
    for collection in client._client.collections.values():
        collection.storage.storage.execute(f"PRAGMA synchronous = {'FULL' if wait else 'OFF'}")


class LanceDB:
    variants = ("flat",)

    def __init__(self, folder: Path, encoder: Given) -> None:
        import lancedb
        import pyarrow as pa

        self.pa, self.db = pa, lancedb.connect(str(folder))
        vector = pa.list_(pa.float32(), WIDTH)
        self.schema = pa.schema([("t", pa.int64()), ("text", pa.string()), ("vector", vector)])
        self.table = self.db.create_table("m", schema=self.schema, exist_ok=True)

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        flat = self.pa.FixedSizeListArray.from_arrays(self.pa.array(vectors.ravel()), WIDTH)
        times = self.pa.array(range(first, first + len(texts)))
        self.table.add(
            self.pa.Table.from_arrays([times, self.pa.array(texts), flat], schema=self.schema)
        )

    def finish(self) -> None:
        self.table.create_scalar_index("t")
        self.table.optimize()

    def searcher(self, variant: str) -> Search:
        n = self.table.count_rows()

        def search(text: str, vector: np.ndarray, lo: int, hi: int) -> list[int]:
            asked = self.table.search(vector).distance_type("dot").limit(K).select(["t"])
            asked = asked.where(f"t >= {lo} AND t < {hi}", prefilter=True) if hi - lo < n else asked
            return asked.to_arrow()["t"].to_pylist()

        return search


class Mem0:
    """Over its default store, Qdrant, kept locally. Filled through that store in batches: `add` takes one at a time."""

    variants = ("qdrant",)

    def __init__(self, folder: Path, encoder: Given) -> None:
        os.environ |= {
            "MEM0_TELEMETRY": "False",
            "OPENAI_API_KEY": "none is used",
            "MEM0_DIR": str(folder),
        }
        from mem0 import Memory

        store = {"path": str(folder / "qdrant"), "embedding_model_dims": WIDTH, "on_disk": True}
        self.memory = Memory.from_config(
            {
                "vector_store": {"provider": "qdrant", "config": store},
                "history_db_path": str(folder / "history.db"),
            }
        )
        self.memory.embedding_model = self
        self.encoder = encoder

    def embed(self, text: str, *_: object) -> list[float]:
        return self.encoder.encode([text])[0].tolist()

    def embed_batch(self, texts: list[str], *_: object) -> list[list[float]]:
        return self.encoder.encode(texts).tolist()

    def add(self, first: int, texts: list[str], vectors: np.ndarray) -> None:
        wait_for_disk(self.memory.vector_store.client, len(texts) == 1)
        if len(texts) == 1:
            self.memory.add(texts[0], user_id="u", metadata={"t": first}, infer=False)
            return
        payloads = [{"data": text, "user_id": "u", "t": i} for i, text in enumerate(texts, first)]
        names = [str(uuid.UUID(int=i)) for i in range(first, first + len(texts))]
        self.memory.vector_store.insert(vectors.tolist(), payloads, names)

    def finish(self) -> None:
        self.memory.vector_store.client.close()

    def searcher(self, variant: str) -> Search:
        def search(text: str, vector: np.ndarray, lo: int, hi: int) -> list[int]:
            window = {"user_id": "u", "t": {"gte": lo, "lte": hi - 1}}
            found = self.memory.search(
                text, filters=window, top_k=K, threshold=0.0
            )  # drops what points away
            return [hit["metadata"]["t"] for hit in found["results"]]

        return search


SYSTEMS = dict(
    limit=Limit,
    ours=Ours,
    approximate=Approximate,
    chroma=Chroma,
    qdrant=Qdrant,
    lancedb=LanceDB,
    mem0=Mem0,
)
