"""Timeline-based retrieval (Appendix A.2): filter by period, then rank within it.

The paper ranks by dense similarity alone. That is `PAPER_RETRIEVER`, which the study uses. The
default of a `Retriever` is the hybrid ranking, because it finds the evidence of far more questions.
"""

import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import (
    SEMANTIC_KINDS,
    Episode,
    Period,
    SemanticMemory,
    Turn,
    clean_text,
)
from personavlm_lib.memory.timeline import RANKINGS, Query, index_text, search_words
from personavlm_lib.memory.view import MemoryView

SEARCH_WITH = ("keywords", "query", "both")
INDICES = ("exact", "approximate")
ANY_TIME = Period()


@dataclass(frozen=True)
class TopK:
    """How many memories of each type a retrieval returns (Appendix A.2)."""

    procedural: int = 2
    semantic: int = 4
    episodic: int = 2


@dataclass(frozen=True)
class RetrievedEpisode(Episode):
    """An episode with its raw turns, which the released code shows instead of the summary (D13)."""

    raw: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Retrieved:
    """The results of one retrieval, each type in order of time, oldest first."""

    procedural: list[tuple[str, str]] = field(default_factory=list)  # (key, sentence)
    semantic: list[SemanticMemory] = field(default_factory=list)
    episodic: list[RetrievedEpisode] = field(default_factory=list)

    @property
    def ids(self) -> list[str]:
        """Stable names, such as "procedural:morning run", "semantic:12", "episode:3"."""
        ids = [f"procedural:{key}" for key, _ in self.procedural]
        ids += [_name(memory) for memory in self.semantic]
        ids += [_name(episode) for episode in self.episodic]
        return ids


def _name(record: SemanticMemory | Episode) -> str:
    kind = "episode" if isinstance(record, Episode) else "semantic"
    return f"{kind}:{record.id}"


def _check_choice(setting: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{setting} is {value!r}; choose {' or '.join(choices)}")


@dataclass(frozen=True)
class Retriever:
    """Parallel search of three memory types (Appendix A.2). PAPER_MAP.md explains D1 and D13.

    - `encoder`: None for the store's encoder; must have the same name as the store's.
    - `time_filter`: "paper" filters by the period first, "released" does not filter (D1).
    - `filter_procedural`: also omit habits and goals that became known after the period's end.
    - `ranking`: "dense" (the paper's), "bm25" or "hybrid". "bm25" needs no text encoder.
    - `search_with`: the model's "keywords" (the paper), the user's "query" as written, or "both",
      where the nearer of the two counts (D13).
    - `kinds`: the kinds of semantic memory to search.
    - `index`: "exact", or "approximate" for a dense ranking, which pays off from about ten thousand
      entries: it reads fewer vectors and sometimes misses a near one.

    Raises ValueError for unknown settings.
    """

    encoder: Encoder | None = None
    top_k: TopK = TopK()
    time_filter: str = "paper"
    filter_procedural: bool = False
    ranking: str = "hybrid"
    search_with: str = "keywords"
    kinds: tuple[str, ...] = SEMANTIC_KINDS
    index: str = "exact"

    def __post_init__(self) -> None:
        _check_choice("time_filter", self.time_filter, ("paper", "released"))
        _check_choice("ranking", self.ranking, RANKINGS)
        _check_choice("search_with", self.search_with, SEARCH_WITH)
        _check_choice("index", self.index, INDICES)
        if self.index == "approximate" and self.ranking != "dense":
            raise ValueError(
                "index 'approximate' is only for ranking 'dense'; "
                f"ranking {self.ranking!r} needs index 'exact'"
            )
        unknown = set(self.kinds) - set(SEMANTIC_KINDS)
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ValueError(f"kinds has {names}; choose from {', '.join(SEMANTIC_KINDS)}")

    def retrieve(
        self,
        view: MemoryView,
        keywords: str,
        period: Period = ANY_TIME,
        exclude: Collection[str] = frozenset(),
        context_turns: Collection[int] = frozenset(),
        top_k: TopK | None = None,
        query: str = "",
    ) -> Retrieved:
        """Algorithm 1, line 10: search each memory type for `keywords` within `period`.

        Omits memories whose id (as in `Retrieved.ids`) is in `exclude`, and memories all of whose
        turns are in `context_turns`, because the model already sees those. `query` is the user's
        message, for `search_with`. Raises ImportError if the ranking needs a text encoder and none
        is installed.
        """
        if self.time_filter == "released":
            period = ANY_TIME
        k = top_k or self.top_k
        texts = self._search_texts(keywords, query)
        not_blank = [text for text in texts if text.strip()]
        prepared = self._prepare(view, not_blank or [keywords])
        context = set(context_turns)

        def excluded(record: SemanticMemory | Episode) -> bool:
            if isinstance(record, SemanticMemory) and record.kind not in self.kinds:
                return True
            if _name(record) in exclude:
                return True
            return bool(record.sources) and context.issuperset(record.sources)

        episodes = _best(view, "episodic", prepared, k.episodic, period, excluded)
        return Retrieved(
            procedural=self._procedural(view, texts, k.procedural, period, exclude),
            semantic=_best(view, "semantic", prepared, k.semantic, period, excluded),
            episodic=[_with_turns(view, episode) for episode in episodes],
        )

    def rank_turns(
        self,
        view: MemoryView,
        query: str,
        k: int,
        period: Period = ANY_TIME,
        exclude_turns: Collection[int] = frozenset(),
        by_time: bool = True,
    ) -> list[Turn]:
        """The best `k` raw turns for `query` (the RAG baselines).

        They are in order of time, or best first without `by_time`. Raises ImportError as `retrieve`
        does.
        """
        prepared = self._prepare(view, [query])

        def excluded(turn: Turn) -> bool:
            return turn.index in exclude_turns

        return _best(view, "turns", prepared, k, period, excluded, by_time)

    def _search_texts(self, keywords: str, query: str) -> list[str]:
        if self.search_with == "keywords":
            return [keywords]
        if self.search_with == "query":
            return [query]
        return [keywords, query]

    def _procedural(
        self, view: MemoryView, texts: list[str], k: int, period: Period, exclude: Collection[str]
    ) -> list[tuple[str, str]]:
        if view.procedural is None:
            return []
        since = view.procedural_since
        entries = []
        for key, sentence in view.procedural.entries.items():
            too_late = period.end is not None and since[key] > period.end
            if self.filter_procedural and too_late:
                continue
            if f"procedural:{key}" not in exclude:
                entries.append((key, sentence))
        if len(entries) > k:
            candidates = [f"{sentence} {key}" for key, sentence in entries]
            if self.ranking == "bm25":
                order = _order_by_words(candidates, texts)
            else:
                order = _order_by_similarity(candidates, texts, self._encoder(view))
            entries = [entries[row] for row in order[:k]]
        return sorted(entries, key=lambda entry: since[entry[0]])

    def _prepare(self, view: MemoryView, texts: list[str]) -> Query:
        encoder = self._encoder(view)
        texts = [clean_text(text) for text in texts]
        words: list[str] = []
        vectors = None
        if self.ranking != "bm25":
            vectors = encoder.encode(texts)
        if self.ranking != "dense":
            words = search_words(" ".join(texts))
        return Query(self.ranking, words, vectors, self.index == "approximate")

    def _encoder(self, view: MemoryView) -> Encoder:
        if self.encoder is None:
            return view.encoder
        name = self.encoder.name
        stored_name = view.encoder.name
        if name != stored_name:
            raise ValueError(
                f"the retriever encodes with {name}, the store with {stored_name}: "
                "use the same encoder for both"
            )
        return self.encoder


PAPER_RETRIEVER = Retriever(ranking="dense")


def _best(
    view: MemoryView,
    kind: str,
    query: Query,
    k: int,
    period: Period,
    excluded: Callable[..., bool],
    by_time: bool = True,
) -> list:
    """The `k` best records of one kind that are in the period, known and not excluded."""
    table = view.table(kind)
    if not table.records or k < 1:
        return []
    assert table.timeline is not None
    ranked = table.timeline.rank(table.records, query, period, view.time)
    allowed = (row for row in ranked if not excluded(table.records[row]))
    rows = list(islice(allowed, k))
    if by_time:
        rows.sort()
    return [table.records[row] for row in rows]


def _with_turns(view: MemoryView, episode: Episode) -> RetrievedEpisode:
    turns = tuple(view.turn(index) for index in episode.turns)
    return RetrievedEpisode(**vars(episode), raw=turns)


def _order_by_similarity(candidates: list[str], texts: list[str], encoder: Encoder) -> list[int]:
    """Candidate numbers by decreasing cosine to the nearest text."""
    vectors = encoder.encode(candidates)
    text_vectors = encoder.encode(texts)
    cosines = vectors @ text_vectors.T
    nearest = cosines.max(1)
    order = np.argsort(-nearest, kind="stable")
    return order.tolist()


def _order_by_words(candidates: list[str], texts: list[str]) -> list[int]:
    """Candidate numbers by decreasing BM25 (FTS5's own); those without a word of the texts last."""
    words = search_words(" ".join(texts))
    rows = range(len(candidates))
    if not words:
        return list(rows)
    quoted = [f'"{word}"' for word in words]
    match = " OR ".join(quoted)
    create = "CREATE VIRTUAL TABLE candidates USING fts5(text, tokenize = 'porter unicode61')"
    insert = "INSERT INTO candidates (rowid, text) VALUES (?, ?)"
    select = "SELECT rowid FROM candidates WHERE candidates MATCH ? ORDER BY rank, rowid"
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(create)
        connection.executemany(insert, enumerate(map(index_text, candidates)))
        found = [row for (row,) in connection.execute(select, (match,))]
    return found + [row for row in rows if row not in found]
