"""What an approximate index may miss, and what it may not."""

from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personavlm_lib.memory.ivf import FOUND, IvfIndex
from personavlm_lib.memory.records import Turn
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore

N, START = 3000, datetime(2024, 5, 1)
EXACT, APPROXIMATE = Retriever(ranking="dense"), Retriever(ranking="dense", index="approximate")


class Grouped:
    """The text "n" is a vector near the centre of its group, one of forty."""

    name = "grouped"

    def encode(self, texts) -> np.ndarray:
        rng = np.random.default_rng(0)
        vectors = np.tile(rng.normal(size=(40, 64)), (N // 40, 1)) + 0.7 * rng.normal(size=(N, 64))
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors[[int(text) for text in texts]].astype(np.float32)


def moment(n: int) -> datetime:
    return START + timedelta(minutes=n)


@pytest.fixture(scope="module")
def store():
    with MemoryStore.in_memory(Grouped()) as store:
        with store.transaction():
            for n in range(N):
                store.add_turn(Turn(moment(n), str(n)))
        yield store


def found(retriever, view, text, k, *period, exclude=frozenset()) -> list[int]:
    return [
        turn.index for turn in retriever.rank_turns(view, text, k, *period, exclude, by_time=False)
    ]


rows = st.integers(0, N - 1)


@settings(deadline=None, max_examples=60)
@given(
    first=rows,
    last=rows,
    known=rows,
    asked=rows,
    k=st.integers(1, 600),
    barred=st.sets(rows, max_size=400),
)
def test_nothing_from_outside_and_as_many_as_asked_for(store, first, last, known, asked, k, barred):
    ids = found(
        APPROXIMATE,
        store.as_of(moment(known)),
        str(asked),
        k,
        moment(first),
        moment(last),
        exclude=barred,
    )
    allowed = set(range(first, min(last, known) + 1)) - barred
    assert set(ids) <= allowed and len(set(ids)) == len(ids) == min(k, len(allowed))


def test_it_finds_nearly_all_over_all_and_all_in_a_part(store):
    view, hits = store.as_of(), 0
    for asked in range(0, N, 60):
        exact, near = (found(retriever, view, str(asked), 10) for retriever in (EXACT, APPROXIMATE))
        assert near[0] == asked
        hits += len(set(exact) & set(near))
        period = moment(1600), None
        assert found(APPROXIMATE, view, str(asked), 10, *period) == found(
            EXACT, view, str(asked), 10, *period
        )
    assert hits > 0.9 * 10 * N / 60


def test_what_the_index_did_not_find_follows_in_exact_order(store):
    ids, exact = (found(retriever, store.as_of(), "7", N) for retriever in (APPROXIMATE, EXACT))
    assert sorted(ids) == list(range(N))
    rest = ids[FOUND:]
    assert rest == [row for row in exact if row in set(rest)]


def test_cells_grow_with_the_rows():
    rng, cells = np.random.default_rng(0), IvfIndex()
    vectors = rng.normal(size=(2000, 16)).astype(np.float32)
    for n in (1, 5, 900, 1000, 2000):
        scores = cells.search(vectors[:n], vectors[n - 1 : n], 0, n)
        assert scores.shape == (n,) and scores[n - 1] == pytest.approx(
            vectors[n - 1] @ vectors[n - 1], rel=1e-5
        )


def test_only_a_dense_ranking_takes_it():
    with pytest.raises(
        ValueError, match="index 'approximate' serves ranking 'dense' alone; 'hybrid' takes"
    ):
        Retriever(index="approximate")
    with pytest.raises(ValueError, match="index is 'quick'; choose exact or approximate"):
        Retriever(index="quick")
