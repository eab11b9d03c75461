"""The store: exact at any moment, the same after reopening, and clear about what it refuses."""

import random
import shutil
import sqlite3
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from personavlm_lib.memory.records import (
    SESSION_GAP,
    BigFive,
    CoreMemory,
    Episode,
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
    """The moment `n` days after the life begins."""
    return datetime(2024, 5, 1, 9) + timedelta(days=n)


def parts(view):
    return {part: getattr(view, part) for part in PARTS}


def write(store, event):
    name, *arguments = event
    getattr(store, name)(*arguments)


def random_life(rng):
    """Writes of every kind in the order in which they become known, some about times long before."""
    events = []
    for n in range(25):
        t = day(n / 4)
        events.append((t, ("add_turn", Turn(t, f"turn {n}", "ok"))))
        if rng.random() < 0.5:
            about = t - timedelta(days=rng.choice([0, 0, 2]))
            events.append(
                (
                    t,
                    (
                        "add_semantic",
                        SemanticMemory(f"fact {n}", f"f{n}", about, t, t, sources=(n,)),
                    ),
                )
            )
        scores = BigFive(*(rng.randint(1, 5) for _ in range(5)))
        events.append((t, ("add_personality", PersonalityState(scores, None, n, n + 1, t))))
        known = t + SESSION_GAP
        if n % 5 == 4:
            events.append(
                (
                    known,
                    (
                        "add_episode",
                        Episode(f"e{n}", "", tuple(range(n - 4, n + 1)), day(n / 4 - 1), t, known),
                    ),
                )
            )
            human = {
                key: str(rng.randint(0, 2)) for key in ("age", "city", "pet") if rng.random() < 0.7
            }
            events.append(
                (known, ("set_core", CoreMemory(human, {"job": str(n)}, known, (n - 1, n))))
            )
            habits = {key: f"at {n}" for key in ("run", "read") if rng.random() < 0.5}
            events.append((known, ("set_procedural", ProceduralMemory(habits, known, (n,)))))
            events.append(
                (
                    known,
                    ("append", "rejected", RejectedUpdate("core", f"raw {n}", "bad", known, (n,))),
                )
            )
    return sorted(events, key=lambda event: event[0])


@given(st.randoms(use_true_random=False), st.floats(-0.5, 7))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_as_of_is_what_a_store_filled_only_up_to_then_holds(encoder, rng, days):
    life = random_life(rng)
    with MemoryStore.in_memory(encoder) as whole:
        for _, event in life:
            write(whole, event)
        for moment in (day(days), rng.choice(life)[0]):
            with MemoryStore.in_memory(encoder) as partial:
                for time, event in life:
                    if time <= moment:
                        write(partial, event)
                assert parts(whole.as_of(moment)) == parts(partial.as_of())
                find = (Retriever(), "fact 7 turn", day(0), day(5))
                assert find[0].retrieve(whole.as_of(moment), *find[1:]) == find[0].retrieve(
                    partial.as_of(), *find[1:]
                )


def test_reopening_gives_an_equal_view_and_keeps_the_vectors(tmp_path, encoder):
    with MemoryStore(tmp_path / "kai", encoder) as store:
        for _, event in random_life(random.Random(0)):
            write(store, event)
        before = parts(store.as_of())
        found = Retriever().retrieve(store.as_of(), "fact 3")
    encoder.batches.clear()
    with MemoryStore(tmp_path / "kai", encoder) as store:
        assert parts(store.as_of()) == before
        assert Retriever().retrieve(store.as_of(), "fact 3") == found
    assert encoder.batches == [1]  # the query alone: all other vectors came from disk


def test_vectors_are_made_in_one_batch_and_for_new_rows_only(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for n in range(10):
            store.add_semantic(SemanticMemory(f"fact {n}", "", day(n), day(n), day(n)))
        assert encoder.batches == []
        Retriever().retrieve(store.as_of(), "fact 1")
        store.add_semantic(
            SemanticMemory("fact 10", "", day(3), day(3), day(3))
        )  # out of order, as a late writer's
        assert Retriever().retrieve(store.as_of(), "10", day(2.5), day(3.5)).ids == [
            "semantic:3",
            "semantic:10",
        ]
    assert encoder.batches == [1, 10, 1, 1]


def test_vectors_of_another_encoder_are_made_anew(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as store:
        store.add_semantic(SemanticMemory("fact", "", day(0), day(0), day(0)))
        Retriever().retrieve(store.as_of(), "fact")

    class Narrow:
        name = "narrow"

        def encode(self, texts):
            return np.ones((len(texts), 2), np.float32)

    with MemoryStore(tmp_path, Narrow()) as store:
        assert Retriever().retrieve(store.as_of(), "fact").ids == ["semantic:0"]


def test_a_store_is_opened_with_the_encoder_that_it_was_made_with(tmp_path, encoder):
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
        store.add_semantic(SemanticMemory("Rex", "dog", day(0), day(0), day(0), "concept", concept))
        assert turn.index == 0 and turn.images == (str(store.images / "turn00000_0.png"),)
    picture.unlink()
    shutil.move(tmp_path / "kai", tmp_path / "moved")
    with MemoryStore(tmp_path / "moved", encoder) as store:
        for path in (store.as_of().turns[0].images[0], store.as_of().semantic[0].concept.crop):
            assert path.startswith(str(tmp_path / "moved"))
            with open(path, "rb") as file:
                assert file.read() == pixels
        with pytest.raises(ValueError, match="Holiday.PNG cannot be read .it is missing"):
            store.add_turn(Turn(day(1), "again <img>", images=(str(picture),)))
        assert len(store.as_of().turns) == 1


def test_a_view_does_not_move_when_the_store_learns_more(encoder):
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(day(0), "one"))
        view = store.as_of()
        store.add_turn(Turn(day(1), "two"))
        assert [turn.user for turn in view.turns] == ["one"] and len(store.as_of().turns) == 2


def test_several_writes_happen_together_or_not_at_all(encoder):
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(day(0), "one"))
        with pytest.raises(ValueError, match="names turns \\[7\\]"), store.transaction():
            store.set_core(CoreMemory({"name": "Kai"}, {}, day(1)))
            store.add_episode(Episode("e", "", (7,), day(0), day(0), day(1)))
        assert store.as_of().core is None
        store.set_core(CoreMemory({"name": "Kai"}, {}, day(1)))
        assert store.as_of().core.human == {"name": "Kai"}


def test_another_process_writing_is_noticed(tmp_path, encoder):
    with MemoryStore(tmp_path, encoder) as reader, MemoryStore(tmp_path, encoder) as writer:
        assert reader.as_of().turns == []
        writer.add_turn(Turn(day(0), "one"))
        assert [turn.user for turn in reader.as_of().turns] == ["one"]
        assert reader.add_turn(Turn(day(1), "two")).index == 1


def test_turns_come_in_order_of_time(encoder):
    with MemoryStore.in_memory(encoder) as store:
        store.add_turn(Turn(day(1), "one"))
        with pytest.raises(
            ValueError, match="2024-05-01 09:00:00 after one of 2024-05-02 09:00:00"
        ):
            store.add_turn(Turn(day(0), "earlier"))


def test_an_ablation_hides_a_type_and_nothing_else(encoder):
    with MemoryStore.in_memory(encoder) as store:
        for _, event in random_life(random.Random(1)):
            write(store, event)
        view = store.as_of()
        names = {
            "core": "core",
            "semantic": "semantic",
            "episodic": "episodes",
            "procedural": "procedural",
        }
        for kind, part in (names | {"personality": "personality"}).items():
            hidden = view.without(kind)
            assert not getattr(hidden, part) and getattr(view, part)
            changed = {p for p in PARTS if getattr(hidden, p) != getattr(view, p)}
            assert changed == (
                {"personality", "personality_history"} if kind == "personality" else {part}
            )
        with pytest.raises(ValueError, match="episodes"):
            view.without("episodes")


def test_a_newer_schema_a_foreign_file_and_a_damaged_one_are_refused(tmp_path):
    for name, statement in (
        ("newer", "PRAGMA user_version = 99"),
        ("foreign", "CREATE TABLE t (x)"),
    ):
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


def test_a_damaged_row_names_its_file_and_table(tmp_path):
    with MemoryStore(tmp_path) as store:
        store.add_turn(Turn(day(0), "one"))
    db = sqlite3.connect(tmp_path / "memory.db", isolation_level=None)
    db.execute("UPDATE turns SET record = 'x'")
    db.close()
    with (
        MemoryStore(tmp_path) as store,
        pytest.raises(StoreError, match="memory.db: a row of turns"),
    ):
        store.as_of()
