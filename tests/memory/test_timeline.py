"""The rankings over a window, compared with plain ones, and their invariants for any content."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personavlm_lib.memory.records import Episode, Period, SemanticMemory, Turn
from personavlm_lib.memory.search import ANY_TIME, Retriever, TopK
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.timeline import K1, RANKINGS, B, Column, Query, _best_first, search_words

WORDS = [
    "kai",
    "cola",
    "tea",
    "dog",
    "baker",
    "runs",
    "running",
    "the",
    "ümit",
    "猫",
    "7:30",
    '"quoted"',
    "-",
    "NOT",
]
START = datetime(2024, 5, 1, 9)


def hour(n: float) -> datetime:
    return START + timedelta(hours=n)


def hours(first: float | None, last: float | None) -> Period:
    start = None if first is None else hour(first)
    end = None if last is None else hour(last)
    return Period(start, end)


def fact(text: str, n: int, kind: str = "fact") -> SemanticMemory:
    """A semantic memory of hour `n`."""
    return SemanticMemory(text, "", hour(n), hour(n), hour(n), kind)


def indices(turns) -> list[int]:
    return [turn.index for turn in turns]


@dataclass(frozen=True)
class Content:
    """A text about the hours `start` to `start + length`, known `delay` hours later."""

    text: str
    start: int
    length: int
    delay: int


any_input = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
contents = st.builds(
    Content, texts, start=st.integers(0, 9), length=st.integers(0, 4), delay=st.integers(0, 3)
)
optional_hours = st.none() | st.integers(0, 12)
periods = st.builds(hours, optional_hours, optional_hours)
exact_retrievers = st.builds(
    Retriever,
    top_k=st.builds(TopK, st.just(0), st.integers(0, 4), st.integers(0, 4)),
    ranking=st.sampled_from(RANKINGS),
    search_with=st.sampled_from(["keywords", "query", "both"]),
)
approximate_retrievers = st.builds(
    Retriever,
    top_k=st.builds(TopK, st.just(0), st.integers(0, 4), st.integers(0, 4)),
    ranking=st.just("dense"),
    search_with=st.sampled_from(["keywords", "query", "both"]),
    index=st.just("approximate"),
)


def fill(store, contents):
    """Store a turn, a semantic memory and an episode for each content."""
    for n, content in enumerate(contents):
        store.add_turn(Turn(hour(n / 10), content.text, "ok"))
    for n, content in enumerate(contents):
        start = hour(content.start)
        end = start + timedelta(hours=content.length)
        known_from = end + timedelta(hours=content.delay)
        times = (start, end, known_from)
        memory = SemanticMemory(content.text, "", *times, sources=(n,))
        episode = Episode(content.text, "", (n,), *times)
        store.add_semantic(memory)
        store.add_episode(episode)


def overlaps(record, period: Period) -> bool:
    if period.start is not None and record.happened_to < period.start:
        return False
    return period.end is None or record.happened_from <= period.end


@settings(any_input, max_examples=40)
@given(
    contents=st.lists(contents, min_size=1, max_size=12),
    searches=st.lists(st.tuples(texts | st.text(max_size=8), periods), min_size=1, max_size=4),
    now=st.integers(0, 16).map(hour),
    retriever=exact_retrievers | approximate_retrievers,
    context=st.sets(st.integers(0, 11)),
)
def test_a_search_returns_only_what_it_may(encoder, contents, searches, now, retriever, context):
    with MemoryStore.in_memory(encoder) as store:
        fill(store, contents)
        view = store.as_of(now)
        seen: set[str] = set()
        for keywords, period in searches:
            retrieved = retriever.retrieve(
                view, keywords, period, seen, context, query="kai and the dog"
            )
            assert len(retrieved.semantic) <= retriever.top_k.semantic
            assert len(retrieved.episodic) <= retriever.top_k.episodic
            for records in (retrieved.semantic, retrieved.episodic):
                starts = [record.happened_from for record in records]
                assert starts == sorted(starts)
                for record in records:
                    assert record.known_from <= now
                    assert not context.issuperset(record.sources)
                    assert overlaps(record, period)
            ids = retrieved.ids
            assert not seen & set(ids)
            assert len(set(ids)) == len(ids)
            seen |= set(ids)
            k = retriever.top_k.semantic
            turns = retriever.rank_turns(view, keywords, k, period, context)
            assert len(set(indices(turns))) == len(turns) <= k
            assert indices(turns) == sorted(indices(turns))
            for turn in turns:
                assert turn.time <= now
                assert turn.index not in context
                assert overlaps(turn, period)


@settings(any_input, max_examples=20)
@given(
    all_texts=st.lists(texts, min_size=1, max_size=15),
    last=st.integers(0, 14),
    query=texts,
    ranking=st.sampled_from(RANKINGS),
)
def test_a_view_ranks_like_a_store_that_ends_there(encoder, all_texts, last, query, ranking):
    """Later rows do not change an earlier view's statistics, and neither do searches in between."""
    retriever = Retriever(ranking=ranking)
    orders = []
    for search_between in (False, True):
        for stored_texts in (all_texts, all_texts[: last + 1]):
            with MemoryStore.in_memory(encoder) as store:
                for n, text in enumerate(stored_texts):
                    store.add_turn(Turn(hour(n), text))
                    if search_between:
                        retriever.rank_turns(store.as_of(), query, 1)
                view = store.as_of(hour(last))
                turns = retriever.rank_turns(view, query, 20, by_time=False)
                orders.append(indices(turns))
    assert orders[0] == orders[1] == orders[2] == orders[3]


def ranked_rows(store, query: Query, period: Period = ANY_TIME) -> list[int]:
    table = store.as_of().table("semantic")
    return list(table.timeline.rank(table.records, query, period, datetime.max))


@dataclass(frozen=True)
class RandomMemories:
    """Sixty texts of random words, each about two hours, in order of time."""

    texts: list[str]
    starts: list[int]

    @classmethod
    def make(cls, seed: int) -> "RandomMemories":
        rng = np.random.default_rng(seed)
        vocabulary = ["kai", "tea", "dog", "red", "sun", "sea"]
        texts = []
        for _ in range(60):
            length = rng.integers(1, 6)
            words = rng.choice(vocabulary, length)
            texts.append(" ".join(words))
        starts = [int(n) for n in rng.integers(0, 30, 60)]
        return cls(texts, starts)

    def store(self, encoder) -> MemoryStore:
        store = MemoryStore.in_memory(encoder)
        for text, n in zip(self.texts, self.starts, strict=True):
            store.add_semantic(SemanticMemory(text, "", hour(n), hour(n + 2), hour(n)))
        return store

    def in_order_of_time(self) -> "RandomMemories":
        order = sorted(range(60), key=lambda n: self.starts[n])
        return RandomMemories([self.texts[n] for n in order], [self.starts[n] for n in order])

    def rows_between(self, first: int, last: int) -> list[int]:
        rows = []
        for row, start in enumerate(self.starts):
            if start <= last and start + 2 >= first:
                rows.append(row)
        return rows


@pytest.mark.parametrize("seed", range(8))
def test_the_dense_ranking_equals_a_plain_one(encoder, seed):
    memories = RandomMemories.make(seed)
    by_time = memories.in_order_of_time()
    query = encoder.encode(["red sea dog"])
    cosines = (encoder.encode(by_time.texts) @ query[0]).round(6)
    inside = by_time.rows_between(9, 20)
    plain = sorted(inside, key=lambda row: (-cosines[row], -row))
    with memories.store(encoder) as store:
        assert ranked_rows(store, Query("dense", [], query), hours(9, 20)) == plain


@pytest.mark.parametrize("seed", range(8))
def test_the_bm25_ranking_equals_a_plain_one(encoder, seed):
    memories = RandomMemories.make(seed)
    by_time = memories.in_order_of_time()
    inside = by_time.rows_between(9, 20)
    lengths = {row: len(by_time.texts[row]) for row in inside}
    mean = np.mean(list(lengths.values()))
    scores = dict.fromkeys(inside, 0.0)
    words = ["red", "sea", "dog"]
    for word in words:
        matches = [row for row in inside if word in by_time.texts[row].split()]
        frequency = len(matches)
        idf = math.log(1 + (len(inside) - frequency + 0.5) / (frequency + 0.5))
        for row in matches:
            penalty = 1 - B + B * lengths[row] / mean
            scores[row] += idf * (K1 + 1) / (1 + K1 * penalty)
    found = [row for row in inside if scores[row]]
    plain = sorted(found, key=lambda row: (-round(scores[row], 5), -row))
    with memories.store(encoder) as store:
        assert ranked_rows(store, Query("bm25", words), hours(9, 20)) == plain


def test_bm25_stems_ignores_stop_words_and_needs_no_vectors(encoder):
    bm25 = Retriever(ranking="bm25")
    with MemoryStore.in_memory(encoder) as store:
        for n, text in enumerate(["she was running home", "what is the time", "the dogs bark"]):
            store.add_turn(Turn(hour(n), text))
        turns = bm25.rank_turns(store.as_of(), "What dog runs?", 9)
        assert indices(turns) == [0, 2]
        assert bm25.rank_turns(store.as_of(), "what is it?", 9) == []
        assert encoder.batches == []
    assert search_words("Don't run_on: is 7 AND (running)?") == ["run", "7", "running"]


def test_hybrid_finds_neighbor_turns_but_no_neighbor_memories(encoder):
    texts = [
        "hello",
        "where is your sister now",
        "in lisbon since may",
        "nice",
        "lunch",
        "coffee",
        "bread",
    ]
    query = "where sister"
    hybrid = Retriever()
    with MemoryStore.in_memory(encoder) as store:
        for n, text in enumerate(texts):
            store.add_turn(Turn(hour(n), text))
            store.add_semantic(fact(text, n))
        view = store.as_of()
        best = hybrid.rank_turns(view, query, 3, by_time=False)
        assert best[0].index == 1
        assert set(indices(best)) == {0, 1, 2}
        assert Retriever(ranking="bm25").rank_turns(view, query, 3) == [best[0]]
        # a turn outside the window adds nothing to its neighbors
        outside = hybrid.rank_turns(view, query, 1, hours(2, 6))
        assert outside[0].index == 6
        memories = Retriever(top_k=TopK(0, 2, 0)).retrieve(view, "sister").ids
        assert memories == ["semantic:1", "semantic:6"]


def test_one_kind_of_semantic_memory_can_be_searched(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n, kind in enumerate(("directive", "fact", "preference", "concept", "fact")):
            store.add_semantic(fact("kai tea", n, kind))
        view = store.as_of()
        early = store.as_of(hour(3))
        only_facts = Retriever(kinds=("fact",))
        retrieved = only_facts.retrieve(view, "kai")
        assert retrieved.ids == ["semantic:1", "semantic:4"]
        assert [memory.id for memory in view.of_kind("fact")] == [1, 4]
        assert [memory.id for memory in early.of_kind("fact")] == [1]
    with pytest.raises(ValueError, match="hearsay.*directive, fact"):
        fact("x", 0, "hearsay")


@pytest.mark.parametrize("ranking", RANKINGS)
def test_search_with_selects_keywords_query_or_both(encoder, ranking):
    with MemoryStore.in_memory(encoder) as store:
        for n, text in enumerate(("cola", "dog", "tea")):
            store.add_semantic(fact(text, n))
        view = store.as_of()
        for search_with, expected in (("keywords", "semantic:0"), ("query", "semantic:1")):
            one = Retriever(top_k=TopK(0, 1, 0), ranking=ranking, search_with=search_with)
            retrieved = one.retrieve(view, "cola", query="dog")
            assert retrieved.ids == [expected]
        both = Retriever(top_k=TopK(0, 2, 0), ranking=ranking, search_with="both")
        retrieved = both.retrieve(view, "cola", query="dog")
        assert retrieved.ids == ["semantic:0", "semantic:1"]


def test_an_old_view_ignores_rows_that_its_timeline_gets_later(encoder):
    retriever = Retriever()
    with MemoryStore.in_memory(encoder) as store:
        for n in range(3):
            store.add_turn(Turn(hour(n), f"tea {n}"))
        before = store.as_of()
        for n in range(3, 40):
            store.add_turn(Turn(hour(n), f"tea {n}"))
            if n % 9 == 0:
                turns = retriever.rank_turns(store.as_of(), "tea", 99)
                assert len(turns) == n + 1
        turns = retriever.rank_turns(before, "tea", 99)
        assert indices(turns) == [0, 1, 2]


def test_a_rolled_back_row_leaves_no_word(encoder):
    bm25 = Retriever(ranking="bm25")
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(hour(0), "kai drinks cola"))
        with pytest.raises(RuntimeError, match="abort"), store.transaction():
            store.add_turn(Turn(hour(1), "kai drinks tea"))
            assert len(bm25.rank_turns(store.as_of(), "tea", 3)) == 1
            raise RuntimeError("abort")
        assert bm25.rank_turns(store.as_of(), "tea", 3) == []
        store.add_turn(Turn(hour(1), "dog"))
        assert bm25.rank_turns(store.as_of(), "tea", 3) == []


@given(
    st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_best_first_equals_a_sort(scores, fetch):
    finite = [row for row, score in enumerate(scores) if score > -np.inf]
    plain = sorted(finite, key=lambda row: (-scores[row], -row))
    array = np.array(scores, np.float32)
    rows = list(_best_first(array, fetch))
    assert rows == plain
    first_three = list(islice(_best_first(array, fetch), 3))
    assert first_three == plain[:3]


def test_growing_a_column_does_not_change_rows_handed_out_before():
    column = Column()
    views = []
    copies = []
    total = 0
    for n in range(20):
        count = n % 3 + 1
        column.extend(np.full((count, 2), n))
        total += count
        views.append(column.rows)
        copies.append(column.rows.copy())
    for view, copy in zip(views, copies, strict=True):
        assert np.array_equal(view, copy)
    assert len(column.rows) == total
