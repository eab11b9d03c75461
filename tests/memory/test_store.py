"""The store: exact as of any moment, unchanged by reopening, and clear about invalid input."""

import random
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from personavlm_lib.memory.forget import forget
from personavlm_lib.memory.records import (
    SESSION_GAP,
    BigFive,
    CoreMemory,
    Episode,
    Period,
    PersonalityState,
    ProceduralMemory,
    RejectedUpdate,
    SemanticMemory,
    Turn,
    VisualConcept,
)
from personavlm_lib.memory.search import Retriever
from personavlm_lib.memory.store import MemoryStore, StoreError

PARTS = (
    "turns",
    "semantic",
    "episodes",
    "core",
    "procedural",
    "personality",
    "personality_history",
    "rejected",
)


def day(n: float) -> datetime:
    """The moment `n` days after the start."""
    return datetime(2024, 5, 1, 9) + timedelta(days=n)


def fact(text: str, time: datetime) -> SemanticMemory:
    return SemanticMemory(text, "", time, time, time)


def parts(view):
    return {part: getattr(view, part) for part in PARTS}


def write(store, event):
    name, *arguments = event
    getattr(store, name)(*arguments)


def random_session_end(rng, n):
    """The writes of the session that ends with turn `n`."""
    time = day(n / 4)
    start = time - timedelta(days=1)
    known = time + SESSION_GAP
    turns = tuple(range(n - 4, n + 1))
    episode = Episode(f"e{n}", "", turns, start, time, known)
    human = {}
    for key in ("age", "city", "pet"):
        if rng.random() < 0.7:
            human[key] = str(rng.randint(0, 2))
    core = CoreMemory(human, {"job": str(n)}, known, (n - 1, n))
    habits = {key: f"at {n}" for key in ("run", "read") if rng.random() < 0.5}
    procedural = ProceduralMemory(habits, known, (n,))
    rejected = RejectedUpdate("core", f"raw {n}", "bad", known, (n,))
    yield known, ("add_episode", episode)
    yield known, ("set_core", core)
    yield known, ("set_procedural", procedural)
    yield known, ("append", "rejected", rejected)


def random_history(rng):
    """Writes of every kind in the order in which they become known, some about earlier times."""
    events = []
    for n in range(25):
        time = day(n / 4)
        turn = Turn(time, f"turn {n}", "ok")
        events.append((time, ("add_turn", turn)))
        if rng.random() < 0.5:
            start = time - timedelta(days=rng.choice([0, 0, 2]))
            memory = SemanticMemory(f"fact {n}", f"f{n}", start, time, time, sources=(n,))
            events.append((time, ("add_semantic", memory)))
        scores = [rng.randint(1, 5) for _ in range(5)]
        state = PersonalityState(BigFive(*scores), None, n, n + 1, time)
        events.append((time, ("add_personality", state)))
        if n % 5 == 4:
            events.extend(random_session_end(rng, n))
    return sorted(events, key=lambda event: event[0])


@given(st.randoms(use_true_random=False), st.floats(-0.5, 7))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_as_of_equals_a_store_filled_up_to_that_moment(encoder, rng, days):
    history = random_history(rng)
    retriever = Retriever()
    period = Period(day(0), day(5))
    with MemoryStore.in_memory(encoder) as whole:
        for _, event in history:
            write(whole, event)
        for moment in (day(days), rng.choice(history)[0]):
            with MemoryStore.in_memory(encoder) as partial:
                for time, event in history:
                    if time <= moment:
                        write(partial, event)
                past = whole.as_of(moment)
                expected = partial.as_of()
                assert parts(past) == parts(expected)
                retrieved = retriever.retrieve(past, "fact 7 turn", period)
                assert retrieved == retriever.retrieve(expected, "fact 7 turn", period)


def test_reopening_gives_an_equal_view_and_keeps_the_vectors(tmp_path, encoder):
    with MemoryStore(tmp_path / "kai", encoder) as store:
        for _, event in random_history(random.Random(0)):
            write(store, event)
        view = store.as_of()
        before = parts(view)
        retrieved = Retriever().retrieve(view, "fact 3")
    encoder.batches.clear()
    with MemoryStore(tmp_path / "kai", encoder) as store:
        view = store.as_of()
        assert parts(view) == before
        assert Retriever().retrieve(view, "fact 3") == retrieved
    assert encoder.batches == [1]  # only the query: all other vectors came from the disk


def test_vectors_are_computed_in_one_batch_and_for_new_rows_only(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n in range(10):
            store.add_semantic(fact(f"fact {n}", day(n)))
        assert encoder.batches == []
        Retriever().retrieve(store.as_of(), "fact 1")
        store.add_semantic(fact("fact 10", day(3)))  # out of order, as of a late writer
        retrieved = Retriever().retrieve(store.as_of(), "10", Period(day(2.5), day(3.5)))
        assert retrieved.ids == ["semantic:3", "semantic:10"]
    assert encoder.batches == [1, 10, 1, 1]


def test_vectors_of_another_encoder_are_replaced(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as store:
        store.add_semantic(fact("fact", day(0)))
        Retriever().retrieve(store.as_of(), "fact")

    class Narrow:
        name = "narrow"

        def encode(self, texts):
            return np.ones((len(texts), 2), np.float32)

    with MemoryStore(tmp_path, Narrow()) as store:
        assert Retriever().retrieve(store.as_of(), "fact").ids == ["semantic:0"]


def test_a_store_is_opened_with_the_encoder_it_was_created_with(tmp_path, encoder):
    with MemoryStore(tmp_path / "other", encoder):
        pass
    with MemoryStore(tmp_path / "other") as store, MemoryStore(tmp_path / "usual") as usual:
        assert (store.encoder.name, usual.encoder.name) == ("words", "all-MiniLM-L6-v2")


def test_images_are_copied_and_the_folder_can_be_moved(tmp_path, encoder):
    picture = tmp_path / "Holiday.PNG"
    Image.new("RGB", (2, 2), "red").save(picture)
    pixels = picture.read_bytes()
    with MemoryStore(tmp_path / "kai", encoder) as store:
        turn = store.add_turn(Turn(day(0), "look <img>", images=(str(picture),)))
        concept = VisualConcept("Rex", "dog", str(picture))
        memory = SemanticMemory("Rex", "dog", day(0), day(0), day(0), "concept", concept)
        store.add_semantic(memory)
        assert turn.index == 0
        assert turn.images == (str(store.images / "turn00000_0.png"),)
    picture.unlink()
    shutil.move(tmp_path / "kai", tmp_path / "moved")
    with MemoryStore(tmp_path / "moved", encoder) as store:
        view = store.as_of()
        for path in (view.turns[0].images[0], view.semantic[0].concept.crop):
            assert path.startswith(str(tmp_path / "moved"))
            with open(path, "rb") as file:
                assert file.read() == pixels
        with pytest.raises(ValueError, match="Holiday.PNG cannot be read .it is missing"):
            store.add_turn(Turn(day(1), "again <img>", images=(str(picture),)))
        assert len(store.as_of().turns) == 1


def test_later_writes_do_not_change_a_view(encoder):
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(day(0), "one"))
        view = store.as_of()
        store.add_turn(Turn(day(1), "two"))
        later = store.as_of()
        assert [turn.user for turn in view.turns] == ["one"]
        assert len(later.turns) == 2


def test_a_transaction_takes_effect_as_a_whole_or_not_at_all(encoder):
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(day(0), "one"))
        core = CoreMemory({"name": "Kai"}, {}, day(1))
        bad_episode = Episode("e", "", (7,), day(0), day(0), day(1))
        with pytest.raises(ValueError, match="names turns \\[7\\]"), store.transaction():
            store.set_core(core)
            store.add_episode(bad_episode)
        assert store.as_of().core is None
        store.set_core(core)
        assert store.as_of().core.human == {"name": "Kai"}


def test_writes_of_another_process_are_seen(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as reader, MemoryStore(tmp_path, encoder) as writer:
        assert reader.as_of().turns == []
        writer.add_turn(Turn(day(0), "one"))
        turns = reader.as_of().turns
        assert [turn.user for turn in turns] == ["one"]
        second = reader.add_turn(Turn(day(1), "two"))
        assert second.index == 1


def test_a_late_turn_is_kept_and_known_from_the_turn_before_it(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as store:
        for time, text in ((day(1), "first"), (day(0), "late"), (day(2), "last")):
            store.add_turn(Turn(time, text))
        for _ in range(2):
            view = store.as_of()
            assert [turn.user for turn in view.turns] == ["first", "late", "last"]
            assert [view.turn(index).user for index in range(3)] == ["first", "late", "last"]
            assert store.as_of(day(0.5)).turns == []
            assert [turn.user for turn in store.as_of(day(1)).turns] == ["first", "late"]
            found = Retriever(ranking="bm25").rank_turns(view, "late", 1, Period(day(0), day(0.5)))
            assert [turn.index for turn in found] == [1]
            store._drop_loaded()
        late = store.add_turn(Turn(day(0), "said later", received=day(3)))
        assert late.known_from == day(3)
        assert len(store.as_of(day(2)).turns) == 3


def test_a_clock_that_was_once_far_ahead_hides_nothing(tmp_path, encoder):
    future = datetime(2199, 1, 1)
    with MemoryStore(tmp_path, encoder) as store:
        first = store.add_turn(Turn(future, "hi"))
        store.set_core(CoreMemory({"name": "Kai"}, {}, future + SESSION_GAP, (0,)))
        now = datetime.now(UTC)
        second = store.add_turn(Turn(now, "hi again"))
        assert second.known_from < datetime(2190, 1, 1)
        view = store.as_of(now + timedelta(days=1))
        assert [turn.user for turn in view.turns] == ["hi", "hi again"]
        assert view.turn(0).time == first.time
        assert view.core.human == {"name": "Kai"}
        assert store.sql("SELECT count(*) FROM turns WHERE known_from > '2190'") == [(0,)]


def test_times_with_a_zone_are_converted_wherever_a_time_is_accepted(encoder):
    rome = timezone(timedelta(hours=2))
    with MemoryStore.in_memory(encoder) as store:
        turn = store.add_turn(Turn(day(1).replace(tzinfo=rome), "one", received=None))
        assert (turn.time, turn.utc_offset) == (day(1) - timedelta(hours=2), 120)
        assert turn.local_time == day(1)
        store.add_semantic(fact("one", day(1).replace(tzinfo=rome)))
        store.set_core(CoreMemory({"a": "b"}, {}, day(1).replace(tzinfo=rome)))
        view = store.as_of(day(1).replace(tzinfo=rome))
        assert len(view.turns) == len(view.semantic) == 1
        assert view.core
        assert store.as_of((day(1) - timedelta(seconds=1)).replace(tzinfo=rome)).turns == []
        for hours, count in ((2, 1), (0, 0)):  # the same wall clock, in Rome and in London
            zone = timezone(timedelta(hours=hours))
            period = Period(day(1).replace(tzinfo=zone), day(1.01).replace(tzinfo=zone))
            assert len(Retriever().rank_turns(view, "one", 3, period)) == count
        forget(store, start=day(1).replace(tzinfo=rome), end=day(1).replace(tzinfo=rome))
        assert store.as_of().turns == []


def test_an_ablation_hides_one_memory_type_and_nothing_else(encoder):
    hidden_parts = {
        "core": {"core"},
        "semantic": {"semantic"},
        "episodic": {"episodes"},
        "procedural": {"procedural"},
        "personality": {"personality", "personality_history"},
    }
    with MemoryStore.in_memory(encoder) as store:
        for _, event in random_history(random.Random(1)):
            write(store, event)
        view = store.as_of()
        for kind, expected in hidden_parts.items():
            ablated = view.without(kind)
            for part in expected:
                assert getattr(view, part)
                assert not getattr(ablated, part)
            changed = {part for part in PARTS if getattr(ablated, part) != getattr(view, part)}
            assert changed == expected
        with pytest.raises(ValueError, match="episodes"):
            view.without("episodes")


def test_newer_foreign_and_damaged_files_are_rejected(tmp_path):
    statements = {"newer": "PRAGMA user_version = 99", "foreign": "CREATE TABLE t (x)"}
    for name, statement in statements.items():
        (tmp_path / name).mkdir()
        db = sqlite3.connect(tmp_path / name / "memory.db", isolation_level=None)
        db.execute(statement)
        db.close()
    with pytest.raises(StoreError, match="newer/memory.db has schema 99"):
        MemoryStore(tmp_path / "newer")
    with pytest.raises(StoreError, match="foreign/memory.db is another program's"):
        MemoryStore(tmp_path / "foreign")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "memory.db").write_bytes(b"not a database " * 100)
    with pytest.raises(StoreError, match="damaged/memory.db cannot be read") as caught:
        MemoryStore(tmp_path / "damaged")
    assert "\n" not in str(caught.value)


def test_a_damaged_row_is_reported_with_its_file_and_table(tmp_path):
    with MemoryStore(tmp_path) as store:
        store.add_turn(Turn(day(0), "one"))
    db = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    db.execute("UPDATE turns SET record = 'x'")
    db.close()
    message = "memory.db: a row of turns"
    with MemoryStore(tmp_path) as store, pytest.raises(StoreError, match=message):
        store.as_of()
