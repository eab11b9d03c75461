"""The approximate index: which results may be missing and which may not."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personavlm_lib.memory.ivf import MAX_RESULTS, IvfIndex
from personavlm_lib.memory.records import Period, Turn
from personavlm_lib.memory.search import ANY_TIME, Retriever
from personavlm_lib.memory.store import MemoryStore

N = 3000
START = datetime(2024, 5, 1)
EXACT = Retriever(ranking="dense")
APPROXIMATE = Retriever(ranking="dense", index="approximate")


class Grouped:
    """An encoder for which the text "n" is a vector near the center of one of forty groups."""

    name = "grouped"

    def encode(self, texts) -> np.ndarray:
        rng = np.random.default_rng(0)
        centers = rng.normal(size=(40, 64))
        noise = rng.normal(size=(N, 64))
        vectors = np.tile(centers, (N // 40, 1)) + 0.7 * noise
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / norms
        rows = [int(text) for text in texts]
        return vectors[rows].astype(np.float32)


def moment(n: int) -> datetime:
    return START + timedelta(minutes=n)


@pytest.fixture(scope="module")
def store():
    with MemoryStore.in_memory(Grouped()) as store:
        with store.transaction():
            for n in range(N):
                store.add_turn(Turn(moment(n), str(n)))
        yield store


def ranked(retriever, view, query, k, period=ANY_TIME, exclude=frozenset()) -> list[int]:
    turns = retriever.rank_turns(view, query, k, period, exclude, by_time=False)
    return [turn.index for turn in turns]


rows = st.integers(0, N - 1)


@settings(deadline=None, max_examples=60)
@given(
    first=rows,
    last=rows,
    known=rows,
    query=rows,
    k=st.integers(1, 600),
    exclude=st.sets(rows, max_size=400),
)
def test_only_allowed_rows_and_as_many_as_requested(store, first, last, known, query, k, exclude):
    view = store.as_of(moment(known))
    period = Period(moment(first), moment(last))
    ids = ranked(APPROXIMATE, view, str(query), k, period, exclude)
    last_visible = min(last, known)
    allowed = set(range(first, last_visible + 1)) - exclude
    distinct = set(ids)
    assert distinct <= allowed
    assert len(distinct) == len(ids)
    assert len(ids) == min(k, len(allowed))


def test_nearly_all_neighbors_are_found_overall_and_all_in_a_part(store):
    view = store.as_of()
    part = Period(start=moment(1600))
    hits = 0
    for row in range(0, N, 60):
        query = str(row)
        exact = ranked(EXACT, view, query, 10)
        approximate = ranked(APPROXIMATE, view, query, 10)
        assert approximate[0] == row
        hits += len(set(exact) & set(approximate))
        in_part = ranked(APPROXIMATE, view, query, 10, part)
        assert in_part == ranked(EXACT, view, query, 10, part)
    assert hits > 0.9 * 10 * N / 60


def test_rows_that_the_index_misses_follow_in_exact_order(store):
    view = store.as_of()
    exact = ranked(EXACT, view, "7", N)
    approximate = ranked(APPROXIMATE, view, "7", N)
    assert sorted(approximate) == list(range(N))
    rest = approximate[MAX_RESULTS:]
    missed = set(rest)
    assert rest == [row for row in exact if row in missed]


def test_the_index_grows_with_the_rows():
    rng = np.random.default_rng(0)
    index = IvfIndex()
    vectors = rng.normal(size=(2000, 16)).astype(np.float32)
    for n in (1, 5, 900, 1000, 2000):
        last = vectors[n - 1]
        scores = index.search(vectors[:n], last[None], 0, n)
        assert scores.shape == (n,)
        assert scores[n - 1] == pytest.approx(last @ last, rel=1e-5)


def test_the_approximate_index_is_for_the_dense_ranking_only():
    message = "index 'approximate' is only for ranking 'dense'; ranking 'hybrid' needs"
    with pytest.raises(ValueError, match=message):
        Retriever(index="approximate")
    with pytest.raises(ValueError, match="index is 'quick'; choose exact or approximate"):
        Retriever(index="quick")
