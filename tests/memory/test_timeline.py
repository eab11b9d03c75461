"""The rankings over a window, against plain ones; and what must hold whatever is stored and asked."""

import math
from datetime import datetime, timedelta
from itertools import islice

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from personavlm_lib.memory.records import Episode, SemanticMemory, Turn
from personavlm_lib.memory.search import Retriever, TopK
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


anything = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
spans = st.tuples(
    st.integers(0, 9), st.integers(0, 4), st.integers(0, 3)
)  # start, length, learned how much later
periods = st.tuples(st.none() | st.integers(0, 12), st.none() | st.integers(0, 12))


@settings(anything, max_examples=40)
@given(
    told=st.lists(st.tuples(texts, spans), min_size=1, max_size=12),
    asked=st.lists(st.tuples(texts | st.text(max_size=8), periods), min_size=1, max_size=4),
    moment=st.integers(0, 16),
    ranking=st.sampled_from(RANKINGS),
    search_with=st.sampled_from(["keywords", "query", "both"]),
    k=st.integers(0, 4),
    context=st.sets(st.integers(0, 11)),
    approximate=st.booleans(),
)
def test_a_trajectory_sees_only_what_it_may(
    encoder, told, asked, moment, ranking, search_with, k, context, approximate
):
    index = "approximate" if approximate and ranking == "dense" else "exact"
    retriever = Retriever(
        top_k=TopK(0, k, k), ranking=ranking, search_with=search_with, index=index
    )
    with MemoryStore.in_memory(encoder) as store:
        for n, (text, _) in enumerate(told):
            store.add_turn(Turn(hour(n / 10), text, "ok"))
        for n, (text, (begins, lasts, later)) in enumerate(told):
            times = (hour(begins), hour(begins + lasts), hour(begins + lasts + later))
            store.add_semantic(SemanticMemory(text, "", *times, sources=(n,)))
            store.add_episode(Episode(text, "", (n,), *times))
        view, seen = store.as_of(hour(moment)), set()
        for keywords, (first, last) in asked:
            start, end = (
                first if first is None else hour(first),
                last if last is None else hour(last),
            )
            found = retriever.retrieve(
                view, keywords, start, end, seen, context, query="kai and the dog"
            )
            for entries in (found.semantic, found.episodic):
                assert len(entries) <= k
                assert [e.happened_from for e in entries] == sorted(
                    e.happened_from for e in entries
                )
                for entry in entries:
                    assert entry.known_from <= hour(moment) and not context.issuperset(
                        entry.sources
                    )
                    assert (start is None or entry.happened_to >= start) and (
                        end is None or entry.happened_from <= end
                    )
            assert not seen & set(found.ids) and len(set(found.ids)) == len(found.ids)
            seen |= set(found.ids)
            turns = retriever.rank_turns(view, keywords, k, start, end, context)
            assert len({turn.index for turn in turns}) == len(turns) <= k
            assert [turn.index for turn in turns] == sorted(turn.index for turn in turns)
            for turn in turns:
                assert turn.time <= hour(moment) and turn.index not in context
                assert (start is None or turn.time >= start) and (end is None or turn.time <= end)


@settings(anything, max_examples=20)
@given(
    told=st.lists(texts, min_size=1, max_size=15),
    cut=st.integers(0, 14),
    asked=texts,
    ranking=st.sampled_from(RANKINGS),
)
def test_a_view_ranks_as_a_store_that_ends_there(encoder, told, cut, asked, ranking):
    """Statistics are of what was known then: later rows change no earlier ranking, nor does asking in between."""
    orders = []
    for ask_between in (False, True):
        for kept in (told, told[: cut + 1]):
            with MemoryStore.in_memory(encoder) as store:
                for n, text in enumerate(kept):
                    store.add_turn(Turn(hour(n), text))
                    if ask_between:
                        Retriever(ranking=ranking).rank_turns(store.as_of(), asked, 1)
                view = store.as_of(hour(cut))
                found = Retriever(ranking=ranking).rank_turns(view, asked, 20, by_time=False)
                orders.append([turn.index for turn in found])
    assert orders[0] == orders[1] == orders[2] == orders[3]


def ranked(store, kind, query, start=None, end=None) -> list[int]:
    table = store.as_of().table(kind)
    return list(table.timeline.rank(table.records, query, start, end, datetime.max))


@pytest.mark.parametrize("seed", range(8))
def test_dense_and_bm25_equal_plain_ones(encoder, seed):
    rng = np.random.default_rng(seed)
    told = [
        " ".join(rng.choice(["kai", "tea", "dog", "red", "sun", "sea"], rng.integers(1, 6)))
        for _ in range(60)
    ]
    begins = [int(n) for n in rng.integers(0, 30, 60)]
    with MemoryStore.in_memory(encoder) as store:
        for text, n in zip(told, begins, strict=True):
            store.add_semantic(SemanticMemory(text, "", hour(n), hour(n + 2), hour(n)))
        order = sorted(range(60), key=lambda n: begins[n])
        inside = [row for row, n in enumerate(order) if begins[n] <= 20 and begins[n] + 2 >= 9]
        period = hour(9), hour(20)
        query = encoder.encode(["red sea dog"])
        likeness = (encoder.encode([told[n] for n in order]) @ query[0]).round(6)
        plain = sorted(inside, key=lambda row: (-likeness[row], -row))
        assert ranked(store, "semantic", Query("dense", [], query), *period) == plain

        lengths = {row: len(told[order[row]]) for row in inside}
        mean, scores = np.mean(list(lengths.values())), dict.fromkeys(inside, 0.0)
        for word in ("red", "sea", "dog"):
            holds = [row for row in inside if word in told[order[row]].split()]
            idf = math.log(1 + (len(inside) - len(holds) + 0.5) / (len(holds) + 0.5))
            for row in holds:
                scores[row] += idf * (K1 + 1) / (1 + K1 * (1 - B + B * lengths[row] / mean))
        plain = sorted(
            (row for row in inside if scores[row]), key=lambda row: (-round(scores[row], 5), -row)
        )
        assert ranked(store, "semantic", Query("bm25", ["red", "sea", "dog"]), *period) == plain


def test_bm25_stems_ignores_stop_words_and_needs_no_vectors(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n, text in enumerate(["she was running home", "what is the time", "the dogs bark"]):
            store.add_turn(Turn(hour(n), text))
        found = Retriever(ranking="bm25").rank_turns(store.as_of(), "What dog runs?", 9)
        assert [turn.index for turn in found] == [0, 2]
        assert Retriever(ranking="bm25").rank_turns(store.as_of(), "what is it?", 9) == []
        assert encoder.batches == []
    assert search_words("Don't run_on: is 7 AND (running)?") == ["run", "7", "running"]


def test_hybrid_finds_the_turn_beside_the_question_and_no_neighbours_among_memories(encoder):
    said = [
        "hello",
        "where is your sister now",
        "in lisbon since may",
        "nice",
        "lunch",
        "coffee",
        "bread",
    ]
    with MemoryStore.in_memory(encoder) as store:
        for n, text in enumerate(said):
            store.add_turn(Turn(hour(n), text))
            store.add_semantic(SemanticMemory(text, "", hour(n), hour(n), hour(n)))
        first = Retriever().rank_turns(store.as_of(), "where sister", 3, by_time=False)
        assert first[0].index == 1 and {turn.index for turn in first} == {0, 1, 2}
        assert Retriever(ranking="bm25").rank_turns(store.as_of(), "where sister", 3) == [first[0]]
        # outside the window a turn lends nothing to its neighbours
        assert (
            Retriever().rank_turns(store.as_of(), "where sister", 1, hour(2), hour(6))[0].index == 6
        )
        memories = Retriever(top_k=TopK(0, 2, 0)).retrieve(store.as_of(), "sister").ids
        assert memories == ["semantic:1", "semantic:6"]


def test_a_kind_of_semantic_memory_can_be_searched_alone(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n, kind in enumerate(("directive", "fact", "preference", "concept", "fact")):
            store.add_semantic(SemanticMemory("kai tea", "", hour(n), hour(n), hour(n), kind))
        assert Retriever(kinds=("fact",)).retrieve(store.as_of(), "kai").ids == [
            "semantic:1",
            "semantic:4",
        ]
        assert [memory.id for memory in store.as_of().of_kind("fact")] == [1, 4]
        assert [memory.id for memory in store.as_of(hour(3)).of_kind("fact")] == [1]
    with pytest.raises(ValueError, match="kind 'hearsay'; choose from directive, fact"):
        SemanticMemory("x", "", hour(0), hour(0), hour(0), "hearsay")


def test_the_query_can_lead_where_the_keywords_do_not(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n, text in enumerate(("cola", "dog", "tea")):
            store.add_semantic(SemanticMemory(text, "", hour(n), hour(n), hour(n)))
        for ranking in RANKINGS:
            two = {"keywords": "semantic:0", "query": "semantic:1"}
            for search_with, first in two.items():
                one = Retriever(top_k=TopK(0, 1, 0), ranking=ranking, search_with=search_with)
                assert one.retrieve(store.as_of(), "cola", query="dog").ids == [first]
            both = Retriever(top_k=TopK(0, 2, 0), ranking=ranking, search_with="both")
            assert both.retrieve(store.as_of(), "cola", query="dog").ids == [
                "semantic:0",
                "semantic:1",
            ]


def test_an_old_view_is_unmoved_by_what_its_timeline_learns(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n in range(3):
            store.add_turn(Turn(hour(n), f"tea {n}"))
        before = store.as_of()
        for n in range(3, 40):
            store.add_turn(Turn(hour(n), f"tea {n}"))
            if n % 9 == 0:
                assert len(Retriever().rank_turns(store.as_of(), "tea", 99)) == n + 1
        assert [turn.index for turn in Retriever().rank_turns(before, "tea", 99)] == [0, 1, 2]


def test_a_row_taken_back_leaves_no_word(encoder):
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(hour(0), "kai drinks cola"))
        with pytest.raises(RuntimeError, match="no"), store.transaction():
            store.add_turn(Turn(hour(1), "kai drinks tea"))
            assert len(Retriever(ranking="bm25").rank_turns(store.as_of(), "tea", 3)) == 1
            raise RuntimeError("no")
        assert Retriever(ranking="bm25").rank_turns(store.as_of(), "tea", 3) == []
        store.add_turn(Turn(hour(1), "dog"))
        assert Retriever(ranking="bm25").rank_turns(store.as_of(), "tea", 3) == []


@given(
    st.lists(st.sampled_from([-np.inf, 0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=60),
    st.integers(1, 9),
)
def test_best_first_is_a_sort(scores, fetch):
    scores = np.array(scores, np.float32)
    plain = [
        r for r in sorted(range(len(scores)), key=lambda r: (-scores[r], -r)) if scores[r] > -np.inf
    ]
    assert list(_best_first(scores, fetch)) == plain
    assert list(islice(_best_first(scores, fetch), 3)) == plain[:3]


def test_a_column_keeps_what_it_handed_out():
    column, handed = Column(), []
    for n in range(20):
        column.extend(np.full((n % 3 + 1, 2), n))
        handed.append((column.rows, column.rows.copy()))
    assert all((rows == copy).all() for rows, copy in handed)
    assert len(column.rows) == sum(n % 3 + 1 for n in range(20))
