"""Core and procedural memory are edited entry by entry; invalid edits change nothing."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personavlm_lib.memory.records import (
    CoreMemory,
    Edit,
    ProceduralMemory,
    Turn,
    from_json,
    to_json,
)
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.versions import MAX_KEY, MAX_VALUE, apply_edits, diff_versions, entries

NOON = datetime(2024, 5, 3, 12)
ODD = "at 7:30 \"sharp\", 'ok' 🧘‍♀️\n两行\u2028end"
blocks = st.dictionaries(
    st.sampled_from(["name", "city", "a: b", 'say "x"', "🐈"]), st.sampled_from(["1", "2", ODD])
)


@pytest.fixture
def store(encoder):
    with MemoryStore.in_memory(encoder) as store:
        yield store


@given(blocks, blocks, blocks, blocks)
def test_diff_turns_one_version_into_the_other(human, persona, later_human, later_persona):
    before, after = CoreMemory(human, persona, NOON), CoreMemory(later_human, later_persona, NOON)
    edits = diff_versions(before, after)
    assert entries(apply_edits(before, edits)) == entries(after)
    assert len(edits) == sum(
        entries(before).get(at) != entries(after).get(at) for at in entries(before) | entries(after)
    )
    version = CoreMemory(later_human, later_persona, NOON, edits=edits)
    assert from_json(CoreMemory, to_json(version)) == version


@pytest.mark.parametrize(
    "edits, message",
    [
        ([Edit("add", "entries", "yoga", "x")], "cannot add 'yoga': it already exists"),
        ([Edit("change", "entries", "chess", "x")], "cannot change 'chess': it does not exist"),
        ([Edit("remove", "entries", "chess")], "cannot remove 'chess': it does not exist"),
        ([Edit("rename", "entries", "yoga", "x")], "unknown edit 'rename'"),
        ([Edit("add", "human", "city", "x")], "block 'human'"),
        ([Edit("add", "entries", "chess", " ")], "'chess' has no value"),
        ([Edit("add", "entries", " ", "plays")], "'plays' has no key"),
        ([Edit("add", "entries", "k" * (MAX_KEY + 1), "x")], "too long"),
        ([Edit("change", "entries", "yoga", "x" * (MAX_VALUE + 1))], "too long"),
        ([Edit("add", "entries", key, "x") for key in "abc"], "6 entries, at most 5"),
    ],
)
def test_invalid_edit_is_rejected_and_the_version_unchanged(store, edits, message):
    version = store.set_procedural(
        ProceduralMemory({"yoga": "daily", "run": "at 7:30", "tea": "at 5"}, NOON)
    )
    with pytest.raises(ValueError, match=message):
        store.edit("procedural", edits, NOON)
    assert store.as_of().procedural == version and len(version.entries) == 3


def test_edits_are_stored_and_older_versions_remain(store):
    store.set_core(CoreMemory({"name": "Kai", "city": "Rome"}, {"job": "nurse"}, NOON))
    later = NOON + timedelta(days=1)
    edits = [
        Edit("change", "human", "city", ODD),
        Edit("remove", "persona", "job"),
        Edit("add", "human", "pet", "cat"),
    ]
    version = store.edit("core", edits, later, written_by="me")
    assert (version.human, version.persona) == ({"name": "Kai", "city": ODD, "pet": "cat"}, {})
    assert set(version.edits) == set(edits) and store.as_of().core == version
    assert store.as_of(NOON).core.human["city"] == "Rome"
    # No edit, no new version.
    assert store.set_core(CoreMemory(version.human, {}, later)) == version
    assert len(store.as_of().table("core").records) == 2


def test_core_memory_cannot_lose_the_name(store):
    store.set_core(CoreMemory({"city": "Rome"}, {}, NOON))  # the name is not known yet
    store.set_core(CoreMemory({"Name": "Kai"}, {}, NOON))
    for attempt in (
        lambda: store.set_core(CoreMemory({"city": "Oslo"}, {}, NOON)),
        lambda: store.edit("core", [Edit("remove", "human", "Name")], NOON),
    ):
        with pytest.raises(ValueError, match="name is lost"):
            attempt()
    assert store.as_of().core.human == {"Name": "Kai"}


def test_entry_origins_are_the_turns_that_its_last_edit_was_made_from(store):
    for n, text in enumerate(("I live in Rome", "my cat is Miso", "ok")):
        store.add_turn(Turn(NOON + timedelta(minutes=n), text))
    first = store.set_core(CoreMemory({"city": "Rome", "mood": "happy"}, {}, NOON, (0, 1, 2)))
    assert first.origins["human"] == {"city": (0, 1, 2), "mood": (0, 1, 2)}
    store.add_turn(Turn(NOON + timedelta(hours=3), "Rome is hot, Miso sleeps"))
    human = {"city": "Rome", "mood": "sleepy", "pet": "Miso"}
    second = store.set_core(CoreMemory(human, {}, NOON + timedelta(hours=4), (3,)))
    assert second.origins["human"] == {"city": (0, 1, 2), "mood": (3,), "pet": (3,)}
