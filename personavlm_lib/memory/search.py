"""Timeline-based retrieval (Appendix A.2): first the period isolates, then a ranking chooses within it.

The paper ranks by dense similarity alone. That is `PAPER`, which the chain uses; by itself a `Retriever` ranks by the
hybrid, because it finds the evidence of far more questions.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

import numpy as np

from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import SEMANTIC_KINDS, Episode, SemanticMemory, Turn
from personavlm_lib.memory.timeline import RANKINGS, Query, search_words
from personavlm_lib.memory.view import MemoryView

SEARCH_WITH = ("keywords", "query", "both")
INDICES = ("exact", "approximate")


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
    were first known after the period's end. `ranking`: "dense" (the paper's), "bm25" or "hybrid". `search_with`: the
    model's "keywords" (the paper), the user's "query" as it stands, or "both", of which the nearer counts (D13).
    `kinds`: the kinds of semantic memory that are searched. `index`: "exact", or for a dense ranking "approximate",
    which pays from some ten thousand entries on: fewer vectors are read, and now and then a near one is missed.
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
        choices = {
            "time_filter": ("paper", "released"),
            "ranking": RANKINGS,
            "search_with": SEARCH_WITH,
            "index": INDICES,
        }
        for setting, known in choices.items():
            if getattr(self, setting) not in known:
                raise ValueError(
                    f"{setting} is {getattr(self, setting)!r}; choose {' or '.join(known)}"
                )
        if self.index == "approximate" and self.ranking != "dense":
            raise ValueError(
                f"index 'approximate' serves ranking 'dense' alone; {self.ranking!r} takes index 'exact'"
            )
        if unknown := set(self.kinds) - set(SEMANTIC_KINDS):
            raise ValueError(
                f"kinds has {', '.join(sorted(unknown))}; choose from {', '.join(SEMANTIC_KINDS)}"
            )

    def retrieve(
        self,
        view: MemoryView,
        keywords: str,
        start: datetime | None = None,
        end: datetime | None = None,
        exclude: Collection[str] = frozenset(),
        context_turns: Collection[int] = frozenset(),
        top_k: TopK | None = None,
        query: str = "",
    ) -> Retrieved:
        """Algorithm 1, line 10: search each type for `keywords` among what lies in the period [start, end].

        Nothing named in `exclude` (ids as in `Retrieved.ids`) comes back, nor a memory all of whose turns are in
        `context_turns`: the model has those before its eyes. `query` is what the user said, for `search_with`.
        """
        if self.time_filter == "released":
            start = end = None
        k, context = top_k or self.top_k, set(context_turns)
        texts = {"keywords": [keywords], "query": [query], "both": [keywords, query]}[
            self.search_with
        ]
        sought = self._query(view, [text for text in texts if text.strip()] or [keywords])

        def barred(record: SemanticMemory | Episode) -> bool:
            episode = isinstance(record, Episode)
            if not episode and record.kind not in self.kinds:
                return True
            name = f"{'episode' if episode else 'semantic'}:{record.id}"
            return name in exclude or (bool(record.sources) and context.issuperset(record.sources))

        episodes = _best(view, "episodic", sought, k.episodic, start, end, barred)
        return Retrieved(
            self._procedural(view, texts, k.procedural, end, exclude),
            _best(view, "semantic", sought, k.semantic, start, end, barred),
            [
                RetrievedEpisode(**vars(e), raw=tuple(view.turn(i) for i in e.turns))
                for e in episodes
            ],
        )

    def rank_turns(
        self,
        view: MemoryView,
        query: str,
        k: int,
        start: datetime | None = None,
        end: datetime | None = None,
        exclude_turns: Collection[int] = frozenset(),
        by_time: bool = True,
    ) -> list[Turn]:
        """Raw turns as units (the RAG baselines): the best `k` for `query`, in order of time, or else best first."""
        sought = self._query(view, [query])
        return _best(
            view, "turns", sought, k, start, end, lambda turn: turn.index in exclude_turns, by_time
        )

    def _procedural(
        self,
        view: MemoryView,
        texts: list[str],
        k: int,
        end: datetime | None,
        exclude: Collection[str],
    ) -> list[tuple[str, str]]:
        since, known = view.procedural_since, view.procedural.entries if view.procedural else {}
        entries = [(key, text) for key, text in known.items() if f"procedural:{key}" not in exclude]
        if self.filter_procedural and end is not None:
            entries = [(key, text) for key, text in entries if since[key] <= end]
        if (
            len(entries) > k
        ):  # else there is nothing to rank; five sentences at most are ranked by likeness alone
            encode = self._encoder(view).encode
            scores = (encode([f"{text} {key}" for key, text in entries]) @ encode(texts).T).max(1)
            best = np.argsort(-scores, kind="stable")[:k]
            entries = [entries[row] for row in best]
        return sorted(entries, key=lambda entry: since[entry[0]])

    def _query(self, view: MemoryView, texts: list[str]) -> Query:
        encoder = self._encoder(view)
        vectors = None if self.ranking == "bm25" else encoder.encode(texts)
        words = [] if self.ranking == "dense" else search_words(" ".join(texts))
        return Query(self.ranking, words, vectors, self.index == "approximate")

    def _encoder(self, view: MemoryView) -> Encoder:
        if self.encoder and self.encoder.name != view.encoder.name:
            raise ValueError(
                f"the retriever encodes with {self.encoder.name}, the store with {view.encoder.name}"
            )
        return self.encoder or view.encoder


PAPER_RETRIEVER = Retriever(ranking="dense")


def _best(
    view: MemoryView,
    kind: str,
    query: Query,
    k: int,
    start: datetime | None,
    end: datetime | None,
    barred: Callable[..., bool],
    by_time: bool = True,
) -> list:
    """The `k` best records of one type that are in the period, known, and not barred."""
    table = view.table(kind)
    if not table.records or k < 1:
        return []
    ranked = table.timeline.rank(table.records, query, start, end, view.time)
    rows = list(islice((row for row in ranked if not barred(table.records[row])), k))
    return [table.records[row] for row in (sorted(rows) if by_time else rows)]
